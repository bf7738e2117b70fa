"""Two kinds over paired runs: how their errors, exponents and compute at equal error differ, with intervals."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
from jaxtyping import Int

from clip_la.errors import counted, one_line
from clip_la.scaling.alike import alike_groups, groups_of
from clip_la.scaling.bootstrap import Interval, Pairs, log10_multiplier_at
from clip_la.scaling.equal_model import Curve, CurvePair, EqualModel
from clip_la.scaling.fit import power10
from clip_la.scaling.joint import JointFit, power_fits
from clip_la.scaling.paired import How, PairedIntervals, T
from clip_la.scaling.points import OPTIONS, Point, by_flops

# What two runs must share to be a pair, besides the field they differ in.
PAIR_FIELDS = (
    *("attention", "model", "image_size", "tokens", "train_data"),
    *("seed", "schedule", "batch_size", "samples_seen"),
    *OPTIONS,
)
# Enough for a smooth curve over the few decades of a study.
CURVE_PLACES = 15


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
    the same at every error, where the exponent is one. `equal_model` is the multiplier between curves of one model,
    which needs no law; None where no two curves have enough points and an error in common. `curve` holds the multiplier
    at evenly spaced log compute of the baseline, from its smallest paired run to its largest. `misfits` are those of
    `alike_groups`.

    Intervals are 95 % each, whatever is compared beside them. `differs_in` names the quantities (EXPONENT, MULTIPLIER,
    ERROR) in which the kinds differ by `PairedIntervals.differ_in`, corrected for all kinds that are compared.
    """

    name: str
    baseline: str
    num_pairs: int
    num_runs: int
    num_repeated: int
    error_ratio: float
    error_ratio_interval: Interval | None
    differs_in: tuple[str, ...] = ()
    alpha_difference: float | None = None
    alpha_difference_interval: Interval | None = None
    difference_p_value: float | None = None
    multipliers: tuple[Multiplier, ...] = ()
    shared_multiplier: Multiplier | None = None
    equal_model: EqualModel | None = None
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


def _by_place(points: Sequence[Point], by: str) -> tuple[dict[tuple, list[Point]], int]:
    """The points at each place (what pairs share), and at how many places more the FLOPs a pair differ.

    Runs of these had other options, which nobody wrote down: which of them the other kind's runs go with is not known.
    """
    fields = _pair_fields(by)
    groups: dict[tuple, list[Point]] = defaultdict(list)
    for point in points:
        # Without a seed nobody knows whether two runs saw the same data in the same order.
        if point.seed is not None:
            groups[tuple(getattr(point, name) for name in fields)].append(point)
    known = {key: group for key, group in groups.items() if len(by_flops(group)) == 1}
    return known, len(groups) - len(known)


def unknown_options_note(name: str, points: Sequence[Point], by: str) -> list[str]:
    """A warning where places of a kind hold runs of other FLOPs a pair by an option that is not recorded."""
    _, num = _by_place(points, by)
    hold = counted(num, f"place of {name} holds", f"places of {name} hold")
    why = "runs of several FLOPs a pair, by what no column says: they are in no pair"
    return [f"{hold} {why}"] if num else []


def _best_by_place(points: Sequence[Point], by: str) -> tuple[dict[tuple, Point], int]:
    """The best point of each place of `_by_place`, and how many places had several."""
    groups, _ = _by_place(points, by)
    best = {key: min(group, key=lambda point: point.error) for key, group in groups.items()}
    return best, sum(len(group) > 1 for group in groups.values())


def make_pairs(baseline: Sequence[Point], other: Sequence[Point], by: str) -> tuple[Pairs, int]:
    """Pairs of points (baseline, other) that differ in `by` alone; where a combination holds several runs, the best.

    A combination with runs of several FLOPs a pair in one kind is none: its runs differ in what is not recorded.

    Returns the pairs, resampled by pair of runs, and the number of combinations that held several.
    """
    first, repeated_first = _best_by_place(baseline, by)
    second, repeated_second = _best_by_place(other, by)
    matched = [(first[key], second[key]) for key in first if key in second]
    pairs = Pairs(
        compute=np.array([[a.compute, b.compute] for a, b in matched]).reshape(-1, 2),
        error=np.array([[a.error, b.error] for a, b in matched]).reshape(-1, 2),
        units=numbered([(a.run, b.run) for a, b in matched]),
        groups=groups_of([a for a, _ in matched]),
    )
    return pairs, repeated_first + repeated_second


def make_curves(baseline: Sequence[Point], other: Sequence[Point], by: str) -> list[CurvePair]:
    """Pairs of curves (baseline, other) over their budgets that differ in `by` alone; none by model, which is equal.

    A curve has all points of its kind with one model, seed and recipe, those without a partner too; where a combination
    holds several runs, the best.
    """
    if by == "model":
        return []
    fields = _pair_fields(by)
    curves: tuple[dict[tuple, list[Point]], ...] = (defaultdict(list), defaultdict(list))
    for own, points in zip(curves, (baseline, other), strict=True):
        for point in _best_by_place(points, by)[0].values():
            own[tuple(getattr(point, name) for name in fields if name != "samples_seen")].append(point)

    def curve(points: Sequence[Point]) -> Curve:
        return Curve(*np.log10([[point.compute, point.samples_seen, point.error] for point in points]).T)

    both = [(own, curves[1][key]) for key, own in curves[0].items() if key in curves[1]]
    # Budgets of other FLOPs a pair are of another model, or of other options.
    whole = [each for each in both if all(len(by_flops(own)) == 1 for own in each)]
    return [
        CurvePair((p.model, p.image_size, p.tokens, p.options), p.seed, curve(first), curve(second))
        for first, second in whole
        for p in first[:1]
    ]


def _multiplier(found: PairedIntervals, place: float) -> Multiplier | None:
    """The multiplier at a log10 compute of the baseline; None where none is defined."""
    value = float(log10_multiplier_at(found.laws, place))
    if np.isnan(value):
        return None
    error = power10(float(found.laws[0, 0] + found.laws[0, 1] * place))
    return Multiplier(power10(place), error, power10(value), power_bounds(found.multiplier(place)))


def compare(
    name: str,
    baseline: str,
    pairs: Pairs,
    *,
    how: How,
    curves: Sequence[CurvePair] = (),
    num_repeated: int = 0,
    num_compared: int = 1,
) -> Comparison:
    """The comparison of two kinds over pairs of `make_pairs`, of which there must be one, and those of `make_curves`.

    `num_compared` is how many kinds are compared with the baseline beside each other: `differs_in` is corrected for
    them, the intervals are not.
    """
    found = PairedIntervals(pairs, how)
    x = np.log10(pairs.compute[:, 0])
    misfits = alike_groups(x, np.log10(pairs.error[:, 1] / pairs.error[:, 0]), pairs.units, pairs.groups)
    ratio = float(pairs.log10_error_ratios().mean())
    plain = Comparison(
        *(name, baseline, len(pairs.units), pairs.num_units, num_repeated),
        power10(ratio),
        power_bounds(found.error_ratio()),
        differs_in=found.differ_in(num_compared),
        equal_model=EqualModel.of(curves, num_compared),
        misfits=misfits,
    )
    if not found.has_laws:
        return plain
    by_t = how.method == T
    shared = found.shared_multiplier() if by_t else None
    at_one_exponent = None
    if shared:
        compute, error, value, bounds = shared
        at_one_exponent = Multiplier(power10(compute), power10(error), power10(value), power_bounds(bounds))
    along = np.linspace(x.min(), x.max(), CURVE_PLACES).tolist()
    middle_and_largest, curve = (
        tuple(each for place in places if (each := _multiplier(found, place)))
        for places in ((found.middle, float(x.max())), along)
    )
    return replace(
        plain,
        alpha_difference=float(found.laws[1, 1] - found.laws[0, 1]),
        alpha_difference_interval=found.difference(),
        difference_p_value=found.difference_p_value() if by_t else None,
        multipliers=middle_and_largest,
        shared_multiplier=at_one_exponent,
        shared=tuple(power_fits(list(np.log10(pairs.compute).T), list(np.log10(pairs.error).T))),
        curve=curve,
    )
