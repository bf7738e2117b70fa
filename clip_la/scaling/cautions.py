"""What the points of a kind cannot carry, said before anybody believes their law."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from clip_la.errors import counted
from clip_la.scaling.points import OPTIONS, Point
from clip_la.scaling.rates import rate_choices

# An exponent from less than this (log10 of compute) says little beyond its own points.
MIN_DECADES = 1.0
# More passes over the same pairs count for less than new ones (Muennighoff et al. 2023, arXiv 2305.16264).
MAX_REPEATS = 4.0


def carrying(name: str, points: Sequence[Point], tried: Sequence[Point] = ()) -> list[str]:
    """Warnings about the points of one kind; empty where there is nothing to say.

    Args:
        points: those that enter the fit.
        tried: those at other learning rates, which do not.
    """
    notes = []
    compute = np.log10([point.compute for point in points])
    decades = float(np.ptp(compute))
    if decades < MIN_DECADES:
        notes.append(
            f"the points of {name} span {decades:.2f} decades of compute: its exponent says nothing beyond them"
        )
    repeats = [point.passes for point in points if point.passes is not None]
    often = sum(each > MAX_REPEATS for each in repeats)
    if often:
        notes.append(
            f"{often} of {len(points)} points of {name} saw their pairs more than {MAX_REPEATS:g} times (up to "
            f"{max(repeats):.0f}): repeated pairs count for less, so its law is that of a small corpus"
        )
    for option in OPTIONS:
        values = {getattr(point, option) for point in points}
        if len(values) > 1:
            said = ", ".join(f"{value:g}" for value in sorted(values - {None}))
            said = f"{said}, or none set" if None in values else said
            notes.append(f"runs of {name} differ in {option} ({said}): one law is fitted to all of them")
    mixed = len(rate_choices(points))
    if mixed:
        notes.append(
            f"{counted(mixed, 'place')} of {name} with several learning rates, all of them fitted: --rate best takes "
            "the best of each"
        )
    choices = rate_choices((*points, *tried)) if tried else []
    edges = sum(choice.is_at_edge for choice in choices)
    if edges:
        notes.append(
            f"the best learning rate of {name} is the lowest or highest tried at {edges} of "
            f"{counted(len(choices), 'place')} with several: a better one may lie beyond"
        )
    rates: dict[str, set[float]] = defaultdict(set)
    for point in (*points, *tried):
        if point.learning_rate:
            rates[point.model].add(point.learning_rate)
    if rates and all(len(own) == 1 for own in rates.values()):
        notes.append(f"one learning rate for each model of {name}: whether it is the best one is not known")
    elif alone := [model for model, own in rates.items() if len(own) == 1]:
        notes.append(f"one learning rate for {', '.join(alone)} of {name}: whether it is the best one is not known")
    return notes
