"""One record of a results file: its fields as numbers or texts, what its metric means, and how rows are chosen."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_la.errors import UserError, unknown

# An error message names no more data sets or metrics than this.
MAX_NAMED = 8
# What the names of metrics say that are shares of right answers: more is better, 1 is perfect.
SHARES = ("top1", "top5", "acc", "accuracy", "recall", "precision")
# What makes something else of a share or a loss: `top1_error`, `1-acc`, `recall_std` and `neg_loss` are neither.
_TURNED = re.compile(
    r"^\W*1\s*[-\u2212]|(?<![a-z])(?:err|errors?|miss|missed|wrong|neg|negative|rank|drop|gap|diff|difference|delta|std|"
    r"stderr|variance)(?![a-z])"
)
# Beyond these no quantity of a study lies, and products and powers of them still fit into float64.
LEAST, MOST = 1e-30, 1e30


@dataclass(frozen=True)
class ResultRow:
    """One record of a results file: `where` is "file:line", `fields` what stands there, as JSON or as text of a CSV."""

    where: str
    fields: Mapping[str, Any]

    def _finite(self, name: str) -> float | None:
        try:
            found = float(self.fields[name])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return found if math.isfinite(found) else None

    def number(self, name: str) -> float:
        """A field as a float from LEAST to MOST. Raises UserError that names field and line for anything else."""
        value, found = self.fields.get(name), self._finite(name)
        if isinstance(value, bool) or found is None or found <= 0:
            raise UserError(f"{self.where}: '{name}' is {value!r}, not a positive number")
        if not LEAST <= found <= MOST:
            raise UserError(f"{self.where}: '{name}' is {value!r}, not between {LEAST:g} and {MOST:g}")
        return found

    def bound(self, name: str) -> float | None:
        """A field as a finite float, which may be 0; None where it is absent or empty. Raises UserError as `number`."""
        value, found = self.fields.get(name), self._finite(name)
        if value not in (None, "") and found is None:
            raise UserError(f"{self.where}: '{name}' is {value!r}, not a number")
        return found

    def optional(self, name: str) -> float | None:
        """As `number`; None where the field is absent, null or an empty cell."""
        return None if self.fields.get(name) in (None, "") else self.number(name)

    def whole(self, name: str) -> int | None:
        """As `optional`, a whole number. Raises UserError for a fraction as well."""
        number = self.optional(name)
        if number is not None and number != round(number):
            raise UserError(f"{self.where}: '{name}' is {self.fields[name]!r}, not a whole number")
        return None if number is None else round(number)

    def text(self, name: str) -> str | None:
        """A field as it stands; None where it is absent, null or empty."""
        return self.fields.get(name) or None

    def metric_error(self, metric: str, value: float) -> float:
        """The error that a fit sees: a loss as it is, any other metric as 1 - its value; 0 where nothing was wrong.

        Raises:
            UserError: a metric that is neither a loss nor a share of right answers, or a value outside its range.
        """
        where = self.where
        if is_loss(metric):
            if not math.isfinite(value) or value < 0:
                raise UserError(f"{where}: {metric} is {value}, not a loss from 0 on")
            if value and not LEAST <= value <= MOST:
                raise UserError(f"{where}: {metric} is {value}, not between {LEAST:g} and {MOST:g}")
            return value
        if not has_direction(metric):
            raise UserError(
                f"{where}: whether more or less of '{metric}' is better is not known; fitted are losses and shares of "
                f"right answers ({', '.join(SHARES)})"
            )
        if not math.isfinite(value) or not 0 <= value <= 1:
            raise UserError(f"{where}: {metric} is {value}, not a fraction between 0 and 1")
        return 1 - value


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
    return has_direction(metric) and "loss" in _words(metric)


def has_direction(metric: str) -> bool:
    """Whether the words of its name say which way a metric is better: a loss, or a share of right answers."""
    return not _words(metric).isdisjoint({"loss", *_words(" ".join(SHARES))}) and _TURNED.search(metric.lower()) is None


def _words(metric: str) -> set[str]:
    """The words of a metric's name without their digits: `image_retrieval_recall@5` has `recall`, `acc1` has `acc`."""
    return set(re.findall(r"[a-z]+", metric.lower()))


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
