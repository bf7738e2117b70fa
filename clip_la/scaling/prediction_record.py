"""Predictions as a record, written down before the run, and what was measured later.

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

from clip_la.errors import UserError, shown, unknown
from clip_la.scaling.analysis import Analysis, group_points
from clip_la.scaling.form_analysis import FormAnalysis
from clip_la.scaling.points import AXES, Selection
from clip_la.scaling.predict import Prediction, Run
from clip_la.scaling.rates import RATES
from clip_la.scaling.report import compute_label, error_label, number
from clip_la.scaling.rows import parse_filters
from clip_la.scaling.table import Table, with_suffix

POWER_LAW = "E = beta C^alpha"
# Of a record: what must be there to compare it with points.
FIELDS = ("date", "tables", "target", "metric", "by", "axis", "rate", "predictions")


def record(
    analysis: Analysis | FormAnalysis, predictions: Sequence[Prediction], tables: Sequence[Path], **chosen: Any
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
        "law": analysis.form.text if isinstance(analysis, FormAnalysis) else POWER_LAW,
        "frontier": analysis.frontier,
        "compute": compute_label(selection),
        "axis": selection.axis,
        "by": analysis.by,
        **chosen,
        "predictions": [asdict(each) for each in predictions],
    }


def read_record(path: Path) -> dict[str, Any]:
    """A record as it was written, its predictions as `Prediction`s.

    Raises UserError for an absent, damaged or foreign file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no record of predictions ({error})") from None
    missing = [name for name in FIELDS if not isinstance(found, dict) or name not in found]
    if missing:
        raise UserError(f"{path}: no record of predictions: it lacks {', '.join(missing)}")
    try:
        for name in ("date", "target", "metric", "by", "axis", "rate"):
            _must(found[name], str, name)
        for name, known in (("axis", AXES), ("rate", RATES)):
            if found[name] not in known:
                raise unknown(name, found[name], known)
        for name in ("law", "frontier"):
            _must(found.get(name, ""), str, name)
        for name in ("tables", "predictions"):
            _must(found[name], list, name)
        for each in found["tables"]:
            _must(each["file"], str, "file"), _must(each["sha256"], str, "sha256")
        for each in _must(found.get("where", []), list, "where"):
            _must(each, str, "where")
        parse_filters(found.get("where", ()))
        found["predictions"] = [Prediction(**{**each, "run": Run(**each["run"])}) for each in found["predictions"]]
        for each in found["predictions"]:
            _check(each)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: no record of predictions ({error})") from None
    return found


def _must(value: Any, kind: type | tuple[type, ...], name: str) -> Any:
    """The value. Raises ValueError if it is of none of these types; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, kind):
        types = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"'{name}' is {shown(value)}, not of type {types}")
    return value


def _check(prediction: Prediction) -> None:
    """Raises ValueError for what no law says, or no table can hold: one read from a file may hold anything."""
    run = prediction.run
    _must(prediction.kind, str, "kind"), _must(run.model or "", str, "model")
    samples = 1 if run.samples_seen is None else run.samples_seen
    for name, value in {"error": prediction.error, "compute": run.compute, "samples_seen": samples}.items():
        _must(value, int if name == "samples_seen" else (int, float), name)
        if not 0 < value < math.inf:
            raise ValueError(f"'{name}' is {value}, not a number above 0")
    if prediction.interval is not None:
        low, high = prediction.interval
        # Its upper end may be beyond all numbers.
        if not 0 <= _must(low, (int, float), "interval") <= _must(high, (int, float), "interval"):
            raise ValueError(f"'interval' is [{low}, {high}], not a lower and an upper end")


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
    """What the points say of each prediction; runs of several seeds count as their mean. UserError for another `by`."""
    if by not in selection.by_choices:
        raise unknown("field that tells kinds apart", by, selection.by_choices)
    groups = group_points(selection.points, by)
    found = []
    for each in predictions:
        errors = [point.error for point in each.run.among(groups.get(each.kind, ()))]
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
                said.run.model or "-",
                "-" if said.run.samples_seen is None else f"{said.run.samples_seen:,}",
                with_suffix(said.run.compute),
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
    law = f"by {made.get('law', 'an unnamed law')}"
    head = f"{made['metric']} on {made['target']}, predicted at {made['date']} {law} from {tables}; [95 % for one run]"
    return f"{head}\n\n{outcome_table(found).text()}"
