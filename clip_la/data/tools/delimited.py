"""CSV and TSV as people have them: from lines to cells, row by row, with the file's own line numbers.

Well-formed input is read as Python's `csv` reads it. What is not well-formed costs its own row: a quote that is never
closed does not swallow the rows below. In tables separated by tabs such quotes are kept as they stand, which is how
CC3M and others write captions.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clip_la.data.shards import problems
from clip_la.data.shards.formats import is_image

TAB = "\t"
DELIMITERS = (",", TAB, ";", "|")
MAX_ROW_CHARS = 1 << 24
# What Excel puts above the header to say how the columns are separated.
EXCEL_MARK = re.compile(r'"?sep=(.)"?')
# A cell whose quotes enclose all of it, those inside doubled.
QUOTED = re.compile(r'"((?:[^"]|"")*)"', re.DOTALL)


class Cells(NamedTuple):
    """One row: the line it begins at, from 1, and its cells, or the problem that it has."""

    line: int
    cells: list[str]
    problem: str | None = None


@dataclass(frozen=True)
class TableForm:
    """How rows are written. `image` is the place of the cell that names the image."""

    delimiter: str
    skips_spaces: bool
    width: int
    image: int

    def parsed(self, lines: Sequence[str]) -> list[str] | None:
        """The cells of one row by the book; None if these lines are not one well-formed row."""
        return parsed(lines, self.delimiter, self.skips_spaces)

    def split(self, line: str) -> list[str]:
        """The cells of a line, quotes kept where they do not enclose a whole cell properly."""
        cells = line.split(self.delimiter)
        if self.skips_spaces:
            cells = [cell.lstrip(" ") for cell in cells]
        if '"' not in line:
            return cells
        return [match[1].replace('""', '"') if (match := QUOTED.fullmatch(cell)) else cell for cell in cells]

    def is_row(self, line: str) -> bool:
        """Whether a line by itself is a row that names an image."""
        cells = self.split(line)
        return len(cells) == self.width and is_image(cells[self.image].strip())

    def rows(self, lines: Sequence[str], start: int) -> Iterator[Cells]:
        """The rows from line `start` (from 0) on; blank lines are skipped."""
        number = start
        while number < len(lines):
            if lines[number].strip():
                row, number = self._row(lines, number)
                yield row
            else:
                number += 1

    def _row(self, lines: Sequence[str], number: int) -> tuple[Cells, int]:
        """The row that begins at a line, and the number of the line after it."""
        text, stop = lines[number].rstrip("\r\n"), number + 1
        cells: list[str] | None = None
        if '"' not in text:
            cells = self.split(text)
        elif text.count('"') % 2:
            stop, cells = self._joined(lines, number)
        else:
            cells = self.parsed([text])
        if self.delimiter == TAB and (cells is None or len(cells) != self.width):
            stop, cells = number + 1, self.split(text)
        if sum(map(len, lines[number:stop])) > MAX_ROW_CHARS:
            return Cells(number + 1, [], problems.PART_TOO_LARGE), stop
        if cells is None:
            return Cells(number + 1, [], problems.ROW_QUOTES), stop
        return Cells(number + 1, cells, None if len(cells) == self.width else problems.ROW_CELLS), stop

    def _joined(self, lines: Sequence[str], number: int) -> tuple[int, list[str] | None]:
        """A row whose last quote is open at the end of its line, joined with the lines up to where it closes.

        It is no row of several lines but a stray quote if a line on the way is a row by itself, or the whole is not
        well-formed. Each search ends at the next line with a quote left open, so all of them together look at a line
        once or twice.
        """
        stop = number + 1
        while stop < len(lines):
            if self.is_row(lines[stop].rstrip("\r\n")):
                break
            stop += 1
            if lines[stop - 1].count('"') % 2:
                cells = self.parsed(lines[number:stop])
                if cells is not None and len(cells) == self.width:
                    return stop, cells
                break
        # A quote that does not open a cell, such as the inches of 12", needs no other.
        return number + 1, self.parsed([lines[number]])


def parsed(lines: Sequence[str], delimiter: str, skips_spaces: bool = False) -> list[str] | None:
    """The cells of one row by the book; None if these lines are not one well-formed row."""
    csv.field_size_limit(MAX_ROW_CHARS)
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=skips_spaces, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None
