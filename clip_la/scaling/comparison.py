"""Two kinds over paired runs: how their errors, exponents and compute at equal error differ, with intervals."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy.special import stdtr

from clip_la.errors import UserError, one_line, unknown
from clip_la.scaling.alike import alike_groups, groups_of
from clip_la.scaling.bootstrap import (
    FLAT,
    Interval,
    PairedBootstrap,
    Pairs,
    bca_interval,
    draw_counts,
    interval,
    log10_multiplier_at,
    without_each,
)
from clip_la.scaling.fit import Frontier, get_frontier, num_scales, power10
from clip_la.scaling.intervals import (
    Regression,
    as_interval,
    contrast_interval,
    root_interval,
)
from clip_la.scaling.joint import JointFit, power_fits
from clip_la.scaling.points import Point

# How an interval is made; see `intervals` and `bootstrap`.
T, PERCENTILE, BCA = "t", "percentile", "bca"
METHODS = (T, PERCENTILE, BCA)
# What two runs must share to be a pair, besides the field they differ in.
PAIR_FIELDS = (
    *("attention", "model", "image_size", "tokens", "train_data"),
    *("seed", "schedule", "batch_size", "samples_seen"),
)
# With one degree of freedom (three pairs) t is 12.7: the interval of a multiplier is too wide to say anything, and
# holds the truth in 98 of 100 studies instead of 95 (results/scaling_coverage.csv).
MIN_MULTIPLIER_DEGREES = 1.5
# Enough for a smooth curve over the few decades of a study.
CURVE_PLACES = 15


@dataclass(frozen=True)
class How:
    """By what means intervals are made: "t" (all points alone), "percentile" or "bca", from resamples of runs."""

    frontier: Frontier
    method: str
    num_resamples: int
    seed: int

    @classmethod
    def of(cls, frontier: str, num_bins: int, method: str | None, num_resamples: int, seed: int) -> "How":
        """The means by their names; without a method t, or percentiles where a frontier picks points.

        Raises:
            UserError: an unknown frontier or method, or t with a frontier: what it picks hangs on the errors, and t
                knows no law for that.
        """
        choose = get_frontier(frontier, num_bins)
        if method is None:
            method = T if frontier == "all" else PERCENTILE
        if method not in METHODS:
            raise unknown("interval", method, METHODS)
        if method == T and frontier != "all":
            raise UserError(f"--interval t needs --frontier all: what {frontier} picks hangs on the errors themselves")
        return cls(choose, method, num_resamples, seed)


@dataclass(frozen=True)
class Multiplier:
    """How many times the baseline's compute a kind needs for the error (a fraction) that the baseline reaches there.

    `compute` is the baseline's; its paired runs lie around it ("middle"), or it is the largest of them.
    """

    compute: float
    error: float
    value: float
    interval: Interval | None

    def data(self) -> dict[str, Any]:
        """The same as plain data."""
        interval = None if self.interval is None else list(self.interval)
        return {"compute": self.compute, "error": self.error, "value": self.value, "interval": interval}


@dataclass(frozen=True)
class Comparison:
    """A kind against the baseline over paired runs; differences are kind minus baseline, ratios kind over baseline.

    `difference_p_value` is that of no difference between the exponents, by the clustered t test; `shared` holds the
    joint fits with the exponent separate, in common, and with one law for both; `shared_multiplier` is the multiplier,
    the same at every error, where the exponent is one. `curve` holds the multiplier at evenly spaced log compute of the
    baseline, from its smallest paired run to its largest. `misfits` are those of `alike_groups`.
    """

    name: str
    baseline: str
    num_pairs: int
    num_runs: int
    num_repeated: int
    error_ratio: float
    error_ratio_interval: Interval | None
    alpha_difference: float | None = None
    alpha_difference_interval: Interval | None = None
    difference_p_value: float | None = None
    multipliers: tuple[Multiplier, ...] = ()
    shared_multiplier: Multiplier | None = None
    shared: tuple[JointFit, ...] = field(default=(), repr=False)
    curve: tuple[Multiplier, ...] = field(default=(), repr=False)
    misfits: Mapping[str, float] = field(default_factory=dict, repr=False)


def numbered(names: Sequence[object]) -> Int[np.ndarray, " names"]:
    """Each name's number in order of first appearance."""
    numbers: Mapping[object, int] = defaultdict(count().__next__)
    return np.array([numbers[name] for name in names], dtype=np.int64)


def power_bounds(log10_bounds: Interval | None) -> Interval | None:
    """Bounds of a number from those of its log10."""
    return None if log10_bounds is None else (power10(log10_bounds[0]), power10(log10_bounds[1]))


def _pair_fields(by: str) -> list[str]:
    """What two runs that differ in the field `by` must share: of models, resolution and patches are a part."""
    return [name for name in PAIR_FIELDS if name != by and not (by == "model" and name in ("image_size", "tokens"))]


def why_no_pairs(baseline: Sequence[Point], other: Sequence[Point], by: str) -> str:
    """Why points of two kinds hold no pair, with a field in which they have no value in common, if there is one."""
    if any(all(point.seed is None for point in points) for points in (baseline, other)):
        return f"no two runs differ in {by} alone (a pair shares its seed, and none is recorded)"
    for name in _pair_fields(by):
        values = [sorted({str(getattr(point, name)) for point in points}) for points in (baseline, other)]
        if not set(values[0]) & set(values[1]):
            here, there = (one_line(", ".join(own)) for own in values)
            return f"no two runs differ in {by} alone ({name} is {there} in one, {here} in the other)"
    return f"no two runs differ in {by} alone"


def make_pairs(baseline: Sequence[Point], other: Sequence[Point], by: str) -> tuple[Pairs, int]:
    """Pairs of points (baseline, other) that differ in `by` alone; where a combination holds several runs, the best.

    Returns the pairs, resampled by pair of runs, and the number of combinations that held several.
    """
    fields = _pair_fields(by)

    def best_by_key(points: Sequence[Point]) -> tuple[dict[tuple, Point], int]:
        groups: dict[tuple, list[Point]] = defaultdict(list)
        for point in points:
            # Without a seed nobody knows whether two runs saw the same data in the same order.
            if point.seed is not None:
                groups[tuple(getattr(point, name) for name in fields)].append(point)
        best = {key: min(group, key=lambda point: point.error) for key, group in groups.items()}
        return best, sum(len(group) > 1 for group in groups.values())

    first, repeated_first = best_by_key(baseline)
    second, repeated_second = best_by_key(other)
    matched = [(first[key], second[key]) for key in first if key in second]
    pairs = Pairs(
        compute=np.array([[a.compute, b.compute] for a, b in matched]).reshape(-1, 2),
        error=np.array([[a.error, b.error] for a, b in matched]).reshape(-1, 2),
        units=numbered([(a.run, b.run) for a, b in matched]),
        groups=groups_of([a for a, _ in matched]),
    )
    return pairs, repeated_first + repeated_second


def _error_ratio(pairs: Pairs, how: How) -> tuple[float, Interval | None]:
    """log10 of the mean ratio of errors over pairs of runs, and its interval."""
    ratios = pairs.log10_error_ratios()
    value, num = float(ratios.mean()), len(ratios)
    if how.method == T:
        if num < 2:
            return value, None
        return value, as_interval(contrast_interval(Regression(np.ones((num, 1)), np.arange(num)), ratios, [1]))
    resampled = draw_counts(num, how.num_resamples, how.seed) @ ratios / num
    if how.method == PERCENTILE:
        return value, interval(resampled, num)
    return value, bca_interval(resampled, value, without_each(num) @ ratios / max(num - 1, 1), num)


@dataclass(frozen=True)
class _ByT:
    """Differences of two laws by least squares with clustered errors."""

    pairs: Pairs

    @property
    def _response(self) -> np.ndarray:
        return np.log10(self.pairs.error).T.ravel()

    def _regression(self, shared_exponent: bool = False) -> Regression:
        return Regression.of_pairs(np.log10(self.pairs.compute), self.pairs.units, shared_exponent=shared_exponent)

    def difference(self) -> tuple[Interval | None, float | None]:
        """The interval of the difference of exponents, and the p-value of none."""
        regression, weights = self._regression(), np.array([0.0, -1, 0, 1])
        bounds = as_interval(contrast_interval(regression, self._response, weights.tolist()))
        value = float(regression.coefficients(self._response) @ weights)
        error = float(np.sqrt(weights @ regression.covariance(self._response) @ weights))
        if bounds is None:
            return None, None
        degrees = float(regression.degrees_of_freedom(weights))
        return bounds, float(2 * stdtr(degrees, -abs(value) / max(error, 1e-300)))

    def multiplier(self, x: float) -> Interval | None:
        """The interval of the log10 multiplier at the baseline's log10 compute `x`."""
        return self._root(self._regression(), [-1, -x, 1, x], [0, 0, 0, 1])

    def shared_multiplier(self) -> Multiplier | None:
        """The multiplier where both kinds have one exponent, at the baseline's mean; None where errors do not fall."""
        regression = self._regression(shared_exponent=True)
        root, _ = root_interval(regression, self._response, [-1, 1, 0], [0, 0, 1])
        if not np.isfinite(root) or regression.coefficients(self._response)[2] >= -FLAT:
            return None
        bounds = self._root(regression, [-1, 1, 0], [0, 0, 1])
        compute, error = (float(np.log10(own[:, 0]).mean()) for own in (self.pairs.compute, self.pairs.error))
        return Multiplier(power10(compute), power10(error), power10(float(root)), power_bounds(bounds))

    def _root(self, regression: Regression, constant: list[float], slope: list[float]) -> Interval | None:
        root, bounds = root_interval(regression, self._response, constant, slope)
        if not np.isfinite(root):  # flat laws meet nowhere
            return None
        degrees = regression.degrees_of_freedom(np.array(constant, float) + root * np.array(slope, float))
        return as_interval(bounds) if degrees >= MIN_MULTIPLIER_DEGREES else None


def _multipliers(
    places: Sequence[float], laws: np.ndarray, by_t: _ByT, resampled: PairedBootstrap | None, method: str
) -> tuple[Multiplier, ...]:
    """The multiplier at each of some log10 computes of the baseline; none where no multiplier is defined."""
    found = []
    for place in places:
        value = float(log10_multiplier_at(laws, place))
        if np.isnan(value):
            continue

        def statistic(each: np.ndarray, place: float = place) -> np.ndarray:
            return log10_multiplier_at(each, place)

        bounds = by_t.multiplier(place) if resampled is None else resampled.bounds(statistic, method)
        error = power10(float(laws[0, 0] + laws[0, 1] * place))
        found.append(Multiplier(power10(place), error, power10(value), power_bounds(bounds)))
    return tuple(found)


def compare(
    name: str, baseline: str, points: Sequence[Point], baseline_points: Sequence[Point], *, by: str, how: How
) -> Comparison | None:
    """The paired comparison of two kinds, or None where no two runs differ in `by` alone."""
    pairs, num_repeated = make_pairs(baseline_points, points, by)
    if len(pairs.units) == 0:
        return None
    ratio, ratio_bounds = _error_ratio(pairs, how)
    ratios = np.log10(pairs.error[:, 1] / pairs.error[:, 0])
    misfits = alike_groups(np.log10(pairs.compute[:, 0]), ratios, pairs.units, pairs.groups)
    counts = (name, baseline, len(pairs.units), pairs.num_units, num_repeated)
    plain = Comparison(*counts, power10(ratio), power_bounds(ratio_bounds), misfits=misfits)
    laws = pairs.laws(how.frontier)
    # Two pairs make two exact lines: a difference of exponents without any residual is not a finding.
    if min(len(pairs.units), num_scales(np.log10(pairs.compute[:, 0])) + 1) < 3 or np.isnan(laws).any():
        return plain
    by_t, resampled = _ByT(pairs), None
    x = np.log10(pairs.compute[:, 0])
    along = np.linspace(x.min(), x.max(), CURVE_PLACES).tolist()
    if how.method == T:
        bounds, p_value = by_t.difference()
    else:
        resampled = PairedBootstrap.of(pairs, frontier=how.frontier, num_resamples=how.num_resamples, seed=how.seed)
        bounds, p_value = resampled.bounds(lambda each: each[:, 1, 1] - each[:, 0, 1], how.method), None
    return Comparison(
        *counts,
        power10(ratio),
        power_bounds(ratio_bounds),
        alpha_difference=float(laws[1, 1] - laws[0, 1]),
        alpha_difference_interval=bounds,
        difference_p_value=p_value,
        multipliers=_multipliers((float(x.mean()), float(x.max())), laws, by_t, resampled, how.method),
        shared_multiplier=by_t.shared_multiplier() if how.method == T else None,
        shared=tuple(power_fits(list(np.log10(pairs.compute).T), list(np.log10(pairs.error).T))),
        curve=_multipliers(along, laws, by_t, resampled, how.method),
        misfits=misfits,
    )
