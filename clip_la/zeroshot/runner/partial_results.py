"""The finished units of an unfinished evaluation, kept on disk until all are done."""

import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from clip_la import distributed as ranks
from clip_la.atomic import atomic_write
from clip_la.errors import UserError
from clip_la.zeroshot.runner.batches import Unit

SECONDS_BETWEEN_SAVES = 20.0
COMPLETE = "complete"


class Part(Protocol):
    """What some units gave; `units` are pairs of (source, number)."""

    @property
    def units(self) -> np.ndarray: ...

    def save(self, path: str | os.PathLike[str]) -> None: ...


P = TypeVar("P", bound=Part)


def units_of(parts: Iterable[Part]) -> frozenset[Unit]:
    """The units of several parts together."""
    return frozenset((int(source), int(number)) for part in parts for source, number in part.units)


class PartialResults(Generic[P]):
    """A folder of parts, written by any rank under names of its own.

    Args:
        folder: where they lie.
        read: reads a part; raises UserError for a damaged file.
    """

    def __init__(self, folder: str | os.PathLike[str], read: Callable[[Path], P]) -> None:
        self.folder = Path(folder)
        self._read = read

    def save(self, part: P) -> None:
        """Keeps one more part."""
        part.save(self.folder / f"{uuid.uuid4().hex}.npz")

    def load(self) -> list[P]:
        """All parts that can be read, no unit twice; a damaged one is skipped with a line on stderr."""
        found: list[P] = []
        for path in sorted(self.folder.glob("*.npz")):
            try:
                part = self._read(path)
            except UserError as error:
                print(f"{error}; its pictures are evaluated again", file=sys.stderr)
                continue
            # Two commands at work on the same evaluation may both have left a unit.
            if not units_of([part]) & units_of(found):
                found.append(part)
        return found

    def finish(self, num_units: int) -> None:
        """Notes that there are no more units than these."""
        with atomic_write(self.folder / COMPLETE, "w") as stream:
            stream.write(str(num_units))

    def is_all(self, num_units: int) -> bool:
        """Whether so many units are all there are, as `finish` has noted."""
        path = self.folder / COMPLETE
        return path.is_file() and path.read_text(encoding="utf-8") == str(num_units)

    def clear(self) -> None:
        """Removes the folder, once the evaluation is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def earlier(parts: PartialResults[P] | None) -> tuple[list[P], frozenset[Unit], bool]:
    """(parts of before, on rank 0 alone; their units, on every rank; whether these are all). All ranks must call it."""
    own: list[P] = []

    def look() -> tuple[frozenset[Unit], bool]:
        if parts is None or ranks.rank():
            return frozenset(), False
        own.extend(parts.load())
        done = units_of(own)
        return done, parts.is_all(len(done))

    done, is_all = ranks.all_gather(look)[0]
    return own, done, is_all


def collect(made: Iterable[P], merge: Callable[[Sequence[P]], P], parts: PartialResults[P] | None) -> list[P]:
    """All that is made, merged into fewer; where there are `parts`, kept there from time to time and at the end."""
    merged: list[P] = []
    fresh: list[P] = []
    saved_at = time.monotonic()

    def keep() -> None:
        merged.append(merge(fresh))
        fresh.clear()
        if parts is not None:
            parts.save(merged[-1])

    for part in made:
        fresh.append(part)
        if time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES:
            keep()
            saved_at = time.monotonic()
    if fresh:
        keep()
    return merged
