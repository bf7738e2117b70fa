"""Runs of sweeps over attentions, from tables to arms: what attention_table.py and plot_attention.py work on.

A table has a row a run: sweep.csv of `clip-la scaling sweep`, or those of results/study. Of points (`clip-la scaling
points`), which have a row for each metric, the runs of most samples are taken.
"""

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from clip_la.errors import UserError
from clip_la.models.attention.kinds import attention_kind
from clip_la.models.attention.pattern import AttentionChoice, canonical_pattern, layer_choices
from clip_la.scaling.rates import compared

RESULTS = Path(__file__).parents[1] / "results"
# In this order, for runs of a later one replace those of an earlier.
TABLES = ("attention_scenes.csv", "controls_again.csv", "scenes.csv", "attention_tiny.csv")
NUM_LAYERS = 12
SOFTMAX = "softmax"
# Of tables that name no model or its number of image tokens.
MODEL, TOKENS = "vit_ti16", 65


@dataclass(frozen=True)
class Metric:
    """A share of right answers: its column, a heading, and the images of its test set where a table does not say."""

    column: str
    heading: str
    num_samples: int


# The first of a task chooses the best rate.
TASKS: dict[str, tuple[Metric, ...]] = {
    "scenes": (Metric("scenes-unseen/image_retrieval_recall@1", "scenes: image recall@1", 4000),),
    "tiny-imagenet": (
        Metric("tiny-imagenet-seen/top1", "Tiny-ImageNet, seen classes: top-1", 8000),
        Metric("tiny-imagenet-unseen/top1", "unseen classes: top-1", 2000),
        Metric("tiny-imagenet-pairs/image_retrieval_recall@1", "pairs: image recall@1", 8000),
    ),
}
# What tables of one task call its columns.
OLD_NAMES = {"scenes-unseen/image_retrieval_recall@1": "image_recall@1"}
GROUPS = ("softmax, and its controls", "one tower linear", "both towers linear")
CONTROLS, ONE_TOWER, BOTH_TOWERS = GROUPS


@dataclass(frozen=True)
class Run:
    """One finished run: its values by metric, each with the number of test images; `place` is what a rerun shares."""

    task: str
    model: str
    tokens: int
    samples: int
    image: str
    text: str
    lr: float
    seed: int
    is_ok: bool
    values: Mapping[str, float]
    num_samples: Mapping[str, int]
    parameters: int
    gflops: float

    @property
    def place(self) -> tuple[Any, ...]:
        """Task, model, tokens, samples seen, attention, rate and seed."""
        return (self.task, self.model, self.tokens, self.samples, self.image, self.text, self.lr, self.seed)


@dataclass(frozen=True)
class Arm:
    """The attention of both towers on one task, in one model, with all of its runs by rate."""

    task: str
    model: str
    tokens: int
    samples: int
    image: str
    text: str
    by_rate: Mapping[float, Sequence[Run]]

    @property
    def setting(self) -> dict[str, Any]:
        """What arms that can be compared share: task, model, number of image tokens, samples seen."""
        return {name: getattr(self, name) for name in ("task", "model", "tokens", "samples")}

    @property
    def label(self) -> str:
        """The plan itself, and the tower that has it where the other one has plain softmax."""
        if self.image == self.text:
            return self.image
        if SOFTMAX not in (self.image, self.text):
            return f"image: {self.image}, text: {self.text}"
        return f"text: {self.text}" if self.image == SOFTMAX else f"image: {self.image}"

    @property
    def group(self) -> str:
        """By how many towers have a layer that is not softmax, whatever stands around it."""
        return (BOTH_TOWERS, ONE_TOWER, CONTROLS)[_is_softmax(self.image) + _is_softmax(self.text)]

    @property
    def first_run(self) -> Run:
        """Any run, for what all of them share."""
        return next(iter(self.by_rate.values()))[0]

    @property
    def has_diverged(self) -> bool:
        """Whether a run at any rate did."""
        return any(not run.is_ok for runs in self.by_rate.values() for run in runs)

    def ok(self, lr: float | None) -> dict[int, Run]:
        """The runs at a rate that did not diverge, by seed."""
        return {run.seed: run for run in self.by_rate.get(lr, ()) if run.is_ok} if lr is not None else {}

    def values(self, lr: float | None, column: str) -> dict[int, float]:
        """A metric by seed."""
        return {seed: run.values[column] for seed, run in self.ok(lr).items() if column in run.values}

    @property
    def best_lr(self) -> float | None:
        """The best rate by the task's first metric, as `clip-la scaling fit` chooses it; None if all runs diverged.

        Each is compared with the rate of most seeds (of equals the one with the better mean) over the seeds that both
        have: one that shares none was not compared.
        """
        column = TASKS[self.task][0].column
        found = {lr: self.values(lr, column) for lr in self.by_rate if self.values(lr, column)}
        if not found:
            return None
        best_first = sorted(found, key=lambda lr: -fmean(found[lr].values()))
        losses = {lr: {seed: [-value] for seed, value in found[lr].items()} for lr in best_first}
        _, behind = compared(losses)
        return min(behind, key=lambda lr: behind[lr][0])


def default_tables(folder: Path = RESULTS / "study") -> list[Path]:
    """The tables of attentions that are there."""
    return [path for name in TABLES if (path := folder / name).exists()]


def _is_softmax(plan: str) -> bool:
    return {choice.kind for choice in layer_choices(plan, NUM_LAYERS)} == {SOFTMAX}


def control_of(plan: str) -> str:
    """The same plan with softmax as every layer's kind: the same convolution, gate, norm and rotation around it."""
    known = attention_kind(SOFTMAX).surroundings
    # The class token by softmax is what softmax does anyway.
    around = [name for name in known if name != "cls"]
    layers = []
    for choice in layer_choices(plan, NUM_LAYERS):
        given = {name: choice.options[name] for name in around if name in choice.options}
        layers.append(str(AttentionChoice(SOFTMAX, given)))
    return canonical_pattern("+".join(layers), NUM_LAYERS)


def read_runs(paths: Iterable[Path], max_loss: float = math.inf) -> list[Run]:
    """All finished runs, a later one of the same place instead of an earlier.

    Raises:
        UserError: a table that is missing or empty, lacks a column, or has a value that is no number.
    """
    runs: dict[tuple[Any, ...], Run] = {}
    for path in paths:
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not CSV in UTF-8 ({error})") from None
        if not rows:
            raise UserError(f"{path} has no rows: expected a table of runs, such as a sweep's sweep.csv")
        try:
            rows = _rows_of_points(rows) if "metric" in rows[0] else rows
            budget = max(int(row["samples_seen"] or 0) for row in rows)
            finished = [row for row in rows if int(row["samples_seen"] or 0) == budget]
            found = [run for row in finished for run in _runs_of(row, max_loss)]
        except KeyError as error:
            raise UserError(f"{path} has no column {error}, which a table of attentions at several rates has") from None
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        if not found:
            names = ", ".join(metric.column for metrics in TASKS.values() for metric in metrics)
            raise UserError(f"{path} has none of the columns {names}")
        if len(finished) < len(rows):
            print(f"{path}: {len(rows) - len(finished)} of {len(rows)} runs are not finished", file=sys.stderr)
        if len(found) < len(finished):
            print(f"{path}: {len(finished) - len(found)} finished runs have no result", file=sys.stderr)
        runs |= {run.place: run for run in found}
    return list(runs.values())


def _rows_of_points(points: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A row a run, as sweep.csv has it, from a row for each of its metrics; of runs of most samples alone."""
    budget = max(int(point["samples_seen"]) for point in points)
    rows: dict[str, dict[str, str]] = {}
    for point in points:
        if int(point["samples_seen"]) == budget:
            row = rows.setdefault(point["run"], {**point, "lr": point["learning_rate"], "loss": "0"})
            row[f"{point['dataset']}/{point['metric']}"] = point["value"]
            row[f"{point['dataset']}/num_samples"] = point["num_evaluated"]
    return list(rows.values())


def _runs_of(row: Mapping[str, str], max_loss: float) -> list[Run]:
    """The run of a row, once for each task that it has figures of."""
    runs = []
    loss = float(row["loss"])
    for task, metrics in TASKS.items():
        cells = {each.column: row.get(each.column) or row.get(OLD_NAMES.get(each.column, "")) for each in metrics}
        values = {column: float(cell) for column, cell in cells.items() if cell}
        if row.get("task", task) != task or not values:
            continue
        sizes = {each.column: row.get(each.column.split("/")[0] + "/num_samples") for each in metrics}
        runs.append(
            Run(
                task=task,
                model=row.get("model") or MODEL,
                tokens=int(row.get("tokens") or TOKENS),
                samples=int(row["samples_seen"]),
                image=canonical_pattern(row["image_attention"], NUM_LAYERS),
                text=canonical_pattern(row["text_attention"], NUM_LAYERS),
                lr=float(row["lr"] if "lr" in row else row["model.lr"]),
                seed=int(row["seed"]),
                is_ok=row.get("outcome", "ok") == "ok" and math.isfinite(loss) and loss <= max_loss,
                values=values,
                num_samples={each.column: int(sizes[each.column] or each.num_samples) for each in metrics},
                parameters=int(row["parameters"]),
                gflops=float(row["flops_per_sample"]) / 1e9,
            )
        )
    return runs


def arms_of(runs: Iterable[Run]) -> list[Arm]:
    """Runs by attention: task by task, model by model, group by group, the highest mean at its best rate first."""
    by_arm: dict[tuple[str, str, int, int, str, str], dict[float, list[Run]]]
    by_arm = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=lambda run: (run.lr, run.seed)):
        by_arm[run.task, run.model, run.tokens, run.samples, run.image, run.text][run.lr].append(run)
    arms = [Arm(*place, by_rate) for place, by_rate in by_arm.items()]

    def order(arm: Arm) -> tuple[Any, ...]:
        found = arm.values(arm.best_lr, TASKS[arm.task][0].column).values()
        task = list(TASKS).index(arm.task)
        return task, arm.model, arm.tokens, arm.samples, GROUPS.index(arm.group), -fmean(found or [0.0]), arm.label

    return sorted(arms, key=order)
