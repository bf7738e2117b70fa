"""The power law of one kind, with intervals, and how well it predicts its largest points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from clip_la.scaling.bootstrap import (
    Interval,
    bca_interval,
    draw_counts,
    interval,
    laws_by_counts,
    widened_ends,
    without_each,
)
from clip_la.scaling.comparison import numbered, power_bounds
from clip_la.scaling.fit import HeldOut, PowerLaw, fit_power_law
from clip_la.scaling.intervals import Regression, as_interval, contrast_interval
from clip_la.scaling.paired import PERCENTILE, How, T
from clip_la.scaling.points import Point

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
