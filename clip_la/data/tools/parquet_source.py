"""Rows of Parquet files as a source of `pack`."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from clip_la.data.shards import problems
from clip_la.data.shards.problems import BadSample
from clip_la.data.tools.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, columns_note, pick_column
from clip_la.data.tools.raw import Raw, file_named_by, image_of, plain, with_alternatives
from clip_la.errors import UserError
from clip_la.fingerprint import file_hashes

# Stands for texts that are not UTF-8.
NOT_TEXT = b"\xff"


class ParquetSource:
    """Rows of Parquet files, a piece a row group. Images are bytes in the table, or names of files.

    Captions are texts or lists of texts. Other columns of texts, numbers and truth values go into the samples' JSON.
    """

    kind = "parquet"

    def __init__(
        self, paths: list[Path], image_column: str | None, caption_column: str | None, images: Path | None
    ) -> None:
        self.paths = paths
        self.images = images or paths[0].parent
        files = [_parquet(path) for path in paths]
        columns = list(files[0].schema_arrow.names)
        self.image_column = pick_column(paths[0], columns, image_column, IMAGE_COLUMNS, "--image-column")
        self.caption_column = pick_column(paths[0], columns, caption_column, CAPTION_COLUMNS, "--caption-column")
        self.note = columns_note(columns, self.image_column, self.caption_column)
        for path, file in zip(paths, files, strict=True):
            for column in (self.image_column, self.caption_column):
                if column not in file.schema_arrow.names:
                    raise UserError(f"{path}: no column '{column}', which {paths[0].name} has; pack it by itself")
        self.groups = [(i, g) for i, file in enumerate(files) for g in range(file.num_row_groups)]

    def names(self) -> Iterable[str]:
        """The columns, name and content of each file, and the content of images that lie outside."""
        yield json.dumps([self.image_column, self.caption_column])
        for path, own in zip(self.paths, file_hashes(self.paths, len(self.paths)), strict=True):
            yield f"{path.name} {own}"
        yield from file_hashes(self.images / name for path in self.paths for name in self._named_files(path))

    def _named_files(self, path: Path) -> Iterator[str]:
        """The files that the column of images names: as text, or as the path of a Hugging Face image without bytes."""
        import pyarrow

        file, column = _parquet(path), self.image_column
        kind = file.schema_arrow.field(column).type
        if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
            return
        for group in range(file.num_row_groups):
            if pyarrow.types.is_struct(kind):
                # Where statistics say that no bytes are missing, no cell need be read to know it.
                chunks = file.metadata.row_group(group)
                own = (chunks.column(number) for number in range(chunks.num_columns))
                counted = [chunk.statistics for chunk in own if chunk.path_in_schema == f"{column}.bytes"]
                if counted and all(each is not None and each.null_count == 0 for each in counted):
                    continue
            cells = file.read_row_group(group, [column]).column(0).to_pylist()
            yield from filter(None, map(file_named_by, cells))

    def sizes(self) -> list[int]:
        """Rows of each row group."""
        files = [_parquet(path) for path in self.paths]
        return [files[i].metadata.row_group(g).num_rows for i, g in self.groups]

    def read(self, piece: int, start: int, stop: int) -> Iterator[Raw]:
        """The rows `start` to `stop` of a row group."""
        index, group = self.groups[piece]
        path = self.paths[index]
        rows = self._rows(path, group, start, stop)
        for number in range(start, stop):
            origin = f"{path.name}#{group}.{number}"
            try:
                yield Raw(origin, problem=problems.ROWS_DAMAGED) if rows is None else self._raw(origin, next(rows))
            except BadSample as bad:
                yield Raw(origin, problem=bad.reason)

    def _rows(self, path: Path, group: int, start: int, stop: int) -> Iterator[dict[str, Any]] | None:
        """The rows one by one; None where the row group cannot be read."""
        import pyarrow

        file = _parquet(path)
        wanted = (self.image_column, self.caption_column)
        # Other types have values that Python cannot hold, such as nanoseconds.
        columns = [f.name for f in file.schema_arrow if f.name in wanted or _is_plain(f.type)]
        try:
            table = file.read_row_group(group, columns=columns).slice(start, stop - start)
        except (OSError, pyarrow.ArrowException):
            return None
        return (self._row(table, number) for number in range(stop - start))

    @staticmethod
    def _row(table: Any, number: int) -> dict[str, Any]:
        row = table.slice(number, 1)
        try:
            return row.to_pylist()[0]
        except UnicodeDecodeError:
            values: dict[str, Any] = {}
            for name in row.column_names:
                try:
                    values[name] = row.column(name)[0].as_py()
                except UnicodeDecodeError:
                    values[name] = NOT_TEXT
            return values

    def _raw(self, origin: str, row: dict[str, Any]) -> Raw:
        image, value = row.pop(self.image_column), row.pop(self.caption_column)
        caption, meta = with_alternatives(value, plain(row))
        image = image_of(image)
        if isinstance(image, str):
            return Raw.from_file(image, self.images / image, caption, meta, place=origin)
        return Raw(origin, image, "", caption, meta)


def _is_plain(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    checks = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return any(check(kind) for check in checks)


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading Parquet needs pyarrow: pip install 'clip_la[parquet]'") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
