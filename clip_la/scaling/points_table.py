"""One tidy table of all points, a row for each checkpoint, data set and metric: written as CSV and read back.

The columns are those of a result line and what its folder knows; tables of published models come in the same form.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_la.atomic import atomic_write
from clip_la.errors import UserError
from clip_la.models.flops import TRAINING_FACTOR
from clip_la.scaling.points import (
    LeftOut,
    Point,
    ResultRow,
    Selection,
    apply_filters,
    is_loss,
    pick_one,
)

# What a table must have to be fitted; other columns may be absent or empty.
REQUIRED = ("run", "model", "attention", "samples_seen", "flops_per_sample", "dataset", "metric", "value")
BY = ("attention", "image_attention", "text_attention", "model", "train_data", "source")
COLUMNS = (
    *("run", "source", "model", "attention", "image_attention", "text_attention", "image_size", "tokens", "parameters"),
    *("train_data", "train_pairs", "seed", "schedule", "batch_size", "learning_rate", "samples_seen"),
    *("flops_per_sample", "forward_flops", "training_flops", "gpu_seconds"),
    *("dataset", "metric", "value", "error", "error_low", "error_high", "num_evaluated", "where"),
)
IN_ANOTHER_TABLE = "the same run as in an earlier table"
SAME = ("run", "source", "model", "attention", "seed", "schedule", "samples_seen", "dataset", "metric")


def write_points(selections: Iterable[Selection], path: Path) -> int:
    """Writes the points of some selections, each of one data set and metric, those that were not fitted too.

    Returns how many rows.
    """
    count = 0
    with atomic_write(path, "w") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for selection in selections:
            for point in (*selection.points, *selection.off_law, *selection.tried):
                forward = point.flops_per_sample * point.samples_seen
                row = {
                    **{name: getattr(point, name) for name in COLUMNS if hasattr(point, name)},
                    "dataset": selection.target,
                    "metric": selection.metric,
                    "value": point.error if is_loss(selection.metric) else 1 - point.error,
                    "forward_flops": forward,
                    "training_flops": TRAINING_FACTOR * forward,
                }
                # repr gives the shortest digits that read back as the same number.
                exact = {name: repr(value) if isinstance(value, float) else value for name, value in row.items()}
                writer.writerow({name: "" if exact.get(name) is None else exact[name] for name in COLUMNS})
                count += 1
    return count


def require_table(path: Path, form: str) -> None:
    """Raises UserError where there is no such file, or a folder, which `--format FORM` does not read."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: --format {form} reads a table (CSV); folders of runs are read without it")
    if not path.is_file():
        raise UserError(f"no such file: {path}")


def read_table(path: Path) -> list[ResultRow]:
    """The rows of a table, as text. Raises UserError for an absent, empty or foreign file."""
    require_table(path, "points")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restkey="", restval=None)
            rows = [ResultRow(f"{path}:{reader.line_num}", fields) for fields in reader]
            names = list(reader.fieldnames or ())
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; a table of points has {', '.join(REQUIRED)}")
    uneven = next((row for row in rows if "" in row.fields or None in row.fields.values()), None)
    if uneven is not None:
        raise UserError(f"{uneven.where}: not as many cells as the header has columns ({len(names)})")
    if not rows:
        raise UserError(f"{path}: no points, only a header")
    return rows


def table_points(
    paths: Sequence[Path],
    *,
    targets: Sequence[str] = (),
    metric: str | None = None,
    filters: Mapping[str, str] | None = None,
    axis: str = "compute",
) -> Selection:
    """The points of tables, of one data set and one metric.

    A run that several tables hold with one value counts once; the later row is left out with the reason.

    Raises:
        UserError: absent or foreign files, several data sets or metrics and none chosen, a run twice in a table or with
            two values, a number that is none (with its line), no point that enters.
    """
    rows = apply_filters([row for path in paths for row in read_table(path)], filters or {})
    if len(targets) > 1:
        raise UserError("a table of points is fitted on one --target at a time")
    target = pick_one(rows, "dataset", "target", targets[0] if targets else None)
    rows = [row for row in rows if row.fields["dataset"] == target]
    metric = pick_one(rows, "metric", "metric", metric)
    seen: dict[tuple[Any, ...], ResultRow] = {}
    points: list[Point] = []
    left_out: list[LeftOut] = []
    for row in (row for row in rows if row.fields["metric"] == metric):
        fields, where = row.fields, row.where
        key = tuple(fields.get(name) for name in SAME)
        first = seen.setdefault(key, row)
        if first is not row:
            # Two sweeps' tables may both hold a run; a table that holds one twice was put together wrongly.
            if fields["value"] != first.fields["value"]:
                raise UserError(
                    f"{where}: the same run, samples, data set and metric as in {first.where} with another value "
                    f"({fields['value']}, not {first.fields['value']}): keep one of them"
                )
            if where.rpartition(":")[0] == first.where.rpartition(":")[0]:
                raise UserError(
                    f"{where}: the same run, samples, data set and metric as in {first.where}; a point counts once"
                )
            left_out.append(LeftOut(where, fields.get("source") or fields["run"], IN_ANOTHER_TABLE))
            continue
        for name in REQUIRED:
            if not fields[name]:
                raise UserError(f"{where}: '{name}' is empty")
        try:
            value = float(fields["value"])
        except ValueError:
            raise UserError(f"{where}: 'value' is {fields['value']!r}, not a number") from None
        error = row.metric_error(metric, value)
        bounds = row.bound("error_low"), row.bound("error_high")
        source = fields.get("source") or fields["run"]
        points.append(Point.of(row, run=fields["run"], source=source, error=error, bounds=bounds))
    return Selection.of(points, left_out, target=target, metric=metric, by_choices=BY).along(axis)
