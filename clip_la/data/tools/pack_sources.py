"""What `pack` reads: folders with captions, tables (CSV, TSV, JSON lines), Parquet, shards.

A source is a list of pieces with known sizes, read in order; any range of a piece can be read by itself, in any
process, and gives the same samples. So output shards can be written in parallel, and resumed after a stop.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_la.data.shards.formats import (
    IMAGE_PARTS,
    IMAGE_SUFFIXES,
    JSON_PART,
    KEY,
    TEXT_PART,
    is_hidden,
    is_image,
    parts_of,
)
from clip_la.data.shards.problems import Problem
from clip_la.data.shards.reader import read_samples
from clip_la.data.shards.shard_state import shard_hashes
from clip_la.data.shards.sources import expand_urls, is_shard_name, open_shard, shard_name, shards_in
from clip_la.data.tools.parquet_source import ParquetSource
from clip_la.data.tools.raw import PIECE_SAMPLES, PackSource, Raw, piece_sizes
from clip_la.data.tools.tables import TABLE_SUFFIXES, TableSource
from clip_la.errors import UserError
from clip_la.fingerprint import file_hashes, stream_hash

__all__ = ["PackSource", "Raw", "find_source"]


class FolderSource:
    """Every image under a folder whose caption lies beside it: X.jpg with X.txt, or with "caption" in X.json.

    This is also what img2dataset writes with output_format=files. X.jpg.txt is taken where there is no X.txt, and case
    counts only where names differ by nothing else. Hidden files and folders are ignored.
    """

    kind = "folder"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[str] = []
        # By their own names and by these in lower case, below their folders: the files beside images.
        self._beside: dict[str, str] = {}
        for root, _, names in os.walk(folder):
            inside = os.path.relpath(root, folder)
            for name in names:
                path = os.path.normpath(os.path.join(inside, name))
                if is_hidden(path):
                    continue
                if is_image(name):
                    self.paths.append(path)
                elif name.lower().endswith((f".{TEXT_PART}", f".{JSON_PART}")):
                    self._beside[path] = path
                    self._beside.setdefault(os.path.normpath(os.path.join(inside, name.lower())), path)
        self.paths.sort()
        tables = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLE_SUFFIXES]
        table = f"; to pack a table, name it: {folder / tables[0]}" if tables else ""
        if not self.paths:
            raise UserError(f"no images under {folder} ({', '.join(IMAGE_SUFFIXES)}){table}")
        self.note = "" if self._beside else f"no captions beside the images (X.txt, or X.json with caption){table}"

    def names(self) -> Iterator[str]:
        """Path of each image, and its content with that of its texts."""
        texts = [self.texts_of(image) for image in self.paths]
        files = ((self.folder / image, *own.values()) for image, own in zip(self.paths, texts, strict=True))
        hashes = file_hashes((path for own in files for path in own), len(self.paths) + sum(map(len, texts)))
        for image, own in zip(self.paths, texts, strict=True):
            yield " ".join([image, next(hashes), *(f".{part} {next(hashes)}" for part in own)])

    def sizes(self) -> list[int]:
        """Pieces of PIECE_SAMPLES images, in the order of their paths."""
        return piece_sizes(len(self.paths))

    def read(self, piece: int, start: int, stop: int) -> Iterator[Raw]:
        """Images with the texts beside them."""
        first = piece * PIECE_SAMPLES
        for name in self.paths[first + start : first + stop]:
            texts = {part: path.read_bytes() for part, path in self.texts_of(name).items()}
            raw = Raw.from_parts(name, {IMAGE_PARTS[0]: b"", **texts})
            yield raw if raw.caption is None else Raw.from_file(name, self.folder / name, raw.caption, raw.meta)

    def texts_of(self, image: str) -> dict[str, Path]:
        """The files beside an image that are read with it: of the parts `txt` and `json` those that are there."""
        folder, name = os.path.split(image)
        texts = {}
        for part in (TEXT_PART, JSON_PART):
            wanted = (f"{os.path.splitext(name)[0]}.{part}", f"{name}.{part}")
            found = (self._beside.get(os.path.join(folder, each)) for own in wanted for each in (own, own.lower()))
            path = next(filter(None, found), None)
            if path and (self.folder / path).is_file():
                texts[part] = self.folder / path
        return texts


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

    def names(self) -> Iterator[str]:
        """Name and content of each shard; one that does not tell its state (a pipe) is read, once."""
        for url, state in zip(self.urls, shard_hashes(self.urls), strict=True):
            if state is None and url not in self._read_through:
                with open_shard(url) as stream:
                    self._read_through[url] = stream_hash(stream)
            yield f"{shard_name(url)} {state or self._read_through[url]}"

    def sizes(self) -> list[int]:
        """Counted by reading every shard, four at a time."""
        from concurrent.futures import ThreadPoolExecutor

        # Threads, not processes: counting waits for disks and networks, and hardly decodes anything.
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda url: sum(1 for _ in _read_with_losses(url)), self.urls))

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
                yield Raw.from_parts(f"{shard_name(url)}/{found[KEY]}", parts_of(found))


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

    A folder with tars holds shards; else one with images is a folder of images; else one of Parquet files.

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
        if tables and not any(is_image(p.name) for p in path.rglob("*")):
            return ParquetSource(tables, image_column, caption_column, images)
        return FolderSource(path)
    if not path.exists() and not is_shard_name(path.name):
        raise UserError(f"{spec} does not exist; name a folder, a .csv, .tsv, .jsonl or .parquet file, or shards")
    if path.is_file() and not is_shard_name(path.name):
        raise UserError(
            f"{spec}: cannot pack '{suffix}' files; known: {', '.join((*TABLE_SUFFIXES, '.parquet', '.tar'))}"
        )
    return ShardSource(expand_urls(spec))
