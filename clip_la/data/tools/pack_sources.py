"""What `pack` reads: folders with captions, tables (CSV, TSV, JSON lines), Parquet, shards.

A source is a list of pieces with known sizes, read in order; any range of a piece can be read by itself, in any
process, and gives the same samples. So output shards can be written in parallel and, after a stop, gone on with.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from clip_la.data.shards.formats import IMAGE_SUFFIXES, JSON_PART, TEXT_PART, is_hidden, is_picture
from clip_la.data.shards.problems import Problem
from clip_la.data.shards.reader import KEY, read_samples
from clip_la.data.shards.sources import expand_urls, is_shard_name, shard_name, shards_in
from clip_la.data.tools.pack_inputs import picture_lines, shard_lines
from clip_la.data.tools.parquet_source import ParquetSource
from clip_la.data.tools.raw import PIECE_SAMPLES, PackSource, Raw, from_file, from_parts, piece_sizes
from clip_la.data.tools.tables import TABLE_SUFFIXES, TableSource
from clip_la.errors import UserError

__all__ = ["PackSource", "Raw", "find_source"]


class FolderSource:
    """Every picture under a folder whose caption lies beside it: X.jpg with X.txt, or with "caption" in X.json.

    This is also what img2dataset writes with output_format=files. X.jpg.txt is taken where there is no X.txt, and case
    counts only where names differ by nothing else. Hidden files and folders are nobody's data.
    """

    kind = "folder"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[str] = []
        # By their own names and by these in lower case, below their folders: the files beside pictures.
        self._beside: dict[str, str] = {}
        for root, _, names in os.walk(folder):
            inside = os.path.relpath(root, folder)
            for name in names:
                path = os.path.normpath(os.path.join(inside, name))
                if is_hidden(path):
                    continue
                if is_picture(name):
                    self.paths.append(path)
                elif name.lower().endswith((TEXT_PART, JSON_PART)):
                    self._beside[path] = path
                    self._beside.setdefault(os.path.normpath(os.path.join(inside, name.lower())), path)
        self.paths.sort()
        tables = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLE_SUFFIXES]
        table = f"; to pack a table, name it: {folder / tables[0]}" if tables else ""
        if not self.paths:
            raise UserError(f"no pictures under {folder} ({', '.join(IMAGE_SUFFIXES)}){table}")
        self.note = "" if self._beside else f"no captions beside the pictures (X.txt, or X.json with caption){table}"

    def names(self) -> Iterable[str]:
        """Path of each picture, and its content with that of its texts."""
        return picture_lines(self.folder, self.paths, self.texts_of)

    def sizes(self) -> list[int]:
        """Pieces of PIECE_SAMPLES pictures, in the order of their paths."""
        return piece_sizes(len(self.paths))

    def read(self, piece: int, start: int, stop: int) -> Iterator[Raw]:
        """Pictures with the texts beside them."""
        first = piece * PIECE_SAMPLES
        for name in self.paths[first + start : first + stop]:
            texts = {part: path.read_bytes() for part, path in self.texts_of(name).items()}
            raw = from_parts(name, {IMAGE_SUFFIXES[0]: b"", **texts})
            yield raw if raw.caption is None else from_file(name, self.folder / name, raw.caption, raw.meta)

    def texts_of(self, picture: str) -> dict[str, Path]:
        """The files beside a picture that are read with it: of `.txt` and `.json` those that are there."""
        found = {part: self._beside_of(picture, part) for part in (TEXT_PART, JSON_PART)}
        return {part: self.folder / path for part, path in found.items() if path and (self.folder / path).is_file()}

    def _beside_of(self, picture: str, part: str) -> str | None:
        folder, name = os.path.split(picture)
        wanted = (os.path.splitext(name)[0] + part, name + part)
        found = (self._beside.get(os.path.join(folder, each)) for own in wanted for each in (own, own.lower()))
        return next(filter(None, found), None)


class ShardSource:
    """Existing shards, a piece a shard; this is also what img2dataset writes with output_format=webdataset.

    The caption is KEY.txt, else "caption" in KEY.json. What is lost of a shard, such as the samples behind damage,
    takes places of its own among the samples, so that it is counted.
    """

    kind = "shards"
    note = ""

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
        return sum(1 for _ in _read_with_losses(url))

    def read(self, piece: int, start: int, stop: int) -> Iterator[Raw]:
        """The samples `start` to `stop` of a shard; those before are read and dropped."""
        url = self.urls[piece]
        for number, found in enumerate(_read_with_losses(url)):
            if number >= stop:
                return
            if number < start:
                continue
            if isinstance(found, Problem):
                yield Raw(f"{shard_name(url)}/{found.key or ''}", problem=found.reason)
            else:
                parts = {part: data for part, data in found.items() if part.startswith(".")}
                yield from_parts(f"{shard_name(url)}/{found[KEY]}", parts)


def _read_with_losses(url: str) -> Iterator[dict[str, Any] | Problem]:
    """The samples of a shard, and before each of them what was lost since the one before."""
    lost: list[Problem] = []
    for sample in read_samples(url, on_problem=lost.append):
        yield from lost
        lost.clear()
        yield sample
    yield from lost


def find_source(
    spec: str, *, image_column: str | None = None, caption_column: str | None = None, images: Path | None = None
) -> PackSource:
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
    if path.is_dir() and not shards_in(path):
        tables = sorted(path.glob("*.parquet"))
        if tables and not any(is_picture(p.name) for p in path.rglob("*")):
            return ParquetSource(tables, image_column, caption_column, images)
        return FolderSource(path)
    if not path.exists() and not is_shard_name(path.name):
        raise UserError(f"{spec} does not exist; name a folder, a .csv, .tsv, .jsonl or .parquet file, or shards")
    if path.is_file() and not is_shard_name(path.name):
        raise UserError(
            f"{spec}: cannot pack '{suffix}' files; known: {', '.join((*TABLE_SUFFIXES, '.parquet', '.tar'))}"
        )
    return ShardSource(expand_urls(spec))
