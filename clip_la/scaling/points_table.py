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
    NOTHING_RIGHT,
    LeftOut,
    Point,
    ResultRow,
    Selection,
    along,
    apply_filters,
    as_number,
    error_of,
    is_loss,
    pick_one,
    require_points,
)

# What a table must have to be fitted; other columns may be absent or empty.
REQUIRED = ("run", "model", "attention", "samples_seen", "flops_per_sample", "dataset", "metric", "value")
NUMBERS = (
    *("image_size", "tokens", "parameters", "train_pairs", "batch_size", "learning_rate", "gpu_seconds"),
    "num_evaluated",
)
COLUMNS = (
    *("run", "source", "model", "attention", "image_attention", "text_attention", "image_size", "tokens", "parameters"),
    *("train_data", "train_pairs", "seed", "schedule", "batch_size", "learning_rate", "samples_seen"),
    *("flops_per_sample", "forward_flops", "training_flops", "gpu_seconds"),
    *("dataset", "metric", "value", "error", "error_low", "error_high", "num_evaluated", "where"),
)
SAME = ("run", "source", "model", "attention", "seed", "schedule", "samples_seen", "dataset", "metric")


def table_row(point: Point, dataset: str, metric: str) -> dict[str, Any]:
    """The row of a point."""
    own = {name: getattr(point, name) for name in COLUMNS if hasattr(point, name)}
    forward = point.flops_per_sample * point.samples_seen
    return {
        **own,
        "dataset": dataset,
        "metric": metric,
        "value": point.error if is_loss(metric) else 1 - point.error,
        "forward_flops": forward,
        "training_flops": TRAINING_FACTOR * forward,
    }


def write_points(selections: Iterable[Selection], path: Path) -> int:
    """Writes the points of some selections, each of one data set and metric; returns how many rows."""
    rows = [table_row(point, each.target, each.metric) for each in selections for point in each.points]
    with atomic_write(path, "w") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: "" if row.get(name) is None else _text(row[name]) for name in COLUMNS})
    return len(rows)


def _text(value: Any) -> Any:
    # repr gives the shortest digits that read back as the same number.
    return repr(value) if isinstance(value, float) else value


def read_table(path: Path) -> list[ResultRow]:
    """The rows of a table, as text. Raises UserError for an absent, empty or foreign file."""
    if not path.is_file():
        raise UserError(f"no such file: {path}")
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


def _point(row: ResultRow) -> Point:
    fields, where = row.fields, row.where
    for name in REQUIRED:
        if not fields[name]:
            raise UserError(f"{where}: '{name}' is empty")
    try:
        value = float(fields["value"])
    except ValueError:
        raise UserError(f"{where}: 'value' is {fields['value']!r}, not a number") from None
    samples = as_number(fields["samples_seen"], "samples_seen", where)
    flops = as_number(fields["flops_per_sample"], "flops_per_sample", where)
    numbers = {name: as_number(fields[name], name, where) if fields.get(name) else None for name in NUMBERS}
    whole = {name: None if number is None else round(number) for name, number in numbers.items()}
    seed = fields.get("seed") or None
    if seed is not None and not seed.isdecimal():
        raise UserError(f"{where}: 'seed' is {seed!r}, not a whole number")
    return Point(
        where=where,
        run=fields["run"],
        attention=fields["attention"],
        model=fields["model"],
        train_data=fields.get("train_data") or None,
        source=fields.get("source") or fields["run"],
        seed=None if seed is None else int(seed),
        schedule=fields.get("schedule") or None,
        batch_size=whole["batch_size"],
        flops_per_sample=flops,
        samples_seen=round(samples),
        compute=flops * samples,
        error=error_of(value, fields["metric"], where),
        error_low=_bound(row, "error_low"),
        error_high=_bound(row, "error_high"),
        image_attention=fields.get("image_attention") or None,
        text_attention=fields.get("text_attention") or None,
        gpu_seconds=numbers["gpu_seconds"],
        learning_rate=numbers["learning_rate"],
        parameters=whole["parameters"],
        image_size=whole["image_size"],
        tokens=whole["tokens"],
        train_pairs=whole["train_pairs"],
        num_evaluated=whole["num_evaluated"],
    )


def _bound(row: ResultRow, name: str) -> float | None:
    return as_number(row.fields[name], name, row.where) if row.fields.get(name) else None


def _refuse_duplicates(rows: Sequence[ResultRow]) -> None:
    seen: dict[tuple[Any, ...], str] = {}
    for row in rows:
        key = tuple(row.fields.get(name) for name in SAME)
        if key in seen:
            raise UserError(
                f"{row.where}: the same run, samples, data set and metric as in {seen[key]}; a point counts once"
            )
        seen[key] = row.where


def table_points(
    paths: Sequence[Path],
    *,
    targets: Sequence[str] = (),
    metric: str | None = None,
    filters: Mapping[str, str] | None = None,
    axis: str = "compute",
) -> Selection:
    """The points of tables, of one data set and one metric.

    Raises:
        UserError: absent or foreign files, several data sets or metrics and none chosen, a run twice, a number that is
            none (with its line), an error of 0, no point that enters.
    """
    rows = apply_filters([row for path in paths for row in read_table(path)], filters or {})
    if len(targets) > 1:
        raise UserError("a table of points is fitted on one --target at a time")
    target = pick_one(rows, "dataset", "target", targets[0] if targets else None)
    rows = [row for row in rows if row.fields["dataset"] == target]
    metric = pick_one(rows, "metric", "metric", metric)
    rows = [row for row in rows if row.fields["metric"] == metric]
    _refuse_duplicates(rows)
    found = [_point(row) for row in rows]
    nothing = [point for point in found if point.error == 1 and not is_loss(metric)]
    left_out = tuple(LeftOut(point.where, point.source, NOTHING_RIGHT) for point in nothing)
    points = require_points((point for point in found if point not in nothing), left_out, target)
    by = ("attention", "image_attention", "text_attention", "model", "train_data", "source")
    return along(Selection(points, left_out, target, metric, "FLOPs", by_choices=by), axis)
