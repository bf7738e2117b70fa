"""One tidy table of all points, a row for each checkpoint, data set and metric: written as CSV and read back.

The columns are those of a result line and what its folder knows; tables of published models come in the same form.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_la.atomic import atomic_write
from clip_la.errors import UserError, counted
from clip_la.models.flops import TRAINING_FACTOR
from clip_la.scaling.points import OPTIONS, LeftOut, Point, Selection
from clip_la.scaling.rows import ResultRow, apply_filters, is_loss, pick_one

# What a table must have to be fitted; other columns may be absent or empty.
REQUIRED = ("run", "model", "attention", "samples_seen", "flops_per_sample", "dataset", "metric", "value")
BY = ("attention", "image_attention", "text_attention", "model", "train_data", "source")
COLUMNS = (
    *("run", "source", "model", "attention", "image_attention", "text_attention", "image_size", "tokens", "parameters"),
    *("train_data", "train_pairs", "pass_samples", "seed", "schedule", "batch_size", "learning_rate", "samples_seen"),
    *OPTIONS,
    *("flops_per_sample", "forward_flops", "training_flops", "gpu_seconds"),
    *("dataset", "metric", "value", "error", "error_low", "error_high", "num_evaluated", "where"),
)
IN_ANOTHER_TABLE = "the same run as in an earlier table"
SAME = ("run", "source", "model", "attention", "seed", "schedule", "samples_seen", "dataset", "metric")


def write_points(selections: Iterable[Selection], path: Path) -> int:
    """Writes the points of some selections, each of one data set and metric, those that were not fitted too.

    A column of OPTIONS stands where any run set it. Returns how many rows.
    """
    count, selections = 0, list(selections)
    points = [p for each in selections for p in (*each.points, *each.off_law, *each.tried)]
    unset = {name for name in OPTIONS if all(getattr(point, name) is None for point in points)}
    columns = [name for name in COLUMNS if name not in unset]
    with atomic_write(path, "w") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
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
                writer.writerow({name: "" if exact.get(name) is None else exact[name] for name in columns})
                count += 1
    return count


def read_csv(path: Path, form: str, required: Sequence[str], what: str) -> list[ResultRow]:
    """The rows of a table, as text.

    Args:
        form: the `--format` that reads it.
        required: columns that it must have.
        what: a clause that says what such a table is.

    Raises:
        UserError: an absent, empty or foreign file; a row of another length than the header, or the header again.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: --format {form} reads a table (CSV); folders of runs are read without it")
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if not path.is_file():
        raise UserError(f"{path} is no plain file: --format {form} reads a table (CSV)")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            lines = [(f"{path}:{reader.line_num}", cells) for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    if not lines:
        raise UserError(f"{path} is empty; {what}")
    (_, names), *rows = lines
    other = next((sign for sign in ";\t|" if len(names) == 1 and sign in names[0]), None)
    if other is not None:
        raise UserError(f"{path}: cells are separated by {other!r}, not by commas")
    missing = [name for name in required if name not in names]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; {what}")
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two columns are called {twice}")
    for where, cells in rows:
        if len(cells) != len(names):
            raise UserError(f"{where}: {counted(len(cells), 'column')}, the header has {len(names)}")
        if cells == names:
            raise UserError(f"{where}: the header stands here again; give several tables as several files")
    if not rows:
        raise UserError(f"{path}: only a header")
    return [ResultRow(where, dict(zip(names, cells, strict=True))) for where, cells in rows]


def read_table(path: Path) -> list[ResultRow]:
    """The rows of a table of points, as text. Raises UserError as `read_csv`."""
    return read_csv(path, "points", REQUIRED, f"a table of points has {', '.join(REQUIRED)}")


def table_points(
    paths: Sequence[Path],
    *,
    targets: Sequence[str] = (),
    metric: str | None = None,
    filters: Mapping[str, str] | None = None,
    axis: str | None = "compute",
) -> Selection:
    """The points of tables, of one data set and one metric, along an axis of AXES.

    With no axis (None) they are as measured, for a table: errors of 0 or 1 alone, which lie on no law, are then points
    too. A run that several tables hold with one value counts once; the later row is left out with the reason.

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
        low, high = row.bound("error_low"), row.bound("error_high")
        if low is not None and high is not None and low > high:
            raise UserError(f"{where}: 'error_low' {low:g} is above 'error_high' {high:g}")
        source = fields.get("source") or fields["run"]
        points.append(Point.of(row, run=fields["run"], source=source, error=error, bounds=(low, high)))
    found = Selection.of(points, left_out, target=target, metric=metric, by_choices=BY)
    return found if axis is None else found.along(axis)
