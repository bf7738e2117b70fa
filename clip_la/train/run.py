"""One training run in its folder: from its start to its budget, or to where it is stopped."""

import importlib.util
import random
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from clip_la import results
from clip_la.atomic import atomic_write, remove_unfinished
from clip_la.data.datamodule import ShardDataModule, StreamPosition
from clip_la.errors import UserError
from clip_la.runs import TENSORBOARD, RunFolder
from clip_la.train.beginning import LINEAGE
from clip_la.train.callbacks import MetricsLogger, Progress, StopOnSignal
from clip_la.train.checkpoint import AtomicCheckpointIO, SampleCheckpoints
from clip_la.train.hardware import (
    cluster_plugins,
    fast_matmul,
    is_first_process,
    quiet_lightning,
    trainer_hardware,
)
from clip_la.train.lightning_private import ask_for_no_signals
from clip_la.train.logger import CsvMetrics
from clip_la.train.options import RunOptions
from clip_la.train.start import ResumePoint, find_resume_point, refuse_existing_run
from clip_la.train.task import ContrastiveTask
from clip_la.train.zeroshot_callback import after_training, during_training

DEFAULT_WINDOW_BATCHES = 50


@dataclass(frozen=True)
class Run:
    """A run's folder as a training left it. `checkpoints`: samples seen -> file, fewest samples first."""

    folder: Path
    samples_seen: int
    budget_samples: int
    checkpoints: dict[int, Path]

    @property
    def newest_checkpoint(self) -> Path | None:
        return next(reversed(self.checkpoints.values()), None)

    @property
    def is_finished(self) -> bool:
        return self.samples_seen >= self.budget_samples


def train_run(
    task: ContrastiveTask, data: ShardDataModule, options: RunOptions, *, train_data: str = "", config_text: str = ""
) -> Run:
    """Trains up to the task's budget; on Ctrl-C or SIGTERM saves after the running step and returns an unfinished Run.

    Can be called many times in one process; touches no global state but the seeds.

    Args:
        task: the model, its loss and its schedule.
        data: the stream of batches.
        options: the folder, where the run begins, when it logs, saves and evaluates, and what it runs on.
        train_data: what the shards are called in checkpoints and results.
        config_text: what to write into config.yaml; nothing is written for an empty text.

    Raises UserError for a folder that holds a run (without `resume`), a checkpoint that does not fit, a GPU that is not
    there, a loss that is not finite, and whatever is wrong with the data.
    """
    beyond = [samples for samples in options.zeroshot_samples if samples > task.budget_samples]
    if beyond:
        raise UserError(f"zeroshot_samples {beyond[0]:,} lies beyond the budget of {task.budget_samples:,} samples")
    hardware = trainer_hardware(options)
    task.check_accelerator(hardware["accelerator"])
    folder = Path(options.out)
    _seed_everything(options.seed)
    _prepare(folder, options.resume)
    start = find_resume_point(task, options, report=_note)
    if start.checkpoint and start.samples_seen >= task.budget_samples:
        _note(f"{folder} has seen its {task.budget_samples:,} samples: nothing to do")
        after_training(options.zeroshot_suite, RunFolder(folder).results, start.checkpoint, hardware["accelerator"])
        return _as_run(folder, task, start.samples_seen)
    stop = StopOnSignal()
    origin = _origin(start, options.seed, train_data, task.lineage)
    callbacks = _callbacks(task, data, options, stop, origin, hardware["accelerator"])
    _note(_arithmetic(task, start))
    _write_config(folder, config_text)
    with quiet_lightning(), fast_matmul(), stop.installed():
        loggers = _loggers(folder, start.samples_seen, options.tensorboard)
        max_steps = task.budget_samples // task.batch_size
        trainer = _trainer(folder, hardware, max_steps=max_steps, loggers=loggers, callbacks=callbacks)
        _fit(trainer, task, data, start)
        return _as_run(folder, task, task.samples_seen)


def _callbacks(
    task: ContrastiveTask,
    data: ShardDataModule,
    options: RunOptions,
    stop: StopOnSignal,
    origin: dict[str, Any],
    accelerator: str,
) -> list[pl.Callback]:
    """What happens around the steps. Raises UserError where the zero-shot suite, or data it names, is not there."""
    folder, window = Path(options.out), options.log_every_samples
    window_batches = -(-window // task.batch_size) if window else DEFAULT_WINDOW_BATCHES
    meter = MetricsLogger(window_batches, lambda: data.skipped.total(), stop)
    checkpoints = SampleCheckpoints(
        RunFolder(folder).checkpoints,
        origin=origin,
        keep_samples=options.checkpoint_samples,
        save_every_samples=options.save_every_samples,
        before_save=lambda: meter.check_finite(task),
        save_also_at=options.zeroshot_samples,
    )
    zeroshots = during_training(options, RunFolder(folder).results, origin, accelerator, meter)
    return [StreamPosition(), stop, meter, Progress(meter), checkpoints, *zeroshots]


def _trainer(
    folder: Path, hardware: dict[str, Any], *, max_steps: int, loggers: list[Logger], callbacks: list[pl.Callback]
) -> pl.Trainer:
    trainer = pl.Trainer(
        **hardware,
        plugins=[AtomicCheckpointIO(), *cluster_plugins()],
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=folder,
        max_steps=max_steps,
        max_epochs=-1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # The metrics callback asks them once a window.
    ask_for_no_signals(trainer)
    return trainer


def _prepare(folder: Path, resume: bool) -> None:
    if not is_first_process():
        return
    if not resume:
        refuse_existing_run(folder)
        return
    # A kill in the middle of saving leaves a file as large as a checkpoint.
    for each in (folder, RunFolder(folder).checkpoints):
        remove_unfinished(each)


def _fit(trainer: pl.Trainer, task: ContrastiveTask, data: ShardDataModule, start: ResumePoint) -> None:
    try:
        trainer.fit(task, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
    except SystemExit:
        # Lightning's answer to a KeyboardInterrupt, the second of two Ctrl-C.
        raise KeyboardInterrupt from None
    if data.skipped:
        whose = "" if trainer.world_size == 1 else " by the first process"
        _note(f"samples passed over{whose}: {data.skipped_text()}")


def _seed_everything(seed: int) -> None:
    """The global generators, for whatever draws from them; Lightning's function leaves environment variables."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries still read the global generator)
    torch.manual_seed(seed)


def _loggers(folder: Path, resume_samples: int, tensorboard: bool) -> list[Logger]:
    loggers: list[Logger] = [CsvMetrics(RunFolder(folder).metrics, resume_samples)]
    if tensorboard and importlib.util.find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(folder, name="", version=TENSORBOARD, purge_step=resume_samples or None))
    return loggers


def _origin(start: ResumePoint, seed: int, train_data: str, lineage: list[dict[str, Any]]) -> dict[str, Any]:
    """Plain values that every checkpoint of the run carries. A branch is a run of its own and names its parent."""
    parent: dict[str, Any] = {}
    if start.block and start.is_branch:
        parent = {"parent_run_id": start.block["run_id"], "parent_samples": start.block["samples_seen"]}
    elif start.block:
        parent = {key: start.block[key] for key in ("parent_run_id", "parent_samples") if key in start.block}
    run_id = start.block["run_id"] if start.block and not start.is_branch else uuid.uuid4().hex[:12]
    if lineage:
        parent[LINEAGE] = lineage
    return {"run_id": run_id, "seed": seed, "train_data": train_data, "versions": _versions(), **parent}


def _versions() -> dict[str, str]:
    """Of what moves the weights: results.versions and Lightning."""
    return {**results.versions(), "pytorch-lightning": pl.__version__}


def _as_run(folder: Path, task: ContrastiveTask, samples_seen: int) -> Run:
    return Run(folder, samples_seen, task.budget_samples, RunFolder(folder).saved_checkpoints())


def _arithmetic(task: ContrastiveTask, start: ResumePoint) -> str:
    """What the run will do, in one line."""
    num_steps = task.budget_samples // task.batch_size
    text = f"{task.model.spec.name}: {task.budget_samples:,} samples = {num_steps:,} batches of {task.batch_size:,}"
    text += f", schedule {task.schedule.name}"
    if start.checkpoint:
        text += f"; going on from {start.checkpoint} at {start.samples_seen:,} samples"
    return text


@rank_zero_only
def _write_config(folder: Path, text: str) -> None:
    if text:
        with atomic_write(RunFolder(folder).config, "w") as stream:
            stream.write(text)


@rank_zero_only
def _note(text: str) -> None:
    print(text, file=sys.stderr)
