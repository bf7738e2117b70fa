"""Tables of text that name image files and their captions (CSV, TSV, JSON lines) as a source of `pack`."""

import codecs
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clip_la.data.shards import problems
from clip_la.data.shards.formats import is_image
from clip_la.data.shards.problems import BadSample
from clip_la.data.shards.sources import is_remote
from clip_la.data.tools import delimited
from clip_la.data.tools.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, columns_note, find_columns, pick_column, shown
from clip_la.data.tools.delimited import TAB, TableForm
from clip_la.data.tools.raw import (
    NULL_WORDS,
    PIECE_SAMPLES,
    Raw,
    file_named_by,
    image_of,
    piece_sizes,
    plain,
    with_alternatives,
)
from clip_la.errors import UserError
from clip_la.fingerprint import file_hashes

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
UTF_16_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# So large a share of zero bytes is what Latin text in UTF-16 or UTF-32 has.
MAX_ZERO_SHARE = 0.2


class TableRow(NamedTuple):
    """One row: its line in the file, from 1, and the values of its columns, or the problem that it has."""

    line: int
    values: dict[str, Any]
    problem: str | None = None


class Columns(NamedTuple):
    """The columns asked for, or None for the usual names."""

    image: str | None
    caption: str | None

    def pick(self, path: Path, columns: list[str], hint: str = "") -> tuple[str, str]:
        """(image column, caption column); raises UserError."""
        return (
            pick_column(path, columns, self.image, IMAGE_COLUMNS, "--image-column", hint),
            pick_column(path, columns, self.caption, CAPTION_COLUMNS, "--caption-column", hint),
        )

    def are_in(self, columns: list[str]) -> bool:
        """Whether there are both."""
        found = find_columns(columns, self.image, IMAGE_COLUMNS), find_columns(columns, self.caption, CAPTION_COLUMNS)
        return all(found)


class TableSource:
    """Rows of a CSV, TSV or JSON-lines file that name image files; other columns go into the samples' JSON.

    Rows that are not well-formed, or have other cells than the header, are counted with the line that they stand on.
    """

    kind = "table"

    def __init__(self, path: Path, image_column: str | None, caption_column: str | None, images: Path | None) -> None:
        self.path = path
        self.images = images or path.parent
        read = _read_json_lines if path.suffix.lower() == ".jsonl" else _read_delimited
        columns, self.rows = read(path, read_text(path), Columns(image_column, caption_column))
        if not self.rows:
            raise UserError(f"{path} has no rows")
        self.image_column, self.caption_column = Columns(image_column, caption_column).pick(path, columns)
        self.note = columns_note(columns, self.image_column, self.caption_column)
        first = str(next((row.values[self.image_column] for row in self.rows if self.image_column in row.values), ""))
        if is_remote(first):
            raise UserError(f"{path} holds addresses ('{first}'); fetch them first, for example with img2dataset")

    def names(self) -> Iterable[str]:
        """The columns, and of each row its values and problem and the image's content."""
        yield json.dumps([self.image_column, self.caption_column])
        images = (self.path_of(file_named_by(row.values.get(self.image_column)) or "") for row in self.rows)
        for row, content in zip(self.rows, file_hashes(images, len(self.rows)), strict=True):
            yield json.dumps([list(row.values.items()), row.problem, content], default=str)

    def sizes(self) -> list[int]:
        """Pieces of PIECE_SAMPLES rows."""
        return piece_sizes(len(self.rows))

    def read(self, piece: int, start: int, stop: int) -> Iterator[Raw]:
        """The rows with their images."""
        first = piece * PIECE_SAMPLES
        for row in self.rows[first + start : first + stop]:
            place = f"{self.path.name}:{row.line}"
            try:
                yield self._raw(row, place)
            except BadSample as bad:
                yield Raw(place, problem=bad.reason)

    def _raw(self, row: TableRow, place: str) -> Raw:
        if row.problem:
            raise BadSample(row.problem)
        used = ("", self.image_column, self.caption_column)
        rest = {key: value for key, value in row.values.items() if key not in used}
        caption, meta = with_alternatives(row.values.get(self.caption_column), rest)
        image = image_of(row.values.get(self.image_column))
        if not isinstance(image, str):
            raise BadSample(problems.NO_IMAGE)
        return Raw.from_file(image, self.path_of(image), caption, meta, place)

    def path_of(self, image: str) -> Path:
        """The file that a cell names; where there is none, backslashes are taken for what they are on Windows."""
        path = self.images / image
        return path if os.path.exists(path) else self.images / image.replace("\\", "/")


def read_text(path: Path) -> str:
    """The text of a table: UTF-8, or UTF-16 with a byte-order mark, as Excel saves "Unicode text".

    Raises:
        UserError: it is neither; names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    is_wide = data.startswith(UTF_16_BOMS) and not data.startswith(codecs.BOM_UTF32_LE)
    codec = "utf-16" if is_wide else "utf-8-sig"
    if not is_wide and data.count(0) > MAX_ZERO_SHARE * len(data):
        raise UserError(f"{path} is not UTF-8 (zero bytes, as UTF-16 has them); save the table as UTF-8")
    try:
        return data.decode(codec)
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        form = f"{path.suffix[1:].upper()} in {'UTF-16' if is_wide else 'UTF-8'}"
        wrong = f"{path}:{line} cannot be read as {form} (byte 0x{data[error.start]:02x})"
        raise UserError(f"{wrong}; save the table as UTF-8") from error


def _read_json_lines(path: Path, text: str, wanted: Columns) -> tuple[list[str], list[TableRow]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = plain(json.loads(line))
        except (ValueError, RecursionError):
            value = None
        is_object = isinstance(value, dict)
        rows.append(TableRow(number, value if is_object else {}, None if is_object else problems.ROW_NOT_OBJECT))
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    if rows and not columns:
        raise UserError(
            f"{path}:{rows[0].line}: no JSON object; each line must be one, such as "
            '{"image": "a.jpg", "caption": "a dog"}'
        )
    return columns, rows


def _read_delimited(path: Path, text: str, wanted: Columns) -> tuple[list[str], list[TableRow]]:
    # Lines end at line feeds, carriage returns or both, and nothing else, as str.splitlines would have it.
    lines = list(io.StringIO(text, newline=""))
    header = next((number for number, line in enumerate(lines) if line.strip()), None)
    if header is None:
        return [], []
    usual = TAB if path.suffix.lower() == ".tsv" else ","
    delimiters: tuple[str, ...] = (usual, *(each for each in delimited.DELIMITERS if each != usual))
    if mark := delimited.EXCEL_MARK.fullmatch(lines[header].strip()):
        delimiters, header = (mark[1],), header + 1
    delimiter, columns, skips_spaces = _header(path, lines, header, delimiters, wanted)
    image, caption = wanted.pick(path, columns)
    form = TableForm(delimiter, skips_spaces, len(columns), columns.index(image))
    rows = []
    for line, cells, problem in form.rows(lines, header + 1):
        # A row with a problem may have more cells, or fewer.
        values: dict[str, Any] = {} if problem else dict(zip(columns, cells, strict=True))
        if str(values.get(caption, "")).strip().casefold() in NULL_WORDS:
            values[caption] = None
        rows.append(TableRow(line, values, problem))
    return columns, rows


def _header(
    path: Path, lines: list[str], number: int, delimiters: tuple[str, ...], wanted: Columns
) -> tuple[str, list[str], bool]:
    """(delimiter, names of the columns, whether spaces follow delimiters): the first delimiter that gives the columns.

    Raises:
        UserError: none does, or columns have one name.
    """
    line = lines[number].rstrip("\r\n") if number < len(lines) else ""
    readings: dict[str, list[str]] = {}
    for delimiter in delimiters:
        names = delimited.parsed([line], delimiter, True) or line.split(delimiter)
        readings[delimiter] = [name.strip() for name in names]
        if wanted.are_in(readings[delimiter]):
            break
    else:
        # No reading has the columns: the message shows the one that splits most, which is likely what was meant.
        delimiter = max(readings, key=lambda each: len(readings[each]))
    columns = readings[delimiter]
    hint = f" (line {number + 1}, separated by {delimiter!r})"
    if any(is_image(name) or is_remote(name) for name in columns):
        hint += f"; that is a row: put the columns' names on a line above it, such as {f'path{delimiter}caption'!r}"
    wanted.pick(path, columns, hint)
    if twice := [name for name, count in Counter(filter(None, columns)).items() if count > 1]:
        raise UserError(f"{path}: several columns are named {shown(twice)}; rename all but one")
    return delimiter, columns, all(cell.startswith(" ") for cell in line.split(delimiter)[1:])
