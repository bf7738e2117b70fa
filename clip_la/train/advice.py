"""Warnings of a run that is set up badly or goes badly: one line each, once, that says what to do."""

import sys

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from tqdm import tqdm

from clip_la.train.meter import MetricsLogger
from clip_la.train.task import ContrastiveTask

# A contrastive loss sees batch_size - 1 negatives; below this a model learns to tell few captions apart.
LEAST_BATCH = 256
# Of the budget: a warm-up longer than this takes the steps that the peak rate is for.
WARMUP_SHARE = 0.2
# A loss is flat if it is within this share of ln(batch), so many steps after the warm-up.
FLAT_SHARE = 0.02
FLAT_AFTER_STEPS = 500
# Of the wall time, in so many windows one after another.
DATA_WAIT_SHARE = 0.1
WINDOWS = 3


class Advice(Callback):
    """Looks at a run's options when it starts and at each row of its meter; the first process speaks.

    Args:
        meter: before this in the list of callbacks, so that a window is closed when it is looked at.
    """

    def __init__(self, meter: MetricsLogger) -> None:
        self._meter = meter
        self._said: set[str] = set()
        # Windows up to the last in which something was so, one after another.
        self._windows: dict[str, int] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        task, warmup = pl_module, pl_module.schedule.warmup_samples
        self._row, self._is_first_window = self._meter.latest, True
        self._flat_from = warmup + FLAT_AFTER_STEPS * task.batch_size
        if trainer.global_step:
            return  # said when the run began, or the one that it branches off
        if task.chance_loss is not None and task.batch_size < LEAST_BATCH:
            self._say(
                trainer,
                "batch",
                f"batch_size {task.batch_size} leaves the contrastive loss {task.batch_size - 1} negatives a pair; "
                f"raise --data.batch_size to {LEAST_BATCH} or more (--model.micro_batches fits it into memory)",
            )
        if warmup > WARMUP_SHARE * task.budget_samples:
            self._say(
                trainer,
                "warm-up",
                f"the warm-up takes {warmup / task.budget_samples:.0%} of the budget; "
                f"lower --model.warmup_samples to {int(WARMUP_SHARE * task.budget_samples):,} or less",
            )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        row, chance, samples = self._meter.latest, pl_module.chance_loss, pl_module.samples_seen
        if row is self._row:
            return
        if chance is not None and samples >= self._flat_from and row["loss"] > (1 - FLAT_SHARE) * chance:
            self._say(
                trainer,
                "flat",
                f"after {samples:,} samples the loss is still at ln(batch), as if nothing were learnt; look whether "
                "captions belong to their images (`clip-la data show`), then change --model.lr",
            )
        self._look_at_data_wait(trainer, row["data_wait_share"])
        # The first window compiles in any case.
        if self._has_lasted("lengths", row["compile_s"] > 0 and not self._is_first_window):
            self._say(
                trainer,
                "lengths",
                "captions of new lengths make the step compile anew in each window; lower --model.text_groups, which "
                "multiplies the lengths, or give --model.compile false",
            )
        self._row, self._is_first_window = row, False

    def _look_at_data_wait(self, trainer: pl.Trainer, share: float) -> None:
        if not self._has_lasted("data", share > DATA_WAIT_SHARE):
            return
        hint = "raise --data.workers, or keep small data decoded with --data.cache memory"
        if trainer.datamodule.options.cache == "memory":  # type: ignore[attr-defined]
            # On a CPU the cores that train make the batches as well: nothing there could be set otherwise.
            if trainer.strategy.root_device.type == "cpu":
                return
            hint = "its samples are decoded already, so the host is slow"
        self._say(
            trainer,
            "data",
            f"training waits for data {share:.0%} of the time; {hint} (`clip-la bench data` finds the slow part)",
        )

    def _has_lasted(self, what: str, is_so: bool) -> bool:
        """Whether something has been so in the last WINDOWS windows."""
        self._windows[what] = self._windows.get(what, 0) + 1 if is_so else 0
        return self._windows[what] >= WINDOWS

    def _say(self, trainer: pl.Trainer, key: str, text: str) -> None:
        if trainer.is_global_zero and key not in self._said:
            # Through tqdm, which takes the progress line out of the way.
            tqdm.write(f"warning: {text}", file=sys.stderr)
        self._said.add(key)
