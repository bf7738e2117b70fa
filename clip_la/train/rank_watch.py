"""Processes that fall silent: stopped, cut off, killed on another machine. The job ends, and says which it was.

Collective calls wait a quarter of an hour for a process (`launched.rank_timeout`), since slow storage or an evaluation
is no fault; NCCL does not notice by itself that another machine is gone. So a thread of each process says every few
seconds that it is alive, whatever the process is busy with.
"""

import contextlib
import itertools
import os
import sys
import threading
from datetime import timedelta

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch.distributed import TCPStore

from clip_la.launched import RANK_SECONDS_VARIABLE, end_for_lost, rank_timeout

BEAT_S = 1.0
# Longer than anything that keeps Python's other threads from running; torchrun takes half a minute more to end a job.
SILENT_S = 25.0
# What is said of a process that has not begun, or has come to its end.
LEFT = "left"


class RankWatch(Callback):
    """The first process watches all others, and they watch it, from when they have met to the end of the run."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._has_failed = False
        self._speaker: threading.Thread | None = None
        # Not the speaker's own: the first process keeps it for the others, who hear of its end there.
        self._store: TCPStore | None = None
        # The last that was heard of each watched process.
        self._heard: dict[int, str] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        rank, world_size, host = trainer.global_rank, trainer.world_size, os.environ.get("MASTER_ADDR")
        if world_size == 1 or host is None:
            return
        # Whoever says how long a process waits for another one, as for a debugger, means this as well.
        silent_s = rank_timeout().total_seconds() if os.environ.get(RANK_SECONDS_VARIABLE) else SILENT_S
        store, timeout = None, timedelta(seconds=silent_s)
        if rank == 0:
            # A store of its own: the job's is held up while somebody waits in it.
            store = TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False)
            for other in range(world_size):
                store.set(str(other), LEFT)  # until it speaks
        port = trainer.strategy.broadcast(store.port if store else 0)
        try:
            store = store or TCPStore(host, port, is_master=False, timeout=timeout)
        except RuntimeError as error:
            print(f"rank {rank} is not watched: {' '.join(str(error).split())[:120]}", file=sys.stderr)
            return
        self._store = store
        watched = range(1, world_size) if rank == 0 else range(1)
        self._heard = dict.fromkeys(watched, LEFT)
        self._speaker = threading.Thread(target=self._speak, args=(store, str(rank)), daemon=True)
        self._speaker.start()
        threading.Thread(target=self._listen, args=(silent_s,), daemon=True).start()

    def _speak(self, store: TCPStore, name: str) -> None:
        """Beats. Without the first process, which keeps the store, the thread waits in it, or ends."""
        with contextlib.suppress(RuntimeError):
            for beat in itertools.count():
                store.set(name, str(beat))
                beats = store.multi_get([*map(str, self._heard)])
                self._heard = {other: beat.decode() for other, beat in zip(self._heard, beats, strict=True)}
                if self._over.wait(BEAT_S):
                    break
            # One that fails alone is lost to the others, who wait for it.
            if not self._has_failed:
                store.set(name, LEFT)

    def _listen(self, silent_s: float) -> None:
        """Ends the job where nothing new is heard of a process that has not left."""
        # In beats of this process, not by the clock: a job that is suspended as a whole goes on afterwards.
        last, unchanged = self._heard, dict.fromkeys(self._heard, 0)
        while not self._over.wait(BEAT_S):
            heard = self._heard
            for other, beat in heard.items():
                unchanged[other] = unchanged[other] + 1 if beat == last[other] != LEFT else 0
            last = heard
            silent = [other for other, beats in unchanged.items() if beats >= silent_s / BEAT_S]
            if silent:
                end_for_lost(silent, f"has been silent for {silent_s:g} s: stopped, or its machine is cut off")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._has_failed = True
        self._end()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._end()

    def _end(self) -> None:
        self._over.set()
        if self._speaker is not None:
            self._speaker.join(BEAT_S)
