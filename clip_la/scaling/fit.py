"""Power laws between compute and error, and the points they are fitted to. Arrays in, numbers out; numpy only.

E = beta C^alpha is a straight line in log10 C and log10 E, fitted by least squares there (Cherti et al. 2023,
"Reproducible scaling laws for contrastive language-image learning"; its choice of points is the frontier "bins").
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from clip_la.errors import UserError, counted, unknown

MIN_POINTS = 3
# Two computes nearer than this are one scale: sample counts are rounded to whole batches.
SAME_COMPUTE_LOG10 = 0.01
# Cherti et al. widen the range of log10 C by this, so that the largest run falls inside the last bin.
BIN_MARGIN_LOG10 = 0.1
# Beyond this no float64 holds a power of ten.
MAX_LOG10 = 300.0


def power10(exponent: float) -> float:
    """10 ** exponent, held within 1e-300 and 1e300: a nearly flat law extrapolates to any compute."""
    return float(10 ** min(max(exponent, -MAX_LOG10), MAX_LOG10))


@dataclass(frozen=True)
class PowerLaw:
    """E = beta C^alpha, E the error (a fraction or a loss), C the compute in whatever unit the points had."""

    log10_beta: float
    alpha: float

    @property
    def beta(self) -> float:
        return power10(self.log10_beta)

    def error_at(self, compute: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        """The errors (fractions) that the law gives at `compute`."""
        return np.asarray(10 ** (self.log10_beta + self.alpha * np.log10(compute)))

    def mean_absolute_error(self, compute: Float[np.ndarray, " points"], error: Float[np.ndarray, " points"]) -> float:
        """Mean of |error - predicted error| over points, each at its own compute."""
        return float(np.abs(self.error_at(compute) - error).mean())


@dataclass(frozen=True)
class Chosen:
    """The points a fit sees.

    Attributes:
        log10_compute: where the fit puts them: their own compute, or the centre of a bin.
        log10_error: their errors.
        index: which of the given points they are.
    """

    log10_compute: Float[np.ndarray, " chosen"]
    log10_error: Float[np.ndarray, " chosen"]
    index: Int[np.ndarray, " chosen"]

    @classmethod
    def pareto(cls, log10_compute: Float[np.ndarray, " points"], log10_error: Float[np.ndarray, " points"]) -> "Chosen":
        """The points with a lower error than every point of no more compute, in order of compute."""
        order = np.lexsort((log10_error, log10_compute))
        best_before = np.minimum.accumulate(np.concatenate(([np.inf], log10_error[order])))[:-1]
        index = order[log10_error[order] < best_before]
        return cls(log10_compute[index], log10_error[index], index)

    @classmethod
    def bins(
        cls, log10_compute: Float[np.ndarray, " points"], log10_error: Float[np.ndarray, " points"], num_bins: int
    ) -> "Chosen":
        """The lowest error in each of `num_bins` equal bins of log10 C over [min, max + 0.1], at the bin's centre."""
        if len(log10_compute) == 0:  # a resample without its only run
            return cls(log10_compute, log10_error, np.zeros(0, np.int64))
        edges = np.linspace(log10_compute.min(), log10_compute.max() + BIN_MARGIN_LOG10, num_bins + 1)
        centres = (edges[:-1] + edges[1:]) / 2
        bin_of = np.clip(np.searchsorted(edges, log10_compute, side="right") - 1, 0, num_bins - 1)
        # The first of equals wins, so that the same points give the same choice.
        order = np.lexsort((np.arange(len(bin_of)), log10_error, bin_of))
        filled, first = np.unique(bin_of[order], return_index=True)
        index = order[first]
        return cls(centres[filled], log10_error[index], index)


Frontier = Callable[[Float[np.ndarray, " points"], Float[np.ndarray, " points"]], Chosen]


def choose_all(log10_compute: Float[np.ndarray, " points"], log10_error: Float[np.ndarray, " points"]) -> Chosen:
    """Every point, at its own compute."""
    return Chosen(log10_compute, log10_error, np.arange(len(log10_compute)))


FRONTIERS = ("all", "pareto", "bins")


def get_frontier(name: str, num_bins: int = 5) -> Frontier:
    """The choice of points called `name`; `num_bins` matters to "bins" alone. Raises UserError for another name."""
    if num_bins < MIN_POINTS:
        raise UserError(f"a fit needs at least {MIN_POINTS} bins, not {num_bins}")
    choices: dict[str, Frontier] = {
        "all": choose_all,
        "pareto": Chosen.pareto,
        "bins": partial(Chosen.bins, num_bins=num_bins),
    }
    if name not in choices:
        raise unknown("frontier", name, FRONTIERS)
    return choices[name]


def num_scales(log10_compute: Float[np.ndarray, " points"]) -> int:
    """How many different computes there are, those within a few per cent of each other counted once."""
    return 0 if len(log10_compute) == 0 else 1 + int((np.diff(np.sort(log10_compute)) > SAME_COMPUTE_LOG10).sum())


def least_squares(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"]) -> tuple[float, float]:
    """Intercept and slope of the least-squares line through (x, y); x must hold two different values."""
    # About the mean: with log10 computes near 10 the plain normal equations lose half the digits.
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    return float(y.mean() - slope * x.mean()), slope


def fit_power_law(
    compute: Float[np.ndarray, " points"], error: Float[np.ndarray, " points"], frontier: Frontier = choose_all
) -> tuple[PowerLaw, Chosen]:
    """Fits E = beta C^alpha by least squares in log10 to the points the frontier chooses.

    Args:
        compute: positive, any unit; beta is in the same.
        error: fractions above 0.
        frontier: which points enter.

    Raises:
        UserError: fewer than three points or fewer than two scales of compute are left to fit.
    """
    if len(compute) < MIN_POINTS:
        raise UserError(f"{counted(len(compute), 'point')}, a fit needs at least {MIN_POINTS}")
    chosen = frontier(np.log10(compute), np.log10(error))
    if len(chosen.index) < MIN_POINTS:
        raise UserError(
            f"{len(chosen.index)} of {len(compute)} points on the frontier, a fit needs at least {MIN_POINTS}"
        )
    if num_scales(chosen.log10_compute) < 2:
        raise UserError(f"{len(compute)} points at a single compute, a fit needs at least two computes")
    return PowerLaw(*least_squares(chosen.log10_compute, chosen.log10_error)), chosen


@dataclass(frozen=True)
class HeldOut:
    """The largest scale, predicted from the smaller ones. Errors are fractions, means over the points at that scale."""

    compute: float
    num_points: int
    predicted_error: float
    measured_error: float

    @classmethod
    def of(
        cls,
        compute: Float[np.ndarray, " points"],
        error: Float[np.ndarray, " points"],
        frontier: Frontier = choose_all,
    ) -> "HeldOut | None":
        """Fits a power law without the points of the largest compute and predicts them.

        Returns None where too few points would be left. Arguments are those of `fit_power_law`.
        """
        largest = np.log10(compute) > np.log10(compute.max()) - SAME_COMPUTE_LOG10
        try:
            law, _ = fit_power_law(compute[~largest], error[~largest], frontier)
        except UserError:
            return None
        predicted = law.error_at(compute[largest]).mean()
        return cls(float(compute.max()), int(largest.sum()), float(predicted), float(error[largest].mean()))

    @property
    def relative_error(self) -> float:
        """How far the prediction is off, over what was measured; above 0 where it was too pessimistic."""
        return self.predicted_error / self.measured_error - 1

    def text(self) -> str:
        """Prediction, measurement and how far off, for a person."""
        return f"{self.predicted_error:.4g}, {self.measured_error:.4g} ({100 * self.relative_error:+.1f} %)"

    def data(self) -> dict[str, float]:
        """The same as plain data."""
        return {
            "compute": self.compute,
            "n": self.num_points,
            "predicted_error": self.predicted_error,
            "measured_error": self.measured_error,
            "relative_error": self.relative_error,
        }
