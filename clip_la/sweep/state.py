"""What the run folders of a sweep say: which runs are finished, and one row of figures for each."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_la import results
from clip_la.atomic import atomic_write
from clip_la.runs import RunFolder
from clip_la.sweep.plan import PlannedRun, folder_of

TABLE_NAME = "sweep.csv"
# Of the last row of metrics.csv.
TRAINING_FIGURES = ("samples_seen", "loss", "pairs_per_s", "data_wait_share", "train_s")
# Of any result line: what the model is.
MODEL_FIGURES = ("model", "image_attention", "text_attention", "parameters", "flops_per_sample", "device")


def last_row(folder: Path) -> dict[str, str]:
    """The last whole row of a run's metrics.csv, {} where there is none."""
    rows = RunFolder(folder).rows()
    return rows[-1] if rows else {}


def result_lines(folder: Path) -> list[dict[str, Any]]:
    """The result lines of a run; what is no whole line of JSON is left out."""
    lines = results.read(RunFolder(folder).results, skip_damaged=True)
    return [line for line in lines if isinstance(line.get("metrics"), dict)]


def is_finished(out: Path, run: PlannedRun, num_evaluations: int) -> bool:
    """Whether a run has seen its budget and has so many results at its end."""
    folder = folder_of(out, run.name)
    if int(last_row(folder).get("samples_seen") or 0) < run.budget_samples:
        return False
    at_end = [line for line in result_lines(folder) if int(line.get("samples_seen") or 0) >= run.budget_samples]
    return len(at_end) >= num_evaluations


def row(out: Path, run: PlannedRun) -> dict[str, Any]:
    """One row of the sweep's table: the run's place in the grid, its training and its newest results."""
    folder = folder_of(out, run.name)
    last = last_row(folder)
    found: dict[str, Any] = {"run": run.name, **run.place, **{name: last.get(name) for name in TRAINING_FIGURES}}
    for line in result_lines(folder):
        found |= {name: line.get(name) for name in MODEL_FIGURES}
        for metric, value in line["metrics"].items():
            found[f"{line['dataset']}/{metric}"] = value["value"] if isinstance(value, Mapping) else value
    return found


def write_table(out: Path, runs: Iterable[PlannedRun]) -> Path:
    """Writes a row for every run that has begun; returns the file."""
    rows = [row(out, run) for run in runs if last_row(folder_of(out, run.name))]
    columns: Sequence[str] = list(dict.fromkeys(name for each in rows for name in each))
    path = out / TABLE_NAME
    with atomic_write(path, "w") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
