"""Zero-shot evaluation and validation while training, by the functions of clip_la.zeroshot."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from tqdm import tqdm

from clip_la import distributed as ranks
from clip_la import results
from clip_la.runs import EMA, TRAINED
from clip_la.train.compiled import uncompiled
from clip_la.train.hardware import is_first_process, note
from clip_la.train.logger import CsvMetrics
from clip_la.train.meter import MetricsLogger
from clip_la.train.optim import whole_batches
from clip_la.train.options import RunOptions
from clip_la.train.sharded import whole_model
from clip_la.train.task import ContrastiveTask
from clip_la.zeroshot.model.eval_model import EvalModel, default_precision, of_model
from clip_la.zeroshot.model.load import choose_device
from clip_la.zeroshot.options import SuiteEntry
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.suite import describe, evaluate_tasks, prepare, read_suite, run_suite
from clip_la.zeroshot.tasks.task import Evaluation, Task

# What the held-out shards are called in results.
VALIDATION = "validation"


def suite_curves(line: dict[str, Any]) -> dict[str, float]:
    """Every metric of a result line, by task and data set."""
    curve = "/".join([line["task"], line["dataset"], *([EMA] if line["weights"] else [])])
    return {f"{curve}/{name}": own["value"] for name, own in line["metrics"].items()}


def validation_curves(line: dict[str, Any]) -> dict[str, float]:
    """val_loss, the contrastive loss, and val_recall: recall at 1, mean of images by caption and captions by image."""
    values = {name: own["value"] for name, own in line["metrics"].items()}
    recall = (values["image_retrieval_recall@1"] + values["text_retrieval_recall@1"]) / 2
    suffix = f"_{EMA}" if line["weights"] else ""
    return {f"val_loss{suffix}": values["contrastive_loss"], f"val_recall{suffix}": recall}


class ZeroShotEvaluation(Callback):
    """Evaluates the model at given numbers of samples seen and at the end, into the run's results.jsonl.

    Where the run averages its weights, these are evaluated after the trained ones; their lines say `weights: "ema"`.

    All ranks share the work and meet in it, so none waits at a later step; weights, optimiser, order of the data and
    random state stay as they are. It happens before the next step, when a checkpoint of the last one is saved: a run
    that is killed meanwhile evaluates when it is resumed. What the file has already is not made again.

    Args:
        jobs: what to evaluate on, from `clip_la.zeroshot.suite.prepare`.
        at_samples: numbers of samples seen; each is rounded up to whole batches.
        every_samples: evaluate at its multiples as well; rounded up to whole batches.
        curves: a result line -> what TensorBoard and W&B draw of it, by name.
        out: the result file (RUN/results.jsonl).
        origin: what the run's checkpoints carry: run_id, seed, train_data, ...
        how: precision, batch size and worker processes of the evaluation.
        meter: leaves the time of the evaluation out of the training time.
    """

    def __init__(
        self,
        jobs: Sequence[Task],
        *,
        at_samples: Sequence[int] = (),
        every_samples: int | None = None,
        curves: Callable[[dict[str, Any]], dict[str, float]] = suite_curves,
        out: Path,
        origin: Mapping[str, Any],
        how: EvalSettings,
        meter: MetricsLogger | None = None,
    ) -> None:
        self._jobs = jobs
        self._at_samples, self._every_samples = at_samples, every_samples
        self._curves = curves
        self._out = out
        self._origin = origin
        self._how = how
        self._meter = meter
        self.latest: list[Evaluation] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        samples, batch_size = pl_module.samples_seen, pl_module.batch_size
        every = whole_batches(self._every_samples, batch_size) if self._every_samples else None
        is_multiple = every is not None and samples > 0 and samples % every == 0
        if is_multiple or samples in {whole_batches(each, batch_size) for each in self._at_samples}:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        if pl_module.samples_seen >= pl_module.budget_samples:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: pl.Trainer, task: ContrastiveTask) -> None:
        def report(text: str) -> None:
            if trainer.is_global_zero:
                # Through tqdm, which takes the progress line of the training out of the way.
                tqdm.write(f"at {task.samples_seen:,} samples: {text}", file=sys.stderr)

        # What the file has already was logged when it was made.
        before = list(results.read(self._out))
        was_training = task.model.training
        task.model.eval()
        try:
            with self._meter.away() if self._meter else contextlib.nullcontext(), uncompiled():
                found = list(evaluate_tasks(self._subject(task), self._jobs, self._how, self._out, report=report))
                if task.average is not None:
                    with task.average.applied():
                        subject = self._subject(task, EMA)
                        found += evaluate_tasks(subject, self._jobs, self._how, self._out, report=report)
        finally:
            task.model.train(was_training)
        self.latest = [evaluation for evaluation in found if evaluation.line not in before]
        # Curves alone; metrics.csv keeps to what every window has, results.jsonl has these figures in full.
        boards = [logger for logger in trainer.loggers if not isinstance(logger, CsvMetrics)]
        for line in [evaluation.line for evaluation in self.latest if trainer.is_global_zero]:
            for board in boards:
                board.log_metrics(self._curves(line), step=task.samples_seen)

    def _subject(self, task: ContrastiveTask, weights: str = TRAINED) -> EvalModel:
        meta = {
            **self._origin,
            "samples_seen": task.samples_seen,
            "budget_samples": task.budget_samples,
            "batch_size": task.batch_size,
            "schedule": task.schedule.name,
        }
        return of_model(whole_model(task.model), weights=weights, **meta)


def during_training(
    options: RunOptions, out: Path, origin: Mapping[str, Any], accelerator: str, meter: MetricsLogger
) -> list[Callback]:
    """The callbacks that a run's options ask for; `accelerator` is "gpu" or "cpu".

    Raises:
        UserError: the suite, data that it names, or the held-out shards are not there.
    """
    suite, validation = _entries(options)
    # Models that the suite may name are not looked at.
    jobs, held_out = [prepare(entry) for entry in suite], [prepare(entry) for entry in validation]
    for test_set in {id(job.test_set): job.test_set for job in (*jobs, *held_out)}.values():
        describe(test_set, note)
    how = EvalSettings(default_precision("cpu" if accelerator == "cpu" else "cuda"), num_workers=None)
    given: dict[str, Any] = {"out": out, "origin": origin, "how": how, "meter": meter}
    callbacks: list[Callback] = []
    if jobs:
        callbacks.append(ZeroShotEvaluation(jobs, at_samples=options.zeroshot_samples, **given))
    if held_out:
        every = options.validate_every_samples
        callbacks.append(ZeroShotEvaluation(held_out, every_samples=every, curves=validation_curves, **given))
    return callbacks


def _entries(options: RunOptions) -> tuple[list[SuiteEntry], list[SuiteEntry]]:
    """What a run is evaluated on: its suite, and its held-out shards."""
    suite = read_suite(options.zeroshot_suite)[1] if options.zeroshot_suite is not None else []
    if options.validate_on is None:
        return suite, []
    return suite, [SuiteEntry(data=options.validate_on, name=VALIDATION, task=results.RETRIEVAL)]


def after_training(options: RunOptions, out: Path, checkpoint: Path, accelerator: str, averaged: bool) -> None:
    """What a finished run's evaluation at the end lacks, as it was killed, from its last checkpoint.

    `averaged` says whether that has averaged weights too.
    """
    suite, validation = _entries(options)
    entries = [*suite, *validation]
    if not entries:
        return
    with ranks.membership() as local_rank:
        # SLURM's processes have no meeting place before Lightning makes one: there the first works alone.
        if ranks.world_size() > 1 or is_first_process():
            device = choose_device("cpu" if accelerator == "cpu" else None, local_rank)
            how = EvalSettings(default_precision(device.type), num_workers=None)
            for weights in (TRAINED, EMA) if averaged else (TRAINED,):
                evaluations = run_suite(
                    [str(checkpoint)], entries, how, device=device, out=out, weights=weights, report=note
                )
                # Each is written as it comes.
                for _ in evaluations:
                    pass
