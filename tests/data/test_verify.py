"""Verify, read and show: exact counts over shards whose faults are known, and outputs that can be used."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from clip_la import cli
from clip_la.commands import data as command
from clip_la.data.shards.reader import ShardWriter
from clip_la.data.shards.sources import expand_urls
from clip_la.data.text.captions import Captions
from clip_la.data.tools.read import Reading, read
from clip_la.data.tools.show import show
from clip_la.data.tools.verify import missing_shards, verify, write_sizes
from clip_la.errors import UserError


def picture(number: int, size=(12, 9)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Four shards, number 2 missing: 20 good samples among faults of every kind."""
    folder = tmp_path / "shards"
    for shard in (0, 1, 3, 4):
        with ShardWriter(folder / f"{shard:05d}.tar") as writer:
            for n in range(5):
                text = f"words of {shard}" if n < 2 else f"sample {shard} {n}"
                writer.write({"__key__": f"{shard}{n}", "png": picture(10 * shard + n), "txt": text})
            if shard == 1:
                writer.write({"__key__": "a", "png": b"nothing", "txt": "x"})
                writer.write({"__key__": "b", "png": picture(1)[:90], "txt": "x"})
                writer.write({"__key__": "c", "txt": "x"})
                writer.write({"__key__": "d", "png": picture(2)})
                writer.write({"__key__": "e", "png": picture(3), "txt": " "})
                writer.write({"__key__": "f", "png": picture(4), "txt": b"\xff"})
    last = folder / "00004.tar"
    # Cut inside a sample that comes after the good ones.
    with ShardWriter(last) as writer:
        for n in range(5):
            writer.write({"__key__": f"4{n}", "png": picture(40 + n), "txt": f"sample 4 {n}"})
        writer.write({"__key__": "last", "png": picture(0), "txt": "lost"})
    data = last.read_bytes()
    last.write_bytes(data[: data.index(b"last.png\0") + 700])
    return folder


FAULTS = {
    "caption not text": 1,
    "empty caption": 1,
    "image damaged": 1,
    "no caption": 1,
    "no image": 1,
    "not an image": 1,
    "shard truncated": 1,
}


@pytest.mark.parametrize("workers", [1, 2])
def test_verify_counts_exactly(shards, workers):
    report = verify(expand_urls(str(shards)), workers=workers, quiet=True)
    assert (report["shards"], report["samples"], report["usable"]) == (4, 26, 20)
    assert report["skipped"] == FAULTS
    assert report["missing_shards"] == ["00002.tar"]
    # Shards 0, 1 and 3 say "words of ..." twice each.
    assert report["duplicates"] == {"keys": 0, "captions": 3, "images": 0}
    assert report["captions"]["words"] == {"min": 3, "median": 3.0, "mean": 3.0, "p95": 3.0, "max": 3}
    assert report["pictures"]["width_px"]["max"] == 9
    assert report["pictures"]["height_px"]["min"] == 12


def test_duplicates_are_found_across_shards(tmp_path):
    for shard in range(2):
        with ShardWriter(tmp_path / f"{shard}.tar") as writer:
            for n in range(3):
                writer.write({"__key__": f"k{n}", "png": picture(n), "txt": f"caption {n} {shard}"})
    report = verify(expand_urls(str(tmp_path)), workers=1, quiet=True)
    assert report["duplicates"] == {"keys": 3, "captions": 0, "images": 3}


def test_sizes_count_whole_samples_and_keep_other_shards(shards):
    (shards / "sizes.json").write_text('{"00000.tar": 5, "gone.tar": 9, "00003.tar": 77}')
    report = verify(expand_urls([str(shards / "00001.tar"), str(shards / "00003.tar")]), workers=1, quiet=True)
    assert write_sizes(report) == [shards / "sizes.json"]
    assert json.loads((shards / "sizes.json").read_text()) == {"00000.tar": 5, "00001.tar": 11, "00003.tar": 5}


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ([], []),
        (["00003.tar"], []),
        (["a-000.tar", "a-003.tar", "b-001.tar"], ["a-001.tar", "a-002.tar"]),
        (["part.tar", "x1.tar", "x3.tar"], ["x2.tar"]),
    ],
)
def test_missing_shards(names, missing):
    assert missing_shards(names) == missing


@pytest.mark.parametrize("workers", [1, 2])
def test_read_tells_every_sample(shards, tmp_path, workers):
    reading = Reading(tuple(expand_urls(str(shards))), image_size=8)
    counts = read(reading, keys=tmp_path / "keys.jsonl", workers=workers, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "keys.jsonl").read_text().splitlines()]
    assert (counts["ok"], counts["skipped"], counts["shards"]) == (20, FAULTS, 4)
    assert counts["samples"] == len(lines) == counts["ok"] + counts["skipped_total"]
    ok = sorted(line["key"] for line in lines if line["outcome"] == "ok")
    assert ok == sorted(f"{shard}{n}" for shard in (0, 1, 3, 4) for n in range(5))
    skipped = {line["key"]: line["reason"] for line in lines if line["outcome"] == "skipped"}
    assert skipped == {
        "last.png": "shard truncated",
        "a": "not an image",
        "b": "image damaged",
        "c": "no image",
        "d": "no caption",
        "e": "empty caption",
        "f": "caption not text",
    }
    assert {line["shard"] for line in lines} == set(expand_urls(str(shards)))


def test_read_obeys_limits_and_caption_fields(shards):
    urls = (str(shards / "00000.tar"),)
    assert read(Reading(urls, 8, min_side_px=10), workers=1, quiet=True)["skipped"] == {"image too small": 5}
    counts = read(Reading(urls, 8, captions=Captions(("json.caption",))), workers=1, quiet=True)
    assert counts["skipped"] == {"no caption": 5}


def test_show_writes_sheet_and_page(shards, tmp_path):
    urls = expand_urls(str(shards))
    paths = show(urls, tmp_path / "sheet.png", num=40, seed=1, columns=5)
    assert [path.name for path in paths] == ["sheet.png", "sheet.html"]
    with Image.open(paths[0]) as sheet:
        assert sheet.mode == "RGB"
        assert sheet.width > 5 * 128
    page = paths[1].read_text()
    assert page.count("<figure>") == 26
    assert "sample 0 4" in page
    assert page.count("data:image/png;base64,") == 23
    first = paths[0].read_bytes()
    show(urls, tmp_path / "sheet.png", num=40, seed=1, columns=5)
    assert paths[0].read_bytes() == first


def test_show_escapes_captions(tmp_path):
    with ShardWriter(tmp_path / "0.tar") as writer:
        writer.write({"__key__": "k", "png": picture(1), "txt": "<script>alert(1)</script> \N{SNOWMAN} " * 9})
    page = show([str(tmp_path / "0.tar")], tmp_path / "s.png", num=3)[1].read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_bad_input(shards, tmp_path):
    with ShardWriter(tmp_path / "empty.tar"):
        pass
    with pytest.raises(UserError, match="no samples in"):
        show([str(tmp_path / "empty.tar")], tmp_path / "s.png", num=3)
    with pytest.raises(UserError, match=r"must end in \.png"):
        show([str(tmp_path / "empty.tar")], tmp_path / "s.jpg", num=3)
    with pytest.raises(UserError, match="does not exist"):
        verify([str(tmp_path / "absent.tar")], workers=1, quiet=True)


def test_commands(shards, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(["verify", str(shards), "--workers", "1", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["skipped"] == FAULTS
    assert "1 shard numbers missing: 00002.tar" in err
    assert command.main(["verify", str(shards / "00000.tar"), "--workers", "1"]) == 0
    assert "5 samples in 1 shards, 5 usable" in capsys.readouterr().out
    assert (
        command.main(["read", str(shards), "--workers", "1", "--image-size", "8", "--keys", "k.jsonl", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["ok"] == 20
    assert not command.main(["show", str(shards), "--num", "9"])
    assert (tmp_path / "contact_sheet.html").exists()
    capsys.readouterr()
    assert not command.main(["pack", str(shards), "packed", "--workers", "1", "--per-shard", "8", "--json"])
    assert json.loads(capsys.readouterr().out)["packed"] == 20
    assert command.main([]) == 2
    for argv, match in [
        (["verfy"], "did you mean verify"),
        (["show", str(shards), "--num", "0"], "whole number of at least 1"),
        (["read", str(shards / "9.tar")], "does not exist"),
        (["pack", str(shards)], "OUT"),
        (["verify", str(shards), "--workers", "2", "--jsn"], "--jsn"),
    ]:
        with pytest.raises(UserError, match=match):
            command.main(argv)


@pytest.mark.parametrize("argv", [["starter"], ["scenes", "--pairs", "3"], ["pack", "SHARDS", "--workers", "1"]])
def test_a_folder_that_cannot_be_made_is_one_line(shards, argv, capsys):
    argv = [str(shards) if word == "SHARDS" else word for word in argv]
    # A file in the way: no folder can be made below it, whoever asks.
    assert cli.main(["data", *argv, str(shards / "00000.tar" / "below")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("clip-la: error: ")
    assert "00000.tar" in err.splitlines()[0]
