"""From points to laws: a fit for each kind, and the paired difference between the kinds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from clip_la.errors import UserError, unknown
from clip_la.scaling.bootstrap import (
    DEFAULT_RESAMPLES,
    Interval,
    PairedResamples,
    Pairs,
    interval,
    log10_compute_multiplier,
    log10_error_ratio,
    resampled_laws,
    resampled_pairs,
)
from clip_la.scaling.fit import (
    Frontier,
    HeldOut,
    PowerLaw,
    fit_power_law,
    get_frontier,
    mean_absolute_error,
    num_scales,
    power10,
    predict_largest,
)
from clip_la.scaling.points import Point, Selection

# The first of these that is among the kinds is what the others are compared with.
BASELINES = ("softmax", "LAION")
# Percentile intervals of fewer runs are known to be too narrow.
FEW_RUNS = 10
# What two runs must share to be a pair, besides the field they differ in.
PAIR_FIELDS = ("attention", "model", "train_data", "seed", "schedule", "batch_size", "samples_seen")


@dataclass(frozen=True)
class SeriesFit:
    """The law of one kind. `fitted` are the points on the frontier; `resampled` rows are (log10 beta, alpha)."""

    name: str
    law: PowerLaw
    alpha_interval: Interval | None
    beta_interval: Interval | None
    points: tuple[Point, ...]
    fitted: tuple[Point, ...]
    num_runs: int
    mean_absolute_error: float
    held_out: HeldOut | None
    resampled: np.ndarray


@dataclass(frozen=True)
class Multiplier:
    """How many times the baseline's compute a kind needs to reach `error` (a fraction)."""

    error: float
    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Comparison:
    """A kind against the baseline over paired runs; differences are kind minus baseline, ratios kind over baseline."""

    name: str
    baseline: str
    num_pairs: int
    num_runs: int
    num_repeated: int
    error_ratio: float
    error_ratio_interval: Interval | None
    alpha_difference: float | None = None
    alpha_difference_interval: Interval | None = None
    multipliers: tuple[Multiplier, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """Everything `clip-la scaling fit` says. `notes` tell what could not be fitted or compared, and why."""

    selection: Selection
    by: str
    frontier: str
    num_resamples: int
    seed: int
    fits: tuple[SeriesFit, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]


def group_points(points: Sequence[Point], by: str) -> dict[str, tuple[Point, ...]]:
    """Points by the value of their field `by`: the baseline first, then in the order of their names."""
    groups: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        groups[str(getattr(point, by))].append(point)
    order = sorted(groups, key=lambda name: (BASELINES.index(name) if name in BASELINES else len(BASELINES), name))
    return {name: tuple(groups[name]) for name in order}


def _numbered(names: Sequence[object]) -> np.ndarray:
    """Each name's number in order of first appearance."""
    numbers: Mapping[object, int] = defaultdict(count().__next__)
    return np.array([numbers[name] for name in names])


def _power(log10_bounds: Interval | None) -> Interval | None:
    return None if log10_bounds is None else (power10(log10_bounds[0]), power10(log10_bounds[1]))


def fit_series(
    name: str, points: Sequence[Point], *, frontier: Frontier, num_resamples: int = DEFAULT_RESAMPLES, seed: int = 0
) -> SeriesFit:
    """The power law of some points, with 95 % intervals from resampled runs, and how well it predicts.

    Raises:
        UserError: too few points, or all at a single compute.
    """
    compute = np.array([point.compute for point in points])
    error = np.array([point.error for point in points])
    runs = _numbered([point.run for point in points])
    law, chosen = fit_power_law(compute, error, frontier)
    resampled = resampled_laws(compute, error, runs, frontier=frontier, num_resamples=num_resamples, seed=seed)
    num_runs = len(np.unique(runs))
    return SeriesFit(
        name=name,
        law=law,
        alpha_interval=interval(resampled[:, 1], num_runs),
        beta_interval=_power(interval(resampled[:, 0], num_runs)),
        points=tuple(points),
        fitted=tuple(points[i] for i in chosen.index),
        num_runs=num_runs,
        mean_absolute_error=mean_absolute_error(law, compute[chosen.index], error[chosen.index]),
        held_out=predict_largest(compute, error, frontier),
        resampled=resampled,
    )


def _best_by_key(points: Sequence[Point], by: str) -> tuple[dict[tuple, Point], int]:
    """The best point of each combination of the other fields, and how many combinations held more than one."""
    fields = [name for name in PAIR_FIELDS if name != by]
    groups: dict[tuple, list[Point]] = defaultdict(list)
    for point in points:
        if point.seed is not None:
            groups[tuple(getattr(point, name) for name in fields)].append(point)
    best = {key: min(group, key=lambda point: point.error) for key, group in groups.items()}
    return best, sum(len(group) > 1 for group in groups.values())


def make_pairs(baseline: Sequence[Point], other: Sequence[Point], by: str) -> tuple[Pairs, int]:
    """Pairs of points (baseline, other) that differ in `by` alone; where a combination holds several runs, the best.

    Returns the pairs, resampled by pair of runs, and the number of combinations that held several.
    """
    first, repeated_first = _best_by_key(baseline, by)
    second, repeated_second = _best_by_key(other, by)
    matched = [(first[key], second[key]) for key in first if key in second]
    pairs = Pairs(
        compute=np.array([[a.compute, b.compute] for a, b in matched]).reshape(-1, 2),
        error=np.array([[a.error, b.error] for a, b in matched]).reshape(-1, 2),
        units=_numbered([(a.run, b.run) for a, b in matched]),
    )
    return pairs, repeated_first + repeated_second


def _shared_errors(pairs: Pairs) -> list[float]:
    """Errors to compare compute at: the geometric middle of the range both kinds cover, and the lowest both reach."""
    lowest, highest = pairs.error.min(axis=0).max(), pairs.error.max(axis=0).min()
    return [float(np.sqrt(lowest * highest)), float(lowest)] if lowest < highest else []


def _multiplier(error: float, laws: np.ndarray, resamples: PairedResamples, num_runs: int) -> Multiplier | None:
    log10_value = float(log10_compute_multiplier(laws, error))
    if np.isnan(log10_value):
        return None
    bounds = interval(log10_compute_multiplier(resamples.laws, error), num_runs)
    return Multiplier(error, power10(log10_value), _power(bounds))


def compare(
    baseline: SeriesFit, other: SeriesFit, *, by: str, frontier: Frontier, num_resamples: int, seed: int
) -> Comparison | None:
    """The paired comparison of two kinds, or None where no two runs differ in `by` alone."""
    pairs, num_repeated = make_pairs(baseline.points, other.points, by)
    if len(pairs.units) == 0:
        return None
    resamples = resampled_pairs(pairs, frontier=frontier, num_resamples=num_resamples, seed=seed)
    num_runs = pairs.num_units
    counts = (other.name, baseline.name, len(pairs.units), num_runs, num_repeated)
    ratio = power10(log10_error_ratio(pairs))
    spread = _power(interval(resamples.log10_error_ratio, num_runs))
    laws = pairs.laws(frontier)
    # Two pairs make two exact lines: a difference of exponents without any residual is not a finding.
    if min(len(pairs.units), num_scales(np.log10(pairs.compute[:, 0])) + 1) < 3 or np.isnan(laws).any():
        return Comparison(*counts, ratio, spread)
    multipliers = [_multiplier(error, laws, resamples, num_runs) for error in _shared_errors(pairs)]
    return Comparison(
        *counts,
        ratio,
        spread,
        alpha_difference=float(laws[1, 1] - laws[0, 1]),
        alpha_difference_interval=interval(resamples.laws[:, 1, 1] - resamples.laws[:, 0, 1], num_runs),
        multipliers=tuple(multiplier for multiplier in multipliers if multiplier is not None),
    )


def _fit_all(
    groups: Mapping[str, tuple[Point, ...]], frontier: Frontier, num_resamples: int, seed: int
) -> tuple[list[SeriesFit], list[str]]:
    """The fits of the kinds that can be fitted, and a note for each that cannot; UserError where none can."""
    fits: list[SeriesFit] = []
    notes: list[str] = []
    for name, points in groups.items():
        try:
            fits.append(fit_series(name, points, frontier=frontier, num_resamples=num_resamples, seed=seed))
        except UserError as error:
            notes.append(f"no fit for {name}: {error}")
    if not fits:
        raise UserError("; ".join(notes))
    return fits, notes


def analyse(
    selection: Selection,
    *,
    by: str | None = None,
    frontier: str = "all",
    num_bins: int = 5,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> Analysis:
    """Fits a power law to the points of each kind and compares each kind with the first over paired runs.

    Args:
        selection: from `result_points` or `laion_points`.
        by: the field of a point that tells the kinds apart; the selection's first choice if None.
        frontier: "all", "pareto" or "bins"; `num_bins` matters to the last alone.
        num_resamples: bootstrap resamples of runs.
        seed: of the bootstrap; the same points, in the same order, and seed give the same digits.

    Raises:
        UserError: unknown `by` or frontier, or too few points for any kind.
    """
    by = by or selection.by_choices[0]
    if by not in selection.by_choices:
        raise unknown("field to fit by", by, selection.by_choices)
    choose = get_frontier(frontier, num_bins)
    fits, notes = _fit_all(group_points(selection.points, by), choose, num_resamples, seed)
    comparisons: list[Comparison] = []
    for other in fits[1:]:
        found = compare(fits[0], other, by=by, frontier=choose, num_resamples=num_resamples, seed=seed)
        if found is None:
            notes.append(f"no pairs of {other.name} and {fits[0].name}: no two runs differ in {by} alone")
        else:
            comparisons.append(found)
    for fit in fits:
        if fit.alpha_interval is None:
            notes.append(f"no interval for {fit.name}: {fit.num_runs} runs are too few to resample")
    few = [f"{fit.name} {fit.num_runs}" for fit in fits if fit.alpha_interval and fit.num_runs < FEW_RUNS]
    if few:
        notes.append(f"intervals from so few runs ({', '.join(few)}) are narrower than the truth")
    label = f"best of {num_bins} bins" if frontier == "bins" else frontier
    return Analysis(selection, by, label, num_resamples, seed, tuple(fits), tuple(comparisons), tuple(notes))
