"""Checkpoints of a run: `samples=000012800.ckpt`, each whole or absent, saved at given numbers of samples seen."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from clip_la.atomic import atomic_write
from clip_la.errors import UserError
from clip_la.models import checkpoint as model_checkpoint
from clip_la.models.checkpoint import BLOCK, FORMAT, read_torch_file
from clip_la.models.spec import ModelSpec
from clip_la.runs import checkpoint_name
from clip_la.train.optim import whole_batches
from clip_la.train.task import ContrastiveTask

# What a run that goes on has to know of the one before.
NEEDED = ("run_id", "samples_seen", "budget_samples", "schedule")
# Options that a run keeps to its end -> what they were before there were such options.
FIXED: dict[str, Any] = {"optimizer": "adamw", "freeze": None, "layer_decay": 1.0}


def read_block(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """What the checkpoint read from `path` says of its run; raises UserError where no training can go on from it."""
    if not isinstance(checkpoint.get(BLOCK), dict) or "optimizer_states" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of `clip-la train`: no training can go on from it")
    block, _ = model_checkpoint.read_block(checkpoint, path)
    missing = [key for key in NEEDED if block.get(key) is None]
    if missing:
        raise UserError(f"{path} says nothing of its {', '.join(missing)}: no training can go on from it")
    return block


def check_same_model(path: Path, block: dict[str, Any], spec: ModelSpec) -> None:
    """Raises UserError naming the parts of the architecture in which a checkpoint differs from the model to train."""
    saved, wanted = ModelSpec.from_dict(block["spec"]).to_dict(), spec.to_dict()
    differing = [f"{key} {saved[key]} (not {wanted[key]})" for key in wanted if saved[key] != wanted[key]]
    if differing:
        raise UserError(f"{path} is of another architecture: {', '.join(differing)}")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing, except that a file is read once, and whole before it has its name.

    A run reads the checkpoint that it goes on from before Lightning does, to choose it and to compare it with the
    options. What `read` has read waits here for Lightning, which takes it when the fit begins: the file is neither read
    nor checked a second time, and weights and moments are not held beside the trained ones for the rest of the run.
    """

    def __init__(self) -> None:
        self._waiting: tuple[Path, dict[str, Any]] | None = None

    def read(self, path: Path) -> dict[str, Any]:
        """The checkpoint in a file, tensors on the CPU.

        Raises UserError for a file that is missing, or where a byte disagrees with its checksum.
        """
        # In memory, not mapped: the optimiser goes on to write into these tensors, and the file is removed one day.
        self._waiting = path, read_torch_file(path, mmap=False)
        return self._waiting[1]

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting[0] == Path(path):
            return waiting[1]
        return super().load_checkpoint(path, *args, **kwargs)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        with atomic_write(path) as stream:
            torch.save(checkpoint, stream)


class SampleCheckpoints(Checkpoint):
    """Saves at given numbers of samples, at the budget, on a stop, and now and then so that a killed run can go on.

    Args:
        folder: RUN/checkpoints.
        origin: plain values that go into each checkpoint's block: run id, seed, training data, versions.
        keep_samples: numbers of samples seen whose checkpoints are kept; rounded up to whole batches.
        save_every_samples: distance of the checkpoints for resuming, of which only the newest is kept; None: no such.
        save_also_at: numbers of samples seen with a checkpoint for resuming, whatever the distance.
        before_save: called before each save; raises to prevent it.
        saving: what each save happens inside of, such as `MetricsLogger.saving`, which takes its time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        origin: dict[str, Any],
        keep_samples: Sequence[int],
        save_every_samples: int | None,
        before_save: Callable[[], None],
        save_also_at: Sequence[int] = (),
        saving: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._folder = folder
        self._origin = origin
        self._keep_samples = keep_samples
        self._save_every_samples = save_every_samples
        self._save_also_at = save_also_at
        self._before_save, self._saving = before_save, saving
        # The file that the next save makes superfluous; it outlives the process in the checkpoint's own state.
        self._passing: str | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"passing": self._passing}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._passing = state_dict["passing"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        batch = pl_module.batch_size
        self._kept_at = {whole_batches(n, batch) for n in (*self._keep_samples, pl_module.budget_samples)}
        self._passing_at = {whole_batches(n, batch) for n in self._save_also_at}
        self._passing_every = whole_batches(self._save_every_samples, batch) if self._save_every_samples else None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        samples = pl_module.samples_seen
        if samples in self._kept_at:
            self._save(trainer, samples, keep=True)
        elif (
            trainer.should_stop
            or samples in self._passing_at
            or (self._passing_every and samples % self._passing_every == 0)
        ):
            self._save(trainer, samples, keep=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        checkpoint[BLOCK] = {
            "format": FORMAT,
            "spec": pl_module.model.spec.to_dict(),
            "samples_seen": pl_module.samples_seen,
            "budget_samples": pl_module.budget_samples,
            "batch_size": pl_module.batch_size,
            "schedule": pl_module.schedule.name,
            "loss": pl_module.loss_name,
            **{name: getattr(pl_module.options, name) for name in (*FIXED, "ema_samples")},
            **self._origin,
        }

    def _save(self, trainer: pl.Trainer, samples: int, *, keep: bool) -> None:
        with self._saving():
            self._before_save()
            superseded, self._passing = self._passing, None if keep else checkpoint_name(samples)
            trainer.save_checkpoint(self._folder / checkpoint_name(samples))
            # Only now, as the new file is whole.
            if superseded and superseded != self._passing and trainer.is_global_zero:
                (self._folder / superseded).unlink(missing_ok=True)
