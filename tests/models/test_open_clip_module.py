"""open_clip's own modules: what their configurations and weights must be before anything is evaluated."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clip_la.errors import UserError
from clip_la.models import create_model, save_checkpoint
from clip_la.models.interop import load_open_clip, to_open_clip, to_open_clip_config
from clip_la.models.open_clip_module import create_open_clip
from clip_la.zeroshot.model.load import _is_ours, expand_models, load_eval_model

CONFIG = to_open_clip_config(create_model("vit_pico").spec)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as open_clip keeps it in a folder."""
    save_file(to_open_clip(create_model("vit_pico", seed=3)), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    return tmp_path


ODD: list[Any] = [
    None,
    True,
    "false",
    -1,
    0,
    0.5,
    1e400,
    10**9,
    "12",
    [],
    [1],
    [0.5, 0.5, "x"],
    [300, 300, 300],
    {},
    {"a": 1},
]
TOP = ["embed_dim", "quick_gelu", "custom_text", "vision_cfg", "text_cfg"]
VISION = ["layers", "width", "head_width", "patch_size", "image_size", "mlp_ratio", "no_ln_pre", "pool_type", "layrs"]
TEXT = ["context_length", "vocab_size", "width", "heads", "layers"]
# Truth values where they belong; nothing, where open_clip fills in its default.
TAKEN = {"quick_gelu": [True], "custom_text": [True], "no_ln_pre": [None]}
TAKEN |= {key: [None] for key in ("mean", "std", "interpolation", "resize_mode", "mode")}
TAKEN["fill_color"] = [None, 0]
PIXELS = ["mean", "std", "interpolation", "resize_mode", "mode", "fill_color"]


@pytest.mark.parametrize(
    ("part", "key"),
    [
        *[("model_cfg", key) for key in TOP],
        *[("vision_cfg", key) for key in VISION],
        *[("text_cfg", key) for key in TEXT],
        *[("preprocess_cfg", key) for key in PIXELS],
    ],
)
def test_every_value_of_a_configuration_is_checked(folder: Path, part: str, key: str) -> None:
    taken = []
    for value in ODD:
        content: dict[str, Any] = json.loads(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
        {**content, **content["model_cfg"]}[part][key] = value
        (folder / "open_clip_config.json").write_text(json.dumps(content))
        try:
            create_open_clip(f"local-dir:{folder}", "")
        except UserError as error:
            line = str(error)
            assert str(folder) in line
            assert "\n" not in line
            # A whole part that is another one is wrong by its weights.
            assert value in (None, {}) or key in line or "loading state_dict" in line
        else:
            taken.append(value)
    # Truth values where they belong; nothing, where open_clip fills in its default.
    assert taken == TAKEN.get(key, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "open_clip_config.json is no JSON"),
        ("[]", "open_clip_config.json: expected a dictionary with 'model_cfg' and 'preprocess_cfg'"),
        ('{"model_cfg": 3}', "expected a dictionary with 'model_cfg'"),
        ('{"model_cfg": {}, "preprocess_cfg": [1]}', r"preprocess_cfg is \[1\], not a dictionary"),
        (None, "open_clip_config.json cannot be read: No such file"),
    ],
)
def test_a_configuration_that_is_none_is_named(folder: Path, text: str | None, message: str) -> None:
    path = folder / "open_clip_config.json"
    path.unlink() if text is None else path.write_text(text)
    for load in (load_eval_model, load_open_clip):
        with pytest.raises(UserError, match=message) as raised:
            load(f"local-dir:{folder}")
        assert str(folder) in str(raised.value)


def test_a_folder_without_weights_is_not_evaluated_with_random_ones(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"open_clip cannot load local-dir:{folder}: Required pretrained weights"):
        load_eval_model(f"local-dir:{folder}")


def test_a_folders_diverged_weights_are_named(folder: Path) -> None:
    weights = to_open_clip(create_model("vit_pico"))
    save_file({**weights, "ln_final.bias": torch.full((48,), torch.nan)}, folder / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=rf"local-dir:{folder}: ln_final.bias holds NaN or infinity"):
        load_eval_model(f"local-dir:{folder}")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.visual_text.", "clip._orig_mod."])
@pytest.mark.parametrize("nest", ["state_dict", "model"])
def test_open_clips_own_architectures_take_wrapped_names_too(tmp_path: Path, prefix: str, nest: str) -> None:
    """An architecture that our models lack: what remains of a prefix that nobody knows is an error."""
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "no_causal_mask": True}}
    (tmp_path / "pico-not-causal.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "pico-not-causal.json")
    module = open_clip.CLIP(**config)
    path = tmp_path / "weights.pt"
    torch.save({nest: {prefix + name: value for name, value in module.state_dict().items()}}, path)
    if prefix == "model.visual_text.":
        with pytest.raises(UserError, match=r"cannot load pico-not-causal:.*Missing key\(s\)"):
            load_eval_model(f"pico-not-causal:{path}")
        return
    loaded = load_eval_model(f"pico-not-causal:{path}").module.state_dict()
    assert isinstance(load_eval_model(f"pico-not-causal:{path}").module, open_clip.CLIP)
    assert all(torch.equal(loaded[name], value) for name, value in module.state_dict().items())


def test_weights_under_a_name_of_another_activation_are_refused() -> None:
    for load in (load_eval_model, load_open_clip):
        with pytest.raises(UserError, match=r"'openai' of ViT-B-32 were trained with QuickGELU: write ViT-B-32-quickg"):
            load("ViT-B-32:openai")


def test_what_lacks_a_name_says_how_to_give_it(folder: Path) -> None:
    weights = folder / "open_clip_model.safetensors"
    with pytest.raises(UserError, match=rf"{weights} says not which architecture .* as in ViT-B-16:{weights}"):
        load_eval_model(str(weights))
    with pytest.raises(UserError, match="vit_pico is an architecture; name its weights: vit_pico:FILE"):
        load_eval_model("vit_pico")
    with pytest.raises(UserError, match=rf"no run: .*; for open_clip's model in it give local-dir:{folder}"):
        expand_models([str(folder)])
    save_checkpoint(folder / "ours.ckpt", create_model("vit_pico"))
    with pytest.raises(UserError, match="is a checkpoint of clip_la and knows its architecture: give its path alone"):
        load_eval_model(f"vit_pico:{folder / 'ours.ckpt'}")


def test_pictures_are_squashed_where_the_weights_were_trained_so() -> None:
    # Our towers would do, but our transform cuts the centre square.
    assert _is_ours("ViT-L-14-quickgelu", "dfn2b")
    assert not _is_ours("ViT-H-14-378-quickgelu", "dfn5b")
