"""From points to laws: a fit for each kind, and the paired difference between the kinds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_la.errors import UserError, counted, unknown
from clip_la.scaling.alike import alike_groups, groups_of, misfit_notes
from clip_la.scaling.bootstrap import (
    DEFAULT_RESAMPLES,
    FLAT,
    MIN_RUNS,
)
from clip_la.scaling.cautions import carrying
from clip_la.scaling.comparison import (
    Comparison,
    compare,
    make_curves,
    make_pairs,
    numbered,
    unknown_options_note,
    why_no_pairs,
)
from clip_la.scaling.equal_model import CurvePair, equal_model_notes
from clip_la.scaling.paired import How, T, confidence_of_each
from clip_la.scaling.points import Point, Selection
from clip_la.scaling.series_fit import SeriesFit

# The first of these that is among the kinds is what the others are compared with.
BASELINES = ("softmax", "LAION")
MAX_REASONS = 4


@dataclass(frozen=True)
class Analysis:
    """Everything `clip-la scaling fit` says.

    Attributes:
        by: the field of a point that tells the kinds apart.
        frontier: which points entered, for a person.
        method: of the intervals, one of comparison.METHODS.
        fits: of each kind, the baseline first.
        comparisons: of each other kind with the baseline.
        notes: what could not be fitted or compared, and why; and what the points cannot carry.
        pair_notes: those of `notes` that are about comparisons alone, and say nothing of a law.
    """

    selection: Selection
    by: str
    frontier: str
    method: str
    num_resamples: int
    seed: int
    fits: tuple[SeriesFit, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    pair_notes: tuple[str, ...] = ()


def group_points(points: Sequence[Point], by: str, baseline: str | None = None) -> dict[str, tuple[Point, ...]]:
    """Points by the value of their field `by`: the baseline first, then in the order of their names.

    Raises UserError for a baseline that no point has.
    """
    groups: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        groups[str(getattr(point, by))].append(point)
    if baseline is not None and baseline not in groups:
        raise unknown(f"baseline among the values of {by}", baseline, sorted(groups))
    first = BASELINES if baseline is None else (baseline,)
    order = sorted(groups, key=lambda name: (first.index(name) if name in first else len(first), name))
    return {name: tuple(groups[name]) for name in order}


def analyse(
    selection: Selection,
    *,
    by: str | None = None,
    baseline: str | None = None,
    frontier: str = "all",
    num_bins: int = 5,
    method: str | None = None,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> Analysis:
    """Fits a power law to the points of each kind and compares each kind with the first over paired runs.

    Args:
        selection: from `result_points` or `laion_points`.
        by: the field of a point that tells the kinds apart; the selection's first choice if None.
        baseline: the kind that the others are compared with; softmax, or LAION's models, if None.
        frontier: "all", "pareto" or "bins"; `num_bins` matters to the last alone.
        method: of the intervals, "t", "percentile" or "bca"; t for all points, else percentiles, if None.
        num_resamples: bootstrap resamples of runs.
        seed: of the bootstrap; the same points, in the same order, and seed give the same digits.

    Raises:
        UserError: unknown `by`, baseline, frontier or method, or too few points for any kind.
    """
    selection.require_points()
    by = by or selection.by_choices[0]
    if by not in selection.by_choices:
        raise unknown("field to fit by", by, selection.by_choices)
    how = How.of(frontier, num_bins, method, num_resamples, seed)
    fits: list[SeriesFit] = []
    notes: list[str] = []
    for name, points in group_points(selection.points, by, baseline).items():
        try:
            fits.append(SeriesFit.of(name, points, how))
        except UserError as error:
            notes.append(f"no fit for {name}: {error}")
    if not fits:
        raise no_fit(notes)
    curves = {other.name: make_curves(fits[0].points, other.points, by) for other in fits[1:]}
    comparisons, pair_notes = _compare_all(fits, curves, by, how)
    if len(fits) == 1 and not notes:
        pair_notes.append(f"one {by} alone, {fits[0].name}: nothing to compare it with")
    notes += pair_notes
    of_laws, of_pairs = _without_intervals(fits, comparisons, curves, how)
    for found in comparisons:
        of_pairs += misfit_notes(f"{found.name} against {found.baseline}", found.misfits)
    notes += [*of_laws, *of_pairs, *_cautions(fits, by, group_points(selection.tried, by), frontier)]
    label = f"best of {num_bins} bins" if frontier == "bins" else frontier
    return Analysis(
        *(selection, by, label, how.method, num_resamples, seed),
        *(tuple(fits), tuple(comparisons), tuple(notes), (*pair_notes, *of_pairs)),
    )


def _compare_all(
    fits: Sequence[SeriesFit], curves: Mapping[str, Sequence[CurvePair]], by: str, how: How
) -> tuple[list[Comparison], list[str]]:
    """Each kind compared with the first over the pairs they have, and a note for each that has none."""
    first, notes = fits[0], []
    pairs = {other.name: make_pairs(first.points, other.points, by) for other in fits[1:]}
    for other in fits[1:]:
        if pairs[other.name][0].num_units == 0:
            why = why_no_pairs(first.points, other.points, by)
            notes.append(f"no pairs of {other.name} and {first.name}: {why}")
            del pairs[other.name]
    same: dict[str, Any] = {"how": how, "num_compared": len(pairs)}
    found = [
        compare(name, first.name, own, curves=curves[name], num_repeated=num_repeated, **same)
        for name, (own, num_repeated) in pairs.items()
    ]
    return found, notes


def _cautions(
    fits: Sequence[SeriesFit],
    by: str,
    tried: Mapping[str, Sequence[Point]],
    frontier: str,
) -> list[str]:
    """What the data cannot carry; `tried`: points of each kind at learning rates that were not the best."""
    notes: list[str] = []
    for fit in fits:
        if fit.law.alpha >= -FLAT:
            notes.append(f"the error of {fit.name} does not fall with compute: no scaling law, or another metric")
        if frontier == "all":  # what a frontier picks misses its law on one side alone
            x, y = np.log10([[point.compute, point.error] for point in fit.points]).T
            runs = numbered([point.run for point in fit.points])
            notes += misfit_notes(fit.name, alike_groups(x, y, runs, groups_of(fit.points)))
        notes += unknown_options_note(fit.name, fit.points, by)
        notes += carrying(fit.name, fit.points, tried.get(fit.name, ()))
    return notes


def no_fit(reasons: Sequence[str]) -> UserError:
    """The error where no kind can be fitted, with the first of the reasons: one line holds a few of hundreds."""
    more = f"; and {len(reasons) - MAX_REASONS} kinds more" if len(reasons) > MAX_REASONS else ""
    return UserError("; ".join(reasons[:MAX_REASONS]) + more)


def _without_intervals(
    fits: Sequence[SeriesFit],
    comparisons: Sequence[Comparison],
    curves: Mapping[str, Sequence[CurvePair]],
    how: How,
) -> tuple[list[str], list[str]]:
    """Why kinds have no interval; and why comparisons have none, or no multiplier, or nothing to claim of many."""
    why = "too few, or one alone decides the slope" if how.method == T else f"too few to resample (at least {MIN_RUNS})"

    def few(number: int, noun: str, plural: str | None = None) -> str:
        return f"{counted(number, noun, plural)} {'is' if number == 1 else 'are'} {why}"

    of_laws = [f"no interval for {fit.name}: {few(fit.num_runs, 'run')}" for fit in fits if fit.alpha_interval is None]
    notes: list[str] = []
    for found in comparisons:
        if any(each.interval is None for each in found.multipliers):
            notes.append(
                f"no interval for the compute multiplier of {found.name}: "
                f"{few(found.num_runs, 'pair of runs', 'pairs of runs')}, or the slope may be 0"
            )
        notes += equal_model_notes(found.name, curves[found.name], found.equal_model)
    each = confidence_of_each(max(len(comparisons), 1))
    if any(found.num_runs >= MIN_RUNS and not how.resolves(found.num_runs, each) for found in comparisons):
        kinds = counted(len(comparisons), "kind")
        notes.append(f"{how.num_resamples} resamples are too few to judge the differences of {kinds}: give more")
    return of_laws, notes
