"""What a fit is made of: points (compute, error) with their origin, and the account of what was left out and why."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clip_la.errors import UserError, unknown

# An error message names no more data sets or metrics than this.
MAX_NAMED = 8
NOTHING_RIGHT = "nothing right: an error of 1 lies on no falling law"
NOTHING_WRONG = "nothing wrong: an error of 0 has no logarithm, and no power law reaches it"
OFF_LAW = (NOTHING_RIGHT, NOTHING_WRONG)
# What the names of metrics say that are shares of right answers: more is better, 1 is perfect.
SHARES = ("top1", "top5", "acc", "accuracy", "recall", "precision")
# What makes something else of a share or a loss: `top1_error`, `1-acc`, `recall_std` and `neg_loss` are neither.
_TURNED = re.compile(
    r"^\W*1\s*[-\u2212]|(?<![a-z])(?:err|errors?|miss|missed|wrong|neg|negative|rank|drop|gap|diff|difference|delta|std|"
    r"stderr|variance)(?![a-z])"
)
# Beyond these no quantity of a study lies, and products and powers of them still fit into float64.
LEAST, MOST = 1e-30, 1e30
# What errors may be fitted against: its unit, and what it counts.
AXES = {
    "compute": ("FLOPs", "forward FLOPs a pair x samples seen"),
    "samples": ("samples", "samples seen"),
    "gpu-seconds": ("GPU-seconds", "measured GPU-seconds of training"),
}


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


@dataclass(frozen=True)
class Point:
    """One trained model on one target.

    Attributes:
        where: "file:line" of the record.
        run: what a bootstrap resamples; branches of one constant-rate run share it.
        source: the single run, branches told apart.
        compute: what errors are fitted against, in the selection's unit.
        error: a fraction, or a loss; `error_low` and `error_high` bound it at 95 %.
        gpu_seconds: training alone, on all GPUs together; for a branch with its trunk's part.
        train_pairs: different pairs that the run saw; more samples than these are repeats.
        pass_samples: of sources mixed by weights, the samples after which the first has been shown whole; None where
            all pairs are drawn alike.
        num_evaluated: samples of the test set.
    """

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
    pass_samples: int | None = None
    num_evaluated: int | None = None

    @property
    def passes(self) -> float | None:
        """How often the run saw its pairs, of mixed sources those that it saw most often; None where not known."""
        pairs = self.pass_samples or self.train_pairs
        return self.samples_seen / pairs if pairs else None

    @classmethod
    def of(
        cls,
        row: ResultRow,
        *,
        run: str,
        source: str,
        error: float,
        bounds: tuple[float | None, float | None] = (None, None),
    ) -> "Point":
        """A point from a record with the fields of a result line, as JSON has them or as text of a table.

        Raises UserError for a number of the record that is none, or is not above 0.
        """
        flops, samples = row.number("flops_per_sample"), row.number("samples_seen")
        seed = row.fields.get("seed")
        # Spreadsheets and data frames write a column of whole numbers with gaps as 0.0, 1.0, ...
        if seed not in (None, "") and (isinstance(seed, bool) or not re.fullmatch(r"\d+(\.0+)?", str(seed), re.ASCII)):
            raise UserError(f"{row.where}: 'seed' is {seed!r}, not a whole number")
        wholes = ("batch_size", "parameters", "image_size", "tokens", "train_pairs", "pass_samples", "num_evaluated")
        return cls(
            where=row.where,
            run=run,
            attention=str(row.fields["attention"]),
            model=str(row.fields["model"]),
            train_data=row.text("train_data"),
            source=source,
            seed=None if seed in (None, "") else int(str(seed).partition(".")[0]),
            schedule=row.text("schedule"),
            flops_per_sample=flops,
            samples_seen=row.whole("samples_seen") or 0,
            compute=flops * samples,
            error=error,
            error_low=bounds[0],
            error_high=bounds[1],
            image_attention=row.text("image_attention"),
            text_attention=row.text("text_attention"),
            gpu_seconds=row.optional("gpu_seconds"),
            learning_rate=row.optional("learning_rate"),
            **{name: row.whole(name) for name in wholes},
        )


@dataclass(frozen=True)
class LeftOut:
    """A record that does not enter, and the rule that says so."""

    where: str
    what: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """The points of one target and metric.

    Attributes:
        points: what a law may be fitted to.
        left_out: records that are not, and why.
        compute_unit: what `Point.compute` counts: "FLOPs", "GMACs", ...
        off_law: measured points whose error of 0 or 1 no law takes; they are among `left_out` too.
        tried: points at learning rates that are not the best of their place (see `rates`); among `left_out` too.
    """

    points: tuple[Point, ...]
    left_out: tuple[LeftOut, ...]
    target: str
    metric: str
    compute_unit: str
    axis: str = "compute"
    by_choices: tuple[str, ...] = field(default=("attention", "model", "train_data"))
    off_law: tuple[Point, ...] = ()
    tried: tuple[Point, ...] = ()

    @classmethod
    def of(
        cls,
        points: Iterable[Point],
        left_out: Sequence[LeftOut],
        *,
        target: str,
        metric: str,
        compute_unit: str = "FLOPs",
        by_choices: tuple[str, ...],
    ) -> "Selection":
        """Sorts the points into those that can lie on a falling law and those that cannot.

        Raises UserError where there is no point at all; it says why the records gave none.
        """
        kept: list[Point] = []
        off_law: list[Point] = []
        reasons = list(left_out)
        for point in points:
            if point.error == 0 or (point.error == 1 and not is_loss(metric)):
                off_law.append(point)
                reasons.append(LeftOut(point.where, point.source, NOTHING_RIGHT if point.error else NOTHING_WRONG))
            else:
                kept.append(point)
        whole = cls(
            *(tuple(kept), tuple(reasons), target, metric, compute_unit), by_choices=by_choices, off_law=tuple(off_law)
        )
        if not off_law:
            whole.require_points()
        return whole

    def require_points(self) -> None:
        """Raises UserError where no point can be fitted; it says why the records were left out."""
        if not self.points:
            why = "; ".join(f"{count} x {reason}" for reason, count in self.reasons()[:3])
            raise UserError(f"no point for target '{self.target}' enters the fit ({why})")

    def reasons(self) -> list[tuple[str, int]]:
        """Each reason for leaving a record out with the number of records, the commonest first."""
        return Counter(item.reason for item in self.left_out).most_common()

    def along(self, axis: str) -> "Selection":
        """The selection with `compute` counting what `axis` says; points that lack it are left out.

        Raises UserError where there is no such axis, or no point that has it.
        """
        if axis not in AXES:
            raise unknown("axis", axis, AXES)
        self.require_points()
        if axis == "compute":
            return self
        unit, name = AXES[axis][0], {"samples": "samples_seen", "gpu-seconds": "gpu_seconds"}[axis]
        kept = tuple(replace(p, compute=float(getattr(p, name))) for p in self.points if getattr(p, name))
        lacking = [LeftOut(p.where, p.source, f"no {unit} recorded") for p in self.points if not getattr(p, name)]
        left_out = (*self.left_out, *lacking)
        moved = replace(self, points=kept, left_out=left_out, compute_unit=unit, axis=axis)
        moved.require_points()
        return moved


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
