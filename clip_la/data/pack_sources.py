"""What `pack` reads: folders with captions, tables (CSV, TSV, JSON lines), Parquet, shards.

A source is a list of pieces with known sizes, read in order; any range of a piece can be read by itself, in any
process, and gives the same samples. So output shards can be written in parallel and, after a stop, gone on with.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from clip_la.data import problems
from clip_la.data.pack_inputs import parquet_lines, picture_lines, shard_lines
from clip_la.data.problems import Problem
from clip_la.data.shards import KEY, read_samples
from clip_la.data.sources import expand_urls, is_remote, shard_name
from clip_la.errors import UserError
from clip_la.fingerprint import file_hashes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
IMAGE_COLUMNS = ("image", "path", "filepath", "file_path", "image_path", "filename", "file_name", "file", "img")
CAPTION_COLUMNS = ("caption", "text", "title", "description")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
# Samples in a piece of a folder or a table.
PIECE_SAMPLES = 1000


@dataclass
class Raw:
    """One sample before checks. `origin` says where it came from; `problem` why it has no image or caption."""

    origin: str
    image: bytes = b""
    suffix: str = ""
    caption: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


class Source(Protocol):
    """Pieces of samples. `kind` and `names` say what was packed, for resuming."""

    kind: str

    def names(self) -> Iterable[str]:
        """Lines that change when anything does that the samples depend on: content of files, columns."""

    def sizes(self) -> list[int]:
        """Samples in each piece."""

    def read(self, piece: int, start: int, stop: int) -> Iterator[Raw]:
        """The samples `start` to `stop` of a piece."""


def _from_file(origin: str, path: Path, caption: str | None, meta: dict[str, Any]) -> Raw:
    try:
        return Raw(origin, path.read_bytes(), path.suffix.lower(), caption, meta)
    except OSError:
        return Raw(origin, problem=problems.NO_IMAGE)


class FolderSource:
    """Every picture under a folder whose caption lies beside it: X.jpg with X.txt, and with X.json if there is one.

    This is also what img2dataset writes with output_format=files.
    """

    kind = "folder"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = sorted(
            os.path.relpath(os.path.join(root, name), folder)
            for root, _, names in os.walk(folder)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        )
        if not self.paths:
            raise UserError(f"no pictures under {folder} ({', '.join(IMAGE_SUFFIXES)})")

    def names(self) -> Iterable[str]:
        """Path of each picture, and its content with that of its texts."""
        return picture_lines(self.folder, self.paths)

    def sizes(self) -> list[int]:
        """Pieces of PIECE_SAMPLES pictures, in the order of their paths."""
        return _piece_sizes(len(self.paths))

    def read(self, piece: int, start: int, stop: int) -> Iterator[Raw]:
        """Pictures with the texts beside them."""
        first = piece * PIECE_SAMPLES
        for name in self.paths[first + start : first + stop]:
            path = self.folder / name
            try:
                caption = path.with_suffix(".txt").read_text(encoding="utf-8-sig")
            except FileNotFoundError:
                yield Raw(name, problem=problems.NO_CAPTION)
                continue
            except UnicodeDecodeError:
                yield Raw(name, problem=problems.CAPTION_NOT_TEXT)
                continue
            yield _from_file(name, path, caption, _sidecar(path.with_suffix(".json")))


def _sidecar(path: Path) -> dict[str, Any]:
    try:
        return parse_meta(path.read_bytes())
    except OSError:
        return {}


def parse_meta(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`; empty where there is none or it is damaged."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


class TableSource:
    """Rows of a CSV, TSV or JSON-lines file that name picture files; other columns go into the samples' JSON."""

    kind = "table"

    def __init__(self, path: Path, image_column: str | None, caption_column: str | None, images: Path | None) -> None:
        self.images = images or path.parent
        self.rows = list(_read_rows(path))
        if not self.rows:
            raise UserError(f"{path} has no rows")
        self.image_column = pick_column(path, list(self.rows[0]), image_column, IMAGE_COLUMNS, "--image-column")
        self.caption_column = pick_column(path, list(self.rows[0]), caption_column, CAPTION_COLUMNS, "--caption-column")
        first = str(self.rows[0][self.image_column])
        if is_remote(first):
            raise UserError(f"{path} holds addresses ('{first}'); fetch them first, for example with img2dataset")

    def names(self) -> Iterable[str]:
        """The columns, and of each row all cells and the picture's content."""
        yield json.dumps([self.image_column, self.caption_column])
        pictures = (self.images / str(row.get(self.image_column) or "") for row in self.rows)
        for row, content in zip(self.rows, file_hashes(pictures, len(self.rows)), strict=True):
            yield json.dumps([list(row.items()), content])

    def sizes(self) -> list[int]:
        """Pieces of PIECE_SAMPLES rows."""
        return _piece_sizes(len(self.rows))

    def read(self, piece: int, start: int, stop: int) -> Iterator[Raw]:
        """The rows with their pictures."""
        first = piece * PIECE_SAMPLES
        for row in self.rows[first + start : first + stop]:
            name, caption = str(row.get(self.image_column) or ""), row.get(self.caption_column)
            meta = {k: v for k, v in row.items() if k and k not in (self.image_column, self.caption_column)}
            if not isinstance(caption, str):
                yield Raw(name, problem=problems.NO_CAPTION)
            elif not name:
                yield Raw(name, problem=problems.NO_IMAGE)
            else:
                yield _from_file(name, self.images / name, caption, meta)


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if path.suffix.lower() == ".jsonl":
                yield from (json.loads(line) for line in stream if line.strip())
                return
            csv.field_size_limit(1 << 24)
            yield from csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(f"{path} cannot be read as {path.suffix[1:].upper()} in UTF-8: {error}") from error


def pick_column(path: Path, columns: list[str], wanted: str | None, usual: tuple[str, ...], option: str) -> str:
    """The column to use: the one asked for, else the first usual name that is there.

    Raises:
        UserError: there is no such column; the message lists those that are.
    """
    lower = {column.lower(): column for column in columns if column}
    for name in (wanted.lower(),) if wanted else usual:
        if name in lower:
            return lower[name]
    missing = f"no column '{wanted}'" if wanted else f"no column named {' or '.join(usual)}; give {option}"
    raise UserError(f"{path}: {missing}; its columns are {', '.join(lower.values())}")


class ParquetSource:
    """Rows of Parquet files, a piece a row group. Pictures are bytes in the table, or names of files."""

    kind = "parquet"

    def __init__(
        self, paths: list[Path], image_column: str | None, caption_column: str | None, images: Path | None
    ) -> None:
        self.paths = paths
        self.images = images or paths[0].parent
        columns = list(_parquet(paths[0]).schema_arrow.names)
        self.image_column = pick_column(paths[0], columns, image_column, IMAGE_COLUMNS, "--image-column")
        self.caption_column = pick_column(paths[0], columns, caption_column, CAPTION_COLUMNS, "--caption-column")
        self.groups = [(i, g) for i, path in enumerate(paths) for g in range(_parquet(path).num_row_groups)]

    def names(self) -> Iterable[str]:
        """The columns, name and content of each file, and the content of pictures that lie outside."""
        yield json.dumps([self.image_column, self.caption_column])
        yield from parquet_lines(self.paths, self.image_column, self.images)

    def sizes(self) -> list[int]:
        """Rows of each row group."""
        files = [_parquet(path) for path in self.paths]
        return [files[i].metadata.row_group(g).num_rows for i, g in self.groups]

    def read(self, piece: int, start: int, stop: int) -> Iterator[Raw]:
        """The rows `start` to `stop` of a row group."""
        index, group = self.groups[piece]
        path = self.paths[index]
        rows = _parquet(path).read_row_group(group).slice(start, stop - start).to_pylist()
        for number, row in enumerate(rows, start):
            yield self._raw(f"{path.name}#{group}.{number}", row)

    def _raw(self, origin: str, row: dict[str, Any]) -> Raw:
        image, caption = row.pop(self.image_column, None), row.pop(self.caption_column, None)
        if not isinstance(caption, str):
            return Raw(origin, problem=problems.NO_CAPTION)
        meta = {key: value for key, value in row.items() if isinstance(value, str | int | float | bool | None)}
        if isinstance(image, dict):  # Hugging Face's image type: {"bytes": ..., "path": ...}
            image = image.get("bytes") or image.get("path")
        if isinstance(image, str) and image:
            return _from_file(image, self.images / image, caption, meta)
        if not isinstance(image, bytes):
            return Raw(origin, problem=problems.NO_IMAGE)
        return Raw(origin, image, "", caption, meta)


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading Parquet needs pyarrow: pip install 'clip_la[parquet]'") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error


class ShardSource:
    """Existing shards, a piece a shard; this is also what img2dataset writes with output_format=webdataset.

    The caption is KEY.txt, else "caption" in KEY.json. Damage ends a shard after its last whole sample.
    """

    kind = "shards"

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self._read_through: dict[str, str] = {}

    def names(self) -> Iterable[str]:
        """Name and content of each shard."""
        return shard_lines(self.urls, self._read_through)

    def sizes(self) -> list[int]:
        """Counted by reading every shard, four at a time."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(self._count, self.urls))

    def _count(self, url: str) -> int:
        return sum(1 for _ in read_samples(url, on_problem=_ignore))

    def read(self, piece: int, start: int, stop: int) -> Iterator[Raw]:
        """The samples `start` to `stop` of a shard; those before are read and dropped."""
        url = self.urls[piece]
        for number, sample in enumerate(read_samples(url, on_problem=_ignore)):
            if number >= stop:
                return
            if number >= start:
                yield _raw_of(f"{shard_name(url)}/{sample[KEY]}", sample)


def _ignore(problem: Problem) -> None:
    """Damage of input shards shows in their counts; `verify` tells more."""


def _raw_of(origin: str, sample: dict[str, Any]) -> Raw:
    suffix = next((part for part in IMAGE_SUFFIXES if part in sample), None)
    if suffix is None:
        return Raw(origin, problem=problems.NO_IMAGE)
    meta = parse_meta(sample[".json"]) if ".json" in sample else {}
    caption = meta.get("caption")
    if ".txt" in sample:
        try:
            caption = sample[".txt"].decode("utf-8-sig")
        except UnicodeDecodeError:
            return Raw(origin, problem=problems.CAPTION_NOT_TEXT)
    if not isinstance(caption, str):
        return Raw(origin, problem=problems.NO_CAPTION)
    return Raw(origin, sample[suffix], suffix, caption, meta)


def _piece_sizes(total: int) -> list[int]:
    return [min(PIECE_SAMPLES, total - first) for first in range(0, total, PIECE_SAMPLES)]


def find_source(
    spec: str, *, image_column: str | None = None, caption_column: str | None = None, images: Path | None = None
) -> Source:
    """The source that `spec` names: a folder, a table (.csv, .tsv, .jsonl), Parquet, or shards as a glob or range.

    A folder with tars holds shards; else one with pictures is a folder of pictures; else one of Parquet files.

    Raises:
        UserError: there is nothing of the kind.
    """
    path = Path(spec).expanduser()
    suffix = path.suffix.lower()
    if path.is_file() and suffix in TABLE_SUFFIXES:
        return TableSource(path, image_column, caption_column, images)
    if path.is_file() and suffix == ".parquet":
        return ParquetSource([path], image_column, caption_column, images)
    if path.is_dir() and not any(path.glob("*.tar")):
        tables = sorted(path.glob("*.parquet"))
        if tables and not any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.rglob("*")):
            return ParquetSource(tables, image_column, caption_column, images)
        return FolderSource(path)
    if not path.exists() and suffix != ".tar":
        raise UserError(f"{spec} does not exist; name a folder, a .csv, .tsv, .jsonl or .parquet file, or shards")
    if path.is_file() and suffix != ".tar":
        raise UserError(
            f"{spec}: cannot pack '{suffix}' files; known: {', '.join((*TABLE_SUFFIXES, '.parquet', '.tar'))}"
        )
    return ShardSource(expand_urls(spec))
