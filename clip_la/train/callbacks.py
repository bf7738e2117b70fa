"""What happens around the steps: the progress line, and stopping when asked to."""

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from tqdm import tqdm

from clip_la.train.hardware import is_first_process
from clip_la.train.meter import MetricsLogger
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

    Attributes:
        signal: that this process was asked by, the first if there were several; None for no request.
    """

    def __init__(self) -> None:
        self._requested_at_s: float | None = None
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        """Whether this process has been asked to stop."""
        return self.signal is not None

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
            self._requested_at_s, self.signal = now_s, number
            if is_first_process():
                # Not through sys.stderr, whose lock the interrupted code may hold.
                os.write(STDERR_FILENO, b"\nstopping after the running step; once more ends at once\n")
        elif now_s - self._requested_at_s > SAME_REQUEST_S:
            raise KeyboardInterrupt


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
        lengths = self._meter.new_lengths
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
        if row["compile_s"]:
            parts.append(f"compiled {row['compile_s']:.0f} s")
        if row["mfu"] is not None:
            parts.append(f"MFU {row['mfu']:.0%}")
        parts.append(f"{row['peak_gib']:.1f} GiB")
        if row["skipped_samples"]:
            parts.append(f"skipped {row['skipped_samples']:,}")
        return ", ".join(parts)
