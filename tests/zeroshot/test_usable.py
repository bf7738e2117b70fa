"""`data verify`, `data read`, training and evaluation agree, sample by sample, on what is usable."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from clip_la.data.images.augment import Augmentation
from clip_la.data.shards import problems
from clip_la.data.shards.formats import SUFFIXES
from clip_la.data.stream.stream import ShardStream, WeightedSource
from clip_la.data.text.captions import Captions
from clip_la.data.tools.read import Reading, read
from clip_la.data.tools.verify import verify, verify_shard
from clip_la.zeroshot.datasets.folders import open_folders
from clip_la.zeroshot.datasets.shards import open_caption_shards, open_shards
from clip_la.zeroshot.labels.classes import from_entries
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.tasks.classification import evaluate_zeroshot
from clip_la.zeroshot.tasks.task import encode_images

PIXELS = np.random.default_rng(5).integers(0, 256, (20, 24, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)
RGBA = Image.fromarray(np.concatenate([PIXELS, PIXELS[:, :, :1]], axis=2))


def saved(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


JPEG, PNG = saved(RGB, "JPEG"), saved(RGB, "PNG")
SIXTEEN = Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257)
FLOAT = Image.fromarray(PIXELS[:, :, 0].astype(np.float32))
TURNED = Image.Exif()
TURNED[0x0112] = 6
ALL_SUFFIXES = [(kind, suffix) for kind, own in SUFFIXES.items() for suffix in own]
# Pictures under names that say something else, and of every mode.
GOOD = {
    **{f"lower-{suffix[1:]}": (suffix, saved(RGB, kind)) for kind, suffix in ALL_SUFFIXES},
    **{f"upper-{suffix[1:]}": (suffix.upper(), saved(RGB, kind)) for kind, suffix in ALL_SUFFIXES},
    **{f"as-jpg-{kind}": (".jpg", saved(RGB, kind)) for kind in SUFFIXES},
    "rgba": (".png", saved(RGBA, "PNG")),
    "grey-alpha": (".png", saved(RGBA.convert("LA"), "PNG")),
    "palette": (".gif", saved(RGB.quantize(16), "GIF")),
    "palette-transparent": (".png", saved(RGB.quantize(16), "PNG", transparency=3)),
    "one-bit": (".png", saved(RGB.convert("1"), "PNG")),
    "grey-jpeg": (".jpg", saved(RGB.convert("L"), "JPEG")),
    "cmyk-jpeg": (".jpg", saved(RGB.convert("CMYK"), "JPEG")),
    "turned-jpeg": (".jpg", saved(RGB, "JPEG", exif=TURNED)),
    "progressive-jpeg": (".jpg", saved(RGB, "JPEG", progressive=True)),
    "sixteen-bit": (".png", saved(SIXTEEN, "PNG")),
    "several-frames": (".gif", saved(RGB, "GIF", save_all=True, append_images=[RGB.rotate(90)])),
    "phone-jpeg": (".jpg", saved(RGB, "MPO", save_all=True, append_images=[RGB.rotate(90)])),
    "one-pixel": (".png", saved(RGB.resize((1, 1)), "PNG")),
}
BAD = {
    "empty": (".jpg", b"", problems.IMAGE_EMPTY),
    "page": (".jpg", b"<html>404</html>" * 9, problems.NOT_AN_IMAGE),
    "drawing": (".png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", problems.NOT_AN_IMAGE),
    "cut-png": (".png", PNG[:-60], problems.IMAGE_DAMAGED),
    "cut-jpeg": (".jpg", JPEG[: len(JPEG) // 2], problems.IMAGE_DAMAGED),
    "float": (
        ".tif",
        saved(Image.fromarray(PIXELS[:, :, 0].astype(np.float32)), "TIFF"),
        problems.PIXELS_NOT_SUPPORTED,
    ),
    "unknown-suffix": (".img", PNG, problems.NO_IMAGE),
    "postscript": (".eps", saved(RGB, "EPS"), problems.NO_IMAGE),
    "compound": (".seg.png", PNG, problems.NO_IMAGE),
}
# Keys as people have them, with the parts that are pictures.
NAMED = {
    "first/of two": (".jpg", ".png"),
    "with": (".seg.png", ".jpg"),
    "./folder.d/v1.0/here": (".JPEG",),
    "merged.1": (".jpg",),
    "merged.2": (".jpg",),
}
TEXTS = {".txt": b"some words", ".cls": b"1", ".json": json.dumps({"class": "b"}).encode()}


def members():
    for key, (suffix, data, *_) in {**GOOD, **BAD}.items():
        yield from ((key + part, value) for part, value in {suffix: data, **TEXTS}.items())
    for key, parts in NAMED.items():
        yield from ((key + part, value) for part, value in {**dict.fromkeys(parts, JPEG), **TEXTS}.items())
        yield from (("__MACOSX/._x.jpg", b"\0\5\26\7"), ("./._x.txt", b"\0\5\26\7"))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("usable")
    (folder / "classnames.txt").write_text("a\nb\nc\n")
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for name, data in members():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return folder / "00000.tar"


MERGED = ("merged.1", "merged.2")
USED = {*GOOD, *NAMED} - {*MERGED}
SKIPPED = {key: reason for key, (*_, reason) in BAD.items()} | dict.fromkeys(MERGED, problems.MERGED)


def counted(skipped):
    return {reason: list(skipped.values()).count(reason) for reason in sorted(set(skipped.values()))}


def trained(shard, in_memory):
    """(keys used, {key: reason}) of one pass of a training stream."""
    augmentation = Augmentation(16)
    place = {"rank": 0, "world_size": 1, "workers": 0, "seed": 3}
    stream = ShardStream(
        [WeightedSource((str(shard),))],
        batch_size=len(USED),
        captions=Captions(),
        augmentation=augmentation,
        bad_share_limit=1.0,
        in_memory=in_memory,
        **place,
    )
    batches = iter(stream)
    first, second = next(batches), next(batches)
    # What is passed over behind the last sample that is used comes with the next batch.
    lost = {key: reason for batch in (first, second) for reason, _, key in batch["problems"]}
    return first["keys"], lost


def test_verify_read_training_and_evaluation_agree(shard, tmp_path, eval_model):
    report = verify([str(shard)], quiet=True)
    assert (report["usable"], report["skipped"]) == (len(USED), counted(SKIPPED))
    read(Reading((str(shard),), 16), keys=tmp_path / "keys.jsonl", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "keys.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in lines} == {**dict.fromkeys(USED), **SKIPPED}
    assert len(lines) == len(USED) + len(SKIPPED)
    for in_memory in (False, True):
        keys, lost = trained(shard, in_memory)
        assert (set(keys), len(keys), lost) == (USED, len(USED), SKIPPED)
    found = evaluate_zeroshot(eval_model, open_shards(str(shard.parent), None, "s"), progress=False)
    assert (set(found.predictions.keys), found.line["skipped"]) == (USED, counted(SKIPPED))
    assert {key: reason for _, _, key, reason in found.predictions.skipped} == SKIPPED
    pairs = encode_images(eval_model, open_caption_shards(str(shard), "s"), EvalSettings(batch_size=32, progress=False))
    assert (set(pairs.keys), pairs.skip_counts()) == (USED, counted(SKIPPED))


def test_folders_agree_with_shards(tmp_path, eval_model):
    pictures = {f"b/{key}{suffix}": data for key, (suffix, data, *_) in {**GOOD, **BAD}.items()}
    pictures["b/v1.0/x.1.jpg"] = JPEG
    for name, data in {**pictures, "b/._x.jpg": b"\0\5\26\7", "b/.cache/y.jpg": JPEG, "a/one.png": PNG}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    classes = from_entries([{"id": name, "name": name} for name in "ab"], name="ab", path=tmp_path)
    found = evaluate_zeroshot(eval_model, open_folders(tmp_path, classes, "s"), progress=False)
    used = {f"b/{key}{suffix}" for key, (suffix, _) in GOOD.items()} | {"b/v1.0/x.1.jpg", "a/one.png"}
    # What follows the first dot is no part of a file's name, and a name with another suffix is no picture.
    used |= {"b/compound.seg.png"}
    lost = {f"b/{key}{suffix}": why for key, (suffix, _, why) in BAD.items() if why != problems.NO_IMAGE}
    assert set(found.predictions.keys) == used
    assert {key: reason for _, _, key, reason in found.predictions.skipped} == lost


def test_training_limits_are_those_of_verify(tmp_path, eval_model):
    # An evaluation takes every picture that can be decoded; training leaves out very long ones, and verify says so.
    (tmp_path / "classnames.txt").write_text("a\nb\nc\n")
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, data in {"k.png": saved(RGB.resize((300, 5)), "PNG"), "k.txt": b"a", "k.cls": b"1"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    url = str(tmp_path / "0.tar")
    assert verify_shard(url).skipped == read(Reading((url,), 16), quiet=True)["skipped"] == {problems.IMAGE_TOO_LONG: 1}
    found = evaluate_zeroshot(eval_model, open_shards(str(tmp_path), None, "s"), progress=False)
    assert list(found.predictions.keys) == ["k"]
