"""Parquet as the hub and img2dataset have it: every form of picture and caption is read, or counted with its row."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_la.data.shards import problems
from clip_la.data.shards.reader import read_samples
from clip_la.data.text.captions import Captions
from clip_la.data.tools.pack import pack
from clip_la.data.tools.pack_sources import find_source
from clip_la.data.tools.read import Reading, read
from clip_la.errors import UserError
from clip_la.zeroshot.datasets.shards import open_caption_shards


def png(number):
    data = io.BytesIO()
    Image.fromarray(np.full((5, 6, 3), number, np.uint8)).save(data, "PNG")
    return data.getvalue()


PICTURES = [png(n) for n in range(4)]
CAPTIONS = [f"caption {n}" for n in range(4)]


@pytest.fixture
def packed(tmp_path):
    """`packed(table)` packs it: (samples, {reason: first row})."""

    def run(table, name="t.parquet", **columns):
        pq.write_table(table, tmp_path / name, row_group_size=3)
        out = tmp_path / "out"
        result = pack(find_source(str(tmp_path / name), **columns), out, quiet=True)
        return [s for path in sorted(out.glob("*.tar")) for s in read_samples(str(path))], result["examples"]

    return run


def hub(pictures):
    return [{"bytes": data, "path": None} for data in pictures]


@pytest.mark.parametrize(
    "pictures",
    [
        PICTURES,
        pa.array(PICTURES, pa.large_binary()),
        pa.array(PICTURES).dictionary_encode(),
        hub(PICTURES),
        [[data] for data in PICTURES],
        [[picture] for picture in hub(PICTURES)],
    ],
)
@pytest.mark.parametrize(
    "captions",
    [
        CAPTIONS,
        pa.array(CAPTIONS, pa.large_string()),
        pa.array(CAPTIONS).dictionary_encode(),
        [caption.encode() for caption in CAPTIONS],
        [[caption] for caption in CAPTIONS],
    ],
)
def test_forms_of_pictures_and_captions(packed, pictures, captions):
    samples, skipped = packed(pa.table({"image": pictures, "Text": captions, "n": range(4)}))
    assert ([s["png"] for s in samples], [s["txt"].decode() for s in samples]) == (PICTURES, CAPTIONS)
    assert ([json.loads(s["json"])["n"] for s in samples], skipped) == ([0, 1, 2, 3], {})


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string())])
def test_lists_of_captions_serve_training_and_retrieval(packed, tmp_path, kind):
    lists = [["a", "b"], ["c", None, " ", "d"], [], ["e"]]
    samples, skipped = packed(pa.table({"image": hub(PICTURES), "captions": pa.array(lists, kind)}))
    assert [s["txt"].decode() for s in samples] == ["a", "c", "e"]
    assert [json.loads(s["json"])["captions"] for s in samples] == [["a", "b"], ["c", "d"], ["e"]]
    assert skipped == {problems.NO_CAPTION: "t.parquet#0.2"}
    assert [Captions(("json.captions",)).read(s) for s in samples] == [[["a", "b"]], [["c", "d"]], [["e"]]]
    (source,) = open_caption_shards(str(tmp_path / "out"), "s").sources
    assert [record.captions for record in source.records()] == [("a", "b"), ("c", "d"), ("e",)]
    reading = Reading((str(tmp_path / "out" / "00000.tar"),), 8, captions=Captions(("json.captions",)))
    assert read(reading, quiet=True)["ok"] == 3


def test_what_cannot_be_used_is_counted_with_its_row(packed):
    pictures = [None, b"", *PICTURES[:1] * 5]
    raw = pa.array([b"a", b"b", b"\xff", b"", None, b"d", b"e"])
    # Parquet and Arrow take a writer's word for it that texts are UTF-8.
    text = pa.Array.from_buffers(pa.string(), 7, raw.buffers())
    samples, skipped = packed(pa.table({"image": pictures, "text": text, "other": text}))
    assert [s["txt"] for s in samples] == [b"d", b"e"]
    assert skipped == {
        problems.NO_IMAGE: "t.parquet#0.0",
        problems.CAPTION_NOT_TEXT: "t.parquet#0.2",
        problems.EMPTY_CAPTION: "t.parquet#1.0",
        problems.NO_CAPTION: "t.parquet#1.1",
    }


def test_numbers_and_nan_are_no_captions(packed):
    with pytest.raises(
        UserError, match=r"2 caption not text \(first: t\.parquet#0\.0\), 2 no caption \(first: .*#0\.1\)"
    ):
        packed(pa.table({"image": PICTURES, "caption": [1.0, float("nan"), None, 2.0]}))


def test_several_pictures_in_a_row(packed):
    samples, skipped = packed(pa.table({"image": [[png(1), png(2)], [png(3)]], "caption": ["a", "b"]}), "u.parquet")
    assert ([s["txt"] for s in samples], skipped) == ([b"b"], {problems.SEVERAL_IMAGES: "u.parquet#0.0"})


def test_other_columns_do_not_stand_in_the_way(packed):
    table = pa.table(
        {
            "image": PICTURES,
            "text": CAPTIONS,
            # Python has no nanoseconds.
            "time": pa.array([1, 2, 3, 4], pa.timestamp("ns")),
            "raw": PICTURES,
            "score": [float("nan"), 1.5, float("inf"), None],
            "licence": pa.array(["CC0"] * 4).dictionary_encode(),
        }
    )
    samples, _ = packed(table)
    metas = [json.loads(s["json"]) for s in samples]
    assert [meta["score"] for meta in metas] == [None, 1.5, None, None]
    assert {meta["licence"] for meta in metas} == {"CC0"}
    assert not any("time" in meta or "raw" in meta for meta in metas)


def test_a_damaged_row_group_costs_its_rows(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": PICTURES, "text": CAPTIONS}), path, row_group_size=2, compression="snappy")
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    result = pack(find_source(str(path)), tmp_path / "out", quiet=True)
    assert (result["packed"], result["skipped"]) == (2, {problems.ROWS_DAMAGED: 2})
    assert result["examples"] == {problems.ROWS_DAMAGED: "t.parquet#0.0"}


def test_files_of_other_columns_and_addresses_are_named(tmp_path):
    pq.write_table(pa.table({"image": PICTURES, "text": CAPTIONS}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": PICTURES, "caption": CAPTIONS}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: no column 'text', which a\.parquet has"):
        find_source(str(tmp_path))
    pq.write_table(pa.table({"URL": ["http://x/a.jpg"], "TEXT": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"its columns are URL, TEXT.*img2dataset"):
        find_source(str(tmp_path / "c.parquet"))
