"""What happens around the steps: measuring and logging, the progress line, stopping when asked to."""

import contextlib
import io
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from clip_la.errors import UserError
from clip_la.train.hardware import is_first_process
from clip_la.train.task import ContrastiveTask

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STDERR_FILENO = 2
# torchrun passes on the Ctrl-C that the terminal has sent to its processes already: not a second one.
SAME_REQUEST_S = 2.0
# A terminal is refreshed ten times a second, a log file gets a line now and then.
TERMINAL_INTERVAL_S = 0.1
FILE_INTERVAL_S = 30.0


class StopOnSignal(Callback):
    """Ctrl-C and SIGTERM end the run after the running step, with a checkpoint; another one later ends it at once.

    Several processes stop at the end of a logging window, where they meet anyway: `MetricsLogger` looks at
    `requested` there.
    """

    def __init__(self) -> None:
        self._requested_at_s: float | None = None

    @property
    def requested(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._requested_at_s is not None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Listens inside the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._request) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning puts its own handler of SIGTERM, which saves nothing, in front.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._request)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.requested and trainer.world_size == 1:
            trainer.should_stop = True

    def _request(self, number: int, frame: Any) -> None:
        now_s = time.monotonic()
        if self._requested_at_s is None:
            self._requested_at_s = now_s
            if is_first_process():
                # Not through sys.stderr, whose lock the interrupted code may hold.
                os.write(STDERR_FILENO, b"\nstopping after the running step; once more ends at once\n")
        elif now_s - self._requested_at_s > SAME_REQUEST_S:
            raise KeyboardInterrupt


class MetricsLogger(Callback):
    """Collects the losses of a window without waiting for the device, then writes one row to the loggers.

    The row: loss (mean over the window and all processes), chance_loss, lr, logit_scale, grad_norm (of the last step),
    pairs_per_s, data_wait_share (of the wall time), skipped_samples (all processes), train_s, and what the task adds
    (`parts_of_loss`, of the last step).

    Args:
        every_batches: length of a window.
        skipped_samples: how many bad samples this process has skipped so far.
        stop: asked at the end of each window whether to end the run.
    """

    def __init__(self, every_batches: int, skipped_samples: Callable[[], int], stop: StopOnSignal) -> None:
        self._every_batches = every_batches
        self._skipped_samples = skipped_samples
        self._stop = stop
        self._steps: list[Tensor] = []
        self._train_s = 0.0
        self.latest: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The window so far, so that a resumed run's rows are those of an uninterrupted one."""
        return {"steps": self._values(), "train_s": self._train_s + time.perf_counter() - self._window_start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = [torch.tensor(step) for step in state_dict["steps"]]
        self._train_s = state_dict["train_s"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._steps = [step.to(pl_module.device) for step in self._steps]
        self._step_end = self._window_start = time.perf_counter()
        self._wait_s, self._window_batches = 0.0, 0

    def on_train_batch_start(self, *args: Any) -> None:
        self._wait_s += time.perf_counter() - self._step_end

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        # Kept on the device: reading a number here would wait for the step to end.
        self._steps.append(torch.stack([outputs["loss"], pl_module.grad_norm]))
        self._window_batches += 1
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
        self._step_end += away_s

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

    def _close_window(self, trainer: pl.Trainer, task: ContrastiveTask) -> None:
        # Before a row is written: the table ends where the numbers do.
        self.check_finite(task)
        values = self._values()
        now = time.perf_counter()
        window_s = now - self._window_start
        self._train_s += window_s
        mean_loss = math.fsum(loss for loss, _ in values) / len(values)
        sums = [mean_loss, self._skipped_samples(), self._stop.requested]
        if dist.is_available() and dist.is_initialized():
            # The one meeting of the processes besides the gradients': whoever is asked to stop says so here.
            together = torch.tensor(sums, dtype=torch.float64, device=task.device)
            dist.all_reduce(together)
            sums = together.tolist()
        loss, skipped, stop = sums
        trainer.should_stop = trainer.should_stop or stop > 0
        self.latest = {
            "loss": loss / trainer.world_size,
            "chance_loss": task.chance_loss,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "logit_scale": task.model.logit_scale.exp().item(),
            "grad_norm": values[-1][1],
            "pairs_per_s": self._window_batches * task.batch_size / window_s,
            "data_wait_share": self._wait_s / window_s,
            "skipped_samples": int(skipped),
            "train_s": self._train_s,
            **task.parts_of_loss(),
        }
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=task.samples_seen)
        self._window_start, self._wait_s, self._window_batches, self._steps = now, 0.0, 0, []


class Progress(Callback):
    """The progress on stderr, of the first process: one line, drawn over, on a terminal; else a line now and then."""

    def __init__(self, meter: MetricsLogger) -> None:
        self._meter = meter
        self._bar: tqdm | None = None
        self._is_drawn = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        if not trainer.is_global_zero:
            return
        # In a file nothing is drawn over: a line left open would take in whatever is said next.
        self._is_drawn = sys.stderr.isatty()
        self._bar = tqdm(
            file=sys.stderr if self._is_drawn else io.StringIO(),
            total=pl_module.budget_samples,
            initial=pl_module.samples_seen,
            desc=pl_module.model.spec.name,
            unit=" pairs",
            unit_scale=True,
            mininterval=TERMINAL_INTERVAL_S if self._is_drawn else FILE_INTERVAL_S,
            bar_format="{desc}: {n_fmt}/{total_fmt} samples |{bar:16}| {rate_fmt}{postfix}, {remaining} left",
        )

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *args: Any) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        lengths = pl_module.new_shapes(batch)
        # All processes note the lengths they have met; only the first one speaks.
        if self._bar is None or not lengths:
            return
        text = f"compiling for captions of {' and '.join(map(str, lengths))} tokens"
        if self._is_drawn:
            self._bar.set_postfix_str(text)
        elif not self._bar.disable:
            print(f"{pl_module.model.spec.name}: {text}", file=sys.stderr)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, ContrastiveTask)
        if self._bar is not None:
            self._bar.set_postfix_str(self._text(pl_module) if self._meter.latest else "", refresh=False)
            if self._bar.update(pl_module.batch_size):
                self._print_line(self._bar)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        # Lightning tears down no callback of a run that failed; what is said next begins a line of its own.
        if self._bar is not None:
            self._print_line(self._bar)
            self._bar.close()
            self._bar = None

    def _print_line(self, bar: tqdm) -> None:
        # tqdm's own variable TQDM_DISABLE turns it off.
        if not self._is_drawn and not bar.disable:
            print(bar, file=sys.stderr)

    def _text(self, task: ContrastiveTask) -> str:
        row = self._meter.latest
        parts = [f"loss {row['loss']:.3f}"]
        if task.chance_loss is not None:
            parts[0] += f" (ln {task.batch_size} = {task.chance_loss:.2f})"
        parts += [f"lr {row['lr']:.2g}", f"data wait {row['data_wait_share']:.0%}"]
        if row["skipped_samples"]:
            parts.append(f"skipped {row['skipped_samples']:,}")
        return ", ".join(parts)
