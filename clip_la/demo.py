"""The whole chain on the starter corpus: pairs -> shards -> softmax and linear runs -> zero-shot -> scaling plots.

Each model and attention kind trains once at a constant rate; for every budget a branch leaves that run and cools down.
So a long run gives several finished models, and none of them pays for the samples it shares with the others.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_la.atomic import atomic_write
from clip_la.errors import UserError
from clip_la.runs import RESULTS, RunFolder

if TYPE_CHECKING:
    from clip_la.zeroshot.tasks.task import Evaluation

MODELS = ("vit_pico", "vit_nano", "vit_micro")
ATTENTION = ("softmax", "linear", "linear_mean")
BATCH_SIZE = 128
BUDGETS_SAMPLES = (17_920, 35_840, 71_680)
COOLDOWN_SHARE = 0.2
# A batch each of warm-up, full rate and cooldown, and one to spare.
MIN_BUDGET_SAMPLES = 4 * BATCH_SIZE
TEST_SPLITS = ("renditions-twemoji", "renditions-openmoji", "concepts")
# What the scaling laws are fitted to: the mean over both artists' held-out drawings.
SCALING_SPLITS = TEST_SPLITS[:2]
# The loss first: top-1 on 380 drawings counts hits, and is far noisier.
SCALING_METRICS = {"contrastive_loss": "scaling_loss", "top1": "scaling"}
# Each time one of a drawing's wordings, or its bare name.
CAPTION_FIELDS = ("json.captions", "json.name")
EVAL_BATCH_SIZE = 190
# Found by trial on vit_nano; the same for every kind, size and budget.
RECIPE = {
    "model.lr": 1.5e-3,
    "model.weight_decay": 0.1,
    "data.batch_size": BATCH_SIZE,
    "data.workers": 0,
    "data.cache": "memory",
    "data.min_crop_area": 0.6,
    "data.jitter": 0.2,
    "data.caption_fields": f"[{', '.join(CAPTION_FIELDS)}]",
}
WARMUP_SAMPLES = 32 * BATCH_SIZE
SETTINGS_NAME = "settings.json"


@dataclass(frozen=True)
class Step:
    """One training run: its folder, the samples it ends at, and its options for `clip-la train`."""

    folder: Path
    samples: int
    options: dict[str, Any]

    @property
    def checkpoint(self) -> Path | None:
        """The finished run's last checkpoint, or None."""
        return RunFolder(self.folder).saved_checkpoints().get(self.samples)

    def train(self) -> None:
        """Runs the step from where it stands; raises KeyboardInterrupt where the user stopped it."""
        from clip_la.train.cli import run_and_say

        arguments = [f"--{key}={value}" for key, value in self.options.items()]
        if not run_and_say([*arguments, f"--out={self.folder}", "--resume"]).is_finished:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Series:
    """One model with one attention kind: a constant-rate run, and a branch of it for each budget (in samples)."""

    runs: Path
    model: str
    attention: str
    budgets: tuple[int, ...]

    @staticmethod
    def cooldown(budget: int) -> int:
        """Samples over which the branch for `budget` cools down, in whole batches."""
        return max(1, round(COOLDOWN_SHARE * budget / BATCH_SIZE)) * BATCH_SIZE

    def leaves_at(self, budget: int) -> int:
        """Samples of the constant-rate run at which the branch for `budget` leaves it."""
        return budget - self.cooldown(budget)

    def steps(self, shards: Path, seed: int) -> list[Step]:
        """The runs of the series in the order they have to be made: the constant-rate run, then its branches."""
        folder = self.runs / f"{self.model}-{self.attention}"
        leaving = sorted(self.leaves_at(budget) for budget in self.budgets)
        shared = {
            "model.name": self.model,
            "model.attention": self.attention,
            "data.shards": shards,
            "seed": seed,
            # On a GPU too: each of the many small runs would compile for as long as it trains.
            "model.compile": False,
            "model.warmup_samples": min(WARMUP_SAMPLES, leaving[0]),
            **RECIPE,
        }
        trunk = {"model.schedule": "constant", "budget_samples": leaving[-1], "checkpoint_samples": leaving[:-1]}
        made = [Step(folder, leaving[-1], {**shared, **trunk})]
        for budget in self.budgets:
            branch = {
                "model.schedule": "cooldown",
                "model.cooldown_samples": self.cooldown(budget),
                "budget_samples": budget,
                "branch_from": RunFolder(folder).checkpoint(self.leaves_at(budget)),
            }
            made.append(Step(folder.with_name(f"{folder.name}-{budget}"), budget, {**shared, **branch}))
        return made


def train(series: Sequence[Series], shards: Path, seed: int) -> list[Path]:
    """Makes every run that is not there yet; returns the last checkpoints of the cooled-down branches."""
    todo = [step for each in series for step in each.steps(shards, seed)]
    checkpoints: list[Path] = []
    for number, step in enumerate(todo, 1):
        if step.checkpoint is None:
            place = f"[{number}/{len(todo)}]"
            print(f"{place} training {step.folder.name} to {step.samples:,} samples", file=sys.stderr)
            step.train()
        found = step.checkpoint
        assert found is not None, f"{step.folder} ended without its checkpoint"
        if step.options["model.schedule"] == "cooldown":
            checkpoints.append(found)
    return checkpoints


def evaluate(checkpoints: Sequence[Path], corpus: Path, results: Path) -> "list[Evaluation]":
    """Zero-shot results of every checkpoint on every held-out split; appends them, and the losses, to `results`."""
    import torch

    from clip_la.results import RETRIEVAL
    from clip_la.zeroshot.runner.loop import EvalSettings
    from clip_la.zeroshot.suite import SuiteEntry, run_suite

    entries = [SuiteEntry(data=str(corpus / split), name=split) for split in TEST_SPLITS]
    entries += [SuiteEntry(data=str(corpus / split), name=split, task=RETRIEVAL) for split in SCALING_SPLITS]
    done = []
    for number, checkpoint in enumerate(checkpoints, 1):
        evaluations = run_suite(
            [str(checkpoint)],
            entries,
            EvalSettings(batch_size=EVAL_BATCH_SIZE),
            out=results,
            device=torch.device("cpu"),
            report=lambda text: None,
        )
        found = list(evaluations)
        classified = [each for each in found if "top1" in each.line["metrics"]]
        named = f"[{number}/{len(checkpoints)}] evaluated {checkpoint.parent.parent.name}"
        print(f"{named}: {_times_chance(classified)}", file=sys.stderr)
        done += classified
    return done


def _times_chance(evaluations: "Sequence[Evaluation]") -> str:
    """Top-1 on each data set in multiples of chance, 1 / classes."""
    lines = [each.line for each in evaluations]
    return ", ".join(
        f"{line['dataset']} {line['metrics']['top1']['value'] * line['num_classes']:.0f} x chance" for line in lines
    )


def best_of_each_kind(evaluations: "Sequence[Evaluation]") -> dict[str, str]:
    """Attention kind -> the checkpoint with the best top-1, as the mean over both artists' held-out drawings."""
    values: dict[str, list[float]] = {}
    for evaluation in evaluations:
        line = evaluation.line
        if line["dataset"] in SCALING_SPLITS:
            values.setdefault(line["checkpoint"], []).append(line["metrics"]["top1"]["value"])
    accuracy = {checkpoint: sum(own) / len(own) for checkpoint, own in values.items()}
    best: dict[str, str] = {}
    for evaluation in evaluations:
        kind, checkpoint = evaluation.line["attention"], evaluation.line["checkpoint"]
        if kind not in best or accuracy[checkpoint] > accuracy[best[kind]]:
            best[kind] = checkpoint
    return best


def draw_sheets(evaluations: "Sequence[Evaluation]", corpus: Path, out: Path) -> list[Path]:
    """A contact sheet for each kind's best model: held-out drawings with the names it gives them."""
    from clip_la.zeroshot.datasets.find import open_dataset
    from clip_la.zeroshot.report.contact_sheet import contact_sheet
    from clip_la.zeroshot.suite import percent

    split = SCALING_SPLITS[0]
    test_set = open_dataset(str(corpus / split), name=split)
    best = best_of_each_kind(evaluations)
    sheets = []
    for evaluation in evaluations:
        line = evaluation.line
        if line["dataset"] == split and line["checkpoint"] == best[line["attention"]]:
            title = f"{line['model']}, {line['attention']}, on {split}: top-1 {percent(line['metrics']['top1'])}"
            path = out / f"contact_sheet-{line['attention']}"
            sheets.append(contact_sheet(evaluation.predictions, test_set, path, title=title)[0])
    return sheets


def report(evaluations: "Sequence[Evaluation]", results: Path, corpus: Path, out: Path) -> str:
    """Writes plots, tables and contact sheets; returns what to print at the end, the sentence of the laws last."""
    from clip_la.scaling.analysis import analyse
    from clip_la.scaling.plot import save_plot
    from clip_la.scaling.report import to_text
    from clip_la.scaling.results import read_results, select_points
    from clip_la.scaling.table import results_table
    from clip_la.scaling.verdict import verdict

    rows = read_results([results])
    shown = [row for row in rows if row.fields["dataset"] in SCALING_SPLITS and "top1" in row.fields["metrics"]]
    table = results_table(shown)
    laws, plots, said = [], [], ""
    for metric, name in SCALING_METRICS.items():
        try:
            analysis = analyse(select_points(rows, targets=SCALING_SPLITS, metric=metric))
        except UserError as error:
            laws.append(f"no scaling law of {metric}: {error}")
            continue
        laws.append(to_text(analysis))
        plots.append(save_plot(analysis, out / name)[0])
        said = said or verdict(analysis)
    said = said or "Nothing is shown: no law could be fitted."
    with atomic_write(out / "report.md", "w") as stream:
        fenced = "\n\n".join(f"```\n{law}\n```" for law in laws)
        stream.write(f"{said}\n\n# Zero-shot on held-out renditions\n\n{table.markdown()}\n\n")
        stream.write(f"# Scaling laws\n\n{fenced}\n")
    best = []
    for kind, checkpoint in best_of_each_kind(evaluations).items():
        mine = [each for each in evaluations if each.line["checkpoint"] == checkpoint]
        best.append(f"best {kind}: {Path(checkpoint).parent.parent.name}: {_times_chance(mine)}")
    written = [out / "report.md", *plots, *draw_sheets(evaluations, corpus, out), results]
    paths = "\n".join(f"wrote {path}" for path in written)
    return "\n\n".join([table.text(), *laws, "\n".join(best), paths, said])


def keep_settings(
    out: Path, models: Sequence[str], attention: Sequence[str], budgets: Sequence[int], seed: int
) -> None:
    """Writes down in `out` what its runs depend on.

    Raises UserError for an unknown model or attention kind, a budget that leaves nothing to cool down, and where runs
    of other settings lie in `out`.
    """
    from clip_la.models import create_model

    for model in models:
        for kind in attention:
            create_model(model, attention=kind)
    for budget in budgets:
        if budget < MIN_BUDGET_SAMPLES or budget % BATCH_SIZE:
            right = f"multiples of {BATCH_SIZE}, the batch size, from {MIN_BUDGET_SAMPLES} on"
            raise UserError(f"--budgets {budget}: give {right}")
    path = out / SETTINGS_NAME
    settings = {"seed": seed, "budgets": sorted(budgets), "recipe": RECIPE}
    if not path.exists():
        with atomic_write(path, "w") as stream:
            json.dump(settings, stream, indent=1)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    differing = [name for name, value in settings.items() if found.get(name) != value]
    if differing:
        raise UserError(f"{out} holds a demo of another {' and '.join(differing)} ({path}): give another --out")


def run_demo(
    out: Path,
    *,
    models: Sequence[str] = MODELS,
    attention: Sequence[str] = ATTENTION,
    budgets: Sequence[int] = BUDGETS_SAMPLES,
    seed: int = 0,
) -> str:
    """The chain, in the folder `out`; what is there already is kept, so a second call resumes or does nothing.

    Args:
        models: presets, small ones.
        attention: attention kinds, for both towers.
        budgets: samples seen at which each series gives a finished model.

    Returns the closing text, at its end what the run did and did not show. Raises UserError for wrong input.
    """
    from clip_la.data.corpora.starter import build_starter

    keep_settings(out, models, attention, budgets, seed)
    started = time.monotonic()
    corpus, results = out / "corpus", out / RESULTS
    print(f"starter corpus in {corpus}", file=sys.stderr)
    build_starter(corpus)
    series = [Series(out / "runs", model, kind, tuple(sorted(budgets))) for model in models for kind in attention]
    checkpoints = train(series, corpus / "train", seed)
    text = report(evaluate(checkpoints, corpus, results), results, corpus, out)
    return f"{text}\ntook {(time.monotonic() - started) / 60:.1f} minutes"
