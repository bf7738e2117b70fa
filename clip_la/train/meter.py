"""What a run measures: one row of figures a logging window, for metrics.csv, TensorBoard and the progress line."""

import contextlib
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from clip_la.errors import UserError
from clip_la.models.flops import training_flops
from clip_la.train.logger import CsvMetrics
from clip_la.train.peak import peak_flops
from clip_la.train.task import ContrastiveTask

GIB = 2**30
# Linux counts the memory of a process in kilobytes.
BYTES_PER_KB = 1024


class MetricsLogger(Callback):
    """Collects the losses of a window without waiting for the device, then writes one row to the loggers.

    The row:

    - loss (mean over the window and all processes), chance_loss (ln of the batch; None for losses without one), lr,
      logit_scale, grad_norm (of the last step, before it is scaled down);
    - pairs_per_s (wall time of the window), data_wait_share (of it), save_s (seconds of it in which checkpoints were
      saved; one at the end of a window counts in the next), skipped_samples (all processes), train_s (seconds
      of training since the run began), and what the task adds (`parts_of_loss`, of the last step);
    - pairs_per_s_per_gpu (a process, where there is no GPU), mfu (share of the device's peak arithmetic, by the
      training FLOPs of captions at full length; None for a device whose peak is not known), compile_s (seconds of steps
      that met a new length of captions, and so compiled or recorded), peak_gib (most memory so far, of the first
      process: allocated on its GPU, else resident), repeated_captions_share (captions that are not the first of their
      kind in their batch), eta_s (seconds to the budget at this window's rate without compiling).

    Args:
        every_batches: length of a window.
        skipped_samples: how many bad samples this process has skipped so far.
        stop_requested: asked at the end of each window whether to end the run.

    Attributes:
        latest: the last row; {} before the first.
        new_lengths: lengths of captions, in tokens, that the running step meets first.
    """

    def __init__(
        self, every_batches: int, skipped_samples: Callable[[], int], stop_requested: Callable[[], bool]
    ) -> None:
        self._every_batches = every_batches
        self._skipped_samples = skipped_samples
        self._stop_requested = stop_requested
        self._steps: list[Tensor] = []
        self._caption_ids: list[Tensor] = []
        self._train_s = 0.0
        self.latest: dict[str, Any] = {}
        self.new_lengths: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        """The window so far, so that a resumed run's rows are those of an uninterrupted one."""
        return {
            "steps": self._values(),
            "caption_ids": [ids.cpu() for ids in self._caption_ids],
            "train_s": self._train_s + time.perf_counter() - self._window_start,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = [torch.tensor(step) for step in state_dict["steps"]]
        # Checkpoints of earlier versions have none.
        self._caption_ids = list(state_dict.get("caption_ids", []))
        self._train_s = state_dict["train_s"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        self._steps = [step.to(pl_module.device) for step in self._steps]
        # A checkpoint has the captions of the first process alone.
        restored = self._caption_ids if trainer.world_size == 1 else []
        self._caption_ids = [ids.to(pl_module.device) for ids in restored]
        self._peak_flops = None
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
            dtype = torch.bfloat16 if trainer.precision == "bf16-mixed" else torch.float32
            self._peak_flops = peak_flops(torch.cuda.get_device_name(pl_module.device), dtype)
        self._step_start = self._step_end = time.perf_counter()
        self._open_window(self._step_end)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Mapping[str, Any], batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        self._step_start = time.perf_counter()
        self._wait_s += self._step_start - self._step_end
        self.new_lengths = pl_module.new_shapes(batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Mapping[str, Any], *args: Any
    ) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        # Kept on the device: reading a number here would wait for the step to end.
        self._steps.append(torch.stack([outputs["loss"], pl_module.grad_norm]))
        self._caption_ids.append(batch["caption_id"])
        self._window_batches += 1
        if self.new_lengths:
            # Compiling and recording keep the host busy, so its clock tells their time.
            self._compile_s += time.perf_counter() - self._step_start
            self._compiled_batches += 1
        if trainer.global_step % self._every_batches == 0 or trainer.global_step == trainer.max_steps:
            self._close_window(trainer, pl_module)
        self._step_end = time.perf_counter()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """What happens inside is neither training nor waiting for data; between two steps."""
        left = time.perf_counter()
        yield
        away_s = time.perf_counter() - left
        self._window_start += away_s
        self._step_start += away_s
        self._step_end += away_s

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """What happens inside is part of the window but no waiting for data; between a step and the next batch."""
        began = time.perf_counter()
        yield
        save_s = time.perf_counter() - began
        self._save_s += save_s
        self._step_end += save_s

    def check_finite(self, task: ContrastiveTask) -> None:
        """Raises UserError naming the first step of the window whose loss or gradient is not finite."""
        steps = self._values()
        for index, (loss, norm) in enumerate(steps):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                samples = task.samples_seen - (len(steps) - 1 - index) * task.batch_size
                raise UserError(
                    f"at {samples:,} samples the loss is {loss} and the norm of its gradient {norm}; "
                    "begin again, or go on from an earlier checkpoint, with a lower lr or a longer warm-up"
                )

    def _values(self) -> list[list[float]]:
        """Loss and gradient norm of each step of the window: the one place that waits for the device."""
        return torch.stack(self._steps).tolist() if self._steps else []

    def _open_window(self, now: float) -> None:
        self._window_start, self._wait_s, self._compile_s, self._save_s = now, 0.0, 0.0, 0.0
        self._window_batches, self._compiled_batches = 0, 0

    def _close_window(self, trainer: pl.Trainer, task: ContrastiveTask) -> None:
        # Before a row is written: the table ends where the numbers do.
        self.check_finite(task)
        values = self._values()
        now = time.perf_counter()
        window_s = now - self._window_start
        self._train_s += window_s
        mean_loss = math.fsum(loss for loss, _ in values) / len(values)
        sums = [mean_loss, self._skipped_samples(), self._stop_requested()]
        if dist.is_available() and dist.is_initialized():
            # The one meeting of the processes besides the gradients': whoever is asked to stop says so here.
            together = torch.tensor(sums, dtype=torch.float64, device=task.device)
            dist.all_reduce(together)
            sums = together.tolist()
        loss, skipped, stop = sums
        trainer.should_stop = trainer.should_stop or stop > 0
        pairs_per_s = self._window_batches * task.batch_size / window_s
        self.latest = {
            "loss": loss / trainer.world_size,
            "chance_loss": task.chance_loss,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "logit_scale": task.model.logit_scale.exp().item(),
            "grad_norm": values[-1][1],
            "pairs_per_s": pairs_per_s,
            "data_wait_share": self._wait_s / window_s,
            "save_s": self._save_s,
            "skipped_samples": int(skipped),
            "train_s": self._train_s,
            **task.parts_of_loss(),
            **self._speed(pairs_per_s, window_s, trainer.world_size, task),
            "repeated_captions_share": repeated_share(self._caption_ids),
        }
        known = {name: value for name, value in self.latest.items() if value is not None}
        for logger in trainer.loggers:
            # The table has a column for every figure; a curve of no values cannot be drawn.
            logger.log_metrics(self.latest if isinstance(logger, CsvMetrics) else known, step=task.samples_seen)
        self._steps, self._caption_ids = [], []
        self._open_window(now)

    def _speed(
        self, pairs_per_s: float, window_s: float, world_size: int, task: ContrastiveTask
    ) -> dict[str, float | None]:
        """The row's figures of speed and memory."""
        steady_batches, rate = self._window_batches - self._compiled_batches, pairs_per_s
        if steady_batches:
            rate = steady_batches * task.batch_size / (window_s - self._compile_s)
        per_gpu = pairs_per_s / world_size
        pair_flops = training_flops(task.model.spec, task.options.patch_dropout)
        on_gpu = task.device.type == "cuda"
        peak_bytes = (
            torch.cuda.max_memory_allocated(task.device)
            if on_gpu
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KB
        )
        return {
            "pairs_per_s_per_gpu": per_gpu,
            "mfu": per_gpu * pair_flops / self._peak_flops if self._peak_flops else None,
            "compile_s": self._compile_s,
            "peak_gib": peak_bytes / GIB,
            "eta_s": (task.budget_samples - task.samples_seen) / rate,
        }


def repeated_share(batches: list[Tensor]) -> float:
    """Share of captions that are not the first of their kind in their batch, over the batches of all processes.

    Args:
        batches: Int64[this process's part of a batch], equal numbers for equal captions. All processes call this.
    """
    ids = torch.stack(batches)
    if dist.is_available() and dist.is_initialized():
        parts = [torch.empty_like(ids) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, ids)
        ids = torch.cat(parts, dim=1)
    # Equal ones lie beside each other then; counting them needs no shape that depends on the values.
    ordered = ids.sort(dim=1).values
    return (ordered[:, 1:] == ordered[:, :-1]).sum().item() / ids.numel()
