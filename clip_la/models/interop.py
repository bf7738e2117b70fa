"""To and from open_clip: names, configurations, weights. open_clip is imported when used."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_la.atomic import atomic_write
from clip_la.errors import UserError, unknown
from clip_la.models.checkpoint import load_weights
from clip_la.models.clip import CLIP, empty_model
from clip_la.models.foreign_config import check_model_config
from clip_la.models.open_clip_module import HUB_SCHEMES, create_open_clip, read_state_dict, towers
from clip_la.models.registry import list_models, model_spec
from clip_la.models.spec import CLIP_VOCAB_SIZE, ModelSpec
from clip_la.models.state_dicts import plain_names

# Presets that are open_clip's, by its name for them.
OPEN_CLIP_NAMES = {"vit_s16": "ViT-S-16", "vit_b16": "ViT-B-16", "vit_l16": "ViT-L-16"}
_TOP = {"visual.class_embedding": "image.trunk.cls_token", "logit_scale": "logit_scale"}
_TOP |= {"visual.conv1.weight": "image.trunk.patch_embed.proj.weight"}
_TOP |= {"visual.positional_embedding": "image.trunk.pos_embed"}
_TOP |= {"visual.proj": "image.projection.weight", "text_projection": "text.projection.weight"}
_TOP |= {"token_embedding.weight": "text.token_embedding.weight", "positional_embedding": "text.position_embedding"}
_NORMS = {"visual.ln_pre": "image.trunk.norm_pre", "visual.ln_post": "image.trunk.fc_norm", "ln_final": "text.norm"}
_BLOCK = {
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj.": "attn.proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
# open_clip stores these with the input first, a linear layer of ours with the output first.
_TRANSPOSED = ("visual.proj", "text_projection")


def _name_map(spec: ModelSpec) -> dict[str, str]:
    """open_clip's name of each parameter -> ours."""
    names = dict(_TOP)
    parts = {**_NORMS}
    for theirs, ours, depth in (
        ("visual.transformer", "image.trunk.blocks", spec.image_layers),
        ("transformer", "text.blocks", spec.text_layers),
    ):
        for i in range(depth):
            parts |= {f"{theirs}.resblocks.{i}.{a}": f"{ours}.{i}.{b}" for a, b in _BLOCK.items()}
    for theirs, ours in parts.items():
        dot = "" if theirs.endswith((".", "_")) else "."
        names |= {f"{theirs}{dot}{kind}": f"{ours}{dot}{kind}" for kind in ("weight", "bias")}
    return names


def from_open_clip(state_dict: Mapping[str, Tensor], spec: ModelSpec, source: str) -> CLIP:
    """Our model with open_clip's weights, float32 on the CPU; raises UserError, naming `source`, if they do not fit."""
    names = _name_map(spec)
    model = empty_model(spec)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights = {}
    for theirs, tensor in plain_names(state_dict, source).items():
        theirs = theirs.removeprefix("text.")  # of CustomTextCLIP
        if theirs == "logit_bias":  # of the sigmoid loss: added to every logit, it moves no feature and no ranking
            continue
        ours = names.get(theirs, theirs)
        if theirs in _TRANSPOSED and tensor.ndim == 2:
            tensor = tensor.T
        # Class token and positions have leading axes of one here, the logit scale may have one there: same numbers.
        if ours in shapes and tensor.squeeze().shape == torch.Size(n for n in shapes[ours] if n > 1):
            tensor = tensor.reshape(shapes[ours])
        weights[ours] = tensor.contiguous()
    load_weights(model, weights, source)
    return model


def to_open_clip(model: CLIP) -> dict[str, Tensor]:
    """The weights under open_clip's names and shapes; raises UserError unless every layer is softmax attention."""
    _must_be_softmax(model.spec)
    ours = model.state_dict()
    converted = {}
    for theirs, name in _name_map(model.spec).items():
        tensor = ours[name].detach()
        if theirs in _TRANSPOSED:
            tensor = tensor.T
        if name in ("image.trunk.cls_token", "image.trunk.pos_embed"):
            tensor = tensor.reshape(tensor.shape[1:] if name == "image.trunk.pos_embed" else tensor.shape[2:])
        converted[theirs] = tensor.contiguous()
    return converted


def _must_be_softmax(spec: ModelSpec) -> None:
    if spec.attention != "softmax":
        raise UserError(
            f"this {spec.name} has {spec.attention} attention; open_clip has softmax only, its features would differ"
        )


def to_open_clip_config(spec: ModelSpec) -> dict[str, Any]:
    """open_clip's configuration of the same architecture; raises UserError unless every layer is softmax attention."""
    _must_be_softmax(spec)
    config: dict[str, Any] = {
        "embed_dim": spec.embed_dim,
        "vision_cfg": {
            "image_size": spec.image_size,
            "layers": spec.image_layers,
            "width": spec.image_width,
            "head_width": spec.image_width // spec.image_heads,
            "patch_size": spec.patch_size,
        },
        "text_cfg": {
            "context_length": spec.context_length,
            "vocab_size": spec.vocab_size,
            "width": spec.text_width,
            "heads": spec.text_heads,
            "layers": spec.text_layers,
        },
    }
    return config | ({"quick_gelu": True} if spec.activation == "quick_gelu" else {})


def spec_from_open_clip_config(name: str, config: Mapping[str, Any]) -> ModelSpec:
    """Our specification of an open_clip configuration; raises UserError naming the first part that our models lack."""
    parts = towers()
    config = check_model_config(config, parts, f"open_clip's {name}")
    vision, text = (kind(**config[key]) for key, kind in parts.items())
    ours = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"}
    foreign = [key for key in config if key not in ours]
    for part, handled in (
        (vision, {"image_size", "layers", "width", "patch_size", "head_width", "output_tokens"}),
        (text, {"context_length", "vocab_size", "width", "heads", "layers", "output_tokens"}),
    ):
        # Anything else that is not at its default makes another model: a pooling, a norm, a layer scale.
        others = [field for field in dataclasses.fields(part) if field.name not in handled]
        foreign += [f"{f.name}={getattr(part, f.name)}" for f in others if getattr(part, f.name) != f.default]
    if foreign or not isinstance(vision.layers, int):
        raise UserError(
            f"open_clip's {name} is no plain ViT CLIP, our models lack: {', '.join(foreign) or 'ResNet layers'}"
        )
    if text.vocab_size != CLIP_VOCAB_SIZE:
        raise UserError(f"open_clip's {name} has a vocabulary of {text.vocab_size}, not CLIP's {CLIP_VOCAB_SIZE}")
    sides = vision.image_size if isinstance(vision.image_size, list | tuple) else (vision.image_size,)
    if len(set(sides)) != 1:
        raise UserError(f"open_clip's {name} takes images of {sides} pixels, our models square ones")
    return ModelSpec(
        name=name,
        embed_dim=config["embed_dim"],
        image_size=sides[0],
        patch_size=vision.patch_size,
        image_width=vision.width,
        image_layers=vision.layers,
        image_heads=vision.width // vision.head_width,
        text_width=text.width,
        text_layers=text.layers,
        text_heads=text.heads,
        context_length=text.context_length,
        activation="quick_gelu" if config.get("quick_gelu") else "gelu",
    )


def load_open_clip(text: str) -> CLIP:
    """An open_clip model as ours, in float32 on the CPU.

    Args:
        text: NAME:FILE or NAME:TAG, where NAME is a model of open_clip (ViT-B-16) or a preset of ours (vit_b16), FILE
            holds a state dict (.pt, .safetensors, ...) and TAG is one of open_clip's weights, downloaded; or
            open_clip's own hf-hub:ORG/NAME and local-dir:FOLDER.

    Raises UserError for an unknown name or tag, an architecture that our models lack, a damaged file or other weights.
    """
    import open_clip

    if text.startswith(HUB_SCHEMES):
        return _from_module(text, create_open_clip(text, ""), open_clip.get_model_config(text))
    name, _, weights = text.partition(":")
    if not weights:
        raise UserError(f"give weights with the name: {name}:FILE or {name}:TAG, as in ViT-B-16:laion400m_e32")
    if name in list_models():
        spec = model_spec(name)
    elif name in open_clip.list_models():
        spec = spec_from_open_clip_config(name, open_clip.get_model_config(name))
    else:
        raise unknown("open_clip model", name, [*open_clip.list_models(), *list_models()])
    if Path(weights).is_file():
        return from_open_clip(read_state_dict(Path(weights)), spec, weights)
    if weights not in open_clip.list_pretrained_tags_by_model(name):
        raise UserError(f"'{weights}' is neither a file nor weights that open_clip has for {name}")
    return _from_module(text, create_open_clip(name, weights), open_clip.get_model_config(name))


def _from_module(source: str, module: Any, config: Mapping[str, Any]) -> CLIP:
    """Ours from a whole open_clip model, which also knows its pixel normalisation; its activation is as built."""
    from open_clip.transformer import QuickGELU

    spec = spec_from_open_clip_config(source, config)
    quick = isinstance(module.visual.transformer.resblocks[0].mlp.gelu, QuickGELU)
    pixels = module.visual.preprocess_cfg
    spec = spec.replace(
        activation="quick_gelu" if quick else "gelu",
        pixel_mean=tuple(pixels["mean"]),
        pixel_std=tuple(pixels["std"]),
    )
    return from_open_clip(module.state_dict(), spec, source)


def export(model: CLIP, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Writes a softmax model as an open_clip checkpoint, and beside it, as .json, the configuration open_clip needs.

    Returns {"weights", "config": paths, "name": what open_clip calls the architecture or None}. Raises UserError for a
    model with other attention, before anything is written.
    """
    weights, config = to_open_clip(model), to_open_clip_config(model.spec)
    target = Path(path)
    config_path = target.with_suffix(".json")
    with atomic_write(target) as stream:
        torch.save({"state_dict": weights, "name": model.spec.name}, stream)
    with atomic_write(config_path, "w") as stream:
        json.dump(config, stream, indent=2)
    # open_clip loads the weights by its own name where that stands for exactly this architecture; sizes may differ.
    theirs, name = OPEN_CLIP_NAMES.get(model.spec.name, model.spec.name), None
    if theirs in OPEN_CLIP_NAMES.values():
        import open_clip

        stock = spec_from_open_clip_config(theirs, open_clip.get_model_config(theirs))
        name = theirs if to_open_clip_config(stock) == config else None
    return {"weights": str(target), "config": str(config_path), "name": name}
