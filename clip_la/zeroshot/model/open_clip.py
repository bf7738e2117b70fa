"""Any model of open_clip under evaluation, through open_clip's own module and, where asked for, its own transform."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clip_la.data.images.decode import as_rgb, decode_as_stored, decode_image, reasons
from clip_la.data.images.transforms import check_shape
from clip_la.errors import UserError, unknown
from clip_la.models.spec import ModelSpec
from clip_la.zeroshot.labels.classes import content_hash
from clip_la.zeroshot.model.eval_model import COMPILED, EvalModel
from clip_la.zeroshot.options import OPEN_CLIP, OWN

# Attributes of modules that say how they are used, not what they compute.
USAGE = ("training", "grad_checkpointing")
# Where a Hugging Face configuration comes from.
ORIGINS = ("_name_or_path", "name_or_path", "transformers_version")
# The fields of a result line that only a run of ours has.
UNKNOWN_ORIGIN = (
    *("run_id", "parent_run_id", "seed", "samples_seen", "budget_samples", "schedule", "batch_size", "train_data"),
    "flops_per_sample",
)


@dataclass(frozen=True)
class OpenClipPreprocess:
    """Image or bytes -> Float[3, height, width], by open_clip's own evaluation transform of the model.

    Attributes:
        settings: open_clip's PreprocessCfg.
        as_stored: whether the transform gets the image in its own mode, as in open_clip, or RGB by our rule.
    """

    settings: tuple[tuple[str, Any], ...]
    as_stored: bool = False

    def __call__(self, image: Image.Image | bytes) -> Tensor:
        transform = _open_clip_transform(self.settings)
        # Files by our rule become RGB before the transform sees them.
        if isinstance(image, bytes):
            image = decode_as_stored(image) if self.as_stored else decode_image(image)
        elif not self.as_stored:
            image = as_rgb(image)
        settings = dict(self.settings)
        if settings.get("resize_mode", "shortest") == "shortest":
            size = settings["size"]
            check_shape(image, max(size) if isinstance(size, tuple) else size)
        with reasons():
            return transform(image)


@functools.cache
def _open_clip_transform(settings: tuple[tuple[str, Any], ...]) -> Callable[[Image.Image], Tensor]:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**dict(settings)), is_train=False)


def of_open_clip(name: str, weights: str) -> EvalModel:
    """Any open_clip model through open_clip's own module; `weights` is a file or one of its pretrained tags."""
    import open_clip

    from clip_la.models.open_clip_module import create_open_clip

    is_hub = ":" in name
    if not is_hub and name not in open_clip.list_models():
        raise unknown("open_clip model", name, open_clip.list_models())
    tags = [] if is_hub else open_clip.list_pretrained_tags_by_model(name)
    if not is_hub and weights not in tags and not Path(weights).is_file():
        known = f"one of {', '.join(tags)}" if tags else "a file: open_clip has no weights for it"
        raise UserError(f"no weights '{weights}' for {name}: expected a file or {known}")
    return wrap_open_clip(create_open_clip(name, weights), name, weights)


def wrap_open_clip(module: nn.Module, name: str, weights: str) -> EvalModel:
    """An open_clip module that is already loaded."""
    import open_clip

    given = dict(module.visual.preprocess_cfg)  # type: ignore[union-attr,arg-type]
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    tokenizer = open_clip.get_tokenizer(name)
    origin: dict[str, Any] = dict.fromkeys(UNKNOWN_ORIGIN)
    # Every open_clip tower attends by softmax; its FLOPs are not counted by our arithmetic.
    origin |= dict.fromkeys(("attention", "image_attention", "text_attention"), "softmax")
    origin["model"] = name
    origin["parameters"] = sum(p.numel() for p in module.parameters())
    origin["checkpoint"] = f"{name}:{weights}" if weights else name
    origin["transform"] = OWN
    visual: Any = module.visual
    # open_clip's own transformer, or one of timm; a convolutional network has no tokens.
    tokens: int | None = None
    if isinstance(positions := getattr(visual, "positional_embedding", None), Tensor):
        tokens = positions.shape[-2]
    elif (patches := getattr(getattr(visual, "trunk", None), "patch_embed", None)) is not None:
        num_patches = getattr(patches, "num_patches", None)
        tokens = None if num_patches is None else num_patches + getattr(visual.trunk, "num_prefix_tokens", 0)
    size = settings["size"]
    height, width = size if isinstance(size, tuple) else (size, size)
    return EvalModel(
        module=module.eval(),
        preprocess=OpenClipPreprocess(tuple(sorted(settings.items()))),
        pixel_stats=None,
        tokenize=lambda texts: tokenizer(list(texts)),
        tokenizer_name=tokenizer_id(tokenizer),
        context_length=int(module.context_length),  # type: ignore[arg-type]
        trims_text=False,
        image_prefix="visual.",
        architecture=structure(module),
        text_architecture=structure(module, without="visual."),
        origin=origin,
        sizes={"tokens": tokens, "image_size": height if height == width else None},
    )


def with_own_transform(eval_model: EvalModel) -> EvalModel:
    """The same model shown images as open_clip shows them: as Pillow opens them, by its transform alone."""
    if isinstance(eval_model.preprocess, OpenClipPreprocess):
        settings = eval_model.preprocess.settings
    else:
        spec = eval_model.module.spec
        assert isinstance(spec, ModelSpec)
        settings = (("mean", spec.pixel_mean), ("size", spec.image_size), ("std", spec.pixel_std))
    preprocess = OpenClipPreprocess(settings, as_stored=True)
    origin = {**eval_model.origin, "transform": OPEN_CLIP}
    return replace(eval_model, preprocess=preprocess, pixel_stats=None, origin=origin)


def structure(module: nn.Module, without: str | None = None) -> list[str]:
    """What a module consists of besides weights: its parts' classes and plain attributes (heads, activation, pooling).

    For a model that has no specification of ours: what a configuration has changed shows in one of these.
    """
    lines = []
    for name, part in module.named_modules():
        name = name.removeprefix(COMPILED)
        if without is None or not f"{name}.".startswith(without):
            public = {key: value for key, value in vars(part).items() if not key.startswith("_") and key not in USAGE}
            texts = {key: text for key, value in public.items() if (text := _plain(value)) is not None}
            lines.append(f"{name} {type(part).__qualname__} {json.dumps(texts, sort_keys=True)}")
    return lines


def _plain(value: Any) -> str | None:
    """A value as a text that is the same in every process, or None for what has no such text."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return repr(value)
    if isinstance(value, tuple | list):
        inner = [_plain(each) for each in value]
        return None if None in inner else f"[{', '.join(map(str, inner))}]"
    # Sorted, since the order of a dict says nothing.
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{key}: {_plain(each)}' for key, each in value.items()))}}}"
    if callable(to_dict := getattr(value, "to_dict", None)) and not isinstance(value, type):
        # The configuration of a Hugging Face model; the rest of its attributes say where it comes from.
        return _plain({key: str(each) for key, each in to_dict().items() if key not in ORIGINS})
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return None


def tokenizer_id(tokenizer: Any) -> str:
    """Class and table of a tokenizer of open_clip as one text: other merges, another id."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is not None:
        table = backend.to_str()
    else:
        table = sorted((getattr(inner, "encoder", None) or getattr(inner, "get_vocab", dict)()).items())
    return f"{type(tokenizer).__qualname__}/{content_hash(table)}"
