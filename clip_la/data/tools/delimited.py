"""CSV and TSV as people have them: from lines to cells, row by row, with the file's own line numbers.

Well-formed input is read as Python's `csv` reads it. What is not well-formed costs its own row: a quote that nobody
closes does not swallow the rows below. In tables separated by tabs such quotes are kept as they stand, which is how
CC3M and others write captions.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clip_la.data.shards import problems
from clip_la.data.shards.formats import is_picture

TAB = "\t"
DELIMITERS = (",", TAB, ";", "|")
MAX_ROW_CHARS = 1 << 24
# What Excel puts above the header to say how the columns are separated.
EXCEL_MARK = re.compile(r'"?sep=(.)"?')


class Cells(NamedTuple):
    """One row: the line it begins at, from 1, and its cells, or the problem that it has."""

    line: int
    cells: list[str]
    problem: str | None = None


@dataclass(frozen=True)
class TableForm:
    """How rows are written. `picture` is the place of the cell that names the picture."""

    delimiter: str
    skips_spaces: bool
    width: int
    picture: int

    def parsed(self, lines: Sequence[str]) -> list[str] | None:
        """The cells of one row by the book; None if these lines are not one well-formed row."""
        return parsed(lines, self.delimiter, self.skips_spaces)

    def split(self, line: str) -> list[str]:
        """The cells of a line, quotes kept where they do not enclose a whole cell properly."""
        cells = line.split(self.delimiter)
        if self.skips_spaces:
            cells = [cell.lstrip(" ") for cell in cells]
        return [_unquoted(cell) for cell in cells] if '"' in line else cells

    def is_row(self, line: str) -> bool:
        """Whether a line by itself is a row that names a picture."""
        cells = self.split(line)
        return len(cells) == self.width and is_picture(cells[self.picture].strip())


def parsed(lines: Sequence[str], delimiter: str, skips_spaces: bool = False) -> list[str] | None:
    """The cells of one row by the book; None if these lines are not one well-formed row."""
    csv.field_size_limit(MAX_ROW_CHARS)
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=skips_spaces, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _unquoted(cell: str) -> str:
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
        return cell[1:-1].replace('""', '"')
    return cell


def split_lines(text: str) -> list[str]:
    """The lines of a table with their ends: line feeds, carriage returns or both, and nothing else."""
    return list(io.StringIO(text, newline=""))


def read_rows(lines: Sequence[str], start: int, form: TableForm) -> Iterator[Cells]:
    """The rows from line `start` (from 0) on; blank lines are passed over."""
    number = start
    while number < len(lines):
        text = lines[number].rstrip("\r\n")
        stop = number + 1
        if text.strip():
            row, stop = _row(lines, number, text, form)
            yield row
        number = stop


def _row(lines: Sequence[str], number: int, text: str, form: TableForm) -> tuple[Cells, int]:
    """The row that begins at a line, and the line after it."""
    stop = number + 1
    cells: list[str] | None = None
    if '"' not in text:
        cells = form.split(text)
    elif text.count('"') % 2:
        stop, cells = _joined(lines, number, form)
    else:
        cells = form.parsed([text])
    if form.delimiter == TAB and (cells is None or len(cells) != form.width):
        stop, cells = number + 1, form.split(text)
    if sum(map(len, lines[number:stop])) > MAX_ROW_CHARS:
        return Cells(number + 1, [], problems.PART_TOO_LARGE), stop
    if cells is None:
        return Cells(number + 1, [], problems.ROW_QUOTES), stop
    return Cells(number + 1, cells, None if len(cells) == form.width else problems.ROW_CELLS), stop


def _joined(lines: Sequence[str], number: int, form: TableForm) -> tuple[int, list[str] | None]:
    """A row whose last quote is open at the end of its line, joined with the lines up to where it closes.

    That is no row of several lines, but a stray quote, if a line on the way is a row by itself, or the whole is not
    well-formed. Each search ends at the next line with a quote left open, so all of them together look at a line once
    or twice.
    """
    stop = number + 1
    while stop < len(lines):
        if form.is_row(lines[stop].rstrip("\r\n")):
            break
        stop += 1
        if lines[stop - 1].count('"') % 2:
            cells = form.parsed(lines[number:stop])
            if cells is not None and len(cells) == form.width:
                return stop, cells
            break
    # A quote that does not open a cell, such as the inches of 12", needs no other.
    return number + 1, form.parsed([lines[number]])
