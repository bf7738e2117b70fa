"""From points to laws: a fit for each kind, and the paired difference between the kinds."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from clip_la.errors import UserError, counted, unknown
from clip_la.scaling.alike import alike_groups, groups_of, misfit_notes
from clip_la.scaling.bootstrap import (
    DEFAULT_RESAMPLES,
    FLAT,
    MIN_RUNS,
    Interval,
    bca_interval,
    draw_counts,
    interval,
    laws_by_counts,
    widened_ends,
    without_each,
)
from clip_la.scaling.cautions import carrying
from clip_la.scaling.comparison import (
    Comparison,
    compare,
    make_curves,
    make_pairs,
    numbered,
    power_bounds,
    why_no_pairs,
)
from clip_la.scaling.equal_model import CurvePair, equal_model_notes
from clip_la.scaling.fit import HeldOut, PowerLaw, fit_power_law
from clip_la.scaling.intervals import Regression, as_interval, contrast_interval
from clip_la.scaling.paired import PERCENTILE, How, T, confidence_of_each
from clip_la.scaling.points import Point, Selection

# The first of these that is among the kinds is what the others are compared with.
BASELINES = ("softmax", "LAION")
MAX_REASONS = 4
# What the plain data say of a point.
POINT_FIELDS = ("where", "run", "model", "attention", "samples_seen", "compute", "error")
# log10 compute [n] to log10 error, its lower and upper 95 % bound [2, n].
Band = Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, "2 n"]]


@dataclass(frozen=True)
class _Bounds:
    """Intervals of alpha and log10 beta, and the band of the law."""

    alpha: Interval | None
    log10_beta: Interval | None
    band: Band | None

    @classmethod
    def by_t(cls, x: np.ndarray, y: np.ndarray, runs: np.ndarray) -> "_Bounds":
        """Student's t with errors clustered by run."""
        regression = Regression.of_line(x, runs)
        alpha = as_interval(contrast_interval(regression, y, [0, 1]))

        def band(grid: np.ndarray) -> np.ndarray:
            return np.array([contrast_interval(regression, y, [1, place]) for place in grid]).T

        return cls(alpha, as_interval(contrast_interval(regression, y, [1, 0])), band if alpha else None)

    @classmethod
    def by_resamples(cls, x: np.ndarray, y: np.ndarray, runs: np.ndarray, law: PowerLaw, how: How) -> "_Bounds":
        """Percentiles or BCa of resampled runs; the band is of percentiles."""
        num = int(runs.max()) + 1
        laws = laws_by_counts(x, y, runs, draw_counts(num, how.num_resamples, how.seed), how.frontier)
        if how.method == PERCENTILE:
            beta, alpha = (interval(laws[:, column], num) for column in (0, 1))
        else:
            left_out = laws_by_counts(x, y, runs, without_each(num), how.frontier)
            values = (law.log10_beta, law.alpha)
            beta, alpha = (bca_interval(laws[:, i], values[i], left_out[:, i], num) for i in (0, 1))
        known = laws[~np.isnan(laws).any(axis=1)]

        def band(grid: np.ndarray) -> np.ndarray:
            errors = known[:, :1] + known[:, 1:] * grid
            return np.asarray(np.quantile(errors, ndtr(widened_ends(num)), axis=0))

        return cls(alpha, beta, band if alpha else None)


@dataclass(frozen=True)
class SeriesFit:
    """The power law of one kind.

    Attributes:
        alpha_interval, beta_interval: 95 %, None where the runs are too few for one.
        points: all points of the kind.
        fitted: those on the frontier, which the law was fitted to.
        mean_absolute_error: mean of |error - law| over the fitted points, in the error's own unit.
        held_out: the points of the largest compute, predicted from the others.
        band: bounds the law itself at 95 %, where it is known.
    """

    name: str
    law: PowerLaw
    alpha_interval: Interval | None
    beta_interval: Interval | None
    points: tuple[Point, ...]
    fitted: tuple[Point, ...]
    num_runs: int
    mean_absolute_error: float
    held_out: HeldOut | None
    band: Band | None = field(repr=False)

    @classmethod
    def of(cls, name: str, points: Sequence[Point], how: How) -> "SeriesFit":
        """Fits the power law of some points, with 95 % intervals, and says how well it predicts.

        Raises:
            UserError: too few points, or all at a single compute.
        """
        compute = np.array([point.compute for point in points])
        error = np.array([point.error for point in points])
        runs = numbered([point.run for point in points])
        law, chosen = fit_power_law(compute, error, how.frontier)
        x, y = np.log10(compute), np.log10(error)
        bounds = _Bounds.by_t(x, y, runs) if how.method == T else _Bounds.by_resamples(x, y, runs, law, how)
        return cls(
            name=name,
            law=law,
            alpha_interval=bounds.alpha,
            beta_interval=power_bounds(bounds.log10_beta),
            points=tuple(points),
            fitted=tuple(points[i] for i in chosen.index),
            num_runs=len(np.unique(runs)),
            mean_absolute_error=law.mean_absolute_error(compute[chosen.index], error[chosen.index]),
            held_out=HeldOut.of(compute, error, how.frontier),
            band=bounds.band,
        )

    def data(self) -> dict[str, Any]:
        """As plain data: beta, alpha, their intervals, the counts, what it predicts, the points in it."""
        return {
            "name": self.name,
            "beta": self.law.beta,
            "beta_interval": self.beta_interval and list(self.beta_interval),
            "alpha": self.law.alpha,
            "alpha_interval": self.alpha_interval and list(self.alpha_interval),
            "n": len(self.points),
            "n_fitted": len(self.fitted),
            "n_runs": self.num_runs,
            "mean_absolute_error": self.mean_absolute_error,
            "largest_held_out": self.held_out and self.held_out.data(),
            "fitted": [{name: getattr(point, name) for name in POINT_FIELDS} for point in self.fitted],
        }


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
    first = fits[0]
    pairs = {other.name: make_pairs(first.points, other.points, by) for other in fits[1:]}
    for other in fits[1:]:
        if pairs[other.name][0].num_units == 0:
            why = why_no_pairs(first.points, other.points, by)
            notes.append(f"no pairs of {other.name} and {first.name}: {why}")
            del pairs[other.name]
    curves = {other.name: make_curves(first.points, other.points, by) for other in fits[1:]}
    same: dict[str, Any] = {"how": how, "num_compared": len(pairs)}
    comparisons = [
        compare(name, first.name, own, curves=curves[name], num_repeated=num_repeated, **same)
        for name, (own, num_repeated) in pairs.items()
    ]
    if len(fits) == 1 and not notes:
        notes.append(f"one {by} alone, {fits[0].name}: nothing to compare it with")
    notes += _without_intervals(fits, comparisons, curves, how)
    notes += _cautions(fits, comparisons, group_points(selection.tried, by), frontier)
    label = f"best of {num_bins} bins" if frontier == "bins" else frontier
    return Analysis(
        selection, by, label, how.method, num_resamples, seed, tuple(fits), tuple(comparisons), tuple(notes)
    )


def _cautions(
    fits: Sequence[SeriesFit],
    comparisons: Sequence[Comparison],
    tried: Mapping[str, Sequence[Point]],
    frontier: str,
) -> list[str]:
    """What the data cannot carry; `tried`: points of each kind at learning rates that were not the best."""
    notes: list[str] = []
    for found in comparisons:
        notes += misfit_notes(f"{found.name} against {found.baseline}", found.misfits)
    for fit in fits:
        if fit.law.alpha >= -FLAT:
            notes.append(f"the error of {fit.name} does not fall with compute: no scaling law, or another metric")
        if frontier == "all":  # what a frontier picks misses its law on one side alone
            x, y = np.log10([[point.compute, point.error] for point in fit.points]).T
            runs = numbered([point.run for point in fit.points])
            notes += misfit_notes(fit.name, alike_groups(x, y, runs, groups_of(fit.points)))
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
) -> list[str]:
    """Why an interval or multiplier is missing, of each kind and comparison, and why nothing can be claimed of many."""
    why = "too few, or one alone decides the slope" if how.method == T else f"too few to resample (at least {MIN_RUNS})"

    def few(number: int, noun: str, plural: str | None = None) -> str:
        return f"{counted(number, noun, plural)} {'is' if number == 1 else 'are'} {why}"

    notes = [f"no interval for {fit.name}: {few(fit.num_runs, 'run')}" for fit in fits if fit.alpha_interval is None]
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
    return notes
