"""Tables as people have them: read as `csv` reads what is well-formed; what is not costs its own row, with its line."""

import csv
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_la.commands import data as command
from clip_la.data.shards import problems
from clip_la.data.shards.reader import read_samples
from clip_la.data.tools.pack import pack
from clip_la.data.tools.pack_sources import find_source
from clip_la.errors import UserError

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with red.png, green.png and blue.png."""
    folder = tmp_path_factory.mktemp("images")
    for name in COLOURS:
        Image.new("RGB", (4, 4), name).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def packed(images, tmp_path):
    """`packed(text)` packs a table: (captions, {reason: first place}, jsons)."""

    def run(data, name="t.csv", **columns):
        table = tmp_path / name
        table.write_bytes(data if isinstance(data, bytes) else data.encode())
        out = Path(tempfile.mkdtemp(dir=tmp_path))
        result = pack(find_source(str(table), images=images, **columns), out, quiet=True)
        assert result["samples"] == result["packed"] + sum(result["skipped"].values())
        samples = [s for shard in sorted(out.glob("*.tar")) for s in read_samples(str(shard))]
        return [s["txt"].decode() for s in samples], result["examples"], [json.loads(s["json"]) for s in samples]

    return run


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_the_separator_is_found_whatever_the_file_is_called(packed, name, delimiter):
    rows = [("path", "caption", "by"), ("red.png", "a red one", "me"), ("blue.png", "a blue one", "you")]
    captions, skipped, metas = packed("".join(delimiter.join(row) + "\n" for row in rows), name)
    assert (captions, skipped) == (["a red one", "a blue one"], {})
    assert [meta["by"] for meta in metas] == ["me", "you"]


def test_excel_says_the_separator(packed):
    assert packed("sep=^\r\npath^caption\r\nred.png^a, b; c\r\n")[0] == ["a, b; c"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_encodings(packed, encoding):
    data = "path\tcaption\r\nred.png\tcaf\u00e9\r\n".encode(encoding)
    if encoding in ("utf-8-sig", "utf-16"):
        assert packed(data)[0] == ["caf\u00e9"]
        return
    line = ":2" if encoding == "latin-1" else ""
    with pytest.raises(UserError, match=rf"t\.csv{line} .*UTF-8.*save the table as UTF-8$"):
        packed(data)


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("path, caption", "red.png, red, or not"),
        ("path,caption", "red.png,red, or not"),
        ("path,caption,by", "red.png,red"),
        ("path,caption,by", "red.png"),
    ],
)
def test_rows_with_other_cells_than_the_header_are_counted_with_their_line(packed, header, row):
    rest = "," * (header.count(",") - 1)
    captions, skipped, _ = packed(f"\n{header}\ngreen.png,one{rest}\n\n{row}\nblue.png,two{rest}\n")
    assert (captions, skipped) == (["one", "two"], {problems.ROW_CELLS: "t.csv:5"})


def test_lines_are_the_files_own(packed):
    text = 'path,caption\r\nred.png,"one\r\ntwo"\r\n\r\ngreen.png,\r\nblue.png,"x"y"\r\nnone.png,z\r\nred.png,nan\r\n'
    captions, skipped, metas = packed(text)
    # Retrieval takes lines of a text for captions of their own: the json says that this is one.
    assert (captions, metas[0]["captions"]) == (["one\r\ntwo"], ["one\r\ntwo"])
    assert skipped == {
        problems.EMPTY_CAPTION: "t.csv:5",
        problems.ROW_QUOTES: "t.csv:6",
        problems.NO_IMAGE: "t.csv:7",
        problems.NO_CAPTION: "t.csv:8",
    }


@pytest.mark.parametrize(
    "captions",
    [
        ['"red" square', '12" green', 'say "blue"'],
        ['"red', "green", 'blue"'],
        ['"red', 'a "green" one', '"blue"" '],
        ['red, 12" or "13"', '"', '""" x'],
    ],
)
def test_raw_quotes_in_tsv_stay_and_swallow_nothing(packed, captions):
    text = "caption\tpath\n" + "".join(f"{c}\t{n}.png\n" for c, n in zip(captions, COLOURS, strict=True))
    assert packed(text, "t.tsv")[:2] == ([c.strip() for c in captions], {})
    text = "path\tcaption\n" + "".join(f"{n}.png\t{c}\n" for c, n in zip(captions, COLOURS, strict=True))
    assert packed(text, "t.tsv")[:2] == ([c.strip() for c in captions], {})


def test_a_lone_quote_in_csv_costs_its_row(packed):
    captions, skipped, _ = packed('path,caption\nred.png,"open\ngreen.png,g\nblue.png,close"\nblue.png,"a, b"\n')
    assert (captions, skipped) == (["g", 'close"', "a, b"], {problems.ROW_QUOTES: "t.csv:2"})


def test_a_huge_cell_costs_its_row(packed):
    captions, skipped, _ = packed(f'path,caption\nred.png,"{"x" * (17 << 20)}"\ngreen.png,g\n')
    assert (captions, skipped) == (["g"], {problems.PART_TOO_LARGE: "t.csv:2"})
    assert packed(f'path,caption\nred.png,"{"x, " * 100_000}"\n')[0] == [("x, " * 100_000).strip()]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a red square\tred.png\n", r"separated by '\\t'\); that is a row: put .* such as 'path\\tcaption'"),
        ("id;words\n1;x\n", r"columns are id, words \(line 1, separated by ';'\)"),
        ("path,caption,caption\nred.png,a,b\n", "2 columns are named caption, caption"),
        ("path,Caption,CAPTION\nred.png,a,b\n", "2 columns are named Caption, CAPTION"),
        ("path,caption,x,x\nred.png,a,b,c\n", "several columns are named x"),
        ("", "has no rows"),
        ("\n \n", "has no rows"),
        ("path,caption\n", "has no rows"),
        ("url,caption\nhttps://a/b.jpg,c\n", "img2dataset"),
        ("path,caption\nred.png,NULL\n", r"1 no caption \(first: t\.csv:2\)"),
    ],
)
def test_what_cannot_be_read_is_one_line(packed, data, message):
    with pytest.raises(UserError, match=message) as caught:
        packed(data)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("header", [" path , caption ", "PATH,Caption", '"path","caption"', "path,text,caption"])
def test_headers(packed, header):
    row = "red.png,other,right" if "text" in header else "red.png,right"
    assert packed(f"{header}\n{row}\n")[0] == ["right"]
    assert packed("path,text,caption\nred.png,other,right\n", caption_column="Text")[0] == ["other"]


def test_which_columns_are_read_is_said(images, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("path,text,caption\nred.png,other,right\nred.png,x\n")
    argv = ["pack", str(tmp_path / "t.csv"), str(tmp_path / "out"), "--images", str(images), "--workers", "1"]
    assert not command.main(argv)
    said = capsys.readouterr().out
    assert "images from column 'path', captions from column 'caption'; not used: text" in said
    assert f"skipped 1: {problems.ROW_CELLS} (first: t.csv:3)" in said


def test_pictures_that_are_no_files_are_not_read(packed, images):
    rows = ["/dev/zero,a", str(images) + ",b", "x\0y.png,c", "x" * 5000 + ".png,d", "red.png,e"]
    captions, skipped, _ = packed("path,caption\n" + "\n".join(rows) + "\n")
    assert (captions, skipped) == (["e"], {problems.NO_IMAGE: "t.csv:2"})


def test_paths_as_windows_writes_them(packed, images):
    (images / "sub").mkdir()
    (images / "sub" / "red.png").write_bytes((images / "red.png").read_bytes())
    captions, skipped, _ = packed("path,caption,captions\nsub\\red.png,a,other\nsub\\none.png,b,c\n")
    assert (captions, skipped) == (["a"], {problems.NO_IMAGE: "t.csv:3"})


def test_a_column_named_captions_beside_the_caption_is_not_taken_for_it(packed):
    captions, _, metas = packed("path,caption,captions\nred.png,right,other\n")
    assert (captions, metas[0]["captions"]) == (["right"], ["right"])


def test_json_lines(packed):
    rows = [
        '{"image": "red.png"}',
        '["red.png", "red"]',
        "7",
        "{damaged",
        "[" * 100_000,
        '{"image": "red.png", "caption": null}',
        '{"image": "red.png", "caption": NaN}',
        '{"image": "red.png", "caption": 5}',
        '{"image": "red.png", "caption": " "}',
        '{"image": ["red.png", "blue.png"], "caption": "two"}',
        "",
        '{"image": ["red.png"], "caption": [null, "a", "", "b"], "score": NaN, "size": {"w": 3, "x": 1e999}}',
        '{"image": "green.png", "caption": "lone \\ud800 and \\u0000 zero", "by": "\\ud800"}',
        '{"image": "blue.png", "caption": []}',
    ]
    captions, skipped, metas = packed("\n".join(rows), "t.jsonl")
    assert captions == ["a", "lone  and  zero"]
    assert (metas[0]["captions"], metas[0]["score"], metas[0]["size"]) == (["a", "b"], None, {"w": 3, "x": None})
    assert skipped == {
        problems.NO_CAPTION: "t.jsonl:1",
        problems.ROW_NOT_OBJECT: "t.jsonl:2",
        problems.CAPTION_NOT_TEXT: "t.jsonl:8",
        problems.EMPTY_CAPTION: "t.jsonl:9",
        problems.SEVERAL_IMAGES: "t.jsonl:10",
    }
    with pytest.raises(UserError, match=r"t\.jsonl:2: no JSON object; each line must be one"):
        packed('\n["red.png", "red"]\n', "t.jsonl")


CELLS = st.text("ab\u00e9 \"'\n\r\t,;|\\", max_size=6)


def read_all(table):
    """Every sample of a table as `pack` gets it."""
    source = find_source(str(table))
    return [raw for piece, size in enumerate(source.sizes()) for raw in source.read(piece, 0, size)]


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(
    st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4),
    st.sampled_from(",\t;|"),
    # With line feeds alone, csv would not quote a carriage return.
    st.sampled_from([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)]),
)
def test_well_formed_tables_are_read_as_csv_reads_them(rows, delimiter, form):
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=form[0], quoting=form[1])
    writer.writerows([("path", "caption", "by"), *(("red.png", *row) for row in rows)])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "t.csv").write_text(stream.getvalue(), encoding="utf-8", newline="")
        Path(folder, "red.png").write_bytes(b"picture")
        found = [(raw.caption, raw.meta["by"]) for raw in read_all(Path(folder, "t.csv")) if not raw.problem]
    stream.seek(0)
    independent = [(row["caption"].strip(), row["by"]) for row in csv.DictReader(stream, delimiter=delimiter)]
    assert found == [(caption, by) for caption, by in independent if caption]


LINES = st.text("ab.png,\t;|\"'\n\r \0{}[]:\\u\u00e9", max_size=60)


HEADERS = ("", "path,caption\n", "caption\tpath\n", "path;caption;x\n", '{"image": "a.png", "caption": "b"}\n')


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    st.sampled_from([".csv", ".tsv", ".jsonl"]),
    st.sampled_from(HEADERS),
    st.one_of(LINES.map(str.encode), st.binary(max_size=40)),
)
def test_any_table_is_read_or_refused_in_one_line(suffix, header, rest):
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, f"t{suffix}")
        table.write_bytes(header.encode() + rest)
        Path(folder, "a.png").write_bytes(b"picture")
        try:
            raws = read_all(table)
        except UserError as error:
            said = str(error)
            assert said.isprintable(), said
            assert said.startswith(str(table)), said
            return
    for raw in raws:
        name, _, line = (raw.place or raw.origin).rpartition(":")
        assert name == table.name
        assert 1 <= int(line) <= len(rest.splitlines()) + 2
        assert bool(raw.problem) != bool(raw.caption)
        json.dumps(raw.meta, allow_nan=False)
