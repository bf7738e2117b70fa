"""Test sets of images named by WordNet ids: folders as people have them, the suites that use them, large class sets."""

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_la import results
from clip_la.cli import main
from clip_la.data.corpora.imagenet_photos import build_imagenet_samples
from clip_la.data.shards.reader import read_samples
from clip_la.errors import UserError
from clip_la.models import create_model, save_checkpoint
from clip_la.zeroshot.suite import prepare, read_suite

SUITES = Path(__file__).parents[2] / "configs" / "eval"
# Names as the sample images have them; the teddy is the one class of ImageNet-1K that fall11 lacks.
FILES = {
    "n01440764_tench.JPEG": "n01440764",
    "n02123045_tabby.JPEG": "n02123045",
    "deep/n02012849_crane.JPEG": "n02012849",
    "n03126707_crane.JPEG": "n03126707",
    "n04399382_teddy.JPEG": "n04399382",
    "n07753592/a banana.png": "n07753592",
    "n02085620.jpg": "n02085620",
}


def picture(number: int, format: str = "JPEG") -> bytes:
    small = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(small).resize((90, 70), Image.Resampling.BICUBIC).save(stream, format)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "imagenet-sample-images"
    for number, name in enumerate(FILES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number, "PNG" if name.endswith("png") else "JPEG"))
    (root / "README.md").write_text("1,000 images")
    (root / ".git").mkdir()
    (root / ".git" / "n01440764_old.JPEG").write_bytes(picture(99))
    return root


def samples(out: Path) -> list[dict]:
    return [sample for path in sorted((out / "samples").glob("*.tar")) for sample in read_samples(str(path))]


def test_each_image_is_there_once_with_its_id_and_its_own_bytes(folder: Path, tmp_path: Path) -> None:
    manifest = build_imagenet_samples(folder, tmp_path / "out", quiet=True)
    assert manifest["splits"]["samples"]["pairs"] == len(FILES)
    assert manifest["splits"]["samples"]["classes"] == len(FILES)
    assert manifest["left_out"] == {"not an image file": 1}
    by_origin = {Path(name).name: (wnid, (folder / name).read_bytes()) for name, wnid in FILES.items()}
    for sample in samples(tmp_path / "out"):
        fields = json.loads(sample["json"])
        wnid, data = by_origin.pop(fields["origin"])
        assert fields["wnid"] == wnid
        assert data == sample.get("jpg", sample.get("png"))
        assert fields["name"] in fields["caption"]
        assert sorted(FILES.values())[int(sample["cls"])] == wnid
    assert not by_origin
    assert build_imagenet_samples(folder, tmp_path / "out", quiet=True)["built"] is False


def test_what_is_no_image_of_a_class_is_counted(folder: Path, tmp_path: Path) -> None:
    (folder / "tench.JPEG").write_bytes(picture(20))
    (folder / "n014407645_x.JPEG").write_bytes(picture(21))
    (folder / "n99999999_thing.JPEG").write_bytes(picture(22))
    (folder / "._n01440764_tench.JPEG").write_bytes(b"\0")
    (folder / "n02123394_persian.JPEG").write_bytes(picture(23)[:80])
    shutil.copy(folder / "n01440764_tench.JPEG", folder / "n01440764_tench 2.JPEG")
    shutil.copy(folder / "n02085620.jpg", folder / "n02085782_japanese.jpg")
    manifest = build_imagenet_samples(folder, tmp_path / "out", quiet=True)
    assert manifest["left_out"] == {
        "WordNet id that no ImageNet has": 1,
        "copy of another image": 1,
        "hidden file": 1,
        "image damaged": 1,
        "no WordNet id in its name, nor as its folder's": 2,
        "not an image file": 1,
        "same image in several classes": 2,
    }
    assert manifest["splits"]["samples"]["pairs"] == len(FILES) - 1
    origins = {json.loads(sample["json"])["origin"] for sample in samples(tmp_path / "out")}
    assert "n01440764_tench.JPEG" in origins


@pytest.mark.parametrize(
    ("suite", "split", "sizes"),
    [
        ("imagenet_samples", "data/imagenet_samples/samples", [1000, 21841]),
        ("tiny_imagenet", "data/tiny_imagenet/val", [7, 21841]),
        ("tiny_imagenet", "data/tiny_imagenet/unseen", [7, 21841]),
    ],
)
def test_suites_know_each_image_by_its_id(folder, tmp_path, monkeypatch, suite, split, sizes) -> None:
    """Against every class set of the suite: the position of its own WordNet id; the teddy is skipped in fall11."""
    monkeypatch.chdir(tmp_path)
    build_imagenet_samples(folder, tmp_path / "out", quiet=True)
    _, entries = read_suite(SUITES / f"{suite}.yaml")
    for place in {entry.data for entry in entries}:
        shutil.copytree(tmp_path / "out" / "samples", tmp_path / place)
    truth = [json.loads(sample["json"])["wnid"] for sample in samples(tmp_path / "out")]
    sets = [prepare(entry).test_set for entry in entries if entry.data == split]
    assert [len(found.classes) for found in sets] == sizes
    for found in sets:
        records = [record for source in found.sources for record in source.records()]
        ids = [found.classes.ids[r.labels[0]] if hasattr(r, "labels") else r.reason for r in records]
        lacks = "n04399382" not in found.classes.ids
        assert lacks == (len(found.classes) == 21841)
        assert ids == ["class not in the class set" if lacks and i == "n04399382" else i for i in truth]


def test_the_commands_from_folder_to_result(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["data", "imagenet-samples", str(folder), "data/imagenet_samples", "--format", "webp", "--workers", "1"]
    assert not main(arguments)
    said = capsys.readouterr().out
    assert "samples                        7 pairs, 7 classes, 1 shards" in said
    assert "left out 1: not an image file" in said
    save_checkpoint("model.ckpt", create_model("vit_pico", seed=1))
    plain = ["--data", "data/imagenet_samples/samples", "--templates", "plain", "--workers", "0", "--cache", "none"]
    assert not main(["eval", "model.ckpt", *plain, "--classes", "imagenet1k", "--name", "samples"])
    (line,) = results.read("results.jsonl")
    assert (line["num_samples"], line["num_classes"], line["classes_with_pictures"]) == (7, 1000, 7)


def test_wrong_input_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*absent of sample images"):
        build_imagenet_samples(tmp_path / "absent", tmp_path / "x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "cat.jpg").write_bytes(picture(1))
    with pytest.raises(UserError, match=r"holds no image .* with a WordNet id in its name, as n01440764_tench.JPEG"):
        build_imagenet_samples(tmp_path / "empty", tmp_path / "y")
    with pytest.raises(UserError, match="format 'png'"):
        build_imagenet_samples(folder, tmp_path / "z", format="png")
    build_imagenet_samples(folder, tmp_path / "out", quiet=True)
    (folder / "n01440764_tench.JPEG").write_bytes(picture(77))
    with pytest.raises(UserError, match="made from other content of folder"):
        build_imagenet_samples(folder, tmp_path / "out", quiet=True)
