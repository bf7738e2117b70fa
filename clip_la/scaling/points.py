"""What a fit is made of: points (compute, error) with their origin, and the account of what was left out and why."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clip_la.errors import UserError, unknown


@dataclass(frozen=True)
class Row:
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
    by_choices: tuple[str, ...] = field(default=("attention", "model", "train_data"))

    def reasons(self) -> list[tuple[str, int]]:
        """Each reason for leaving a record out with the number of records, the commonest first."""
        return Counter(item.reason for item in self.left_out).most_common()


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


def apply_filters(rows: Sequence[Row], filters: Mapping[str, str]) -> list[Row]:
    """The rows whose fields, written as text, equal the filters' values; UserError where none is left."""
    for name, value in filters.items():
        if not any(name in row.fields for row in rows):
            raise unknown("field", name, {key for row in rows for key in row.fields})
        kept = [row for row in rows if str(row.fields.get(name)) == value]
        if not kept:
            raise unknown(f"value of '{name}'", value, {str(row.fields.get(name)) for row in rows})
        rows = kept
    return list(rows)


def error_of(metric_value: float, metric: str, where: str) -> float:
    """1 - metric, as a fraction; UserError outside [0, 1] and for a metric of 1, whose error has no logarithm."""
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
