"""One training run in its folder: from its start to its budget, or to where it is stopped."""

import contextlib
import importlib.util
import random
import signal
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from clip_la import distributed as ranks
from clip_la import results
from clip_la.atomic import atomic_write, remove_unfinished
from clip_la.data.datamodule import ShardDataModule, StreamPosition
from clip_la.errors import UserError
from clip_la.runs import TENSORBOARD, RunFolder
from clip_la.train.advice import Advice
from clip_la.train.beginning import LINEAGE
from clip_la.train.callbacks import Progress, StopOnSignal
from clip_la.train.checkpoint import AtomicCheckpointIO, SampleCheckpoints
from clip_la.train.hardware import (
    cluster_plugins,
    fast_matmul,
    is_first_process,
    note,
    quiet_lightning,
    trainer_hardware,
)
from clip_la.train.lightning_private import ask_for_no_signals
from clip_la.train.lock import locked
from clip_la.train.logger import CsvMetrics
from clip_la.train.meter import MetricsLogger
from clip_la.train.options import RunOptions
from clip_la.train.parser import STOPPED_EXIT_CODE
from clip_la.train.rank_watch import RankWatch
from clip_la.train.start import ResumePoint, find_resume_point
from clip_la.train.task import ContrastiveTask
from clip_la.train.zeroshot_callback import after_training, during_training

DEFAULT_WINDOW_BATCHES = 50


@dataclass(frozen=True)
class Run:
    """A run's folder as a training left it.

    Attributes:
        folder: its path.
        samples_seen: pairs that went into the weights.
        budget_samples: pairs it is to see in all.
        checkpoints: samples seen -> file, fewest samples first.
        stopped_by: number of the signal that this process was asked to stop by; None without one.
    """

    folder: Path
    samples_seen: int
    budget_samples: int
    checkpoints: dict[int, Path]
    stopped_by: int | None = None

    @property
    def newest_checkpoint(self) -> Path | None:
        """The checkpoint after most samples; None where there is none yet."""
        return next(reversed(self.checkpoints.values()), None)

    @property
    def is_finished(self) -> bool:
        """Whether it has seen its budget; a signal ends a run before."""
        return self.samples_seen >= self.budget_samples

    @property
    def exit_code(self) -> int:
        """130 where Ctrl-C has stopped the run; 0 for a finished one, and for one that was saved on SIGTERM, by which
        clusters end a job in good order."""
        is_interrupted = self.stopped_by == signal.SIGINT and not self.is_finished
        return STOPPED_EXIT_CODE if is_interrupted else 0


def train_run(
    task: ContrastiveTask, data: ShardDataModule, options: RunOptions, *, train_data: str = "", config_text: str = ""
) -> Run:
    """Trains up to the task's budget; on Ctrl-C or SIGTERM saves after the running step and returns an unfinished Run.

    Args:
        task: the model, its loss and its schedule.
        data: the stream of batches.
        options: the folder, where the run begins, when it logs, saves and evaluates, and what it runs on.
        train_data: what the shards are called in checkpoints and results.
        config_text: what to write into config.yaml; nothing is written for an empty text.

    Raises UserError for a folder that holds a run (without `resume`), a checkpoint that does not fit, a GPU that is not
    there, a loss that is not finite, and whatever is wrong with the data. Can be called many times in one process.
    """
    options.check_within(task.budget_samples)
    if options.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise UserError("--wandb needs Weights & Biases: pip install 'clip_la[wandb]'")
    hardware = trainer_hardware(options)
    task.check_hardware(hardware["accelerator"], hardware["strategy"])
    folder = RunFolder(Path(options.out))
    folder.check_is_no_file()
    # The first process alone: it writes for all, and ends the others if it is refused.
    with locked(folder.path, note) if is_first_process() else contextlib.nullcontext():
        return _train(task, data, options, hardware, train_data, config_text)


def _train(
    task: ContrastiveTask,
    data: ShardDataModule,
    options: RunOptions,
    hardware: dict[str, Any],
    train_data: str,
    config_text: str,
) -> Run:
    """train_run with the run's folder locked."""
    folder = RunFolder(Path(options.out))
    # The global generators, for whatever draws from them; Lightning's function leaves environment variables.
    random.seed(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002 (libraries still read the global generator)
    torch.manual_seed(options.seed)
    if is_first_process():
        _prepare(folder, options.resume)
    io = AtomicCheckpointIO()
    start = find_resume_point(task, options, read=io.read, report=note)
    if start.checkpoint and start.samples_seen >= task.budget_samples:
        note(f"{folder.path} has seen its {task.budget_samples:,} samples: nothing to do")
        after_training(options, folder.results, start.checkpoint, hardware["accelerator"], start.has_average)
        return Run(folder.path, start.samples_seen, task.budget_samples, folder.saved_checkpoints())
    stop = StopOnSignal()
    origin = _origin(start, options.seed, train_data, task.lineage)
    callbacks = _callbacks(task, data, options, stop, origin, hardware["accelerator"])
    note(_arithmetic(task, start))
    if config_text and is_first_process():
        with atomic_write(folder.config, "w") as stream:
            stream.write(config_text)
    was_joined = ranks.joined()
    with quiet_lightning(), fast_matmul(), stop.installed():
        trainer = pl.Trainer(
            **hardware,
            plugins=[io, *cluster_plugins()],
            logger=_loggers(folder, start.samples_seen, options, origin["run_id"]),
            callbacks=callbacks,
            default_root_dir=folder.path,
            max_steps=task.budget_samples // task.batch_size,
            # The stream has no end, and deals itself out to the processes.
            max_epochs=-1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        # MetricsLogger asks the processes for it, once a window.
        ask_for_no_signals(trainer)
        _fit(trainer, task, data, start.checkpoint)
    if not was_joined:
        # Threads of the group that are still at work while Python ends would end the process by a signal.
        ranks.leave()
    return Run(folder.path, task.samples_seen, task.budget_samples, folder.saved_checkpoints(), stop.signal)


def _fit(trainer: pl.Trainer, task: ContrastiveTask, data: ShardDataModule, checkpoint: Path | None) -> None:
    """Trains from the checkpoint on, and says which samples could not be used."""
    try:
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        # Lightning's answer to a KeyboardInterrupt, the second of two Ctrl-C.
        raise KeyboardInterrupt from None
    finally:
        task.release()
    if data.skipped:
        whose = "" if trainer.world_size == 1 else " by the first process"
        note(f"samples skipped{whose}: {data.skipped_text()}")


def _prepare(folder: RunFolder, resume: bool) -> None:
    """Clears away what a kill has left. Raises UserError where nothing may be overwritten unasked."""
    if resume:
        # A kill in the middle of saving leaves a file as large as a checkpoint.
        for each in (folder.path, folder.checkpoints):
            remove_unfinished(each)
    else:
        folder.check_not_begun()


def _callbacks(
    task: ContrastiveTask,
    data: ShardDataModule,
    options: RunOptions,
    stop: StopOnSignal,
    origin: dict[str, Any],
    accelerator: str,
) -> list[pl.Callback]:
    """What happens around the steps. Raises UserError where the zero-shot suite, or data it names, is not there."""
    folder, window = RunFolder(Path(options.out)), options.log_every_samples
    window_batches = -(-window // task.batch_size) if window else DEFAULT_WINDOW_BATCHES
    meter = MetricsLogger(window_batches, lambda: data.skipped.total(), lambda: stop.requested)
    checkpoints = SampleCheckpoints(
        folder.checkpoints,
        origin=origin,
        keep_samples=options.checkpoint_samples,
        save_every_samples=options.save_every_samples,
        before_save=lambda: meter.check_finite(task),
        saving=meter.saving,
        save_also_at=options.zeroshot_samples,
    )
    zeroshots = during_training(options, folder.results, origin, accelerator, meter)
    # In this order at the end of a step: the position in the data moves before a checkpoint holds it, a request to stop
    # is seen before the checkpoints look for one, and a window is closed before it is saved.
    return [RankWatch(), StreamPosition(), stop, meter, Progress(meter), Advice(meter), checkpoints, *zeroshots]


def _loggers(folder: RunFolder, resume_samples: int, options: RunOptions, run_id: str) -> list[Logger]:
    """metrics.csv, event files where TensorBoard is installed, W&B if asked for; no rows after `resume_samples`."""
    loggers: list[Logger] = [CsvMetrics(folder.metrics, resume_samples)]
    if options.tensorboard and importlib.util.find_spec("tensorboard") is not None:
        purge = resume_samples or None
        loggers.append(TensorBoardLogger(folder.path, name="", version=TENSORBOARD, purge_step=purge))
    if options.wandb is not None and is_first_process():
        folder.path.mkdir(parents=True, exist_ok=True)
        # The id is the run's, so a resumed run goes on with its curves.
        loggers.append(
            WandbLogger(
                folder.path.name, folder.path, project=options.wandb, id=run_id, resume="allow", log_model=False
            )
        )
    return loggers


def _origin(start: ResumePoint, seed: int, train_data: str, lineage: list[dict[str, Any]]) -> dict[str, Any]:
    """Plain values that every checkpoint of the run carries. A branch is a run of its own and names its parent."""
    more: dict[str, Any] = {}
    if start.is_branch:
        more = {"parent_run_id": start.block["run_id"], "parent_samples": start.samples_seen}
    elif start.checkpoint:
        more = {key: start.block[key] for key in ("parent_run_id", "parent_samples") if key in start.block}
    # Results of a run that was resumed belong to one run: they share its id.
    goes_on = start.checkpoint is not None and not start.is_branch
    run_id = start.block["run_id"] if goes_on else uuid.uuid4().hex[:12]
    if lineage:
        more[LINEAGE] = lineage
    # Of what moves the weights.
    versions = {**results.versions(), "pytorch-lightning": pl.__version__}
    return {"run_id": run_id, "seed": seed, "train_data": train_data, "versions": versions, **more}


def _arithmetic(task: ContrastiveTask, start: ResumePoint) -> str:
    """What the run will do, in one line."""
    num_steps = task.budget_samples // task.batch_size
    text = f"{task.model.spec.name}: {task.budget_samples:,} samples = {num_steps:,} batches of {task.batch_size:,}"
    text += f", schedule {task.schedule.name}"
    if start.checkpoint:
        text += f"; going on from {start.checkpoint} at {start.samples_seen:,} samples"
    return text
