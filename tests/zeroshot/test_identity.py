"""The hash of a model: other for everything that can move a digit of its features, and for that alone."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clip_la.models.clip import CLIP, model_from_spec
from clip_la.models.spec import ModelSpec
from clip_la.zeroshot.model.eval_model import EvalModel, UInt8Preprocess, of_model
from clip_la.zeroshot.model.load import load_eval_model
from clip_la.zeroshot.model.open_clip import OpenClipPreprocess, structure, tokenizer_id

HALF = (0.5, 0.5, 0.5)
# Each change leaves names, shapes and values of the weights as they are; does the text tower see it?
CHANGES = {
    "activation": ({"activation": "quick_gelu"}, True),
    "image_heads": ({"image_heads": 4}, False),
    "text_heads": ({"text_heads": 4}, True),
    "pixel_mean": ({"pixel_mean": HALF}, False),
    "pixel_std": ({"pixel_std": HALF}, False),
    "image_attention": ({"image_attention": "linear"}, False),
    "text_attention": ({"text_attention": "linear"}, True),
    "option of image attention": ({"image_attention": "linear(a=0.5)"}, False),
    "option of text attention": ({"text_attention": "linear(a=0.5)"}, True),
    "attention of one layer": ({"image_attention": "linear+softmax"}, False),
}


def with_weights_of(model: CLIP, spec: ModelSpec) -> CLIP:
    other = model_from_spec(spec, seed=0)
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_equal_models_are_equal_under_any_name(tiny_model: CLIP, tiny_spec: ModelSpec):
    first = of_model(tiny_model, checkpoint="a.ckpt", samples_seen=3)
    second = of_model(with_weights_of(tiny_model, tiny_spec.replace(name="other")), run_id="r")
    assert (first.hash, first.text_hash) == (second.hash, second.text_hash)


@pytest.mark.parametrize("change", CHANGES)
def test_each_part_of_a_specification_counts(tiny_model: CLIP, tiny_spec: ModelSpec, change: str):
    fields, in_text = CHANGES[change]
    base, other = of_model(tiny_model), of_model(with_weights_of(tiny_model, tiny_spec.replace(**fields)))
    assert base.hash != other.hash
    assert (base.text_hash != other.text_hash) == in_text
    # The reason to tell them apart: features differ where the hash of their tower says so.
    pixels, tokens = torch.arange(3 * 32 * 32).reshape(1, 3, 32, 32) % 256, base.tokenize(["a red panda"])
    with torch.inference_mode():
        same = torch.equal(*(each.encode_texts(tokens, "float32") for each in (base, other)))
        same_image = torch.equal(*(each.encode_images(pixels.byte(), "float32") for each in (base, other)))
    assert same != in_text
    assert not (same and same_image)


def test_each_weight_counts(tiny_model: CLIP):
    base = of_model(tiny_model)
    hashes = {base.hash}, {base.text_hash}
    for name, tensor in [*tiny_model.state_dict().items()][::3]:
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
        changed = of_model(tiny_model)
        assert changed.hash not in hashes[0], name
        assert (changed.text_hash in hashes[1]) == name.startswith("image."), name
        hashes[0].add(changed.hash)
        hashes[1].add(changed.text_hash)


def changed(eval_model: EvalModel, **fields: Any) -> tuple[bool, bool]:
    other = dataclasses.replace(eval_model, **fields)
    return other.hash != eval_model.hash, other.text_hash != eval_model.text_hash


def test_each_part_of_a_subject_counts(eval_model: EvalModel):
    settings = {"mean": HALF, "resize_mode": "shortest"}
    open_clips = OpenClipPreprocess(tuple(settings.items()))
    assert changed(eval_model, preprocess=UInt8Preprocess(48)) == (True, False)
    assert changed(eval_model, preprocess=open_clips) == (True, False)
    with_open_clips = dataclasses.replace(eval_model, preprocess=open_clips)
    for key, value in (("mean", (0.4, 0.5, 0.5)), ("resize_mode", "squash"), ("fill_color", 1)):
        other = OpenClipPreprocess(tuple({**settings, key: value}.items()))
        assert changed(with_open_clips, preprocess=other) == (True, False), key
    assert changed(eval_model, pixel_stats=None) == (True, False)
    assert changed(eval_model, context_length=39) == (True, True)
    assert changed(eval_model, trims_text=False) == (True, True)
    assert changed(eval_model, compiled=True) == (True, True)
    assert changed(eval_model, tokenizer_name="clip/other") == (True, True)
    assert (
        changed(eval_model, tokenize=lambda texts: eval_model.tokenize([text.upper()[::-1] for text in texts]))
        == (True,) * 2
    )
    assert changed(eval_model, origin={"checkpoint": "elsewhere"}) == (False, False)
    # What has no text of its own is never taken for another one.
    assert changed(eval_model, preprocess=lambda image: eval_model.preprocess(image))[0]


CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {},
}
# Path of a key in open_clip_config.json and its value; does the text tower see it?
EDITS = {
    "activation": ("model_cfg.quick_gelu", True, True),
    "image heads": ("model_cfg.vision_cfg.head_width", 8, False),
    "image pooling": ("model_cfg.vision_cfg.pool_type", "avg", False),
    "image norm": ("model_cfg.vision_cfg.norm_kwargs", {"eps": 0.01}, False),
    "text heads": ("model_cfg.text_cfg.heads", 4, True),
    "text pooling": ("model_cfg.text_cfg.pool_type", "first", True),
    "text mask": ("model_cfg.text_cfg.no_causal_mask", True, True),
    "tokenizer": ("model_cfg.text_cfg.tokenizer_kwargs", {"clean": "whitespace"}, True),
    "mean": ("preprocess_cfg.mean", [0.5, 0.5, 0.5], False),
    "std": ("preprocess_cfg.std", [0.5, 0.5, 0.5], False),
    "resize mode": ("preprocess_cfg.resize_mode", "squash", False),
    "interpolation": ("preprocess_cfg.interpolation", "bilinear", False),
    "fill": ("preprocess_cfg.fill_color", 127, False),
}


@pytest.fixture(scope="module")
def open_clip_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return open_clip.CLIP(**json.loads(json.dumps(CONFIG["model_cfg"]))).state_dict()


def local_subject(folder: Path, weights: dict[str, torch.Tensor], config: dict[str, Any]) -> EvalModel:
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return load_eval_model(f"local-dir:{folder}")


@pytest.fixture(scope="module")
def local(tmp_path_factory, open_clip_weights: dict[str, torch.Tensor]) -> EvalModel:
    return local_subject(tmp_path_factory.mktemp("local") / "base", open_clip_weights, CONFIG)


def test_a_copied_folder_is_the_same_model(local: EvalModel, tmp_path: Path, open_clip_weights):
    copy = local_subject(tmp_path / "copy", open_clip_weights, CONFIG)
    assert (copy.hash, copy.text_hash) == (local.hash, local.text_hash)


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_configuration_is_another_model(local: EvalModel, tmp_path: Path, open_clip_weights, edit: str):
    path, value, in_text = EDITS[edit]
    config = json.loads(json.dumps(CONFIG))
    *folders, name = path.split(".")
    part = config
    for folder in folders:
        part = part[folder]
    part[name] = value
    other = local_subject(tmp_path / "edited", open_clip_weights, config)
    assert other.hash != local.hash
    assert (other.text_hash != local.text_hash) == in_text


def test_structure_is_the_same_in_every_process(local: EvalModel):
    lines = "\n".join(structure(local.module))
    assert " at 0x" not in lines
    assert "num_heads" in lines


def test_tokenizers_differ_by_their_table():
    transformers = pytest.importorskip("transformers", reason="open_clip needs it for these models alone")
    from tokenizers import Tokenizer, models

    def of(words: list[str]) -> str:
        inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
        return tokenizer_id(transformers.PreTrainedTokenizerFast(tokenizer_object=inner))

    assert of(["?", "a", "b"]) == of(["?", "a", "b"])
    assert of(["?", "a", "b"]) != of(["?", "b", "a"])
    assert tokenizer_id(open_clip.SimpleTokenizer()) == tokenizer_id(open_clip.SimpleTokenizer(context_length=5))
