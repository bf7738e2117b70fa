"""What the points of a kind cannot carry, said before anybody believes their law."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from clip_la.scaling.points import Point

# An exponent from less than this (log10 of compute) says little beyond its own points.
MIN_DECADES = 1.0
# More passes over the same pairs count for less than new ones (Muennighoff et al. 2023, arXiv 2305.16264).
MAX_REPEATS = 4.0


def carrying(name: str, points: Sequence[Point]) -> list[str]:
    """Warnings about the points of one kind; empty where there is nothing to say."""
    notes = []
    compute = np.log10([point.compute for point in points])
    decades = float(np.ptp(compute))
    if decades < MIN_DECADES:
        notes.append(
            f"the points of {name} span {decades:.2f} decades of compute: its exponent says nothing beyond them"
        )
    repeats = [p.samples_seen / p.train_pairs for p in points if p.train_pairs]
    often = sum(each > MAX_REPEATS for each in repeats)
    if often:
        notes.append(
            f"{often} of {len(points)} points of {name} saw their pairs more than {MAX_REPEATS:g} times (up to "
            f"{max(repeats):.0f}): repeated pairs count for less, so its law is that of a small corpus"
        )
    rates: dict[str, set[float]] = defaultdict(set)
    for point in points:
        if point.learning_rate:
            rates[point.model].add(point.learning_rate)
    if rates and all(len(own) == 1 for own in rates.values()):
        notes.append(f"one learning rate for each model of {name}: whether it is the best one is not known")
    return notes
