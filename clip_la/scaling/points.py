"""What a fit is made of: points (compute, error) with their origin, and the account of what was left out and why."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clip_la.errors import UserError, unknown

# What the names of metrics say that are shares of right answers: more is better, 1 is perfect.
MAX_NAMED = 8
NOTHING_RIGHT = "nothing right: an error of 1 lies on no falling law"
SHARES = ("top1", "top5", "acc", "recall", "precision")


@dataclass(frozen=True)
class ResultRow:
    """One record of a results file: `where` is "file:line", `fields` what stands there."""

    where: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One trained model on one target. `run` is what a bootstrap resamples: branches of one run share it."""

    where: str
    run: str
    attention: str
    model: str
    train_data: str | None
    source: str
    seed: int | None
    schedule: str | None
    batch_size: int | None
    flops_per_sample: float
    samples_seen: int
    compute: float
    error: float
    error_low: float | None = None
    error_high: float | None = None
    parameters: int | None = None
    image_attention: str | None = None
    text_attention: str | None = None
    image_size: int | None = None
    tokens: int | None = None
    gpu_seconds: float | None = None
    learning_rate: float | None = None
    train_pairs: int | None = None
    num_evaluated: int | None = None


@dataclass(frozen=True)
class LeftOut:
    """A record that does not enter, and the rule that says so."""

    where: str
    what: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """The points of one target and metric. `compute_unit` says what `Point.compute` counts ("FLOPs" or "MACs" ...)."""

    points: tuple[Point, ...]
    left_out: tuple[LeftOut, ...]
    target: str
    metric: str
    compute_unit: str
    axis: str = "compute"
    by_choices: tuple[str, ...] = field(default=("attention", "model", "train_data"))

    def reasons(self) -> list[tuple[str, int]]:
        """Each reason for leaving a record out with the number of records, the commonest first."""
        return Counter(item.reason for item in self.left_out).most_common()


# What errors may be fitted against: its unit, and what it counts.
AXES = {
    "compute": ("FLOPs", "forward FLOPs a pair x samples seen"),
    "samples": ("samples", "samples seen"),
    "gpu-seconds": ("GPU-seconds", "measured GPU-seconds of training"),
}


def along(selection: Selection, axis: str) -> Selection:
    """The selection with `compute` counting what `axis` says; points that lack it are left out.

    Raises:
        UserError: no such axis, or no point that has it.
    """
    if axis not in AXES:
        raise unknown("axis", axis, AXES)
    if axis == "compute":
        return selection
    values = {"samples": lambda p: p.samples_seen, "gpu-seconds": lambda p: p.gpu_seconds}[axis]
    kept = [replace(point, compute=float(values(point))) for point in selection.points if values(point)]
    lacking = [LeftOut(p.where, p.source, f"no {AXES[axis][0]} recorded") for p in selection.points if not values(p)]
    left_out = (*selection.left_out, *lacking)
    points = require_points(kept, left_out, selection.target)
    return replace(selection, points=points, left_out=left_out, compute_unit=AXES[axis][0], axis=axis)


def parse_filters(texts: Sequence[str]) -> dict[str, str]:
    """`["model=vit_nano", ...]` as a dict; UserError for a text without "=" or a field named twice."""
    filters: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"a filter is FIELD=VALUE, not '{text}'")
        if name in filters:
            raise UserError(f"two filters on '{name}': {name}={filters[name]} and {text}")
        filters[name] = value
    return filters


def apply_filters(rows: Sequence[ResultRow], filters: Mapping[str, str]) -> list[ResultRow]:
    """The rows whose fields, written as text, equal the filters' values; UserError where none is left."""
    for name, value in filters.items():
        if not any(name in row.fields for row in rows):
            raise unknown("field", name, {key for row in rows for key in row.fields})
        kept = [row for row in rows if str(row.fields.get(name)) == value]
        if not kept:
            raise unknown(f"value of '{name}'", value, {str(row.fields.get(name)) for row in rows})
        rows = kept
    return list(rows)


def is_loss(metric: str) -> bool:
    """Whether the metric is a loss: an error as it stands, above 0, less is better."""
    return "loss" in metric


def has_direction(metric: str) -> bool:
    """Whether it is known which way the metric is better: a loss, or a share of right answers."""
    return is_loss(metric) or any(word in metric for word in SHARES)


def pick_one(rows: Sequence[ResultRow], field_name: str, what: str, wanted: str | None) -> str:
    """The wanted value of a field, or the only one there is.

    Raises:
        UserError: no such value (with the nearest), or several and none wanted.
    """
    held = list(dict.fromkeys(str(row.fields[field_name]) for row in rows))
    if wanted is None:
        if len(held) > 1:
            more = f" and {len(held) - MAX_NAMED} more" if len(held) > MAX_NAMED else ""
            raise UserError(f"{len(held)} {what}s ({', '.join(held[:MAX_NAMED])}{more}): choose with --{what}")
        return held[0]
    if wanted not in held:
        raise unknown(what, wanted, held)
    return wanted


def collect(
    kinds: Iterable[tuple[str, str]], select: Callable[[str, str], Selection]
) -> tuple[list[Selection], list[str]]:
    """The selections of all kinds (target, metric), and for those that have none the reason.

    Raises:
        UserError: not one has a point.
    """
    selections, refused = [], []
    for target, metric in kinds:
        try:
            selections.append(select(target, metric))
        except UserError as error:
            refused.append(f"{metric} on {target}: {error}")
    if not selections:
        raise UserError(refused[0] if refused else "no metric that is a loss or a share of right answers")
    return selections, refused


def error_of(metric_value: float, metric: str, where: str) -> float:
    """A loss as it is, any other metric as 1 - its value.

    Raises:
        UserError: a metric that is neither a loss nor a share of right answers, a value outside its range, and an error
            of 0, which has no logarithm.
    """
    if is_loss(metric):
        if not math.isfinite(metric_value) or metric_value <= 0:
            raise UserError(f"{where}: {metric} is {metric_value}, not a loss above 0")
        return metric_value
    if not has_direction(metric):
        raise UserError(
            f"{where}: whether more or less of '{metric}' is better is not known; fitted are losses and shares of "
            f"right answers ({', '.join(SHARES)})"
        )
    if not math.isfinite(metric_value) or not 0 <= metric_value <= 1:
        raise UserError(f"{where}: {metric} is {metric_value}, not a fraction between 0 and 1")
    if metric_value == 1:
        raise UserError(f"{where}: {metric} is 1, and an error of 0 has no logarithm: no power law reaches it")
    return 1 - metric_value


def as_number(value: Any, name: str, where: str) -> float:
    """`value` as a finite positive float, or a UserError that names field and line."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number <= 0:
        raise UserError(f"{where}: '{name}' is {value!r}, not a positive number")
    return number


def require_points(points: Iterable[Point], left_out: Sequence[LeftOut], target: str) -> tuple[Point, ...]:
    """The points as a tuple; where there are none, a UserError that says why the records did not enter."""
    found = tuple(points)
    if not found:
        reasons = Counter(item.reason for item in left_out).most_common(3)
        why = "; ".join(f"{count} x {reason}" for reason, count in reasons)
        raise UserError(f"no point for target '{target}' enters the fit ({why})")
    return found
