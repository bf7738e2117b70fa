"""Measured tables on the disk: dataclass rows, written as they come."""

import csv
import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from clip_la.atomic import atomic_write
from clip_la.distributed import rank

R = TypeVar("R")


def note(text: str) -> None:
    """A line on stderr, of the first process: what is going on, where a row takes long, and what was left out."""
    if rank() == 0:
        print(text, file=sys.stderr, flush=True)


def write_table(path: Path, rows: Sequence[Any]) -> None:
    """Writes dataclass rows as CSV, whole or not at all; numbers to four digits after the point, None as an empty
    cell."""
    with atomic_write(path, "w") as stream:
        writer = csv.DictWriter(stream, [field.name for field in dataclasses.fields(rows[0])], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells = dataclasses.asdict(row)
            writer.writerow(
                {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in cells.items()}
            )


def record(
    rows: Iterable[R],
    said: Callable[[R], str],
    out: Path | None,
    *,
    lines: TextIO | None = None,
    last: TextIO | None = None,
) -> None:
    """Says each row as it comes, and writes the table anew with it: what is measured survives whatever comes next.

    Args:
        rows: dataclasses of one kind, measured while they are asked for.
        said: a row as a line.
        out: the table, or None for no file.
        lines, last: where the lines go, and the one that names the file; None: stderr and stdout.
    """
    done: list[R] = []
    for row in rows:
        done.append(row)
        print(said(row), file=lines or sys.stderr, flush=True)
        if out:
            write_table(out, done)
    if out:
        print(f"wrote {out}: {len(done)} rows", file=last or sys.stdout)
