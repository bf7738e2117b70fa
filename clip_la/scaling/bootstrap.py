"""Intervals by resampling runs, and paired comparisons of two laws. Arrays in, numbers out; numpy and scipy only.

What is drawn with replacement is a run with all its points (a cluster bootstrap): the branches of one constant-rate run
share their weights, so their errors are not independent. Intervals are percentiles, as they are or bias-corrected and
accelerated (BCa; Efron and Tibshirani 1993, ch. 13 and 14). Both are widened for few runs, and need twelve.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr, ndtri, stdtrit

from clip_la.scaling.fit import SAME_COMPUTE_LOG10, Frontier, choose_all, least_squares, num_scales

CONFIDENCE = 0.95
DEFAULT_RESAMPLES = 2000
# Of fewer runs the 95 % intervals do not hold the truth in 93 to 97 of 100 studies (results/scaling_coverage.csv).
MIN_RUNS = 12
# A quantity that too many resamples leave undefined (no slope, or an error that does not fall) gets no interval.
MAX_UNDEFINED_SHARE = 0.025

# An exponent nearer to 0 is what rounding leaves of a flat law.
FLAT = 1e-9
# Of a line: what the runs must pay for before they say anything of its error.
PARAMETERS = 2

Interval = tuple[float, float]
Laws = Float[np.ndarray, "resamples 2"]


def widened_ends(num_runs: int, confidence: float = CONFIDENCE) -> Float[np.ndarray, " 2"]:
    """The normal quantiles of the ends of an interval that holds the truth with probability `confidence`.

    Resampling takes the spread of a sample for that of the population, sqrt(n / (n - 2)) too small for a line, and its
    percentiles forget that the spread is not known: Student's t instead of 1.96 (Hesterberg 2015, "What teachers should
    know about the bootstrap", expanded percentile intervals).
    """
    if num_runs <= PARAMETERS:
        return np.array([-np.inf, np.inf])
    free = num_runs - PARAMETERS
    return stdtrit(free, np.array([(1 - confidence) / 2, (1 + confidence) / 2])) * np.sqrt(num_runs / free)


def interval(
    values: Float[np.ndarray, " resamples"],
    num_runs: int,
    levels: Float[np.ndarray, " 2"] | None = None,
    confidence: float = CONFIDENCE,
) -> Interval | None:
    """The percentile interval of resampled values, 95 % unless told otherwise, widened for few runs.

    Args:
        values: NaN where a resample leaves the quantity undefined.
        num_runs: how many runs were resampled.
        levels: which quantiles to take instead, as fractions.

    Returns None where the interval would mislead: fewer than MIN_RUNS runs, or too many resamples undefined.
    """
    undefined = np.isnan(values)
    if num_runs < MIN_RUNS or undefined.mean() > MAX_UNDEFINED_SHARE:
        return None
    low, high = np.quantile(values[~undefined], ndtr(widened_ends(num_runs, confidence)) if levels is None else levels)
    return float(low), float(high)


def bca_interval(
    values: Float[np.ndarray, " resamples"],
    estimate: float,
    left_out: Float[np.ndarray, " runs"],
    num_runs: int,
    confidence: float = CONFIDENCE,
) -> Interval | None:
    """The BCa interval, 95 % unless told otherwise: percentiles shifted for bias and skewness.

    It is that of Efron and Tibshirani 1993, eq. 14.9 to 14.15.

    Args:
        values: resampled, NaN where undefined.
        estimate: from all runs.
        left_out: the value without each run in turn.
        num_runs: how many runs were resampled.

    Returns None where it would mislead: as `interval`, and where a single run determines the quantity.
    """
    if np.isnan(left_out).any() or np.isnan(estimate):
        return None
    deviation = left_out.mean() - left_out
    spread = float((deviation**2).sum())
    if spread == 0:
        return interval(values, num_runs, confidence=confidence)
    acceleration = float((deviation**3).sum()) / (6 * spread**1.5)
    known = values[~np.isnan(values)]
    # The bias is how far the estimate lies from the median of the resampled values, in normal quantiles.
    # Half of the ties count as below: the median of a discrete distribution has no bias.
    below = ((known < estimate).sum() + 0.5 * (known == estimate).sum()) / max(len(known), 1)
    bias = float(ndtri(np.clip(below, 0.5 / max(len(known), 1), 1 - 0.5 / max(len(known), 1))))
    ends = bias + widened_ends(num_runs, confidence)
    return interval(values, num_runs, ndtr(bias + ends / (1 - acceleration * ends)))


def draw_counts(num_runs: int, num_resamples: int, seed: int) -> Int[np.ndarray, "resamples runs"]:
    """How often each run is in each resample: as many runs as there are, drawn with replacement.

    Counts, not indices: a resample is then a set of weights, and all straight lines are fitted at once.
    """
    return np.random.default_rng(seed).multinomial(num_runs, np.full(num_runs, 1 / num_runs), num_resamples)


def without_each(num_runs: int) -> Int[np.ndarray, "runs runs"]:
    """The counts of the jackknife: all runs but one."""
    return 1 - np.eye(num_runs, dtype=np.int64)


def laws_by_counts(
    x: Float[np.ndarray, " points"],
    y: Float[np.ndarray, " points"],
    runs: Int[np.ndarray, " points"],
    counts: Int[np.ndarray, "resamples runs"],
    frontier: Frontier,
) -> Laws:
    """The power law of each resample, the frontier chosen anew in each.

    Args:
        x: log10 compute.
        y: log10 error.
        runs: each point's run, 0 to the columns of `counts` - 1.
        counts: how often each run is in each resample.
        frontier: which points of a resample enter its fit.

    Returns (log10 beta, alpha) in a row a resample, NaN where it drew a single compute.
    """
    weights = counts[:, runs]
    if frontier is not choose_all:
        # What a frontier picks hangs on the errors: no sums over all points serve, each resample is fitted by itself.
        return np.array([_fit_or_nan(np.repeat(x, own), np.repeat(y, own), frontier) for own in weights])
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    dx, dy = x - mean_x[:, None], y - mean_y[:, None]
    spread = (weights * dx**2).sum(1)
    # One scale: all computes of a resample within a few per cent.
    several = np.where(weights > 0, x, -np.inf).max(1) - np.where(weights > 0, x, np.inf).min(1) > SAME_COMPUTE_LOG10
    slope = (weights * dx * dy).sum(1) / np.where(several, spread, np.nan)
    return np.stack([mean_y - slope * mean_x, slope], axis=1)


def _fit_or_nan(
    log10_compute: Float[np.ndarray, " points"], log10_error: Float[np.ndarray, " points"], frontier: Frontier
) -> tuple[float, float]:
    chosen = frontier(log10_compute, log10_error)
    if num_scales(chosen.log10_compute) < 2:
        return np.nan, np.nan
    return least_squares(chosen.log10_compute, chosen.log10_error)


@dataclass(frozen=True)
class Pairs:
    """Points of two kinds that agree in everything else, row by row.

    Attributes:
        compute, error: a column a kind, the baseline first.
        units: the pair of runs that each row belongs to, from 0 on. It is what a bootstrap draws: a pair with all its
            points, so that what both runs share (seed, data order, size) cancels in every resample.
        groups: what rows may have in common: name -> its value for each row.
    """

    compute: Float[np.ndarray, "pairs 2"]
    error: Float[np.ndarray, "pairs 2"]
    units: Int[np.ndarray, " pairs"]
    groups: Mapping[str, Sequence[object]] = field(default_factory=dict)

    @property
    def num_units(self) -> int:
        return len(np.unique(self.units))

    def laws(self, frontier: Frontier) -> Float[np.ndarray, "2 2"]:
        """Rows: first and second kind; columns: log10 beta, alpha; NaN where there is no slope."""
        x, y = np.log10(self.compute), np.log10(self.error)
        return np.array([_fit_or_nan(x[:, kind], y[:, kind], frontier) for kind in (0, 1)])

    def laws_by(self, counts: Int[np.ndarray, "resamples units"], frontier: Frontier) -> Float[np.ndarray, "n 2 2"]:
        """The laws of resamples of pairs, so that what both kinds share (seed, data order, size) cancels."""
        x, y = np.log10(self.compute), np.log10(self.error)
        own = [laws_by_counts(x[:, kind], y[:, kind], self.units, counts, frontier) for kind in (0, 1)]
        return np.stack(own, axis=1)

    def log10_error_ratios(self) -> Float[np.ndarray, " units"]:
        """log10 (error of the second kind / error of the first) of each pair of runs: the mean over its points."""
        ratios = np.log10(self.error[:, 1]) - np.log10(self.error[:, 0])
        return np.bincount(self.units, ratios) / np.bincount(self.units)


def log10_multiplier_at(laws: Float[np.ndarray, "... 2 2"], log10_compute: float) -> Float[np.ndarray, "..."]:
    """log10 of the second kind's compute over the first's, at the error that the first has at `log10_compute`.

    Args:
        laws: rows are the first and second kind, columns log10 beta and alpha.

    Returns NaN where the second kind's error does not fall.
    """
    # Solves beta_2 C_2^alpha_2 = beta_1 C_1^alpha_1 for log10 (C_2 / C_1).
    log10_beta, alpha = laws[..., 0], laws[..., 1]
    falling = np.where(alpha[..., 1] < -FLAT, alpha[..., 1], np.nan)
    log10_error = log10_beta[..., 0] + alpha[..., 0] * log10_compute
    return np.asarray((log10_error - log10_beta[..., 1]) / falling - log10_compute)


Statistic = Callable[[Float[np.ndarray, "resamples 2 2"]], Float[np.ndarray, " resamples"]]


@dataclass(frozen=True)
class PairedBootstrap:
    """The laws of pairs, each as `Pairs.laws` has them.

    Attributes:
        laws: of all pairs.
        resampled: of each resample of pairs of runs.
        left_out: without each pair of runs in turn, for BCa.
    """

    laws: Float[np.ndarray, "2 2"]
    resampled: Float[np.ndarray, "resamples 2 2"]
    left_out: Float[np.ndarray, "units 2 2"]

    @classmethod
    def of(cls, pairs: Pairs, *, frontier: Frontier, num_resamples: int, seed: int) -> "PairedBootstrap":
        """Resamples pairs of runs, each with all its points; the frontier is chosen anew in each resample."""
        num = pairs.num_units
        resampled = pairs.laws_by(draw_counts(num, num_resamples, seed), frontier)
        return cls(pairs.laws(frontier), resampled, pairs.laws_by(without_each(num), frontier))

    def bounds(self, statistic: Statistic, method: str, confidence: float = CONFIDENCE) -> Interval | None:
        """The interval of a number made of the two laws, by "percentile" or "bca"; 95 % unless told otherwise."""
        num = len(self.left_out)
        values = statistic(self.resampled)
        if method == "percentile":
            return interval(values, num, confidence=confidence)
        estimate = float(statistic(self.laws[None])[0])
        return bca_interval(values, estimate, statistic(self.left_out), num, confidence)
