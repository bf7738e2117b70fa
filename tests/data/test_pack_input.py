"""Packed shards are those of the input as it is: whatever changes that the shards depend on, the old are not kept."""

import json
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_la.data.shards.reader import ShardWriter, read_samples
from clip_la.data.tools import pack as packing
from clip_la.data.tools.pack import pack
from clip_la.data.tools.pack_sources import find_source
from clip_la.errors import UserError

COLOURS = ("red", "green", "blue")
OTHER = "other input or settings .content or columns of the input.; name a new folder"


def bmp(colour: str) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "BMP")
    return stream.getvalue()


def write_folder(root: Path) -> Path:
    for colour in COLOURS:
        (root / "in").mkdir(parents=True, exist_ok=True)
        (root / "in" / f"{colour}.bmp").write_bytes(bmp(colour))
        (root / "in" / f"{colour}.txt").write_text("IMG_1")
        (root / "in" / f"{colour}.json").write_text('{"by": 1}')
    return root / "in"


def write_csv(root: Path) -> Path:
    write_folder(root)
    rows = [f"in/{colour}.bmp,IMG_1,a {colour} square,1" for colour in COLOURS]
    (root / "in.csv").write_text("\n".join(["path,caption,alt,n", *rows]))
    return root / "in.csv"


def write_parquet(root: Path, caption: str = "IMG_1") -> Path:
    columns = {"image": [{"bytes": bmp(c), "path": c} for c in COLOURS], "caption": [caption] * 3, "alt": list(COLOURS)}
    pq.write_table(pa.table(columns), root / "in.parquet", compression="none", use_dictionary=False)
    return root / "in.parquet"


def write_parquet_of_names(root: Path) -> Path:
    write_folder(root)
    columns = {"image": [f"in/{colour}.bmp" for colour in COLOURS], "caption": ["IMG_1"] * 3}
    pq.write_table(pa.table(columns), root / "in.parquet")
    return root / "in.parquet"


def write_parquet_of_paths(root: Path) -> Path:
    """Hugging Face's images, of which the first has its bytes in the table and the others lie outside."""
    write_folder(root)
    images = [{"bytes": None if n else bmp(c), "path": f"in/{c}.bmp"} for n, c in enumerate(COLOURS)]
    pq.write_table(pa.table({"image": images, "caption": ["IMG_1"] * 3}), root / "in.parquet", row_group_size=1)
    return root / "in.parquet"


def write_shards(root: Path, caption: str = "IMG_1") -> Path:
    with ShardWriter(root / "in" / "00000.tar") as writer:
        for colour in COLOURS:
            writer.write({"__key__": colour, "bmp": bmp(colour), "txt": caption})
    return root / "in"


def piped(root: Path) -> str:
    return f"pipe:cat {write_shards(root)}/00000.tar"


def keep_time(path: Path, change: Callable[[], object]) -> None:
    before = path.stat()
    change()
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def edit(name: str, data: str | bytes) -> Callable[[Path], None]:
    """A change of one file to something of equal size and time."""
    content = data.encode() if isinstance(data, str) else data
    return lambda root: keep_time(root / name, lambda: (root / name).write_bytes(content))


def written_again(name: str, write: Callable[[Path, str], Path]) -> Callable[[Path], None]:
    return lambda root: keep_time(root / name, lambda: write(root, "IMG_2"))


def replace_in(name: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda root: edit(name, (root / name).read_text().replace(old, new, 1))(root)


CHANGES = {
    "folder, caption": (write_folder, edit("in/red.txt", "a red")),
    "folder, json": (write_folder, edit("in/red.json", '{"by": 2}')),
    "folder, picture": (write_folder, edit("in/red.bmp", bmp("purple"))),
    "folder, caption gone": (write_folder, lambda root: (root / "in/red.txt").unlink()),
    "folder, renamed": (write_folder, lambda root: (root / "in/red.bmp").rename(root / "in/rad.bmp")),
    "table, caption": (write_csv, replace_in("in.csv", "IMG_1", "IMG_2")),
    "table, further column": (write_csv, replace_in("in.csv", "square,1", "square,2")),
    "table, name of a column": (write_csv, replace_in("in.csv", "alt,n", "alt,m")),
    "table, picture": (write_csv, edit("in/blue.bmp", bmp("purple"))),
    "table, picture gone": (write_csv, lambda root: (root / "in/blue.bmp").unlink()),
    "parquet, caption": (write_parquet, written_again("in.parquet", write_parquet)),
    "parquet, named picture": (write_parquet_of_names, edit("in/green.bmp", bmp("purple"))),
    "parquet, picture by path": (write_parquet_of_paths, edit("in/green.bmp", bmp("purple"))),
    "shards, caption": (write_shards, written_again("in/00000.tar", write_shards)),
    "pipe, caption": (piped, written_again("in/00000.tar", write_shards)),
}


def run(spec: Path | str, out: Path, **options) -> dict:
    columns = {name: options.pop(name) for name in ("image_column", "caption_column", "images") if name in options}
    return pack(find_source(str(spec), **columns), out, workers=1, quiet=True, **options)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_input_alone_is_seen(tmp_path: Path, change: str):
    write, make = CHANGES[change]
    spec, out = write(tmp_path), tmp_path / "out"
    assert run(spec, out)["packed"] == 3
    before = contents(out)
    assert run(spec, out)["packed"] == 3
    make(tmp_path)
    with pytest.raises(UserError, match=OTHER):
        run(spec, out)
    assert contents(out) == before
    # A new folder gets what there is now.
    run(spec, tmp_path / "new")
    assert contents(tmp_path / "new") != before


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_another_column_is_seen(tmp_path: Path, write: Callable[[Path], Path]):
    spec = write(tmp_path)
    run(spec, tmp_path / "out")
    with pytest.raises(UserError, match=OTHER):
        run(spec, tmp_path / "out", caption_column="alt")
    run(spec, tmp_path / "new", caption_column="alt")
    found = [sample["txt"].decode() for sample in read_samples(str(tmp_path / "new" / "00000.tar"))]
    assert found == [caption if write is write_parquet else f"a {caption} square" for caption in COLOURS]


def test_settings_and_the_format_of_the_code_count(tmp_path: Path, monkeypatch):
    spec, out = write_folder(tmp_path), tmp_path / "out"
    run(spec, out)
    for options, says in (({"per_shard": 2}, "per_shard"), ({"check_pixels": False}, "check_pixels")):
        with pytest.raises(UserError, match=f"settings .{says}."):
            run(spec, out, **options)
    monkeypatch.setattr(packing, "FORMAT", -1)
    with pytest.raises(UserError, match="another version of clip-la"):
        run(spec, out)
    for content in ("", "[]", '{"per_shard": 1}'):
        (out / "pack.json").write_text(content)
        with pytest.raises(UserError, match="was packed from other input or settings"):
            run(spec, out)


@pytest.mark.parametrize("write", [write_folder, write_csv, write_parquet, write_shards, piped])
def test_a_stopped_call_goes_on_only_with_the_same_input(tmp_path: Path, monkeypatch, write: Callable[[Path], Path]):
    spec = write(tmp_path)
    run(spec, tmp_path / "whole", per_shard=1)
    original = packing.Packing.write

    def stopped(self, job, skips):
        if job.number == 1:
            raise KeyboardInterrupt
        return original(self, job, skips)

    monkeypatch.setattr(packing.Packing, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path / "out", per_shard=1)
    written: list[int] = []
    monkeypatch.setattr(
        packing.Packing, "write", lambda self, job, skips: (written.append(job.number), original(self, job, skips))[1]
    )
    # The same content somewhere else is the same input.
    (tmp_path / "copy").mkdir()
    again = write(tmp_path / "copy") if write is not piped else spec
    run(again, tmp_path / "out", per_shard=1)
    assert written == [1, 2]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_input_that_changes_while_it_is_packed_is_told(tmp_path: Path, monkeypatch):
    spec, original = write_folder(tmp_path), packing.Packing.write

    def changing(self, job, skips):
        edit("in/red.txt", "a red")(tmp_path)
        return original(self, job, skips)

    monkeypatch.setattr(packing.Packing, "write", changing)
    with pytest.raises(UserError, match="the input changed while it was packed to "):
        run(spec, tmp_path / "out")
    assert not (tmp_path / "out" / "sizes.json").exists()


def test_counts_without_their_fields_are_made_again(tmp_path: Path):
    spec, out = write_folder(tmp_path), tmp_path / "out"
    run(spec, out)
    before = contents(out)
    (out / "00000_stats.json").write_text(json.dumps({"count": 3}))
    run(spec, out)
    assert contents(out) == before
