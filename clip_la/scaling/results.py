"""The project's own result lines (JSON lines, one a checkpoint and data set) as points.

Which lines enter: a cosine run at the end of its budget, and a cooled-down branch of a constant-rate run at the end of
its own. A checkpoint from the middle of a cosine run, or from a constant-rate run that was not cooled down, has a
learning rate too high for its sample count: its error says nothing of what that compute can reach.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_la.errors import UserError, shown, unknown
from clip_la.results import numbered_lines
from clip_la.runs import RESULTS
from clip_la.scaling.points import LeftOut, Point, Selection, collect
from clip_la.scaling.rows import ResultRow, apply_filters, has_direction, is_loss
from clip_la.scaling.run_folder import completed

DEFAULT_METRIC = "top1"
NO_LINES = "no results in its file, which is empty or was cut short"
FINISHING_SCHEDULES = ("cosine", "cooldown")
# Without these a line is no result line; a value may be null, which leaves the line out instead.
FIELDS = (
    "run_id",
    "seed",
    "model",
    "attention",
    "flops_per_sample",
    "samples_seen",
    "budget_samples",
    "schedule",
    "train_data",
    "dataset",
    "metrics",
)
# What a line's fields hold, where they are not null.
TEXTS = ("model", "attention", "image_attention", "text_attention", "schedule", "train_data", "dataset", "checkpoint")
COUNTS = ("samples_seen", "budget_samples")
RUN_IDS = ("run_id", "parent_run_id")
BY = ("attention", "image_attention", "text_attention", "model", "train_data")
# Two lines compare only where the test set and the classifier were the same.
EVALUATION_FIELDS = ("num_samples", "num_classes", "names_hash", "templates_hash", "data_hash")
# Lines that differ in these answer different questions: a later one does not take the place of an earlier.
QUESTION_FIELDS = ("task", "train_dataset", "shots", "weights")
DATA_HASH = "data_hash"


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Each file itself; for a folder every `results.jsonl` below it. UserError for an absent path or a bare folder."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.rglob(RESULTS))
            if not inside:
                raise UserError(f"no {RESULTS} below {path}: evaluate a run first (clip-la eval)")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path} is no plain file" if path.exists() else f"no such file: {path}")
    return list(dict.fromkeys(found))


def read_results(paths: Iterable[Path]) -> list[ResultRow]:
    """All result lines of files and folders, in order.

    Raises:
        UserError: naming file and line of what is wrong; a file without a whole line that was named itself; a table.
    """
    return read_with_empty(paths)[0]


def read_with_empty(paths: Iterable[Path]) -> tuple[list[ResultRow], list[LeftOut]]:
    """As `read_results`, and the files in folders that hold no whole line: a run was killed while it wrote its first.

    One such run among a hundred takes nothing from the others. Raises UserError where no file holds one.
    """
    paths = list(paths)
    rows: list[ResultRow] = []
    empty: list[LeftOut] = []
    for path in find_files(paths):
        if path.suffix.lower() == ".csv":
            raise UserError(f"{path}: a table, not result lines: give --format points (or laion, for LAION's)")
        here = [(f"{path}:{number}", fields) for number, fields in numbered_lines(path)]
        if not here and path in paths:
            raise UserError(f"{path}: no results in it")
        if not here:
            empty.append(LeftOut(str(path), path.parent.name, NO_LINES))
        for where, fields in here:
            _check(where, fields)
            rows.append(ResultRow(where, completed(fields, path.parent)))
    if not rows and empty:
        raise UserError(f"{empty[0].where}: no results in it")
    return rows, empty


def _check(where: str, fields: Mapping[str, Any]) -> None:
    """Raises UserError for a line that lacks a field or whose values are not what the field holds."""
    missing = [name for name in FIELDS if name not in fields]
    if missing:
        raise UserError(f"{where}: no field {', '.join(missing)}")
    if not isinstance(fields["metrics"], dict):
        raise UserError(f"{where}: 'metrics' is not a JSON object")
    for name in TEXTS:
        if not isinstance(fields.get(name), str | None):
            raise UserError(f"{where}: '{name}' is {shown(fields[name])}, not a text")
    for name in COUNTS:
        if not isinstance(fields.get(name), int | float | None):
            raise UserError(f"{where}: '{name}' is {shown(fields[name])}, not a number")
    # Lines are told apart by these: text or number, by whoever wrote them.
    for name in (*RUN_IDS, *QUESTION_FIELDS, *EVALUATION_FIELDS):
        if isinstance(fields.get(name), list | dict):
            raise UserError(f"{where}: '{name}' is {shown(fields[name])}, not a text or a number")


def _reason_against(fields: Mapping[str, Any]) -> str | None:
    """Why a line of the wanted target does not enter, or None."""
    for name in ("samples_seen", "budget_samples", "schedule", "flops_per_sample", "run_id"):
        if fields[name] is None:
            return f"{name} is not recorded"
    if fields["schedule"] not in FINISHING_SCHEDULES:
        return f"schedule '{fields['schedule']}' without a cool-down"
    if fields.get("lineage"):
        return "it began with weights that were trained before, on samples not counted here"
    if fields.get("eval_image_size"):
        return "evaluated at another image size than it was trained at"
    if fields["samples_seen"] != fields["budget_samples"]:
        return f"{fields['schedule']} run before the end of its budget"
    return None


def finished(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """The lines that may enter a fit: runs at the end of their budget, their learning rate fallen."""
    return [row for row in rows if _reason_against(row.fields) is None]


def describe(fields: Mapping[str, Any]) -> str:
    """One line that names a result's run for a person."""
    return f"{fields['run_id']} ({fields['model']}, {fields['attention']}) at {fields['samples_seen']} samples"


def _point(rows: Sequence[ResultRow], metric: str) -> Point:
    """The point of one checkpoint: the mean error over its lines, one a target, with bounds where all have them."""
    errors, lows, highs = [], [], []
    for row in rows:
        entry = row.fields["metrics"][metric]
        value = entry.get("value") if isinstance(entry, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{row.where}: metric '{metric}' has no numeric 'value'")
        errors.append(row.metric_error(metric, value))
        bounds = ResultRow(f"{row.where}: metric '{metric}'", entry)
        low, high = bounds.bound("low"), bounds.bound("high")
        if not is_loss(metric):
            low, high = None if high is None else 1 - high, None if low is None else 1 - low
        lows.append(low)
        highs.append(high)
    error = sum(errors) / len(errors)

    def bound(parts: Sequence[float | None], sign: int) -> float | None:
        if any(part is None for part in parts):
            return None
        # Independent half-widths add in quadrature.
        widths = [part - each for part, each in zip(parts, errors, strict=True) if part is not None]
        return error + sign * sum(width**2 for width in widths) ** 0.5 / len(widths)

    fields = rows[0].fields
    return Point.of(
        ResultRow(rows[0].where, {**fields, "num_evaluated": fields.get("num_samples")}),
        # Branches of one constant-rate run share their weights up to the branch: one run, resampled whole.
        run=str(fields.get("parent_run_id") or fields["run_id"]),
        source=str(fields["run_id"]),
        error=error,
        bounds=(bound(lows, -1), bound(highs, +1)),
    )


def _enter(rows: Sequence[ResultRow], dataset: str) -> tuple[dict[tuple[Any, ...], ResultRow], list[LeftOut]]:
    """The lines of one data set that enter, by checkpoint (the last line of each), and those that do not.

    The later line wins: a run that was evaluated again was so because something had been wrong, or was added.

    Raises:
        UserError: the lines that enter answer different questions: another task, test set or classifier.
    """

    def check_same(names: Sequence[str], lines: Iterable[ResultRow]) -> None:
        for name in names:
            first: dict[Any, str] = {}
            for row in lines:
                value = row.fields.get(name)
                # A line of before has no hash of the data, and one of data that were read from elsewhere ("remote-...")
                # says nothing of their content.
                if name != DATA_HASH or (isinstance(value, str) and "-" not in value):
                    first.setdefault(value, row.where)
            if len(first) > 1:
                places = ", ".join(f"{value} in {where}" for value, where in list(first.items())[:2])
                raise UserError(f"results on '{dataset}' differ in {name} ({places}): choose with --where {name}=VALUE")

    # Before later lines take the place of earlier ones: a probe must not replace a zero-shot result.
    check_same(QUESTION_FIELDS, finished(rows))
    entered: dict[tuple[Any, ...], ResultRow] = {}
    left_out: list[LeftOut] = []
    for row in rows:
        reason = _reason_against(row.fields)
        if reason is not None:
            left_out.append(LeftOut(row.where, describe(row.fields), reason))
            continue
        key = (row.fields["run_id"], row.fields["schedule"], row.fields["samples_seen"])
        earlier = entered.get(key)
        if earlier is not None:
            left_out.append(LeftOut(earlier.where, describe(earlier.fields), "evaluated again in a later line"))
        entered[key] = row
    check_same(EVALUATION_FIELDS, entered.values())
    return entered, left_out


def result_points(
    paths: Sequence[Path],
    *,
    targets: Sequence[str] = (),
    metric: str | None = None,
    filters: Mapping[str, str] | None = None,
    axis: str = "compute",
) -> Selection:
    """The points of result files: error 1 - metric (a loss as it is) on a data set, or the mean error over several.

    Args:
        paths: files of result lines, or folders with `results.jsonl` in them.
        targets: data sets; may be empty where the files hold one only.
        metric: a key of `metrics`, "top1" if None.
        filters: field -> value as text; other lines are as if they were not there.
        axis: what errors are fitted against, one of `AXES`.

    Raises:
        UserError: absent, empty or damaged files (with the line), unknown target, metric or field (with the nearest
            names), lines that do not compare, no line that enters.
    """
    rows, empty = read_with_empty(paths)
    rows = apply_filters(rows, filters or {})
    return select_points(rows, targets=targets, metric=metric, empty=empty).along(axis)


def all_points(paths: Sequence[Path], filters: Mapping[str, str] | None = None) -> tuple[list[Selection], list[str]]:
    """The points of every data set and every metric of known direction, and why others have none.

    Raises:
        UserError: absent or damaged files, no data set with a point.
    """
    rows, empty = read_with_empty(paths)
    rows = apply_filters(rows, filters or {})
    kinds = dict.fromkeys((str(row.fields["dataset"]), name) for row in rows for name in row.fields["metrics"])
    known = [(target, metric) for target, metric in kinds if has_direction(metric)]
    return collect(known, lambda target, metric: select_points(rows, targets=[target], metric=metric, empty=empty))


def select_points(
    rows: Sequence[ResultRow],
    *,
    targets: Sequence[str] = (),
    metric: str | None = None,
    empty: Sequence[LeftOut] = (),
) -> Selection:
    """As `result_points`, of lines that have been read; `empty` are the files that none could be read from."""
    metric = metric or DEFAULT_METRIC
    held = list(dict.fromkeys(str(row.fields["dataset"]) for row in rows))
    for target in targets:
        if target not in held:
            raise unknown("target", target, held)
    if not targets and len(held) > 1:
        raise UserError(
            f"results on {len(held)} data sets ({', '.join(held)}): choose with --target, or several for a mean"
        )
    left_out = list(empty)
    by_target: list[dict[tuple[Any, ...], ResultRow]] = []
    for target in targets or held:
        lines = [row for row in rows if row.fields["dataset"] == target]
        # A data set may also hold lines of another task, with other metrics.
        here = [row for row in lines if metric in row.fields["metrics"]]
        if not here:
            raise unknown("metric", metric, {name for row in lines for name in row.fields["metrics"]})
        entered, out = _enter(here, target)
        by_target.append(entered)
        left_out += out
    complete = set(by_target[0]).intersection(*by_target[1:])
    for entered in by_target:
        rest = [row for key, row in entered.items() if key not in complete]
        left_out += [LeftOut(row.where, describe(row.fields), "not evaluated on every target") for row in rest]
    # In the order of the first target's lines: a set has none.
    found = [_point([entered[key] for entered in by_target], metric) for key in by_target[0] if key in complete]
    return Selection.of(found, left_out, target=" + ".join(targets or held), metric=metric, by_choices=BY)
