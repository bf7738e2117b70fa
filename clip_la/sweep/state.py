"""What the run folders of a sweep say: which runs are finished, and one row of figures for each."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_la import results
from clip_la.atomic import atomic_write
from clip_la.runs import RunFolder
from clip_la.sweep.planned_run import PlannedRun, folder_of

TABLE_NAME = "sweep.csv"
# How many runs share a GPU: its seconds are divided among them (clip_la/scaling/run_folder.py).
PLACE_NAME = "place.json"
# Of the last row of metrics.csv.
TRAINING_FIGURES = ("samples_seen", "loss", "pairs_per_s", "data_wait_share", "train_s")
# Of any result line: what the model is.
MODEL_FIGURES = ("model", "image_attention", "text_attention", "tokens", "parameters", "flops_per_sample", "device")
# Columns of the table that every run has; the axes of a grid stand between them, under their own names.
COLUMNS = ("run", "trunk", *TRAINING_FIGURES, *MODEL_FIGURES)


def last_row(folder: Path) -> dict[str, str]:
    """The last whole row of a run's metrics.csv, {} where there is none."""
    rows = RunFolder(folder).rows()
    return rows[-1] if rows else {}


def result_lines(folder: Path) -> list[dict[str, Any]]:
    """The result lines of a run; what is no whole line of JSON is left out."""
    lines = results.read(RunFolder(folder).results, skip_damaged=True)
    return [line for line in lines if isinstance(line.get("metrics"), dict)]


def figures(folder: Path) -> list[str]:
    """What a run was evaluated at, for a person: data set, first share of right answers, per cent."""
    found = []
    for line in result_lines(folder):
        for metric, value in line["metrics"].items():
            if "loss" not in metric:
                averaged = " (averaged weights)" if line.get("weights") else ""
                found.append(f"{line['dataset']}{averaged} {metric} {100 * value['value']:.1f} %")
                break
    return found


def is_finished(out: Path, run: PlannedRun, num_evaluations: int) -> bool:
    """Whether a run has seen its budget and has so many results at its end."""
    folder = folder_of(out, run.name)
    if int(last_row(folder).get("samples_seen") or 0) < run.budget_samples:
        return False
    at_end = [line for line in result_lines(folder) if int(line.get("samples_seen") or 0) >= run.budget_samples]
    return len(at_end) >= num_evaluations


def start_of(out: Path, run: PlannedRun, *, is_trunk_at_work: bool) -> Path | None:
    """The checkpoint of its trunk that a branch starts from, None as long as there is none.

    Normally the one at `leaves_at`. A trunk that was past it when its sweep was given another budget does not have it:
    the branch then starts from an earlier one, and trains the rest of the constant part itself. While the trunk is at
    work it may still write the right one, and may delete others.
    """
    assert run.trunk is not None
    trunk = RunFolder(folder_of(out, run.trunk))
    checkpoints = trunk.saved_checkpoints()
    exact = trunk.checkpoint(run.leaves_at)
    # A branch that was stopped goes on from its own checkpoint.
    if run.leaves_at in checkpoints or RunFolder(folder_of(out, run.name)).saved_checkpoints():
        return exact
    if is_trunk_at_work or int(last_row(trunk.path).get("samples_seen") or 0) < run.leaves_at:
        return None
    earlier = [path for samples, path in checkpoints.items() if samples < run.leaves_at]
    return earlier[-1] if earlier else None


def drop_checkpoints(out: Path, name: str) -> int:
    """Deletes the checkpoints of a run that nothing will go on from; results, metrics and configuration stay.

    Returns how many there were.
    """
    checkpoints = RunFolder(folder_of(out, name)).saved_checkpoints()
    for path in checkpoints.values():
        path.unlink()
    return len(checkpoints)


def write_table(out: Path, runs: Iterable[PlannedRun]) -> Path:
    """Writes a row for every run that has begun, trunks excepted; returns the file.

    A row holds the run's place in the grid, the last row of its metrics.csv, and its newest results: model, FLOPs, and
    for each data set its number of images and a column for each metric.
    """
    rows = []
    for run in runs:
        folder = folder_of(out, run.name)
        last = last_row(folder)
        # A trunk's figures say nothing of what its compute can reach.
        if run.is_trunk or not last:
            continue
        row: dict[str, Any] = {"run": run.name, "trunk": run.trunk, **run.place}
        row |= {name: last.get(name) for name in TRAINING_FIGURES}
        for line in result_lines(folder):
            row |= {name: line.get(name) for name in MODEL_FIGURES}
            row[f"{line['dataset']}/num_samples"] = line.get("num_samples")
            for metric, value in line["metrics"].items():
                name = "/".join([line["dataset"], *([line["weights"]] if line.get("weights") else []), metric])
                row[name] = value["value"] if isinstance(value, Mapping) else value
        rows.append(row)
    columns: Sequence[str] = list(dict.fromkeys(name for each in rows for name in each))
    path = out / TABLE_NAME
    with atomic_write(path, "w") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
