"""Kinds side by side at each model size and budget, over seeds: means, paired differences, rates that were tried."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from clip_la.scaling.bootstrap import Interval
from clip_la.scaling.comparison import PAIR_FIELDS
from clip_la.scaling.intervals import Regression, as_interval, contrast_interval
from clip_la.scaling.points import OPTIONS, Point, Selection, by_flops
from clip_la.scaling.rates import rate_choices, rate_text
from clip_la.scaling.report import number
from clip_la.scaling.rows import is_loss
from clip_la.scaling.table import Table

# (model, with what else its runs differ in; samples seen).
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


def places_of(points: Sequence[Point]) -> dict[Point, Place]:
    """Each point's place: the cheapest model first, its smallest budget first.

    A model's name is followed by the size, tokens and options in which its runs differ; where those of one kind still
    differ in their FLOPs a pair, by these.
    """
    by_model: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        by_model[point.model].append(point)
    names: dict[Point, str] = {}
    by_kind: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for model, own in by_model.items():
        fields = [each for each in ("image_size", "tokens", *OPTIONS) if len({getattr(p, each) for p in own}) > 1]
        for point in own:
            values = [(name, getattr(point, name)) for name in fields]
            names[point] = ", ".join([model, *(f"{name} {value:g}" for name, value in values if value is not None)])
            by_kind[names[point], point.attention].append(point)
    for own in by_kind.values():
        for group in several if len(several := by_flops(own)) > 1 else ():
            for point in group:
                names[point] += f", {group[0].flops_per_sample:.7g} FLOPs a pair"
    flops: dict[str, float] = {}
    for point, name in names.items():
        flops[name] = min(point.flops_per_sample, flops.get(name, point.flops_per_sample))
    places = {point: (name, point.samples_seen) for point, name in names.items()}
    return dict(sorted(places.items(), key=lambda item: (flops[item[1][0]], item[1])))


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
    place_of = places_of(measured(selection))
    values: dict[tuple[Place, str], list[float]] = defaultdict(list)
    for point in measured(selection):
        values[place_of[point], point.attention].append(shown(selection.metric, point.error))
    rows = [
        (model, f"{samples:,}", *(mean_text(values[(model, samples), kind], selection.metric) for kind in kinds))
        for model, samples in dict.fromkeys(place_of.values())
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

    Repeats of a run count as their mean; runs without a seed pair with none, nor do those at a place where one kind has
    several FLOPs a pair.
    """
    fields = [name for name in PAIR_FIELDS if name != "attention"]
    by_kind: dict[str, dict[tuple[object, ...], list[Point]]] = {name: defaultdict(list) for name in (kind, other)}
    place_of = places_of(measured(selection))
    for point in measured(selection):
        if point.attention in by_kind and point.seed is not None:
            by_kind[point.attention][tuple(getattr(point, name) for name in fields)].append(point)
    differences: dict[Place, list[float]] = defaultdict(list)
    for key in (key for key in by_kind[kind] if key in by_kind[other]):
        both = by_kind[kind][key], by_kind[other][key]
        if all(len(by_flops(own)) == 1 for own in both):
            mean, base = (fmean(shown(selection.metric, point.error) for point in own) for own in both)
            differences[place_of[both[1][0]]].append(mean - base)
    found = []
    for place in dict.fromkeys(place_of.values()):
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
    for place in dict.fromkeys(places_of(measured(selection)).values()):
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
    rows, points = [], (*selection.points, *selection.off_law, *selection.tried)
    place_of = places_of(points)
    for choice in rate_choices(points):
        first = choice.points[0]
        tried = [
            f"{rate_text(rate)} ({num})"
            if rate == choice.fullest
            else f"{rate_text(rate)}: {sign * more:{digits}} ({num})"
            for rate, (more, num) in choice.behind.items()
        ]
        best = f"{rate_text(choice.best)}{', at the edge' if choice.is_at_edge else ''}"
        model, samples = place_of[first]
        rows.append((f"`{first.attention}`", model, f"{samples:,}", best, "; ".join(tried)))
    return Table(("kind", "model", "samples", "best rate", "rates tried: difference (seeds)"), tuple(rows))
