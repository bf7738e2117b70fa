"""What a model gave for the samples of a test set: a row each, merged over ranks, saved whole or not at all.

Three kinds share one form: `Predictions` (classification), `ImageFeatures` (retrieval, probes) and `Features` of texts.
`PartialResults` keeps the rows of an unfinished evaluation.
"""

import json
import os
import shutil
import sys
import uuid
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
from jaxtyping import Float32, Int32, Int64

from clip_la.atomic import atomic_write
from clip_la.errors import UserError, printable

# (source, number): `batch_size` consecutive records of one source, or one chunk of texts.
Unit = tuple[int, int]
# (source, position in it, key, reason)
SkippedImage = tuple[int, int, str, str]
# Says how many units there are, once all are finished: a test set then need not be read to know that none is left.
COMPLETE = "complete"
R = TypeVar("R", bound="UnitRows")


@dataclass(frozen=True, kw_only=True)
class UnitRows:
    """The rows of some units. A subclass adds columns: NumPy arrays, or tuples where rows differ in length.

    Attributes:
        sources, positions: where each sample stands: the number of its source, and its place in it.
        units: the finished units, also those of which no sample could be used.
        skipped: the samples without a row.
    """

    sources: Int32[np.ndarray, " samples"]
    positions: Int64[np.ndarray, " samples"]
    units: Int64[np.ndarray, "units 2"]
    skipped: tuple[SkippedImage, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def unit_set(self) -> frozenset[Unit]:
        """The finished units."""
        return frozenset((int(source), int(number)) for source, number in self.units)

    @classmethod
    def merge(cls, parts: Sequence[Self]) -> Self:
        """All rows of several parts, at least one, ordered by source and position. The parts' units must differ."""
        units = np.concatenate([part.units for part in parts])
        # A unit without usable samples does not know how wide the columns are.
        filled = [part for part in parts if len(part)] or list(parts[:1])
        places = [np.concatenate([getattr(part, name) for part in filled]) for name in ("positions", "sources")]
        order = np.lexsort(places)
        merged: dict[str, Any] = {
            "units": units[np.lexsort((units[:, 1], units[:, 0]))],
            # Several readers of one source report the same damage.
            "skipped": tuple(sorted({entry for part in parts for entry in part.skipped})),
        }
        for name in (field.name for field in fields(cls) if field.name not in merged):
            columns = [getattr(part, name) for part in filled]
            if isinstance(columns[0], np.ndarray):
                merged[name] = np.concatenate(columns)[order]
            else:
                rows = [row for column in columns for row in column]
                merged[name] = tuple(rows[place] for place in order)
        return cls(**merged)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a .npz, whole or not at all: arrays as they are, tuples as JSON."""
        columns = [(field.name, getattr(self, field.name)) for field in fields(self)]
        arrays: dict[str, Any] = {}
        for name, own in columns:
            arrays[name] = own if isinstance(own, np.ndarray) else np.array(json.dumps(own))
        with atomic_write(path) as stream:
            np.savez(stream, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote.

        Raises:
            UserError: no such file, a damaged one, or rows of another kind.
        """
        if not Path(path).is_file():
            raise UserError(f"no {cls.__name__} at {path}")
        try:
            # Without pickles, an array of no dimension is a text.
            with np.load(path, allow_pickle=False) as file:
                columns = {field.name: file[field.name] for field in fields(cls)}
            return cls(**{k: v if v.ndim else _as_tuples(json.loads(str(v))) for k, v in columns.items()})
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged or holds no {cls.__name__} ({error})") from None

    def skip_counts(self) -> dict[str, int]:
        """Reason -> how many samples were skipped for it."""
        return dict(sorted(Counter(reason for *_, reason in self.skipped).items()))

    def skip_examples(self) -> dict[str, str]:
        """Reason -> the key of the first sample that was skipped for it."""
        # The first in the order of the data is written last, and stays.
        return {reason: key for _, _, key, reason in sorted(self.skipped, key=lambda entry: entry[:2], reverse=True)}

    def skip_text(self) -> str:
        """What was skipped, in one line for a person: "no label: 3 (first: a/b), ..."."""
        first, counts = self.skip_examples(), self.skip_counts()
        return ", ".join(f"{why}: {count} (first: {printable(first[why])})" for why, count in counts.items())


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class Predictions(UnitRows):
    """What a model says of each image: enough for every metric, for pairing two models and for contact sheets.

    Attributes:
        labels: each image's own class.
        ranks: how many classes came before the best-placed accepted class: 0 is a hit.
        top, scores: the best classes and their cosine similarities, best first.
    """

    keys: np.ndarray
    labels: Int32[np.ndarray, " samples"]
    ranks: Int32[np.ndarray, " samples"]
    top: Int32[np.ndarray, "samples k"]
    scores: Float32[np.ndarray, "samples k"]

    def hits(self, k: int = 1) -> np.ndarray:
        """For each image whether an accepted class stands among the first k, k at most the columns of `top`."""
        return self.ranks < k


@dataclass(frozen=True, kw_only=True)
class Features(UnitRows):
    """Unit vectors on the CPU, float32, one a sample."""

    values: Float32[np.ndarray, "samples embed_dim"]


@dataclass(frozen=True, kw_only=True)
class ImageFeatures(Features):
    """Features of images, with the key, the accepted classes and the captions of each."""

    keys: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    captions: tuple[tuple[str, ...], ...]


class PartialResults(Generic[R]):
    """The rows of finished units in a folder, until all units are finished; any rank writes, rank 0 reads.

    Args:
        state: where evaluations keep what they need again; None keeps nothing.
        name: of the folder below it.
        kind: what rows the files hold.
    """

    def __init__(self, state: Path | None, name: str, kind: type[R]) -> None:
        self.folder = None if state is None else state / name
        self._kind = kind

    def save(self, rows: R) -> None:
        """Keeps some more rows, in a file of their own."""
        if self.folder is not None:
            rows.save(self.folder / f"{uuid.uuid4().hex}.npz")

    def load(self) -> list[R]:
        """All rows that can be read, no unit twice; a damaged file is skipped with a line on stderr."""
        loaded: list[R] = []
        units: set[Unit] = set()
        for path in sorted(self.folder.glob("*.npz")) if self.folder is not None else ():
            try:
                rows = self._kind.load(path)
            except UserError as error:
                print(f"{error}; its samples are evaluated again", file=sys.stderr)
                continue
            # Two commands at work on the same evaluation may both have left a unit.
            if not rows.unit_set & units:
                loaded.append(rows)
                units |= rows.unit_set
        return loaded

    def finish(self, num_units: int) -> None:
        """Notes that there are no more units than these."""
        if self.folder is not None:
            with atomic_write(self.folder / COMPLETE, "w") as stream:
                stream.write(str(num_units))

    def is_complete(self, num_units: int) -> bool:
        """Whether so many units are all there are, as `finish` has noted. A damaged file makes them fewer."""
        path = None if self.folder is None else self.folder / COMPLETE
        return path is not None and path.is_file() and path.read_text(encoding="utf-8") == str(num_units)

    def clear(self) -> None:
        """Removes the folder, once its rows have gone into a result."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def pair(a: Predictions, b: Predictions) -> tuple[Int64[np.ndarray, " shared"], Int64[np.ndarray, " shared"]]:
    """The rows of a and of b for the images that both have, in the same order.

    Raises:
        UserError: no image in common, or an image with different labels: then the test sets differ.
    """
    where = {(int(s), int(p)): row for row, (s, p) in enumerate(zip(b.sources, b.positions, strict=True))}
    places = [where.get((int(s), int(p)), -1) for s, p in zip(a.sources, a.positions, strict=True)]
    rows_b = np.array(places, dtype=np.int64)
    rows_a = np.flatnonzero(rows_b >= 0)
    rows_b = rows_b[rows_a]
    same = (a.labels[rows_a] == b.labels[rows_b]) & (a.keys[rows_a] == b.keys[rows_b])
    if not len(rows_a) or not same.all():
        raise UserError("the two predictions are of different test sets or class sets, and cannot be paired")
    return rows_a, rows_b
