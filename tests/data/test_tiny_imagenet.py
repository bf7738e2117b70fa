"""Tiny-ImageNet: folders as people have them, on a small one made here; what is left out, dealt, said and kept."""

import hashlib
import json
import shutil
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_la.cli import main
from clip_la.data.corpora.imagenet_names import wordnet_ids
from clip_la.data.corpora.imagenet_photos import build_tiny_imagenet, captions_of, class_names, unseen_classes
from clip_la.data.corpora.photo_folders import read_folder
from clip_la.data.shards.reader import read_samples
from clip_la.errors import UserError
from clip_la.zeroshot.datasets.folders import open_folders
from clip_la.zeroshot.datasets.shards import open_shards
from clip_la.zeroshot.labels.classes import class_set

# Ten classes of the real set.
WNIDS = ("n02124075", "n02125311", "n02129165", "n02132136", "n02165456", "n02190166", "n02206856", "n02226429")
WNIDS += ("n01443537", "n02480855")


def jpeg(number: int, grey: bool = False) -> bytes:
    """A 64 px photograph-like file of its own for each number."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (8, 8) if grey else (8, 8, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=80)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten classes of six training pictures (the first grey) and three validation pictures, and a test folder."""
    root = tmp_path / "tiny-imagenet-200"
    rows = []
    for c, wnid in enumerate(WNIDS):
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        for i in range(6):
            (images / f"{wnid}_{i}.JPEG").write_bytes(jpeg(100 * c + i, grey=i == 0))
        # The last training picture of each class has no box.
        boxes = [f"{wnid}_{i}.JPEG\t{i}\t10\t{40 + i}\t58\n" for i in range(5)]
        (images.parent / f"{wnid}_boxes.txt").write_text("".join(boxes))
        (root / "val" / "images").mkdir(parents=True, exist_ok=True)
        for i in range(3):
            name = f"val_{3 * c + i}.JPEG"
            (root / "val" / "images" / name).write_bytes(jpeg(5000 + 10 * c + i))
            rows.append(f"{name}\t{wnid}\t1\t2\t30\t40")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "test" / "images").mkdir(parents=True)
    (root / "test" / "images" / "test_0.JPEG").write_bytes(jpeg(9000))
    return root


def samples(folder: Path) -> list[dict]:
    return [s for shard in sorted(folder.glob("*.tar")) for s in read_samples(str(shard))]


def meta(sample: dict) -> dict:
    return json.loads(sample["json"])


def test_the_hash_deals_a_fifth_of_the_classes():
    def rank(wnid: str) -> str:
        return hashlib.sha256(f"unseen {wnid}".encode()).hexdigest()

    ids = wordnet_ids("imagenet")[:203]
    assert unseen_classes(ids) == set(sorted(ids, key=rank)[:40])
    assert unseen_classes(reversed(ids)) == unseen_classes(ids)


def test_splits_hold_the_pictures_own_bytes_and_their_truth(folder, tmp_path):
    manifest = build_tiny_imagenet(folder, tmp_path / "out", quiet=True)
    unseen = unseen_classes(WNIDS)
    assert {split: record["pairs"] for split, record in manifest["splits"].items()} == {
        "train": 48,
        "val": 24,
        "unseen": 6,
        "unseen-large": 12,
    }
    assert {split: record["grey"] for split, record in manifest["splits"].items()} == {
        "train": 8,
        "val": 0,
        "unseen": 0,
        "unseen-large": 2,
    }
    assert manifest["splits"]["train"]["without_box"] == 8
    assert manifest["left_out"] == {}
    for split in manifest["splits"]:
        for sample in samples(tmp_path / "out" / split):
            fields = meta(sample)
            path = next(folder.rglob(fields["origin"]))
            assert sample["jpg"] == path.read_bytes()
            assert (fields["wnid"] in unseen) == split.startswith("unseen")
            if path.parts[-4] == "train":
                number = int(path.stem.split("_")[1])
                assert fields["wnid"] == path.parts[-3]
                assert fields["grey"] == (number == 0)
                assert fields.get("box_px") == (None if number == 5 else [number, 10, 40 + number, 58])
            else:
                assert fields["wnid"] == WNIDS[int(path.stem[4:]) // 3]
                assert fields["box_px"] == [1, 2, 30, 40]
    # Classes are mixed, not one after another.
    order = [meta(sample)["wnid"] for sample in samples(tmp_path / "out" / "train")]
    assert sum(a == b for a, b in pairwise(order)) < 16
    assert build_tiny_imagenet(folder, tmp_path / "out", quiet=True)["built"] is False


def test_every_build_gives_the_same_bytes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("clip_la.data.corpora.imagenet_photos._CHUNK", 20)
    first = build_tiny_imagenet(folder, tmp_path / "a", quiet=True)
    again = build_tiny_imagenet(folder.parent, tmp_path / "b", workers=2, quiet=True)
    assert first["splits"] == again["splits"]


def test_captions_say_the_name_in_several_wordings(folder, tmp_path):
    build_tiny_imagenet(folder, tmp_path / "out", quiet=True)
    for sample in samples(tmp_path / "out" / "train"):
        fields = meta(sample)
        assert sample["txt"].decode() == fields["caption"] == fields["captions"][0]
        assert fields["name"] in fields["caption"]
        assert len(set(fields["captions"])) == len(fields["captions"]) >= 3
        assert any("black and white" in text for text in fields["captions"]) == fields["grey"]
    texts = captions_of("cougar", "n02125311", "x", grey=False)
    assert texts[-1].startswith("cougar: large American feline")
    assert any("puma" in text for text in texts)
    mains = {captions_of("cougar", "n02125311", str(i), grey=False)[0] for i in range(100)}
    assert {"a photo of a cougar", "a low resolution photo of a cougar", "cougar", "a cougar"} & mains == {
        "a photo of a cougar",
        "a low resolution photo of a cougar",
        "a cougar",
    }


def test_names_differ_even_where_lemmas_do_not():
    # Two cranes of ImageNet: the bird and the machine share their only lemma.
    names = class_names(["n02012849", "n03126707", "n01443537"])
    assert names["n01443537"] == "goldfish"
    assert names["n02012849"] == "crane (n02012849)"
    assert len(set(class_names(wordnet_ids("imagenet")).values())) == 1000
    with pytest.raises(UserError, match="'n99999999' is none of the WordNet ids"):
        class_names(["n99999999"])


@pytest.mark.parametrize("classes", [None, "imagenet1k", "imagenet21k"])
def test_test_splits_evaluate_against_their_own_and_larger_class_sets(folder, tmp_path, classes):
    build_tiny_imagenet(folder, tmp_path / "out", quiet=True)
    for split, num_classes in (("val", 8), ("unseen", 2), ("unseen-large", 2)):
        found = open_shards(str(tmp_path / "out" / split), classes and class_set(classes), split)
        assert classes or len(found.classes) == num_classes
        records = [record for source in found.sources for record in source.records()]
        truth = [meta(sample)["wnid"] for sample in samples(tmp_path / "out" / split)]
        assert [found.classes.ids[record.labels[0]] for record in records] == truth
        assert found.templates
        for sample, wnid in zip(samples(tmp_path / "out" / split), truth, strict=True):
            assert sorted(set(truth))[int(sample["cls"])] == wnid


def test_what_macos_scripts_and_accidents_leave_behind(folder, tmp_path):
    images = folder / "train" / WNIDS[0] / "images"
    (folder / "train" / ".DS_Store").write_bytes(b"x")
    (images / f"._{WNIDS[0]}_0.JPEG").write_bytes(b"\0\5\x16\7")
    (folder / "val" / "images" / ".DS_Store").write_bytes(b"x")
    (images / "notes.md").write_text("x")
    shutil.copy(images / f"{WNIDS[0]}_1.JPEG", images / f"{WNIDS[0]}_1 2.JPEG")
    # A validation picture in training too, and one picture in two classes.
    shutil.copy(folder / "val" / "images" / "val_3.JPEG", folder / "train" / WNIDS[1] / "images" / "other.JPEG")
    shutil.copy(images / f"{WNIDS[0]}_2.JPEG", folder / "train" / WNIDS[1] / "images" / "third.JPEG")
    (images / f"{WNIDS[0]}_3.JPEG").write_bytes(jpeg(3)[:200])
    (images / f"{WNIDS[0]}_4.JPEG").write_bytes(b"nothing")
    (folder / "val" / "images" / "val_77.JPEG").write_bytes(jpeg(77))
    (folder / "val" / "images" / "val_0.JPEG").unlink()
    (folder / "train" / "n07749582" / "images").mkdir(parents=True)
    (folder / "train" / "n07749582" / "images" / "n07749582_0.JPEG").write_bytes(jpeg(78))
    manifest = build_tiny_imagenet(folder, tmp_path / "out", quiet=True)
    assert manifest["left_out"] == {
        "hidden file": 3,
        "not an image file": 1,
        "copy of another image": 2,
        "same image in several classes": 2,
        "image damaged": 1,
        "not an image": 1,
        "no line in val_annotations.txt": 1,
        "named in val_annotations.txt, not there": 1,
        "not a class of wnids.txt": 1,
    }
    assert sum(record["pairs"] for record in manifest["splits"].values()) == 90 - 1 - 3
    origins = [meta(sample)["origin"] for split in manifest["splits"] for sample in samples(tmp_path / "out" / split)]
    assert f"{WNIDS[0]}_1.JPEG" in origins
    assert "val_3.JPEG" in origins
    assert not {f"{WNIDS[0]}_2.JPEG", f"{WNIDS[0]}_1 2.JPEG", "other.JPEG", "third.JPEG"} & set(origins)


def test_other_layouts_hold_the_same(folder, tmp_path):
    """Scripts sort `val` into class folders, others drop `images`, boxes and lists; Windows ends lines with CR LF."""
    before = read_folder(folder)
    rows = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
    (folder / "val" / "val_annotations.txt").write_bytes("\r\n".join("\t".join(row) for row in rows).encode())
    assert read_folder(folder) == before
    (folder / "val" / "val_annotations.txt").write_text("\n".join(f"{row[0]}\t{row[1]}" for row in rows))
    assert [picture.box for picture in read_folder(folder).images if picture.half == "val"] == [None] * 30
    for name, wnid, *_ in rows:
        (folder / "val" / wnid).mkdir(exist_ok=True)
        (folder / "val" / "images" / name).rename(folder / "val" / wnid / name)
    for path in (folder / "val" / "val_annotations.txt", folder / "wnids.txt", *folder.glob("train/*/*_boxes.txt")):
        path.unlink()
    for path in folder.glob("train/*/images/*"):
        path.rename(path.parent.parent / path.name)
    found = read_folder(folder)
    assert found.wnids == sorted(WNIDS)
    assert {(p.path.name, p.half, p.wnid) for p in found.images} == {
        (p.path.name, p.half, p.wnid) for p in before.images
    }
    assert {picture.box for picture in found.images} == {None}


def test_webp_is_smaller_and_looks_alike(folder, tmp_path):
    build_tiny_imagenet(folder, tmp_path / "a", quiet=True)
    manifest = build_tiny_imagenet(folder, tmp_path / "b", format="webp", quality=60, quiet=True)
    assert manifest["settings"] == {"corpus": "tiny-imagenet", "format": "webp", "quality": 60}
    pairs = list(zip(samples(tmp_path / "a" / "train"), samples(tmp_path / "b" / "train"), strict=True))
    for first, second in pairs:
        assert meta(first)["captions"] == meta(second)["captions"]
        one, two = (
            np.asarray(Image.open(BytesIO(data)).convert("RGB"), np.float32) for data in (first["jpg"], second["webp"])
        )
        assert np.abs(one - two).mean() < 12
    assert sum(len(b["webp"]) for _, b in pairs) < 0.8 * sum(len(a["jpg"]) for a, _ in pairs)


def test_wrong_input_is_named(folder, tmp_path, capsys):
    with pytest.raises(UserError, match="is no unpacked Tiny-ImageNet: it holds no folder 'train'"):
        read_folder(tmp_path / "absent")
    with pytest.raises(UserError, match="--quality 101 is out of range"):
        build_tiny_imagenet(folder, tmp_path / "x", format="webp", quality=101)
    with pytest.raises(UserError, match="format 'wepb'"):
        build_tiny_imagenet(folder, tmp_path / "x", format="wepb")
    (folder / "wnids.txt").write_text("n01443537\ngoldfish\n")
    with pytest.raises(UserError, match=r"wnids.txt: 'goldfish' is no WordNet id"):
        read_folder(folder)
    (folder / "wnids.txt").write_text("\n")
    with pytest.raises(UserError, match="names no classes"):
        read_folder(folder)
    (folder / "wnids.txt").unlink()
    (folder / "val" / "val_annotations.txt").unlink()
    with pytest.raises(UserError, match=r"val has neither val_annotations.txt nor folders"):
        read_folder(folder)
    assert main(["data", "tiny-imagenet", str(folder), str(tmp_path / "y"), "--quality", "50"]) == 2
    assert "--quality belongs to --format webp" in capsys.readouterr().err


def test_the_command(folder, tmp_path, capsys):
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "train" / ".DS_Store").write_bytes(b"x")
    arguments = ["data", "tiny-imagenet", str(folder.parent), str(tmp_path / "out"), "--format", "webp"]
    assert not main([*arguments, "--workers", "1"])
    text = capsys.readouterr().out
    assert "left out 1: hidden file" in text
    assert "unseen-large                  12 pairs, 2 classes, 1 shards" in text


def test_sample_pictures_sorted_into_wordnet_folders_are_imagenet1k(tmp_path):
    """n01440764_tench.JPEG and its like, one a class, evaluate against ImageNet-1K's names as they are."""
    for number, wnid in enumerate(wordnet_ids("imagenet")[:3]):
        (tmp_path / wnid).mkdir()
        (tmp_path / wnid / f"{wnid}_some_name.JPEG").write_bytes(jpeg(number))
    found = open_folders(tmp_path, None, "samples")
    assert found.classes.label == "imagenet1k/curated"
    assert [record.labels for source in found.sources for record in source.records()] == [(0,), (1,), (2,)]
