"""open_clip's weights in our models and ours in open_clip's: features must be equal."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from clip_la.errors import UserError
from clip_la.models import CLIP, create_model, model_spec
from clip_la.models.interop import (
    OPEN_CLIP_NAMES,
    export,
    from_open_clip,
    load_open_clip,
    spec_from_open_clip_config,
    to_open_clip,
    to_open_clip_config,
)
from clip_la.models.state_dicts import find_weights

TOLERANCE = 1e-4
# A small architecture for what does not depend on the size; written as open_clip's own JSON files are.
SMALL: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 40, "heads": 2, "layers": 3},
}


def with_random_weights(config: dict[str, Any]) -> Any:
    """open_clip's model with random numbers everywhere, also where it starts from zeros and ones."""
    with torch.device("meta"):
        module = open_clip.CLIP(**config)
    module = module.to_empty(device="cpu").eval()
    module.attn_mask = torch.full_like(module.attn_mask, float("-inf")).triu_(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 100
            parameter.uniform_(-1, 1).mul_(fan_in**-0.5)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1)
    return module


def captions() -> Tensor:
    return open_clip.tokenize(["a photo of a dog", "the sea"])


@torch.no_grad()
def largest_difference(ours: CLIP, theirs: Any) -> float:
    """Over unit features of images and of captions, the latter trimmed for ours and at full length for open_clip."""
    images, tokens = torch.randn(1, 3, ours.spec.image_size, ours.spec.image_size), captions()
    longest = int(tokens.argmax(1).max()) + 1
    image = ours.encode_image(images) - theirs.encode_image(images, normalize=True)
    text = ours.encode_text(tokens[:, :longest]) - theirs.encode_text(tokens, normalize=True)
    return max(image.abs().max().item(), text.abs().max().item())


@pytest.mark.parametrize(("preset", "name"), OPEN_CLIP_NAMES.items())
def test_presets_are_open_clips_models_both_ways(preset: str, name: str) -> None:
    config = open_clip.get_model_config(name)
    assert spec_from_open_clip_config(preset, config) == model_spec(preset)
    theirs = with_random_weights(config)
    ours = from_open_clip(theirs.state_dict(), model_spec(preset), name).eval()
    assert largest_difference(ours, theirs) < TOLERANCE
    back, weights = to_open_clip(ours), theirs.state_dict()
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_activation_goes_both_ways(quick_gelu: bool) -> None:
    config = {**SMALL, "quick_gelu": True} if quick_gelu else SMALL
    theirs = with_random_weights(config)
    spec = spec_from_open_clip_config("small", config)
    assert largest_difference(from_open_clip(theirs.state_dict(), spec, "small").eval(), theirs) < TOLERANCE
    assert to_open_clip_config(spec) == config
    other = spec.replace(activation="gelu" if quick_gelu else "quick_gelu")
    assert largest_difference(from_open_clip(theirs.state_dict(), other, "small").eval(), theirs) > TOLERANCE


def test_open_clip_reads_what_we_export(tmp_path: Path) -> None:
    model = create_model("vit_nano", seed=3, context_length=77).eval()
    written = export(model, tmp_path / "nano.pt")
    assert written == {"weights": str(tmp_path / "nano.pt"), "config": str(tmp_path / "nano.json"), "name": None}
    open_clip.add_model_config(written["config"])
    theirs = open_clip.create_model("nano", pretrained=written["weights"]).eval()
    assert largest_difference(model, theirs) < TOLERANCE
    again = load_open_clip(f"nano:{written['weights']}")
    assert again.spec == model.spec.replace(name="nano")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("form", ["bare", "ddp", "compiled", "custom_text", "half", "safetensors"])
def test_files_of_many_makers_load(tmp_path: Path, form: str) -> None:
    model = create_model("vit_pico", seed=3)
    weights = to_open_clip(model)
    path = tmp_path / "weights.pt"
    if form == "bare":
        torch.save(weights, path)
    elif form == "ddp":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in weights.items()}}, path)
    elif form == "compiled":
        torch.save({f"_orig_mod.{name}": value for name, value in weights.items()}, path)
    elif form == "custom_text":
        text = ("transformer.", "token_", "positional", "ln_final", "text_projection")
        torch.save({f"text.{n}" if n.startswith(text) else n: value for n, value in weights.items()}, path)
    elif form == "half":
        torch.save({name: value.half() for name, value in weights.items()}, path)
    else:
        path = tmp_path / "weights.safetensors"
        save_file(weights, path)
    loaded = load_open_clip(f"vit_pico:{path}")
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        expected = model.state_dict()[name]
        assert torch.equal(value, expected.half().float() if form == "half" else expected)


@pytest.mark.parametrize("changes", [{}, {"quick_gelu": True}, {"quick_gelu": True, "custom_text": True}])
def test_a_local_open_clip_folder_brings_normalisation_and_activation(tmp_path: Path, changes: dict[str, Any]) -> None:
    small = {**SMALL, **changes}
    (tmp_path / "start").mkdir()
    (tmp_path / "start/open_clip_config.json").write_text(json.dumps({"model_cfg": small, "preprocess_cfg": {}}))
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'start'}", load_weights=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    pixels = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    config = {"model_cfg": small, "preprocess_cfg": pixels}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    ours = load_open_clip(f"local-dir:{tmp_path}").eval()
    assert ours.spec.pixel_mean == (0.5, 0.4, 0.3)
    assert ours.spec.pixel_std == (0.2, 0.3, 0.4)
    assert ours.spec.activation == ("quick_gelu" if changes else "gelu")
    assert largest_difference(ours, theirs) < TOLERANCE


PARTS = st.sampled_from(["module", "_orig_mod", "model", "clip", "_fsdp_wrapped_module"])
NESTS = st.lists(st.sampled_from(["state_dict", "model_state_dict", "model", "module"]), max_size=3)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(PARTS, max_size=5), st.sampled_from(["_orig_mod", "module", ""]), st.booleans(), NESTS)
def test_wrappers_and_trainers_leave_names_in_any_order(
    before: list[str], inside: str, custom_text: bool, nests: list[str]
) -> None:
    """What torch.compile, DistributedDataParallel, tasks and savers add, round the model, its towers and its blocks."""
    model = create_model("vit_pico", seed=3)
    text = ("transformer.", "token_", "positional", "ln_final", "text_projection")
    renamed: dict[str, Any] = {}
    for name, value in {**to_open_clip(model), "attn_mask": torch.full((4, 4), -torch.inf)}.items():
        if inside:
            name = name.replace("visual.", f"visual.{inside}.").replace("resblocks.0.", f"resblocks.0.{inside}.")
        name = f"text.{name}" if custom_text and name.startswith(text) else name
        renamed[".".join([*before, name])] = value
    checkpoint: dict[str, Any] = renamed
    for nest in nests:
        checkpoint = {nest: checkpoint, "epoch": 3, "optimizer": {"state": {}}}
    loaded = from_open_clip(find_weights(checkpoint, "file"), model.spec, "file").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_what_else_files_hold_beside_weights(tmp_path: Path) -> None:
    model = create_model("vit_pico", seed=3)
    extras = {"input_resolution": torch.tensor(32), "context_length": 77, "vocab_size": torch.tensor(49408)}
    weights = {**to_open_clip(model), **extras, "logit_bias": torch.tensor(-10.0)}
    weights["logit_scale"] = weights["logit_scale"].reshape(1)
    torch.save(weights, tmp_path / "weights.pt")
    loaded = load_open_clip(f"vit_pico:{tmp_path / 'weights.pt'}").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, value: float, form: str) -> None:
    weights = to_open_clip(create_model("vit_pico"))
    weights["visual.proj"] = weights["visual.proj"].clone()
    weights["visual.proj"][3, 5] = value
    path = tmp_path / f"weights.{form}"
    torch.save(weights, path) if form == "pt" else save_file(weights, path)
    with pytest.raises(UserError, match=rf"{path}: image.projection.weight holds NaN or infinity") as raised:
        load_open_clip(f"vit_pico:{path}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"module.logit_scale": w["logit_scale"]}), "holds two weights logit_scale, one of them as"),
        (lambda w: w.update(logit_scale=torch.tensor(3)), "logit_scale holds torch.int64"),
        (lambda w: w.update(logit_scale=2.5), "'logit_scale' is of type float"),
        (lambda w: w.update({7: torch.ones(1)}), "'7' is of type Tensor"),
        (lambda w: w.clear(), "holds no state dict of tensors: it is empty"),
        (lambda w: w.update(clip_la={}), "is a checkpoint of clip_la and knows its architecture"),
    ],
)
def test_files_that_are_not_one_models_weights_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    weights = to_open_clip(create_model("vit_pico"))
    change(weights)
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=message):
        load_open_clip(f"vit_pico:{tmp_path / 'weights.pt'}")


def test_other_attention_is_refused_and_nothing_written(tmp_path: Path) -> None:
    model = create_model("vit_pico", text_attention="linear")
    with pytest.raises(UserError, match="this vit_pico has softmax/linear attention; open_clip has softmax only"):
        export(model, tmp_path / "out.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ViT-B-16", "give weights with the name: ViT-B-16:FILE"),
        ("ViT-B-61:x.pt", "unknown open_clip model 'ViT-B-61'; did you mean ViT-B-16"),
        ("ViT-B-16:no/such.pt", "'no/such.pt' is neither a file nor weights that open_clip has for ViT-B-16"),
        ("RN50:x.pt", "RN50 is no plain ViT CLIP"),
        ("ViT-B-16-SigLIP:x.pt", "is no plain ViT CLIP, our models lack: init_logit_bias"),
        ("ViT-H-14-CLIPA:x.pt", "no plain ViT CLIP"),
        ("coca_ViT-B-32:x.pt", "no plain ViT CLIP, our models lack: multimodal_cfg"),
    ],
)
def test_what_cannot_be_ours_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_open_clip(text)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pico.pt"
    torch.save(to_open_clip(create_model("vit_pico")), path)
    with pytest.raises(
        UserError, match=rf"{path} is of another architecture than vit_nano: .*is missing; .*; and \d+ more"
    ):
        load_open_clip(f"vit_nano:{path}")
    torch.save({"model": "nothing"}, path)
    with pytest.raises(UserError, match="holds no state dict of tensors"):
        load_open_clip(f"vit_nano:{path}")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="is damaged or no safetensors file"):
        load_open_clip(f"vit_nano:{tmp_path / 'bad.safetensors'}")


def test_weights_that_are_no_plain_tensors_are_refused():
    model = create_model("vit_pico", seed=0)
    weights = to_open_clip(model)
    name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    weights[name] = weights[name].to_sparse()
    with pytest.raises(UserError, match=f"w.pt: {name} is sparse"):
        from_open_clip(find_weights(weights, "w.pt"), model.spec, "w.pt")
