"""What a model said of each picture: enough for every metric, for pairing two models and for contact sheets."""

import json
import os
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64

from clip_la.atomic import atomic_write
from clip_la.errors import UserError, printable

# (source, position in it, key, reason)
SkippedPicture = tuple[int, int, str, str]


@dataclass(frozen=True)
class Predictions:
    """One row a picture, ordered by source and position; `units` are the units that the rows come from.

    Attributes:
        labels: each picture's own class.
        ranks: how many classes came before the best-placed accepted class.
        top, scores: the best classes and their cosine similarities, best first.
    """

    sources: Int32[np.ndarray, " samples"]
    positions: Int64[np.ndarray, " samples"]
    keys: np.ndarray
    labels: Int32[np.ndarray, " samples"]
    ranks: Int32[np.ndarray, " samples"]
    top: Int32[np.ndarray, "samples k"]
    scores: Float32[np.ndarray, "samples k"]
    units: Int64[np.ndarray, "units 2"]
    skipped: tuple[SkippedPicture, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def reasons(self) -> dict[str, int]:
        """Why pictures were skipped, and how many for each reason."""
        return dict(sorted(Counter(reason for *_, reason in self.skipped).items()))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a .npz, whole or not at all."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        with atomic_write(path) as stream:
            np.savez(stream, skipped=np.array(json.dumps(self.skipped)), **arrays)


ARRAYS = ("sources", "positions", "keys", "labels", "ranks", "top", "scores", "units")


def first_keys(skipped: Iterable[SkippedPicture]) -> dict[str, str]:
    """The first picture that was skipped for each reason."""
    return {reason: key for _, _, key, reason in sorted(skipped, key=lambda entry: entry[:2], reverse=True)}


def said(skipped: Collection[SkippedPicture]) -> str:
    """What was skipped, in a line for a person: `"no label: 3 (first: a/b)"` and so on."""
    first = first_keys(skipped)
    counts = Counter(reason for *_, reason in skipped)
    said_of = [f"{reason}: {count} (first: {printable(first[reason])})" for reason, count in sorted(counts.items())]
    return ", ".join(said_of)


def load(path: str | os.PathLike[str]) -> Predictions:
    """Reads a file of `Predictions.save`.

    Raises:
        UserError: no such file, or a damaged or foreign one.
    """
    if not Path(path).is_file():
        raise UserError(f"no predictions at {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            skipped = tuple(tuple(entry) for entry in json.loads(str(file["skipped"])))
            return Predictions(**{name: file[name] for name in ARRAYS}, skipped=skipped)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or holds no predictions ({error})") from None


def merge(parts: Sequence[Predictions]) -> Predictions:
    """All rows of several parts in order; the parts' units must differ. Skipped pictures are counted once."""
    sources = np.concatenate([part.sources for part in parts])
    positions = np.concatenate([part.positions for part in parts])
    order = np.lexsort((positions, sources))
    columns = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in ARRAYS[2:-1]}
    units = np.concatenate([part.units for part in parts])
    return Predictions(
        sources=sources[order],
        positions=positions[order],
        **columns,
        units=units[np.lexsort((units[:, 1], units[:, 0]))],
        skipped=tuple(sorted({entry for part in parts for entry in part.skipped})),
    )


def hits(predictions: Predictions, k: int = 1) -> np.ndarray:
    """For each picture whether an accepted class stands among the first k."""
    return predictions.ranks < k


def pair(a: Predictions, b: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a and of b for the pictures that both have, in the same order.

    Raises:
        UserError: no picture in common, or a picture with different labels: then the test sets differ.
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
