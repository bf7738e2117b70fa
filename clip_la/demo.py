"""The whole chain on the starter corpus: pairs -> shards -> softmax and linear runs -> zero-shot -> scaling plot.

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
# What the scaling law is fitted to: the mean error over both artists' held-out drawings.
SCALING_SPLITS = TEST_SPLITS[:2]
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


def whole_batches(samples: float) -> int:
    """The number of samples in whole batches, at least one."""
    return max(1, round(samples / BATCH_SIZE)) * BATCH_SIZE


@dataclass(frozen=True)
class Series:
    """One model with one attention kind: a constant-rate run, and a branch of it for each budget (in samples)."""

    runs: Path
    model: str
    attention: str
    budgets: tuple[int, ...]

    @property
    def trunk(self) -> Path:
        """The constant-rate run's folder."""
        return self.runs / f"{self.model}-{self.attention}"

    def branch(self, budget: int) -> Path:
        """The folder of the run that ends cooled down at `budget` samples."""
        return self.runs / f"{self.model}-{self.attention}-{budget}"

    @staticmethod
    def cooldown(budget: int) -> int:
        """Samples over which the branch for `budget` cools down."""
        return whole_batches(COOLDOWN_SHARE * budget)

    def leaves_at(self, budget: int) -> int:
        """Samples of the constant-rate run at which the branch for `budget` leaves it."""
        return budget - self.cooldown(budget)


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


def steps(series: Series, shards: Path, seed: int) -> list[Step]:
    """The runs of a series in the order they have to be made."""
    shared = {
        "model.name": series.model,
        "model.attention": series.attention,
        "data.shards": shards,
        "seed": seed,
        "model.warmup_samples": min(WARMUP_SAMPLES, series.leaves_at(min(series.budgets))),
        **RECIPE,
    }
    leaving = sorted(series.leaves_at(budget) for budget in series.budgets)
    trunk = {"model.schedule": "constant", "budget_samples": leaving[-1], "checkpoint_samples": leaving[:-1]}
    made = [Step(series.trunk, leaving[-1], {**shared, **trunk})]
    for budget in series.budgets:
        branch = {
            "model.schedule": "cooldown",
            "model.cooldown_samples": series.cooldown(budget),
            "budget_samples": budget,
            "branch_from": RunFolder(series.trunk).checkpoint(series.leaves_at(budget)),
        }
        made.append(Step(series.branch(budget), budget, {**shared, **branch}))
    return made


def _train(step: Step) -> None:
    """Runs one step from where it stands; raises KeyboardInterrupt where the user stopped it."""
    from clip_la.train.cli import main

    arguments = [f"--{key}={value}" for key, value in step.options.items()]
    if main([*arguments, f"--out={step.folder}", "--resume"]):
        raise KeyboardInterrupt


def train(series: Sequence[Series], shards: Path, seed: int) -> list[Path]:
    """Makes every run that is not there yet; returns the last checkpoints of the cooled-down branches."""
    todo = [step for each in series for step in steps(each, shards, seed)]
    checkpoints: list[Path] = []
    for number, step in enumerate(todo, 1):
        if step.checkpoint is None:
            _say(f"[{number}/{len(todo)}] training {step.folder.name} to {step.samples:,} samples")
            _train(step)
        found = step.checkpoint
        assert found is not None, f"{step.folder} ended without its checkpoint"
        if step.options["model.schedule"] == "cooldown":
            checkpoints.append(found)
    return checkpoints


def evaluate(checkpoints: Sequence[Path], corpus: Path, results: Path) -> "list[Evaluation]":
    """Zero-shot results of every checkpoint on every held-out split, appended to `results`; done ones are skipped."""
    import torch

    from clip_la.zeroshot.runner.loop import EvalSettings
    from clip_la.zeroshot.suite import SuiteEntry, run_suite

    done = []
    for number, checkpoint in enumerate(checkpoints, 1):
        evaluations = run_suite(
            [str(checkpoint)],
            [SuiteEntry(data=str(corpus / split), name=split) for split in TEST_SPLITS],
            EvalSettings(batch_size=EVAL_BATCH_SIZE),
            out=results,
            device=torch.device("cpu"),
            report=lambda text: None,
        )
        found = list(evaluations)
        _say(f"[{number}/{len(checkpoints)}] evaluated {_run_name(checkpoint)}: {_times_chance(found)}")
        done += found
    return done


def _run_name(checkpoint: str | Path) -> str:
    return Path(checkpoint).parent.parent.name


def _times_chance(evaluations: "Sequence[Evaluation]") -> str:
    """Top-1 on each data set in multiples of chance, 1 / classes."""
    lines = [each.line for each in evaluations]
    return ", ".join(
        f"{line['dataset']} {line['metrics']['top1']['value'] * line['num_classes']:.0f} x chance" for line in lines
    )


def mean_top1(evaluations: "Sequence[Evaluation]") -> dict[str, float]:
    """Checkpoint -> mean top-1 over both artists' held-out drawings, as a fraction."""
    found: dict[str, list[float]] = {}
    for evaluation in evaluations:
        line = evaluation.line
        if line["dataset"] in SCALING_SPLITS:
            found.setdefault(line["checkpoint"], []).append(line["metrics"]["top1"]["value"])
    return {checkpoint: sum(values) / len(values) for checkpoint, values in found.items()}


def best_of_each_kind(evaluations: "Sequence[Evaluation]") -> dict[str, str]:
    """Attention kind -> the checkpoint with the best mean top-1 on held-out renditions."""
    accuracy = mean_top1(evaluations)
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
    """Writes plot, tables and contact sheets; returns what to print at the end."""
    from clip_la.scaling.analysis import analyse
    from clip_la.scaling.plot import save_plot
    from clip_la.scaling.report import to_text
    from clip_la.scaling.results import read_results, result_points
    from clip_la.scaling.table import results_table

    rows = read_results([results])
    table = results_table([row for row in rows if row.fields["dataset"] in SCALING_SPLITS])
    lines = [table.text(), ""]
    try:
        analysis = analyse(result_points([results], targets=list(SCALING_SPLITS), metric="top1", filters={}))
    except UserError as error:
        laws, plot = f"no scaling law: {error}", None
    else:
        laws, plot = to_text(analysis), save_plot(analysis, out / "scaling")[0]
    with atomic_write(out / "report.md", "w") as stream:
        stream.write(
            f"# Zero-shot on held-out renditions\n\n{table.markdown()}\n\n# Scaling laws\n\n```\n{laws}\n```\n"
        )
    lines += [laws, "", _best_text(evaluations), ""]
    sheets = draw_sheets(evaluations, corpus, out)
    lines += [f"wrote {path}" for path in (out / "report.md", plot, *sheets, results) if path is not None]
    return "\n".join(lines)


def _best_text(evaluations: "Sequence[Evaluation]") -> str:
    """The best model of each kind, in times chance on each held-out split."""
    lines = []
    for kind, checkpoint in best_of_each_kind(evaluations).items():
        mine = [each for each in evaluations if each.line["checkpoint"] == checkpoint]
        lines.append(f"best {kind}: {_run_name(checkpoint)}: {_times_chance(mine)}")
    return "\n".join(lines)


def check_plan(models: Sequence[str], attention: Sequence[str], budgets: Sequence[int]) -> None:
    """Raises UserError for an unknown model or attention kind, or a budget that leaves nothing to cool down."""
    from clip_la.models import create_model

    for model in models:
        for kind in attention:
            create_model(model, attention=kind)
    for budget in budgets:
        if budget < MIN_BUDGET_SAMPLES or budget % BATCH_SIZE:
            raise UserError(
                f"--budgets {budget}: give multiples of {BATCH_SIZE}, the batch size, from {MIN_BUDGET_SAMPLES} on"
            )


def keep_settings(out: Path, seed: int, budgets: Sequence[int]) -> None:
    """Writes down in `out` what its runs depend on; raises UserError where runs of other settings lie there."""
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
    """The chain, in the folder `out`; what is there already is kept, so a second call goes on or does nothing.

    Args:
        models: presets, small ones.
        attention: attention kinds, for both towers.
        budgets: samples seen at which each series gives a finished model.

    Returns the closing text: table, laws and what was written. Raises UserError for wrong input.
    """
    from clip_la.data.corpora.starter import build_starter

    check_plan(models, attention, budgets)
    keep_settings(out, seed, budgets)
    started = time.monotonic()
    corpus, results = out / "corpus", out / RESULTS
    _say(f"starter corpus in {corpus}")
    build_starter(corpus)
    series = [Series(out / "runs", model, kind, tuple(sorted(budgets))) for model in models for kind in attention]
    checkpoints = train(series, corpus / "train", seed)
    text = report(evaluate(checkpoints, corpus, results), results, corpus, out)
    return f"{text}\ntook {(time.monotonic() - started) / 60:.1f} minutes"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
