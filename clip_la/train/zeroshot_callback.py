"""Zero-shot evaluation while training: at given numbers of samples seen, by the functions of clip_la.zeroshot."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from clip_la.train.optim import whole_batches
from clip_la.train.task import ContrastiveTask
from clip_la.zeroshot import ranks, results
from clip_la.zeroshot.evaluate import DEFAULT_BATCH_SIZE, PREDICTIONS_FOLDER, Evaluation
from clip_la.zeroshot.jobs import How, Job
from clip_la.zeroshot.subject import Subject, of_model
from clip_la.zeroshot.suite import summary


class ZeroShotEvaluation(Callback):
    """Evaluates the model at given numbers of samples seen and appends the results to a run's results.jsonl.

    All ranks share the work and meet in it, so none waits at a later step; weights, optimiser, order of the data and
    random state stay as they are. A result that the file already has, as after a resumed run, is not made again.

    Args:
        jobs: what to evaluate on, from `clip_la.zeroshot.entries.prepare`.
        at_samples: numbers of samples seen; each is rounded up to whole batches.
        out: the result file (RUN/results.jsonl).
        origin: what the run's checkpoints carry: run_id, seed, train_data, ...
        precision: of the towers during evaluation, float32 or bf16.
        batch_size: pictures at a time.
        num_workers: worker processes for the pictures, beside those of the training stream.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        at_samples: Sequence[int],
        out: Path,
        origin: Mapping[str, Any],
        precision: str = "float32",
        batch_size: int = DEFAULT_BATCH_SIZE,
        num_workers: int = 0,
    ) -> None:
        self._jobs = jobs
        self._at_samples = at_samples
        self._out = out
        self._origin = origin
        self._how = How(precision, batch_size, num_workers)
        self.latest: list[Evaluation] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        wanted = {whole_batches(samples, pl_module.batch_size) for samples in self._at_samples}
        if pl_module.samples_seen in wanted:
            self.latest = self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: pl.Trainer, task: ContrastiveTask) -> list[Evaluation]:
        subject = self._subject(task)
        was_training = task.model.training
        task.model.eval()
        try:
            made = [evaluation for job in self._jobs if (evaluation := self._one(subject, job)) is not None]
        finally:
            task.model.train(was_training)
        for evaluation in made if ranks.rank() == 0 else ():
            _log(trainer, evaluation.line, task.samples_seen)
        return made

    def _subject(self, task: ContrastiveTask) -> Subject:
        meta = {
            **self._origin,
            "samples_seen": task.samples_seen,
            "budget_samples": task.budget_samples,
            "batch_size": task.batch_size,
            "schedule": task.schedule.name,
        }
        return of_model(task.model, **meta)

    def _one(self, subject: Subject, job: Job) -> Evaluation | None:
        evaluation = job.identify(subject, self._how)
        # Rank 0 alone looks, so that all ranks take the same way.
        if ranks.exchange(lambda: ranks.rank() == 0 and results.find(self._out, evaluation) is not None)[0]:
            return None
        made = job.run(subject, self._how, self._out.parent / PREDICTIONS_FOLDER)
        if ranks.rank() == 0:
            results.append(self._out, made.line)
            print(f"at {made.line['samples_seen']:,} samples: {summary(made.line)}", file=sys.stderr)
        return made


def _log(trainer: pl.Trainer, line: Mapping[str, Any], samples_seen: int) -> None:
    """Curves for TensorBoard; metrics.csv keeps to what every step has, results.jsonl has these figures in full."""
    values = {f"{line['task']}/{line['dataset']}/{name}": own["value"] for name, own in line["metrics"].items()}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_metrics(values, step=samples_seen)
