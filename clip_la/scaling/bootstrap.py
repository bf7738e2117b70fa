"""Intervals by resampling runs, and paired comparisons of two laws. Arrays in, numbers out; numpy only.

What is drawn with replacement is a run with all its points (a cluster bootstrap): the branches of one constant-rate run
share their weights, so their errors are not independent. Intervals are percentiles (Efron and Tibshirani 1993, ch. 13).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from clip_la.scaling.fit import Frontier, least_squares, num_scales

CONFIDENCE = 0.95
DEFAULT_RESAMPLES = 2000
# With fewer runs a percentile interval means nothing: two runs give three different resamples.
MIN_RUNS = 3
# A quantity that too many resamples leave undefined (no slope, or an error that does not fall) gets no interval.
MAX_UNDEFINED_SHARE = 0.025

Interval = tuple[float, float]


def interval(values: Float[np.ndarray, " resamples"], num_runs: int) -> Interval | None:
    """The 95 % percentile interval of resampled values (NaN: undefined there); None where it would mislead."""
    undefined = np.isnan(values)
    if num_runs < MIN_RUNS or undefined.mean() > MAX_UNDEFINED_SHARE:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[~undefined], [tail, 1 - tail])
    return float(low), float(high)


def members_of(runs: Int[np.ndarray, " points"]) -> list[Int[np.ndarray, " members"]]:
    """The indices of the points of each run, in the order of the run numbers."""
    return [np.flatnonzero(runs == run) for run in np.unique(runs)]


def draw_runs(members: list[Int[np.ndarray, " members"]], rng: np.random.Generator) -> Int[np.ndarray, " drawn"]:
    """Indices of the points of as many runs as there are, drawn with replacement."""
    return np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])


def _fit_or_nan(
    log10_compute: Float[np.ndarray, " points"], log10_error: Float[np.ndarray, " points"], frontier: Frontier
) -> tuple[float, float]:
    chosen = frontier(log10_compute, log10_error)
    if num_scales(chosen.log10_compute) < 2:
        return np.nan, np.nan
    return least_squares(chosen.log10_compute, chosen.log10_error)


def resampled_laws(
    compute: Float[np.ndarray, " points"],
    error: Float[np.ndarray, " points"],
    runs: Int[np.ndarray, " points"],
    *,
    frontier: Frontier,
    num_resamples: int,
    seed: int,
) -> Float[np.ndarray, "resamples 2"]:
    """(log10 beta, alpha) of each resample of runs, the frontier chosen anew in each; NaN at a single compute."""
    rng = np.random.default_rng(seed)
    x, y = np.log10(compute), np.log10(error)
    members = members_of(runs)
    draws = (draw_runs(members, rng) for _ in range(num_resamples))
    return np.array([_fit_or_nan(x[drawn], y[drawn], frontier) for drawn in draws])


@dataclass(frozen=True)
class Pairs:
    """Points of two kinds that agree in everything else, row by row, and the runs they come from."""

    compute: Float[np.ndarray, "pairs 2"]
    error: Float[np.ndarray, "pairs 2"]
    units: Int[np.ndarray, " pairs"]

    @property
    def num_units(self) -> int:
        return len(np.unique(self.units))

    def laws(self, frontier: Frontier) -> Float[np.ndarray, "2 2"]:
        """Rows: first and second kind; columns: log10 beta, alpha; NaN where there is no slope."""
        x, y = np.log10(self.compute), np.log10(self.error)
        return np.array([_fit_or_nan(x[:, kind], y[:, kind], frontier) for kind in (0, 1)])

    def drawn(self, index: Int[np.ndarray, " drawn"]) -> "Pairs":
        return Pairs(self.compute[index], self.error[index], self.units[index])


def log10_compute_multiplier(laws: Float[np.ndarray, "... 2 2"], error: float) -> Float[np.ndarray, "..."]:
    """log10 of the compute the second kind needs to reach `error` over the first's; NaN where one does not fall."""
    log10_beta, alpha = laws[..., 0], laws[..., 1]
    falling = np.where(alpha < 0, alpha, np.nan)
    log10_compute = (np.log10(error) - log10_beta) / falling
    return np.asarray(log10_compute[..., 1] - log10_compute[..., 0])


@dataclass(frozen=True)
class PairedResamples:
    """What each resample of pairs gives: the laws of both kinds and the mean log10 ratio of their errors."""

    laws: Float[np.ndarray, "resamples 2 2"]
    log10_error_ratio: Float[np.ndarray, " resamples"]


def log10_error_ratio(pairs: Pairs) -> float:
    """Mean over pairs of log10 (error of the second kind / error of the first)."""
    return float((np.log10(pairs.error[:, 1]) - np.log10(pairs.error[:, 0])).mean())


def resampled_pairs(pairs: Pairs, *, frontier: Frontier, num_resamples: int, seed: int) -> PairedResamples:
    """Resamples pairs of runs, so that what both kinds share (seed, data order, size) cancels in their difference."""
    rng = np.random.default_rng(seed)
    members = members_of(pairs.units)
    resamples = [pairs.drawn(draw_runs(members, rng)) for _ in range(num_resamples)]
    return PairedResamples(
        laws=np.stack([resample.laws(frontier) for resample in resamples]),
        log10_error_ratio=np.array([log10_error_ratio(resample) for resample in resamples]),
    )
