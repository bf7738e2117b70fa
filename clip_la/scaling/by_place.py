"""Kinds side by side at each model size and budget, over seeds: means, paired differences, rates that were tried."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from clip_la.scaling.bootstrap import Interval
from clip_la.scaling.comparison import PAIR_FIELDS
from clip_la.scaling.intervals import Regression, as_interval, contrast_interval
from clip_la.scaling.points import Point, Selection
from clip_la.scaling.rates import rate_choices, rate_text
from clip_la.scaling.report import number
from clip_la.scaling.rows import is_loss
from clip_la.scaling.table import Table

# (model, samples seen).
Place = tuple[str, int]
ABSENT = ""


def measured(selection: Selection) -> tuple[Point, ...]:
    """The selection's points with those of an error of 0 or 1: no law takes these, a table does."""
    return (*selection.points, *selection.off_law)


def shown(metric: str, error: float) -> float:
    """An error as its metric is read: a loss as it is, a share of right answers in per cent."""
    return error if is_loss(metric) else 100 * (1 - error)


def digits_of(metric: str) -> str:
    """How many digits of it are read."""
    return ".3f" if is_loss(metric) else ".1f"


def in_order(points: Iterable[Point]) -> list[Place]:
    """The places of points: the cheapest model first, its smallest budget first."""
    flops: dict[str, float] = {}
    for point in points:
        flops[point.model] = min(point.flops_per_sample, flops.get(point.model, point.flops_per_sample))
    places = {(point.model, point.samples_seen) for point in points}
    return sorted(places, key=lambda place: (flops[place[0]], place))


def mean_text(values: Sequence[float], metric: str) -> str:
    """The mean of what `shown` gives, with "± s (n)" over n > 1 runs, s their standard deviation; ABSENT of none."""
    digits = digits_of(metric)
    if len(values) < 2:
        return f"{values[0]:{digits}}" if values else ABSENT
    return f"{fmean(values):{digits}} ± {stdev(values):{digits}} ({len(values)})"


def mean_table(selection: Selection, kinds: Sequence[str]) -> Table:
    """The metric at each model and number of samples: the mean over seeds of each kind, with "± s (n)" over n > 1 runs.

    s is the standard deviation over runs; an empty cell was not measured.
    """
    points = measured(selection)
    values: dict[tuple[Place, str], list[float]] = defaultdict(list)
    for point in points:
        values[(point.model, point.samples_seen), point.attention].append(shown(selection.metric, point.error))

    rows = [
        (model, f"{samples:,}", *(mean_text(values[(model, samples), kind], selection.metric) for kind in kinds))
        for model, samples in in_order(points)
    ]
    return Table(("model", "samples", *(f"`{kind}`" for kind in kinds)), tuple(rows))


@dataclass(frozen=True)
class SeedDifference:
    """A kind minus another at one place, over the seeds that both have, in the metric's unit (per cent or loss).

    `interval` is the 95 % one of Student's t over pairs; None for a single pair.
    """

    place: Place
    num_pairs: int
    mean: float
    interval: Interval | None


def seed_differences(selection: Selection, kind: str, other: str) -> list[SeedDifference]:
    """`kind` minus `other` at each place where runs of both differ in the attention alone.

    Repeats of a run count as their mean; runs without a seed pair with none.
    """
    fields = [name for name in PAIR_FIELDS if name != "attention"]
    by_kind: dict[str, dict[tuple[object, ...], list[float]]] = {name: defaultdict(list) for name in (kind, other)}
    place_of: dict[tuple[object, ...], Place] = {}
    points = measured(selection)
    for point in points:
        if point.attention in by_kind and point.seed is not None:
            key = tuple(getattr(point, name) for name in fields)
            by_kind[point.attention][key].append(shown(selection.metric, point.error))
            place_of[key] = (point.model, point.samples_seen)
    differences: dict[Place, list[float]] = defaultdict(list)
    for key in (key for key in by_kind[kind] if key in by_kind[other]):
        differences[place_of[key]].append(fmean(by_kind[kind][key]) - fmean(by_kind[other][key]))
    found = []
    for place in in_order(points):
        if own := differences.get(place):
            num, bounds = len(own), None
            if num > 1:
                regression = Regression(np.ones((num, 1)), np.arange(num))
                bounds = as_interval(contrast_interval(regression, np.array(own), [1]))
            found.append(SeedDifference(place, num, fmean(own), bounds))
    return found


def difference_table(selection: Selection, pairs: Mapping[str, tuple[str, str]]) -> Table:
    """Paired differences at each place; `pairs` maps a column's name to (kind, other)."""
    digits = f"+{digits_of(selection.metric)}"
    columns = {
        name: {each.place: each for each in seed_differences(selection, kind, other)}
        for name, (kind, other) in pairs.items()
    }
    rows = []
    for place in in_order(measured(selection)):
        if any(place in own for own in columns.values()):
            cells = [place[0], f"{place[1]:,}"]
            for own in columns.values():
                each = own.get(place)
                cells += [number(each.mean, each.interval, digits), str(each.num_pairs)] if each else [ABSENT, ABSENT]
            rows.append(tuple(cells))
    header = ("model", "samples", *(each for name in columns for each in (name, "pairs")))
    return Table(header, tuple(rows))


def rate_table(selection: Selection) -> Table:
    """The rates tried at each place with several: how far each is from the one of most seeds, and the best of them.

    Differences are in the metric's unit, over the seeds that both have; their number stands in brackets.
    """
    digits, sign = f"+{digits_of(selection.metric)}", 1 if is_loss(selection.metric) else -100
    rows = []
    for choice in rate_choices((*selection.points, *selection.off_law, *selection.tried)):
        first = choice.points[0]
        tried = [
            f"{rate_text(rate)} ({num})"
            if rate == choice.fullest
            else f"{rate_text(rate)}: {sign * more:{digits}} ({num})"
            for rate, (more, num) in choice.behind.items()
        ]
        best = f"{rate_text(choice.best)}{', at the edge' if choice.is_at_edge else ''}"
        rows.append((f"`{first.attention}`", first.model, f"{first.samples_seen:,}", best, "; ".join(tried)))
    return Table(("kind", "model", "samples", "best rate", "rates tried: difference (seeds)"), tuple(rows))
