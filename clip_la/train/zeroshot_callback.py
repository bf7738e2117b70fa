"""Zero-shot evaluation while training: at given numbers of samples seen, by the functions of clip_la.zeroshot."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from tqdm import tqdm

from clip_la import distributed as ranks
from clip_la import results
from clip_la.errors import UserError
from clip_la.train.callbacks import MetricsLogger
from clip_la.train.compiled import uncompiled
from clip_la.train.hardware import is_first_process
from clip_la.train.optim import whole_batches
from clip_la.train.task import ContrastiveTask
from clip_la.zeroshot.model.eval_model import EvalModel, default_precision, of_model
from clip_la.zeroshot.model.load import choose_device
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.suite import SuiteEntry, describe, evaluate_tasks, prepare, read_suite, run_suite
from clip_la.zeroshot.tasks.task import Evaluation, Task


@dataclass(frozen=True)
class ZeroShot:
    """What a run evaluates on while it trains, and when.

    Args:
        suite: a YAML file as for `clip-la eval --config`; models that it may name are not looked at.
        at_samples: numbers of samples seen, besides the end of the budget.

    Raises:
        UserError: a number below 1, or numbers without a suite.
    """

    suite: str | None
    at_samples: Sequence[int] = ()

    def __post_init__(self) -> None:
        wrong = [samples for samples in self.at_samples if samples < 1]
        if wrong:
            raise UserError(f"zeroshot_samples must be at least 1, not {wrong[0]}")
        if self.at_samples and self.suite is None:
            raise UserError("zeroshot_samples says when to evaluate; say on what: zeroshot_suite (see configs/eval)")

    def check_budget(self, budget_samples: int) -> None:
        """Raises UserError if it would evaluate after the end of the budget."""
        beyond = [samples for samples in self.at_samples if samples > budget_samples]
        if beyond:
            raise UserError(f"zeroshot_samples {beyond[0]:,} lies beyond the budget of {budget_samples:,} samples")

    def entries(self) -> list[SuiteEntry]:
        """The suite's evaluations, none without a suite."""
        return read_suite(self.suite)[1] if self.suite else []


class ZeroShotEvaluation(Callback):
    """Evaluates the model at given numbers of samples seen and at the end, into the run's results.jsonl.

    All ranks share the work and meet in it, so none waits at a later step; weights, optimiser, order of the data and
    random state stay as they are. It happens before the next step, when a checkpoint of the last one is saved: a run
    that is killed meanwhile evaluates when it is resumed. What the file has already is not made again.

    Args:
        jobs: what to evaluate on, from `clip_la.zeroshot.suite.prepare`.
        at_samples: numbers of samples seen; each is rounded up to whole batches.
        out: the result file (RUN/results.jsonl).
        origin: what the run's checkpoints carry: run_id, seed, train_data, ...
        how: precision, batch size and worker processes of the evaluation.
        meter: told of the time, which is no training time.
    """

    def __init__(
        self,
        jobs: Sequence[Task],
        *,
        at_samples: Sequence[int],
        out: Path,
        origin: Mapping[str, Any],
        how: EvalSettings,
        meter: MetricsLogger | None = None,
    ) -> None:
        self._jobs = jobs
        self._at_samples = at_samples
        self._out = out
        self._origin = origin
        self._how = how
        self._meter = meter
        self.latest: list[Evaluation] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        if pl_module.samples_seen in {whole_batches(samples, pl_module.batch_size) for samples in self._at_samples}:
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

        before = list(results.read(self._out))
        was_training = task.model.training
        task.model.eval()
        try:
            with self._meter.away() if self._meter else contextlib.nullcontext(), uncompiled():
                found = list(evaluate_tasks(self._subject(task), self._jobs, self._how, self._out, report=report))
        finally:
            task.model.train(was_training)
        self.latest = [evaluation for evaluation in found if evaluation.line not in before]
        for evaluation in self.latest if trainer.is_global_zero else ():
            _log(trainer, evaluation.line, task.samples_seen)

    def _subject(self, task: ContrastiveTask) -> EvalModel:
        meta = {
            **self._origin,
            "samples_seen": task.samples_seen,
            "budget_samples": task.budget_samples,
            "batch_size": task.batch_size,
            "schedule": task.schedule.name,
        }
        return of_model(task.model, **meta)


def _log(trainer: pl.Trainer, line: Mapping[str, Any], samples_seen: int) -> None:
    """Curves for TensorBoard; metrics.csv keeps to what every step has, results.jsonl has these figures in full."""
    values = {f"{line['task']}/{line['dataset']}/{name}": own["value"] for name, own in line["metrics"].items()}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_metrics(values, step=samples_seen)


def _say_once(text: str) -> None:
    """One line on stderr, of the first process; before the processes have met."""
    if is_first_process():
        print(text, file=sys.stderr)


def during_training(
    settings: ZeroShot, out: Path, origin: Mapping[str, Any], accelerator: str, meter: MetricsLogger
) -> list[Callback]:
    """The callback that a run's settings ask for, or none; `accelerator` is "gpu" or "cpu".

    Raises:
        UserError: the suite, or data that it names, is not there.
    """
    jobs = [prepare(entry) for entry in settings.entries()]
    if not jobs:
        return []
    for test_set in {id(job.test_set): job.test_set for job in jobs}.values():
        describe(test_set, _say_once)
    how = EvalSettings(
        default_precision("cpu" if accelerator == "cpu" else "cuda"),
        num_workers=ranks.default_workers(),
    )
    return [ZeroShotEvaluation(jobs, at_samples=settings.at_samples, out=out, origin=origin, how=how, meter=meter)]


def after_training(settings: ZeroShot, out: Path, checkpoint: Path, accelerator: str) -> None:
    """What a finished run's evaluation at the end lacks, as it was killed, from its last checkpoint."""
    entries = settings.entries()
    if not entries:
        return
    local_rank = ranks.join_from_environment()
    # SLURM's processes have no meeting place before Lightning makes one: there the first works alone.
    if ranks.world_size() > 1 or is_first_process():
        device = choose_device("cpu" if accelerator == "cpu" else None, local_rank)
        how = EvalSettings(default_precision(device.type), num_workers=ranks.default_workers())
        for _ in run_suite([str(checkpoint)], entries, how, device=device, out=out, report=_say_once):
            pass
    ranks.leave()
