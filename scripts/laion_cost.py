#!/usr/bin/env python
"""What configs/sweep/study_laion400m.yaml would cost, from measured rates: prints a table in Markdown.

    python scripts/laion_cost.py

Rates are those of results/train.csv (training steps at 224 px, one GPU, batches in one part), times what batches in
parts cost there. Kinds that it lacks go by softmax's rate and the least speed beside softmax that
results/attention_speed.csv has of them, which is that of 65 tokens: an upper bound of the cost at 197.
"""

import argparse
import csv
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from clip_la.cli import Parser, guarded
from clip_la.errors import UserError
from clip_la.sweep.plan import read_plan
from clip_la.sweep.planned_run import PlannedRun

REPO = Path(__file__).parents[1]
PLAN = REPO / "configs" / "sweep" / "study_laion400m.yaml"
SIDE = "224"
BASELINE, IN_PARTS = "softmax", ("vit_b16", "linear")
Row = Mapping[str, str]


STEPS, SPEEDS = "train.csv", "attention_speed.csv"
# What is read of each table; all others are for people.
STEP_COLUMNS = (
    *("provider", "model", "attention", "image_size", "text", "micro_batches", "checkpointing", "patch_dropout"),
    *("gpus", "pairs_per_s"),
)
SPEED_COLUMNS = ("attention", "what", "training_ratio")


def read(name: str, columns: Sequence[str]) -> list[Row]:
    """A table of results/. Raises UserError where it is missing, no CSV, or lacks one of the columns."""
    path = REPO / "results" / name
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not CSV in UTF-8 ({error})") from None
    if not rows:
        raise UserError(f"{path} has no rows")
    if lacking := [column for column in columns if rows[0].get(column) is None]:
        raise UserError(f"{path} has no column {', '.join(lacking)}")
    return rows


def number(table: str, row: Row, column: str, *, is_speed: bool = True) -> float:
    """A speed, above 0, or a share from 0 on. Raises UserError, with table and row, for another value."""
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < math.inf or (is_speed and not value):
        of = " ".join(str(row[name]) for name in ("model", "attention") if name in row)
        right = "a speed above 0" if is_speed else "a number from 0 on"
        raise UserError(f"results/{table}: {column} of {of} is {row[column]!r}, not {right}")
    return value


class Rates:
    """Pairs a second and GPU by model and attention, of steps in one part and in several."""

    def __init__(self, steps: Sequence[Row], speeds: Sequence[Row]) -> None:
        # What spares memory or patches has another rate than the plan's runs.
        plain = {"provider": "graphs", "image_size": SIDE, "gpus": "1", "checkpointing": "False"}
        ours = [
            row
            for row in steps
            if plain.items() <= row.items() and not number(STEPS, row, "patch_dropout", is_speed=False)
        ]
        self._whole = self._by_kind(ours, lambda row: row["micro_batches"] == "1" and row["text"] == "full")
        in_parts = self._by_kind(ours, lambda row: row["micro_batches"] != "1")
        for found, what in ((self._whole, "one part"), (in_parts, "several")):
            if IN_PARTS not in found:
                raise UserError(f"results/{STEPS}: no step of {' with '.join(IN_PARTS)} at {SIDE} px in {what}")
        self.parts_factor = in_parts[IN_PARTS] / self._whole[IN_PARTS]
        self._speeds: defaultdict[str, list[float]] = defaultdict(list)
        for row in speeds:
            if row["what"] == "tower" and row["training_ratio"]:
                self._speeds[row["attention"]].append(number(SPEEDS, row, "training_ratio"))

    @staticmethod
    def _by_kind(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> dict[tuple[str, str], float]:
        found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for row in filter(wanted, rows):
            found[row["model"], row["attention"]].append(number(STEPS, row, "pairs_per_s"))
        return {kind: fmean(rates) for kind, rates in found.items()}

    def of(self, run: PlannedRun) -> float:
        """Of a planned run. Raises UserError for a model or a kind of which nothing was measured."""
        model, attention = str(run.options["model.name"]), str(run.options["model.attention"])
        factor = self.parts_factor if int(run.options.get("model.micro_batches", 1)) > 1 else 1.0
        if (model, attention) in self._whole:
            return self._whole[model, attention] * factor
        if (model, BASELINE) not in self._whole or attention not in self._speeds:
            raise UserError(f"no rate of {model} with {attention} in results/train.csv or attention_speed.csv")
        return self._whole[model, BASELINE] * min(self._speeds[attention]) * factor


def table(runs: Sequence[PlannedRun], rates: Rates) -> str:
    """GPU-hours by model and attention: at the planned rate, at the others, all together."""
    hours: dict[tuple[str, str], list[float]] = {}
    most: dict[str, float] = {}
    for run in runs:
        model, attention, lr = (str(run.options[f"model.{name}"]) for name in ("name", "attention", "lr"))
        most.setdefault(model, float(lr))
        cell = hours.setdefault((model, attention), [0.0, 0.0, rates.of(run)])
        cell[float(lr) != most[model]] += run.own_samples / rates.of(run) / 3600
    lines = ["| model | attention | pairs/s a GPU | GPU-hours, runs | rates tried | all |", "|---|---|--:|--:|--:|--:|"]
    for (model, attention), (planned, tried, rate) in hours.items():
        figures: Sequence[Any] = (rate, planned, tried, planned + tried)
        lines.append(f"| {model} | `{attention}` | " + " | ".join(f"{figure:,.0f}" for figure in figures) + " |")
    sums = [sum(cell[i] for cell in hours.values()) for i in (0, 1)]
    lines.append(f"| all | | | {sums[0]:,.0f} | {sums[1]:,.0f} | {sum(sums):,.0f} |")
    return "\n".join(lines)


def run(argv: Sequence[str] | None) -> int:
    """Prints the table; 0, or a UserError."""
    description = argparse.RawDescriptionHelpFormatter
    Parser(prog="laion_cost", description=__doc__, formatter_class=description).parse_args(argv)
    print(table(read_plan(PLAN), Rates(read(STEPS, STEP_COLUMNS), read(SPEEDS, SPEED_COLUMNS))))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns the exit code."""
    return guarded("laion_cost", lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
