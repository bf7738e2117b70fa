"""Writing a corpus: whole or built again, and never over somebody's files."""

import json

import numpy as np
import pytest

from clip_la.data.corpora.build import Classes, existing, write_manifest, write_split
from clip_la.data.corpora.png import encode_png
from clip_la.data.shards.reader import read_samples
from clip_la.errors import UserError

SETTINGS = {"corpus": "test", "size_px": 3}


def sample(number):
    pixels = np.full((3, 3, 3), number, np.uint8)
    return {".png": encode_png(pixels), ".txt": f"number {number}", ".json": {"class": f"c{number % 3}"}}


def build(out, count, per_shard=4, classes=None):
    record = write_split(out / "train", map(sample, range(count)), classes, per_shard)
    return write_manifest(out, SETTINGS, {"train": record})


def test_shards_sizes_and_keys(tmp_path):
    record = build(tmp_path, 10)["splits"]["train"]
    assert [(s["name"], s["samples"]) for s in record["shards"]] == [
        ("00000.tar", 4),
        ("00001.tar", 4),
        ("00002.tar", 2),
    ]
    assert json.loads((tmp_path / "train" / "sizes.json").read_text()) == {
        s["name"]: s["samples"] for s in record["shards"]
    }
    found = [s for shard in record["shards"] for s in read_samples(str(tmp_path / "train" / shard["name"]))]
    assert [s["__key__"] for s in found] == [f"{i // 4:05d}{i % 4:04d}" for i in range(10)]
    assert len({json.loads(s["json"])["pixels_sha256"] for s in found}) == 10


def test_classes_and_their_ids(tmp_path):
    classes = Classes(["c0", "c1", "c2"], ["n01", "n02", "n03"], ["a {c}"])
    record = build(tmp_path, 5, classes=classes)["splits"]["train"]
    assert record["classes"] == 3
    assert json.loads((tmp_path / "train" / "classes.json").read_text())[1] == {"id": "n02", "names": ["c1"]}
    assert (tmp_path / "train" / "zeroshot_classification_templates.txt").read_text() == "a {c}\n"
    found = read_samples(str(tmp_path / "train" / "00000.tar"))
    assert [s["cls"] for s in found] == [b"0", b"1", b"2", b"0"]


def test_a_whole_corpus_is_found_and_half_a_one_is_not(tmp_path):
    out = tmp_path / "out"
    assert existing(out, SETTINGS, ["train"]) is None
    manifest = build(out, 10)
    assert existing(out, SETTINGS, ["train"]) == manifest
    shard = out / "train" / "00001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    assert existing(out, SETTINGS, ["train"]) is None
    shard.unlink()
    assert existing(out, SETTINGS, ["train"]) is None
    shard.write_bytes(data)
    (out / "manifest.json").write_text('{"format": ')
    assert existing(out, SETTINGS, ["train", "manifest.json"]) is None
    (out / "manifest.json").unlink()
    (out / "train" / ".00002.tar.x.part").write_bytes(b"left by a kill")
    assert existing(out, SETTINGS, ["train"]) is None
    # The next build leaves nothing of a larger, stopped one behind.
    build(out, 3)
    assert sorted(p.name for p in (out / "train").iterdir()) == ["00000.tar", "sizes.json"]


def test_a_corpus_made_of_other_packages_is_not_taken(tmp_path, capsys):
    made_from = {"drawings": "abc", "emoji": "2.0"}
    record = write_split(tmp_path / "out" / "train", map(sample, range(3)))
    manifest = write_manifest(tmp_path / "out", SETTINGS, {"train": record}, made_from=made_from)
    assert existing(tmp_path / "out", SETTINGS, ["train"], made_from) == manifest
    assert capsys.readouterr().err == ""
    for other, named in (
        ({**made_from, "emoji": "2.1"}, "emoji"),
        ({**made_from, "icons": "x"}, "icons"),
        ({"emoji": "2.0", "drawings": "abd"}, "drawings"),
        ({}, "drawings, emoji"),
    ):
        with pytest.raises(UserError, match=f"made from other content of {named}; name another folder"):
            existing(tmp_path / "out", SETTINGS, ["train"], other)
    # Where nobody can tell, it is said.
    assert existing(tmp_path / "out", SETTINGS, ["train"], None) == manifest
    assert "not known (they are not here, or not all); kept as it is" in capsys.readouterr().err
    build(tmp_path / "old", 3)
    assert existing(tmp_path / "old", SETTINGS, ["train"], made_from)
    assert "not known (its manifest does not say)" in capsys.readouterr().err


def test_a_corpus_of_another_version_is_named_as_such(tmp_path, monkeypatch):
    build(tmp_path, 3)
    monkeypatch.setattr("clip_la.data.corpora.build.FORMAT", 99)
    with pytest.raises(UserError, match="made by another version of clip-la"):
        existing(tmp_path, SETTINGS, ["train"])


def test_others_files_are_not_touched(tmp_path):
    build(tmp_path / "corpus", 3)
    with pytest.raises(UserError, match=r"other settings \(corpus=test, size_px=3\)"):
        existing(tmp_path / "corpus", {"corpus": "test", "size_px": 4}, ["train"])
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        existing(tmp_path / "file", SETTINGS, ["train"])
    with pytest.raises(UserError, match="holds other files"):
        existing(tmp_path, SETTINGS, ["train"])
