"""Packing: what goes in comes out, the same every time, after a stop too; what is unusable is counted."""

import csv
import json
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_la.data.shards.reader import ShardWriter, read_samples
from clip_la.data.tools import pack as packing
from clip_la.data.tools.pack import ShardJob, Span, cut, image_suffix, pack
from clip_la.data.tools.pack_sources import find_source
from clip_la.errors import UserError


def picture(number: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    """23 good pictures in two folders, and five that cannot be used."""
    root = tmp_path / "pictures"
    for number in range(23):
        path = root / f"part{number % 2}" / f"img {number:02d}.{'png' if number % 3 else 'JPG'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, "PNG" if number % 3 else "JPEG"))
        path.with_suffix(".txt").write_text(f"picture number {number}\n")
    (root / "part0" / "img 02.json").write_text('{"url": "http://here", "nested": {"a": 1}}')
    (root / "part1" / "img 01.json").write_text("{damaged")
    (root / "no_caption.png").write_bytes(picture(100))
    for name, data, caption in [
        ("empty", b"", b"words"),
        ("not_image", b"hello" * 50, b"words"),
        ("cut", picture(101, "PNG")[:-40], b"words"),
        ("blank", picture(102), b"  \n"),
        ("latin", picture(103), b"caf\xe9"),
    ]:
        (root / f"{name}.jpg").write_bytes(data)
        (root / f"{name}.txt").write_bytes(caption)
    return root


SKIPPED = {
    "caption not text": 1,
    "empty caption": 1,
    "image damaged": 1,
    "image empty": 1,
    "no caption": 1,
    "not an image": 1,
}
EXAMPLES = {
    "caption not text": "latin.jpg",
    "empty caption": "blank.jpg",
    "image damaged": "cut.jpg",
    "image empty": "empty.jpg",
    "no caption": "no_caption.png",
    "not an image": "not_image.jpg",
}


def contents(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def samples(out):
    return [s for shard in sorted(out.glob("*.tar")) for s in read_samples(str(shard))]


def test_folder(folder, tmp_path):
    result = pack(find_source(str(folder)), tmp_path / "out", per_shard=10, workers=1, quiet=True)
    counts = {"shards": 3, "samples": 29, "packed": 23, "skipped": SKIPPED, "examples": EXAMPLES}
    assert result == {**counts, "out": str(tmp_path / "out")}
    found = {json.loads(s["json"])["origin"]: s for s in samples(tmp_path / "out")}
    assert len(found) == 23
    for number in range(23):
        suffix = "png" if number % 3 else "JPG"
        sample = found[f"part{number % 2}/img {number:02d}.{suffix}"]
        # The very bytes, under the suffix of what they are.
        assert sample["png" if number % 3 else "jpg"] == picture(number, "PNG" if number % 3 else "JPEG")
        assert sample["txt"].decode() == f"picture number {number}"
    assert json.loads(found["part0/img 02.png"]["json"])["nested"] == {"a": 1}
    assert len({s["__key__"] for s in found.values()}) == 23
    sizes = json.loads((tmp_path / "out" / "sizes.json").read_text())
    assert sizes == {p.name: len(list(read_samples(str(p)))) for p in sorted((tmp_path / "out").glob("*.tar"))}


def test_workers_and_a_stop_change_no_byte(folder, tmp_path, monkeypatch):
    pack(find_source(str(folder)), tmp_path / "one", per_shard=7, workers=1, quiet=True)
    pack(find_source(str(folder)), tmp_path / "two", per_shard=7, workers=2, quiet=True)
    write, written = packing.Packing.write, []

    def stopped(self, job, skips):
        if job.number == 2:
            raise KeyboardInterrupt
        written.append(job.number)
        return write(self, job, skips)

    monkeypatch.setattr(packing.Packing, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        pack(find_source(str(folder)), tmp_path / "three", per_shard=7, workers=1, quiet=True)
    # A shard without its counts is not done: it may have been stopped in between.
    (tmp_path / "three" / "00000_stats.json").unlink()
    monkeypatch.setattr(
        packing.Packing, "write", lambda self, job, skips: (written.append(job.number), write(self, job, skips))[1]
    )
    pack(find_source(str(folder)), tmp_path / "three", per_shard=7, workers=1, quiet=True)
    assert written == [0, 1, 0, 2, 3, 4]
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_tables(folder, tmp_path, suffix):
    table = tmp_path / f"table.{suffix}"
    rows = [{"File": f"part1/img {n:02d}.png", "Caption": f'an "odd", {n}', "licence": "CC0"} for n in (1, 5, 7)]
    rows.append({"File": "part1/absent.png", "Caption": "nothing", "licence": ""})
    with table.open("w", newline="", encoding="utf-8") as stream:
        if suffix == "jsonl":
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(stream, rows[0], delimiter="\t" if suffix == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    result = pack(find_source(str(table), images=folder), tmp_path / "out", workers=1, quiet=True)
    assert (result["packed"], result["skipped"]) == (3, {"no image": 1})
    found = samples(tmp_path / "out")
    assert [s["txt"].decode() for s in found] == [f'an "odd", {n}' for n in (1, 5, 7)]
    assert [s["png"] for s in found] == [picture(n) for n in (1, 5, 7)]
    assert json.loads(found[0]["json"])["licence"] == "CC0"


def test_parquet_with_bytes_and_with_hugging_face_images(tmp_path):
    plain = pa.table({"jpg_bytes": [picture(n) for n in range(9)], "text": [f"t {n}" for n in range(9)], "n": range(9)})
    pq.write_table(plain, tmp_path / "plain.parquet", row_group_size=4)
    source = find_source(str(tmp_path / "plain.parquet"), image_column="jpg_bytes")
    pack(source, tmp_path / "out", per_shard=5, workers=1, quiet=True)
    found = samples(tmp_path / "out")
    assert [(s["png"], s["txt"].decode()) for s in found] == [(picture(n), f"t {n}") for n in range(9)]
    assert [json.loads(s["json"])["n"] for s in found] == list(range(9))

    (tmp_path / "hf").mkdir()
    rows = [{"image": {"bytes": picture(n), "path": f"{n}.png"}, "caption": None if n == 1 else "c"} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hf" / "0000.parquet")
    result = pack(find_source(str(tmp_path / "hf")), tmp_path / "out2", workers=1, quiet=True)
    assert (result["packed"], result["skipped"]) == (2, {"no caption": 1})


def test_repacking_shards_keeps_every_whole_sample(tmp_path):
    for shard in range(3):
        with ShardWriter(tmp_path / "in" / f"{shard:05d}.tar") as writer:
            for n in range(5):
                part = {"txt": f"s{shard} n{n}"} if n else {"json": {"caption": f"s{shard} n0", "x": 1}}
                writer.write({"__key__": f"same{n}", "jpg": picture(10 * shard + n, "JPEG"), **part})
    damaged = tmp_path / "in" / "00001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-12000])
    whole = sum(len(list(read_samples(str(tmp_path / "in" / f"{s:05d}.tar")))) for s in range(3))
    assert 10 < whole < 15
    result = pack(find_source(str(tmp_path / "in")), tmp_path / "out", per_shard=4, workers=1, quiet=True)
    found = samples(tmp_path / "out")
    assert result["packed"] == len(found) == whole == len({s["__key__"] for s in found})
    assert [s["txt"].decode() for s in found][:6] == ["s0 n0", "s0 n1", "s0 n2", "s0 n3", "s0 n4", "s1 n0"]
    assert json.loads(found[0]["json"]) == {"caption": "s0 n0", "x": 1, "origin": "00000.tar/same0"}


def test_pixels_can_be_left_unchecked(folder, tmp_path):
    result = pack(find_source(str(folder)), tmp_path / "out", workers=1, check_pixels=False, quiet=True)
    assert "image damaged" not in result["skipped"]
    assert result["packed"] == 24


@pytest.mark.parametrize("sizes", [[], [3], [10, 10], [1, 0, 9, 4], [25]])
@pytest.mark.parametrize("per_shard", [1, 4, 10, 100])
def test_cut_covers_every_sample_once_in_order(sizes, per_shard):
    jobs = cut(sizes, per_shard)
    flat = [(span.piece, i) for job in jobs for span in job.spans for i in range(span.start, span.stop)]
    assert flat == [(piece, i) for piece, size in enumerate(sizes) for i in range(size)]
    lengths = [sum(span.stop - span.start for span in job.spans) for job in jobs]
    assert all(length == per_shard for length in lengths[:-1])
    assert [job.number for job in jobs] == list(range(len(jobs)))


def test_cut_example():
    assert cut([3, 4], 5) == [ShardJob(0, (Span(0, 0, 3), Span(1, 0, 2))), ShardJob(1, (Span(1, 2, 4),))]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_suffix_goes_by_bytes(kind):
    suffix = {"JPEG": ".jpg", "TIFF": ".tif"}.get(kind, f".{kind.lower()}")
    assert image_suffix(picture(1, kind)) == suffix


def test_bad_input_is_one_clear_line(folder, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("a,b\n1,2\n")
    (tmp_path / "web.csv").write_text("image,caption\nhttps://x/y.jpg,words\n")
    (tmp_path / "bytes.csv").write_bytes(b"image,caption\n\xff\xfe\x00,\n")
    (tmp_path / "empty.csv").write_text("image,caption\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "notes.doc").write_bytes(b"x")
    (tmp_path / "nothing").mkdir()
    for spec, match in [
        (tmp_path / "absent", "does not exist"),
        (tmp_path / "absent.tar", "does not exist"),
        (table, "no column named image or .*columns are a, b"),
        (tmp_path / "web.csv", "img2dataset"),
        (tmp_path / "bytes.csv", r"bytes\.csv:2 cannot be read as CSV in UTF-8 \(byte 0xff\)"),
        (tmp_path / "empty.csv", "has no rows"),
        (tmp_path / "bad.parquet", "cannot be read as Parquet"),
        (tmp_path / "notes.doc", r"cannot pack '\.doc'"),
        (tmp_path / "nothing", "no images under"),
    ]:
        with pytest.raises(UserError, match=match):
            find_source(str(spec))
    with pytest.raises(UserError, match="no column 'z'"):
        find_source(str(table), image_column="z")
    source = find_source(str(folder))
    with pytest.raises(UserError, match="out of range"):
        pack(source, tmp_path / "x", per_shard=0)
    with pytest.raises(UserError, match="holds other files"):
        pack(source, folder, quiet=True)
    with pytest.raises(UserError, match="is a file"):
        pack(source, table, quiet=True)
    pack(source, tmp_path / "done", workers=1, quiet=True)
    with pytest.raises(UserError, match=r"other input or settings \(per_shard\)"):
        pack(source, tmp_path / "done", per_shard=5, quiet=True)
    (folder / "new.png").write_bytes(picture(7))
    with pytest.raises(UserError, match="content or columns of the input"):
        pack(find_source(str(folder)), tmp_path / "done", quiet=True)


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture(1))
    with pytest.raises(UserError, match="nothing could be packed: 1 no caption"):
        pack(find_source(str(tmp_path / "in")), tmp_path / "out", workers=1, quiet=True)
