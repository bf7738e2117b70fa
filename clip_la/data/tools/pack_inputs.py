"""What packed shards are made from, as lines that change with it: content of files, not their names and sizes alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_la.data.shards.shard_state import shard_hashes
from clip_la.data.shards.sources import open_shard, shard_name
from clip_la.data.tools.raw import file_named_by
from clip_la.fingerprint import file_hashes, stream_hash


def picture_lines(
    folder: Path, pictures: Sequence[str], texts_of: Callable[[str], Mapping[str, Path]]
) -> Iterator[str]:
    """For each picture of a folder its path, and the content of picture and of the texts that are read with it."""
    texts = [texts_of(picture) for picture in pictures]
    files = ((folder / picture, *own.values()) for picture, own in zip(pictures, texts, strict=True))
    hashes = file_hashes((path for own in files for path in own), len(pictures) + sum(map(len, texts)))
    for picture, own in zip(pictures, texts, strict=True):
        yield " ".join([picture, next(hashes), *(f"{part} {next(hashes)}" for part in own)])


def shard_lines(urls: Sequence[str], read: dict[str, str]) -> Iterator[str]:
    """For each shard its name and content; one that does not tell its state (a pipe) is read, unless `read` has it."""
    for url, state in zip(urls, shard_hashes(urls), strict=True):
        if state is None and url not in read:
            with open_shard(url) as stream:
                read[url] = stream_hash(stream)
        yield f"{shard_name(url)} {state or read[url]}"


def parquet_lines(paths: Sequence[Path], column: str, images: Path) -> Iterator[str]:
    """For each Parquet file its name and content, and the content of the picture files that `column` names."""
    for path, own in zip(paths, file_hashes(paths, len(paths)), strict=True):
        yield f"{path.name} {own}"
    names = (name for path in paths for name in _named_files(path, column))
    yield from file_hashes(images / name for name in names)


def _named_files(path: Path, column: str) -> Iterator[str]:
    """The files that a column of pictures names: as text, or as the path of a Hugging Face image without bytes."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            if _holds_all_bytes(file, group, column):
                continue
            for cell in file.read_row_group(group, [column]).column(0).to_pylist():
                name = file_named_by(cell)
                if name:
                    yield name


def _holds_all_bytes(file: Any, group: int, column: str) -> bool:
    """Whether the pictures themselves are in the table, so that no cell need be read to know it."""
    import pyarrow

    kind = file.schema_arrow.field(column).type
    if not pyarrow.types.is_struct(kind):
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))
    chunks = file.metadata.row_group(group)
    own = (chunks.column(number) for number in range(chunks.num_columns))
    found = [chunk.statistics for chunk in own if chunk.path_in_schema == f"{column}.bytes"]
    return bool(found) and all(each is not None and each.null_count == 0 for each in found)
