"""What a fit is made of: points (compute, error) with their origin, and the account of what was left out and why."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from clip_la.errors import UserError, unknown
from clip_la.scaling.rows import ResultRow, is_loss

NOTHING_RIGHT = "nothing right: an error of 1 lies on no falling law"
NOTHING_WRONG = "nothing wrong: an error of 0 has no logarithm, and no power law reaches it"
OFF_LAW = (NOTHING_RIGHT, NOTHING_WRONG)
# What errors may be fitted against: its unit, and what it counts.
AXES = {
    "compute": ("FLOPs", "forward FLOPs a pair x samples seen"),
    "samples": ("samples", "samples seen"),
    "gpu-seconds": ("GPU-seconds", "measured GPU-seconds of training"),
}
# Options of training that change a pair's FLOPs while the name of the model stays.
OPTIONS = ("patch_dropout", "context_length")
# What rounding leaves between the FLOPs of one model, counted twice.
SAME_FLOPS = 1e-6


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
        patch_dropout: the share of patches that training left out; None for none, or where not known.
        context_length: most tokens of a caption where the run set it; None for the preset's, or where not known.
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
    patch_dropout: float | None = None
    context_length: int | None = None

    @property
    def options(self) -> tuple[object, ...]:
        """The values of OPTIONS."""
        return tuple(getattr(self, name) for name in OPTIONS)

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
        dropout = row.bound("patch_dropout")
        if dropout is not None and not 0 <= dropout < 1:
            raise UserError(f"{row.where}: 'patch_dropout' is {dropout:g}, not from 0 (none) to below 1")
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
            patch_dropout=dropout or None,
            **{name: row.whole(name) for name in (*wholes, "context_length")},
        )


def by_flops(points: Iterable[Point]) -> list[list[Point]]:
    """The points of one kind and place by their FLOPs a pair, the fewest first, each group in its order.

    Of one model, runs of other FLOPs had other options: they are neither alike nor repeats of one another. What differs
    by SAME_FLOPS at most is the same.
    """
    points = list(points)
    groups: dict[float, list[Point]] = {}
    of, first = dict[float, float](), 0.0
    for flops in sorted({point.flops_per_sample for point in points}):
        first = first if math.isclose(flops, first, rel_tol=SAME_FLOPS) else flops
        of[flops] = first
        groups.setdefault(first, [])
    for point in points:
        groups[of[point.flops_per_sample]].append(point)
    return list(groups.values())


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
