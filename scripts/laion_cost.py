#!/usr/bin/env python
"""What configs/sweep/study_laion400m.yaml would cost, from measured rates: prints a table in Markdown.

    python scripts/laion_cost.py

Rates are those of results/train.csv (training steps at 224 px, one GPU, batches in one part), times what batches in
parts cost there. Kinds that it lacks go by softmax's rate and the least speed beside softmax that
results/attention_speed.csv has of them, which is that of 65 tokens: an upper bound of the cost at 197.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from clip_la.errors import EXIT_CODE, UserError
from clip_la.sweep.plan import read_plan
from clip_la.sweep.planned_run import PlannedRun

REPO = Path(__file__).parents[1]
PLAN = REPO / "configs" / "sweep" / "study_laion400m.yaml"
SIDE = "224"
BASELINE, IN_PARTS = "softmax", ("vit_b16", "linear")
Row = Mapping[str, str]


def read(name: str) -> list[Row]:
    """A table of results/. Raises UserError where it is missing."""
    path = REPO / "results" / name
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


class Rates:
    """Pairs a second and GPU by model and attention, of steps in one part and in several."""

    def __init__(self, steps: Sequence[Row], speeds: Sequence[Row]) -> None:
        # What spares memory or patches has another rate than the plan's runs.
        plain = {"provider": "graphs", "image_size": SIDE, "gpus": "1", "checkpointing": "False"}
        ours = [row for row in steps if plain.items() <= row.items() and not float(row["patch_dropout"])]
        self._whole = self._by_kind(ours, lambda row: row["micro_batches"] == "1" and row["text"] == "full")
        in_parts = self._by_kind(ours, lambda row: row["micro_batches"] != "1")
        self.parts_factor = in_parts[IN_PARTS] / self._whole[IN_PARTS]
        self._speeds: defaultdict[str, list[float]] = defaultdict(list)
        for row in speeds:
            if row["what"] == "tower" and row["training_ratio"]:
                self._speeds[row["attention"]].append(float(row["training_ratio"]))

    @staticmethod
    def _by_kind(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> dict[tuple[str, str], float]:
        found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for row in filter(wanted, rows):
            found[row["model"], row["attention"]].append(float(row["pairs_per_s"]))
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


def main() -> int:
    """Prints the table; returns the exit code."""
    try:
        print(table(read_plan(PLAN), Rates(read("train.csv"), read("attention_speed.csv"))))
    except UserError as error:
        print(f"laion_cost: error: {error}", file=sys.stderr)
        return EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
