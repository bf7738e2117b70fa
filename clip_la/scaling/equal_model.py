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
from clip_la.scaling.intervals import MIN_RUNS, Regression, contrast_interval

# Budgets four times apart (rounded to whole batches). A chord over more misses a bent curve: of three budgets over a
# factor of 16 by 4 % of compute at most where they are evenly spaced, by up to 30 % where two are eight times apart.
MAX_STEP_LOG10 = 0.61

Points = Float[np.ndarray, " points"]


@dataclass(frozen=True)
class Curve:
    """The budgets of one kind, model and seed, in any order; all log10, the compute in the unit of the fit."""

    log10_compute: Points
    log10_samples: Points
    log10_error: Points

    def turned(self) -> "Turned":
        """As `falling`; the axes are log10 compute and log10 samples."""
        return falling(np.stack([self.log10_compute, self.log10_samples], axis=1), self.log10_error)


@dataclass(frozen=True)
class CurvePair:
    """Two kinds' curves that agree in all but the kind; `model` and `seed` tell which pairs share them."""

    model: Hashable
    seed: Hashable
    baseline: Curve
    other: Curve

    @property
    def can_be_compared(self) -> bool:
        """Whether both curves have three points, none further from the next than MAX_STEP_LOG10."""
        return all(
            len(x) >= MIN_POINTS and np.diff(np.sort(x)).max() <= MAX_STEP_LOG10
            for x in (self.baseline.log10_samples, self.other.log10_samples)
        )


Turned = tuple[Points, Float[np.ndarray, "points axes"]]


def falling(places: Float[np.ndarray, "points axes"], log10_error: Points) -> Turned:
    """The falling curve nearest to some points (least squares, by pooling adjacent violators), turned around.

    Neighbours by the first axis whose errors rise become one point at their mean: noise, as where a curve is flat near
    chance.

    Returns log10 errors, rising strictly, and the places of each.
    """
    order = np.argsort(places[:, 0], kind="stable")
    blocks: list[tuple[float, float]] = []  # the mean error of neighbours, and their number
    for y in log10_error[order].tolist():
        size = 1.0
        while blocks and blocks[-1][0] <= y:
            above, num = blocks.pop()
            y, size = (above * num + y * size) / (num + size), num + size
        blocks.append((y, size))
    errors, sizes = np.array(blocks).T
    starts = np.concatenate([[0], np.cumsum(sizes[:-1])]).astype(int)
    means = np.add.reduceat(places[order], starts) / sizes[:, None]
    return errors[::-1], means[::-1]


def mean_distance(first: Turned, second: Turned) -> tuple[Float[np.ndarray, " axes"], tuple[float, float]] | None:
    """How far right of the first curve the second lies, the mean over the log10 errors that both reach, and these.

    Args:
        first, second: as `falling` returns them.

    Returns None where no range of errors is in both.
    """
    low, high = max(first[0][0], second[0][0]), min(first[0][-1], second[0][-1])
    if not low < high:
        return None
    # Both are straight between these errors, so that the trapezoid rule is exact. A curve's flat part spans hardly any
    # error and counts for as little: distances there are mostly noise.
    knots = np.sort(np.clip(np.concatenate([first[0], second[0]]), low, high))
    axes = range(first[1].shape[1])
    apart = [np.interp(knots, second[0], second[1][:, i]) - np.interp(knots, first[0], first[1][:, i]) for i in axes]
    return np.trapezoid(apart, knots) / (high - low), (float(low), float(high))


@dataclass(frozen=True)
class Times:
    """A multiplier, kind over baseline, with its 95 % interval, None where there is none."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class EqualModel:
    """How many times the baseline's compute and samples a kind needs for an equal error with an equal model.

    It is a geometric mean: over the errors that both curves of a pair reach, the pairs of a model, and the models, each
    one voice, with Student's t over these. Of fewer than three models it is over all their pairs, and holds for these
    models alone.

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
        """The multiplier of pairs of curves, of which those that cannot be compared do not count.

        `num_compared` is how many kinds are compared with the baseline beside each other. Returns None where no pair
        shares a range of errors.
        """
        pairs = [pair for pair in pairs if pair.can_be_compared]
        distances, ranges, shared = [], [], []
        for pair in pairs:
            found = mean_distance(pair.baseline.turned(), pair.other.turned())
            if found:
                distances.append(found[0])
                ranges.append(found[1])
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
        regression = Regression(np.ones((len(voices), 1)), np.arange(len(voices)))
        each, together = (
            contrast_interval(regression, voices.T, [1], confidence)
            for confidence in (CONFIDENCE, 1 - (1 - CONFIDENCE) / num_compared)
        )
        compute, samples = (
            Times(power10(mean), None if why else (power10(low), power10(high)))
            for mean, (low, high) in zip(voices.mean(axis=0), each.tolist(), strict=True)
        )
        return cls(
            compute,
            samples,
            errors=(power10(min(low for low, _ in ranges)), power10(max(high for _, high in ranges))),
            num_models=len(models),
            num_pairs=len(shared),
            num_apart=len(pairs) - len(shared),
            why_no_interval=why,
            # What rounding leaves of curves that are the same is no difference.
            differs=why is None and bool(together[0, 0] > FLAT or together[0, 1] < -FLAT),
        )

    def data(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def _why_no_interval(
    pairs: Sequence[CurvePair], values: Float[np.ndarray, "pairs 2"], num_apart: int, num_voices: int
) -> str | None:
    """Why an interval would not hold the truth in 95 of 100 studies; None where it does."""
    if num_apart:
        # Left out are the pairs farthest apart, or with a curve that does not fall: the rest says too little.
        apart = counted(num_apart, "pair of curves shares", "pairs of curves share")
        return f"{apart} no error, and the others alone would mislead"
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


def equal_model_notes(name: str, pairs: Sequence[CurvePair], found: EqualModel | None) -> list[str]:
    """Why a kind has no multiplier at equal model, or none with an interval; nothing where it has no curves."""
    num = sum(pair.can_be_compared for pair in pairs)
    if found is None:
        share = counted(num, "pair of curves shares", "pairs of curves share")
        return [f"no multiplier of {name} at equal model: {share} no error"] if num else []
    return [f"no interval for {name} at equal model: {found.why_no_interval}"] if found.why_no_interval else []
