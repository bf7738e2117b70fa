"""Intervals of what two kinds differ in over paired runs, and the judgement whether they do. Arrays in, numbers out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, stdtr

from clip_la.errors import UserError, unknown
from clip_la.scaling.bootstrap import (
    CONFIDENCE,
    FLAT,
    Interval,
    PairedBootstrap,
    Pairs,
    bca_interval,
    draw_counts,
    interval,
    log10_multiplier_at,
    widened_ends,
    without_each,
)
from clip_la.scaling.fit import Frontier, get_frontier, num_scales
from clip_la.scaling.intervals import Regression, as_interval, contrast_interval, root_interval

# How an interval is made; see `intervals` and `bootstrap`.
T, PERCENTILE, BCA = "t", "percentile", "bca"
METHODS = (T, PERCENTILE, BCA)
# What two kinds may differ in: exponent, compute at equal error, error at equal model and samples.
EXPONENT, MULTIPLIER, ERROR = "exponent", "multiplier", "error"
# With one degree of freedom (three pairs) t is 12.7: the interval of a multiplier is too wide to say anything, and
# holds the truth in 98 of 100 studies instead of 95 (results/scaling_coverage.csv).
MIN_MULTIPLIER_DEGREES = 1.5


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

    def resolves(self, num_runs: int, confidence: float) -> bool:
        """Whether resamples reach as far out as the ends of an interval: half of one must lie beyond each."""
        return self.method == T or ndtr(widened_ends(num_runs, confidence)[0]) * self.num_resamples >= 0.5


def confidence_of_each(num_compared: int) -> float:
    """That of each of several intervals which hold all of their truths in 95 of 100 studies, by Bonferroni."""
    return 1 - (1 - CONFIDENCE) / num_compared


@dataclass(frozen=True)
class PairedIntervals:
    """Two kinds over pairs of runs: intervals of their differences, 95 % unless a method is told otherwise.

    None stands for an interval that would mislead: see `intervals` and `bootstrap`. Differences are second kind minus
    first; ratios, second over first, are log10.
    """

    pairs: Pairs
    how: How

    @cached_property
    def laws(self) -> Float[np.ndarray, "2 2"]:
        """As `Pairs.laws`."""
        return self.pairs.laws(self.how.frontier)

    @property
    def middle(self) -> float:
        """The mean log10 compute of the first kind."""
        return float(np.log10(self.pairs.compute[:, 0]).mean())

    @property
    def has_laws(self) -> bool:
        """Whether there is a difference of laws; two pairs make two exact lines, whose difference is no finding."""
        few = min(len(self.pairs.units), num_scales(np.log10(self.pairs.compute[:, 0])) + 1) < 3
        return not few and not bool(np.isnan(self.laws).any())

    @cached_property
    def _response(self) -> Float[np.ndarray, " points"]:
        return np.log10(self.pairs.error).T.ravel()

    @cached_property
    def _regression(self) -> Regression:
        return Regression.of_pairs(np.log10(self.pairs.compute), self.pairs.units)

    @cached_property
    def _resampled(self) -> PairedBootstrap:
        how = self.how
        return PairedBootstrap.of(self.pairs, frontier=how.frontier, num_resamples=how.num_resamples, seed=how.seed)

    def error_ratio(self, confidence: float = CONFIDENCE) -> Interval | None:
        """Of the log10 of the mean ratio of errors over pairs of runs."""
        how, ratios = self.how, self.pairs.log10_error_ratios()
        num = len(ratios)
        if how.method == T:
            one_mean = Regression(np.ones((num, 1)), np.arange(num))
            return as_interval(contrast_interval(one_mean, ratios, [1], confidence)) if num > 1 else None
        resampled = draw_counts(num, how.num_resamples, how.seed) @ ratios / num
        if how.method == PERCENTILE:
            return interval(resampled, num, confidence=confidence)
        left_out = without_each(num) @ ratios / max(num - 1, 1)
        return bca_interval(resampled, float(ratios.mean()), left_out, num, confidence)

    def difference(self, confidence: float = CONFIDENCE) -> Interval | None:
        """Of the difference of exponents."""
        if self.how.method == T:
            return as_interval(contrast_interval(self._regression, self._response, [0, -1, 0, 1], confidence))
        return self._resampled.bounds(lambda laws: laws[:, 1, 1] - laws[:, 0, 1], self.how.method, confidence)

    def difference_p_value(self) -> float | None:
        """Of no difference between the exponents, by the clustered t test; None where there is no interval by t."""
        regression, weights = self._regression, np.array([0.0, -1, 0, 1])
        value = float(regression.coefficients(self._response) @ weights)
        error = float(np.sqrt(weights @ regression.covariance(self._response) @ weights))
        degrees = float(regression.degrees_of_freedom(weights))
        if not np.isfinite(error) or not np.isfinite(degrees):
            return None
        return float(2 * stdtr(degrees, -abs(value) / max(error, 1e-300)))

    def multiplier(self, place: float, confidence: float = CONFIDENCE) -> Interval | None:
        """Of the log10 compute multiplier at the first kind's log10 compute `place`."""
        if self.how.method == T:
            return self._root(self._regression, [-1, -place, 1, place], [0, 0, 0, 1], confidence)
        return self._resampled.bounds(lambda laws: log10_multiplier_at(laws, place), self.how.method, confidence)

    def shared_multiplier(self) -> tuple[float, float, float, Interval | None] | None:
        """The multiplier where both kinds have one exponent, by t; None where errors do not fall.

        Returns the first kind's mean compute and error, the multiplier and its interval, all log10.
        """
        design = np.log10(self.pairs.compute)
        regression = Regression.of_pairs(design, self.pairs.units, shared_exponent=True)
        root, _ = root_interval(regression, self._response, [-1, 1, 0], [0, 0, 1])
        if not np.isfinite(root) or regression.coefficients(self._response)[2] >= -FLAT:
            return None
        bounds = self._root(regression, [-1, 1, 0], [0, 0, 1], CONFIDENCE)
        return self.middle, float(np.log10(self.pairs.error[:, 0]).mean()), float(root), bounds

    def _root(
        self, regression: Regression, constant: Sequence[float], slope: Sequence[float], confidence: float
    ) -> Interval | None:
        root, bounds = root_interval(regression, self._response, constant, slope, confidence)
        if not np.isfinite(root):  # flat laws meet nowhere
            return None
        degrees = regression.degrees_of_freedom(np.array(constant, float) + root * np.array(slope, float))
        return as_interval(bounds) if degrees >= MIN_MULTIPLIER_DEGREES else None

    def differ_in(self, num_compared: int) -> tuple[str, ...]:
        """In which of EXPONENT, MULTIPLIER (at the middle) and ERROR the kinds differ beyond chance.

        A quantity counts where its interval leaves out that there is no difference, at 95 % for all `num_compared`
        kinds together (Bonferroni): of kinds that are the baseline again a claim is made of any in at most 5 of 100
        studies. Each quantity is a family of its own: a reader asks each a question of its own, and the three are three
        looks at the same errors, so that a correction for all nine of three kinds would find less and guard little.

        Percentiles and BCa claim nothing where the resamples are too few for intervals that wide.
        """
        together = confidence_of_each(num_compared)
        if not self.how.resolves(self.pairs.num_units, together):
            return ()
        bounds = {ERROR: self.error_ratio(together)}
        if self.has_laws:
            is_falling = bool(self.laws[1, 1] < -FLAT)  # there is no multiplier elsewhere
            bounds = {
                EXPONENT: self.difference(together),
                MULTIPLIER: self.multiplier(self.middle, together) if is_falling else None,
                **bounds,
            }
        return tuple(name for name, own in bounds.items() if own is not None and not own[0] <= 0 <= own[1])
