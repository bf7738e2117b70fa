"""The option that shows a model its pictures exactly as open_clip does, whatever their mode."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from clip_la.cli import main
from clip_la.data.shards import problems
from clip_la.data.shards.problems import BadSample
from clip_la.errors import UserError
from clip_la.models import CLIP, save_checkpoint
from clip_la.models.interop import to_open_clip_config
from clip_la.zeroshot.model.eval_model import of_model
from clip_la.zeroshot.model.load import load_eval_model
from clip_la.zeroshot.model.open_clip import with_own_transform, wrap_open_clip

COLOURS = np.random.default_rng(3).integers(0, 256, (45, 61, 3), dtype=np.uint8)
RGB = Image.fromarray(COLOURS)
ALPHA = RGB.copy()
ALPHA.putalpha(Image.fromarray(COLOURS[:, :, 0]))
TURNED = Image.Exif()
TURNED[0x0112] = 6


def saved(image: Image.Image, kind: str, **options) -> bytes:
    data = BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


WIDE = COLOURS[:, :, 0].astype(np.int32)
KINDS = {
    "RGB": saved(RGB, "PNG"),
    "JPEG": saved(RGB, "JPEG"),
    "L": saved(RGB.convert("L"), "PNG"),
    "1": saved(RGB.convert("1"), "PNG"),
    "P": saved(RGB.quantize(16), "PNG"),
    "transparent P": saved(RGB.quantize(16), "PNG", transparency=3),
    "RGBA": saved(ALPHA, "PNG"),
    "LA": saved(ALPHA.convert("LA"), "PNG"),
    "PA": saved(ALPHA.convert("PA"), "TIFF"),
    "CMYK": saved(RGB.convert("CMYK"), "JPEG"),
    "YCbCr": saved(RGB.convert("YCbCr"), "TIFF"),
    "LAB": saved(Image.merge("LAB", RGB.split()), "TIFF"),
    "I": saved(Image.fromarray(WIDE), "TIFF"),
    "I;16": saved(Image.fromarray((WIDE * 257).astype(np.uint16)), "PNG"),
    "F": saved(Image.fromarray(WIDE.astype(np.float32)), "TIFF"),
    "EXIF": saved(RGB, "JPEG", exif=TURNED),
    "GIF": saved(RGB, "GIF"),
    "WEBP": saved(ALPHA, "WEBP", lossless=True),
}
# Where the two rules give equal pixels, and where one hides or shows another picture.
SAME = {"RGB", "JPEG", "L", "CMYK"}
DIFFERENT = {"1", "transparent P", "RGBA", "LA", "I;16", "EXIF", "WEBP"}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_open_clips_whatever_the_mode(tiny_model: CLIP, kind: str) -> None:
    spec = tiny_model.spec
    reference = image_transform_v2(PreprocessCfg(size=32, mean=spec.pixel_mean, std=spec.pixel_std), is_train=False)
    expected = reference(Image.open(BytesIO(KINDS[kind])))
    eval_model = with_own_transform(of_model(tiny_model))
    assert torch.equal(eval_model.preprocess(KINDS[kind]), expected)
    assert torch.equal(eval_model.preprocess(Image.open(BytesIO(KINDS[kind]))), expected)
    assert eval_model.pixel_stats is None
    if kind in SAME | DIFFERENT:
        ours = of_model(tiny_model).preprocess(KINDS[kind]).float() / 255
        mean, std = (torch.tensor(each)[:, None, None] for each in (spec.pixel_mean, spec.pixel_std))
        difference = ((ours - mean) / std - expected).abs().max()
        assert difference < 1e-5 if kind in SAME else difference > 0.5


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_an_open_clip_model_keeps_its_own_settings(tiny_model: CLIP, resize_mode: str) -> None:
    module = open_clip.CLIP(**to_open_clip_config(tiny_model.spec))
    settings = {"size": (32, 32), "mode": "RGB", "mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bilinear"}
    settings |= {"resize_mode": resize_mode, "fill_color": 7}
    module.visual.preprocess_cfg = settings
    eval_model = wrap_open_clip(module, "tiny", "")
    reference = image_transform_v2(PreprocessCfg(**settings), is_train=False)
    for data in (KINDS["RGBA"], KINDS["1"], KINDS["EXIF"]):
        picture = Image.open(BytesIO(data))
        assert torch.equal(with_own_transform(eval_model).preprocess(data), reference(picture))
        assert not torch.equal(eval_model.preprocess(data), reference(picture))


def test_what_does_not_decode_is_a_skipped_sample(tiny_model: CLIP) -> None:
    preprocess = with_own_transform(of_model(tiny_model)).preprocess
    thin = saved(Image.new("L", (1, 200_000)), "PNG")
    for data, reason in ((b"no picture", problems.NOT_AN_IMAGE), (thin, problems.IMAGE_TOO_LONG)):
        with pytest.raises(BadSample) as caught:
            preprocess(data)
        assert caught.value.reason == reason


def test_the_command_has_it_and_its_results_stay_apart(
    tmp_path: Path, tiny_model: CLIP, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "tiny.ckpt", tiny_model)
    for number, name in enumerate(("red", "blue", "green")):
        folder = tmp_path / "set" / name
        folder.mkdir(parents=True)
        ALPHA.rotate(90 * number).save(folder / "a.png")
    out, lines = tmp_path / "results.jsonl", []
    for options in ([], ["--transform", "open_clip"], ["--transform", "clip_la"]):
        places = [str(tmp_path / "tiny.ckpt"), "--data", str(tmp_path / "set"), "--out", str(out)]
        assert not main(["eval", *places, "--cache", "none", "--workers", "0", "--json", *options])
        lines.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert [line["transform"] for line in lines] == ["clip_la", "open_clip", "clip_la"]
    assert lines[0] == lines[2] != lines[1]
    assert len(out.read_text().splitlines()) == 2
    with pytest.raises(UserError, match="unknown transform 'openclip'; did you mean open_clip"):
        load_eval_model(str(tmp_path / "tiny.ckpt"), transform="openclip")
