"""How many times a baseline's compute and samples a kind needs for its error, the model being the same; no law of both.

Errors of a study may hang on samples far more than on the model's size: one law of all sizes is then missed by all runs
of a size, and its multiplier is hardly determined. Here each model and seed has a curve of its own over its budgets.
The multiplier of two curves is the mean distance between them along log compute, over the errors that both reach, both
being straight between their points in log C and log E: the Bjontegaard delta rate (Bjontegaard 2001, VCEG-M33) by
straight pieces. It is exact for curves that are one curve moved, whatever its shape. Arrays in, numbers out.
"""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_la.errors import counted
from clip_la.scaling.alike import LEVEL, shared_misfit
from clip_la.scaling.bootstrap import CONFIDENCE, FLAT, Interval
from clip_la.scaling.fit import MIN_POINTS, power10
from clip_la.scaling.intervals import MIN_RUNS, Regression, as_interval, contrast_interval

Points = Float[np.ndarray, " points"]


@dataclass(frozen=True)
class Curve:
    """The budgets of one kind, model and seed, in any order; all log10, the compute in the unit of the fit."""

    log10_compute: Points
    log10_samples: Points
    log10_error: Points


@dataclass(frozen=True)
class CurvePair:
    """Two kinds' curves that agree in all but the kind; `model` and `seed` tell which pairs share them."""

    model: Hashable
    seed: Hashable
    baseline: Curve
    other: Curve

    @property
    def can_be_compared(self) -> bool:
        """Whether both curves have three points. A chord of two misses a bent curve by 20 % of compute."""
        return min(len(self.baseline.log10_error), len(self.other.log10_error)) >= MIN_POINTS


def falling(place: Points, log10_error: Points) -> tuple[Points, Points]:
    """The falling curve nearest to some points (least squares, by pooling adjacent violators), turned around.

    Neighbours in `place` whose errors rise become one point at their mean: noise, as where a curve is flat near chance.

    Returns log10 errors, rising strictly, and the place of each.
    """
    blocks: list[tuple[float, float, int]] = []
    for i in np.argsort(place, kind="stable"):
        x, y, size = float(place[i]), float(log10_error[i]), 1
        while blocks and blocks[-1][1] <= y:
            before, above, num = blocks.pop()
            x, y = ((a * num + b * size) / (num + size) for a, b in ((before, x), (above, y)))
            size += num
        blocks.append((x, y, size))
    found = np.array(blocks)[::-1]
    return found[:, 1], found[:, 0]


def mean_distance(
    first: tuple[Points, Points], second: tuple[Points, Points]
) -> tuple[float, tuple[float, float]] | None:
    """How far right of the first curve the second lies, the mean over the log10 errors that both reach, and these.

    Args:
        first, second: as `falling` returns them; places are log10.

    Returns None where no range of errors is in both.
    """
    low, high = max(first[0][0], second[0][0]), min(first[0][-1], second[0][-1])
    if not low < high:
        return None
    # Both are straight between these errors, so that the trapezoid rule is exact. A curve's flat part spans hardly any
    # error and counts for as little: distances there are mostly noise.
    knots = np.unique(np.clip(np.concatenate([first[0], second[0]]), low, high))
    apart = np.interp(knots, *second) - np.interp(knots, *first)
    return float(np.trapezoid(apart, knots) / (high - low)), (float(low), float(high))


def _interval(voices: Points, confidence: float = CONFIDENCE) -> Interval | None:
    """Student's t of the mean of at least three independent values."""
    if len(voices) < MIN_RUNS:
        return None
    mean = Regression(np.ones((len(voices), 1)), np.arange(len(voices)))
    return as_interval(contrast_interval(mean, voices, [1], confidence))


@dataclass(frozen=True)
class Times:
    """A multiplier, kind over baseline, with its 95 % interval, None where there is none."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class EqualModel:
    """How many times the baseline's compute and samples a kind needs for an equal error with an equal model.

    It is a geometric mean: over the errors that both curves of a pair reach, the pairs of a model, and the models. The
    interval is Student's t over models, each one voice; over pairs where there are fewer than three models, and then it
    holds for these alone.

    Attributes:
        errors: the lowest and the highest error at which any pair was compared.
        num_models, num_pairs: of the pairs of curves that share errors.
        num_apart: pairs of curves that share none.
        why_no_interval: for a person; None where there is one.
        differs: whether the compute multiplier differs from 1 at 95 % for all kinds compared together (Bonferroni).
    """

    compute: Times
    samples: Times
    errors: tuple[float, float]
    num_models: int
    num_pairs: int
    num_apart: int
    why_no_interval: str | None
    differs: bool

    @classmethod
    def of(cls, pairs: Sequence[CurvePair], num_compared: int = 1) -> "EqualModel | None":
        """The multiplier of pairs of curves, of which those with fewer than three points do not count.

        `num_compared` is how many kinds are compared with the baseline beside each other. Returns None where no pair
        shares a range of errors.
        """
        pairs = [pair for pair in pairs if pair.can_be_compared]
        distances, ranges, shared = [], [], []
        for pair in pairs:
            both = (pair.baseline, pair.other)
            by_axis = [
                mean_distance(*(falling(getattr(curve, axis), curve.log10_error) for curve in both))
                for axis in ("log10_compute", "log10_samples")
            ]
            if by_axis[0] and by_axis[1]:
                distances.append((by_axis[0][0], by_axis[1][0]))
                ranges.append(by_axis[0][1])
                shared.append(pair)
        if not shared:
            return None
        models = list(dict.fromkeys(pair.model for pair in shared))
        values = np.array(distances)
        own = np.array([[pair.model == model for pair in shared] for model in models], float)
        by_model = own @ values / own.sum(axis=1, keepdims=True)
        # A kind may suit one size better than another, and all seeds of that size then say the same: they are one
        # voice. Over pairs an interval would hold the truth of models like these in 75 of 100 studies, not 95.
        voices = by_model if len(models) >= MIN_RUNS else values
        why = _why_no_interval(shared, values, len(pairs) - len(shared), len(voices))
        means = by_model.mean(axis=0)
        compute, samples = (
            Times(power10(mean), None if why else _power(_interval(own_voices)))
            for mean, own_voices in zip(means, voices.T, strict=True)
        )
        together = None if why else _interval(voices[:, 0], 1 - (1 - CONFIDENCE) / num_compared)
        return cls(
            *(compute, samples, (power10(min(low for low, _ in ranges)), power10(max(high for _, high in ranges)))),
            *(len(models), len(shared), len(pairs) - len(shared), why),
            # What rounding leaves of curves that are the same is no difference.
            differs=together is not None and (together[0] > FLAT or together[1] < -FLAT),
        )

    def data(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def _power(log10_bounds: Interval | None) -> Interval | None:
    return None if log10_bounds is None else (power10(log10_bounds[0]), power10(log10_bounds[1]))


def _why_no_interval(
    pairs: Sequence[CurvePair], values: Float[np.ndarray, "pairs 2"], num_apart: int, num_voices: int
) -> str | None:
    """Why an interval would not hold the truth in 95 of 100 studies; None where it does."""
    if num_apart:
        # Left out are the pairs farthest apart: the rest says too little of a difference.
        apart = counted(num_apart, "pair of curves shares", "pairs of curves share")
        return f"{apart} no error, so the multiplier lies further from 1"
    if num_voices < MIN_RUNS:
        return f"{counted(num_voices, 'pair of curves is', 'pairs of curves are')} too few (at least {MIN_RUNS})"
    # Seeds that go through all models make fewer voices than there are models; what the models differ in is no error of
    # the seeds.
    p_value = shared_misfit(
        np.zeros(len(pairs)),
        values[:, 0],
        np.arange(len(pairs)),
        [pair.seed for pair in pairs],
        beside=[pair.model for pair in pairs],
    )
    if p_value is not None and p_value < LEVEL:
        return f"runs of one seed differ from the others together in all models (p = {p_value:.2g})"
    return None
