"""What the laws say of a run before it is made, as a record to be written down; and what was measured later.

A law that is shown after the fact can always be made to fit. A record holds date, hash of the tables and law: it can be
committed before the run.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from clip_la.errors import UserError
from clip_la.models.flops import flops
from clip_la.models.registry import model_spec
from clip_la.scaling.analysis import Analysis, SeriesFit, group_points
from clip_la.scaling.bootstrap import Interval
from clip_la.scaling.comparison import numbered, power_bounds
from clip_la.scaling.fit import SAME_COMPUTE_LOG10
from clip_la.scaling.intervals import UPPER, Regression, as_interval
from clip_la.scaling.points import Point, Selection
from clip_la.scaling.report import compute_label, error_label, number
from clip_la.scaling.table import Table, with_suffix

LAW = "error = beta * compute ** alpha"
# Of a record: what must be there to compare it with points.
FIELDS = ("date", "tables", "target", "metric", "by", "axis", "rate", "predictions")


@dataclass(frozen=True)
class Prediction:
    """What a kind's law says of a single run that was not made yet.

    Attributes:
        model, samples_seen: of the run; None where it is given by its compute alone.
        compute: of the run, in the unit of the points.
        error: the law's; `interval` holds a new run's error in 95 of 100 cases if the law goes on, None from too few
            runs.
        num_points, num_runs, beta, alpha: of the fit.
    """

    kind: str
    model: str | None
    samples_seen: int | None
    compute: float
    error: float
    interval: Interval | None
    num_points: int
    num_runs: int
    beta: float
    alpha: float

    @classmethod
    def of(
        cls, fit: SeriesFit, compute: float, model: str | None = None, samples_seen: int | None = None
    ) -> "Prediction":
        """The law of `fit` at `compute`."""
        error = float(fit.law.error_at(np.array([compute]))[0])
        bounds = power_bounds(_interval(fit, math.log10(compute))) if len(fit.fitted) == len(fit.points) else None
        counts = (len(fit.points), fit.num_runs, fit.law.beta, fit.law.alpha)
        return cls(fit.name, model, samples_seen, compute, error, bounds, *counts)


def _interval(fit: SeriesFit, x: float) -> Interval | None:
    """The 95 % interval of the log10 error of a new run at log10 compute `x`; None where the runs are too few.

    The variance of the law there, clustered by run, and that of a point about the law; Student's t with the degrees of
    freedom of the first, which are the fewer.
    """
    places, errors = (np.log10([getattr(point, name) for point in fit.points]) for name in ("compute", "error"))
    regression, weights = Regression.of_line(places, numbered([point.run for point in fit.points])), np.array([1.0, x])
    coefficients = regression.coefficients(errors)
    residual = errors - regression.design @ coefficients
    spread = float(residual @ residual) / (len(errors) - 2)
    half = stdtrit(regression.degrees_of_freedom(weights), UPPER) * np.sqrt(
        weights @ regression.covariance(errors) @ weights + spread
    )
    return as_interval(coefficients @ weights + np.array([-half, half]))


def flops_of(model: str, points: Sequence[Point], context_length: int | None = None) -> float:
    """Forward FLOPs a pair of a preset with the attention, image size and patches of some points of one kind.

    Args:
        context_length: most tokens of a caption in the points' runs, if not the presets'.

    Raises:
        UserError: an unknown model, points without their image size, or whose own FLOPs are counted otherwise: their
            runs had other sizes than are known here.
    """
    for point in points:
        if point.model == model:
            return point.flops_per_sample

    def counted_of(name: str, like: Point) -> int:
        if like.image_size is None or like.tokens is None:
            raise UserError(f"{like.where}: 'image_size' or 'tokens' is not recorded: give --compute, not --model")
        spec = model_spec(
            name,
            attention=like.attention,
            image_attention=like.image_attention,
            text_attention=like.text_attention,
            image_size=like.image_size,
            patch_size=like.image_size // math.isqrt(like.tokens - 1),
            context_length=context_length,
        )
        return flops(spec)["total"]

    for point in {point.model: point for point in points}.values():
        own = counted_of(point.model, point)
        if not math.isclose(own, point.flops_per_sample, rel_tol=1e-6):
            raise UserError(
                f"{point.where}: {with_suffix(point.flops_per_sample)} FLOPs a pair, where {point.model} with "
                f"{point.attention} counts {with_suffix(own)}: give --context-length as of its run"
            )
    return counted_of(model, points[0])


def predict(
    analysis: Analysis, model: str, samples: Sequence[int], context_length: int | None = None
) -> list[Prediction]:
    """What each kind's law says of a model at some numbers of samples seen.

    Raises:
        UserError: as `flops_of`; kinds that are no attentions, or an axis that samples do not give; a run that is
            among the points already.
    """
    selection = analysis.selection
    if analysis.by != "attention" or selection.axis == "gpu-seconds":
        raise UserError("--model counts the compute of each attention: with another --by or --axis give --compute")
    found = []
    for fit in analysis.fits:
        of_pair = 1.0 if selection.axis == "samples" else flops_of(model, fit.points, context_length)
        for each in samples:
            known = _matching(fit.points, model, each, of_pair * each)
            if known:
                raise UserError(f"{known[0].where}: {fit.name} was measured there already: nothing to predict")
            found.append(Prediction.of(fit, of_pair * each, model, each))
    return found


def _matching(points: Sequence[Point], model: str | None, samples: int | None, compute: float) -> list[Point]:
    """The points of a model and number of samples; without a model those within a few per cent of a compute."""
    if model is not None:
        return [point for point in points if (point.model, point.samples_seen) == (model, samples)]
    return [point for point in points if abs(math.log10(point.compute / compute)) < SAME_COMPUTE_LOG10]


def record(
    analysis: Analysis, predictions: Sequence[Prediction], tables: Sequence[Path], **chosen: Any
) -> dict[str, Any]:
    """The record as plain data: date (UTC), the tables with their SHA-256, what is predicted by which law, the figures.

    `chosen` is what else decided which points entered: `rate`, `where`.
    """
    selection = analysis.selection
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "tables": [{"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in tables],
        "target": selection.target,
        "metric": selection.metric,
        "error": error_label(selection),
        "law": LAW,
        "compute": compute_label(selection),
        "axis": selection.axis,
        "by": analysis.by,
        **chosen,
        "predictions": [asdict(each) for each in predictions],
    }


def read_record(path: Path) -> dict[str, Any]:
    """A record as it was written. Raises UserError for an absent, damaged or foreign file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a record of predictions ({error})") from None
    missing = [name for name in FIELDS if not isinstance(found, dict) or name not in found]
    if missing:
        raise UserError(f"{path}: not a record of predictions: no {', '.join(missing)}")
    try:
        found["predictions"] = [Prediction(**each) for each in found["predictions"]]
    except TypeError as error:
        raise UserError(f"{path}: not a record of predictions ({error})") from None
    return found


@dataclass(frozen=True)
class Outcome:
    """A prediction and what was measured there: the mean error over `num_measured` runs, None without one."""

    prediction: Prediction
    num_measured: int
    measured: float | None

    @property
    def relative_error(self) -> float | None:
        """How far the prediction is off, over what was measured; above 0 where it was too pessimistic."""
        return None if self.measured is None else self.prediction.error / self.measured - 1


def outcomes(predictions: Sequence[Prediction], selection: Selection, by: str) -> list[Outcome]:
    """What the points say of each prediction; runs of several seeds count as their mean."""
    groups = group_points(selection.points, by)
    found = []
    for each in predictions:
        place = (each.model, each.samples_seen, each.compute)
        errors = [point.error for point in _matching(groups.get(each.kind, ()), *place)]
        found.append(Outcome(each, len(errors), float(np.mean(errors)) if errors else None))
    return found


def outcome_table(found: Sequence[Outcome]) -> Table:
    """Each prediction with its interval beside what was measured."""
    rows = []
    for each in found:
        said, off = each.prediction, each.relative_error
        inside = "-"
        if each.measured is not None and said.interval is not None:
            inside = "yes" if said.interval[0] <= each.measured <= said.interval[1] else "no"
        rows.append(
            (
                said.kind,
                said.model or "-",
                "-" if said.samples_seen is None else f"{said.samples_seen:,}",
                with_suffix(said.compute),
                number(said.error, said.interval, ".4g"),
                "not yet" if each.measured is None else f"{each.measured:.4g}",
                str(each.num_measured),
                "-" if off is None else f"{100 * off:+.1f} %",
                inside,
            )
        )
    header = ("", "model", "samples", "C", "predicted", "measured", "runs", "prediction off by", "inside")
    return Table(header, tuple(rows))


def outcome_text(made: Mapping[str, Any], found: Sequence[Outcome]) -> str:
    """The comparison for a person: when and from what it was predicted, and each prediction."""
    tables = ", ".join(f"{each['file']} ({each['sha256'][:12]})" for each in made["tables"])
    head = f"{made['metric']} on {made['target']}, predicted at {made['date']} from {tables}; [95 % for a single run]"
    return f"{head}\n\n{outcome_table(found).text()}"
