"""A DataLoader that notices workers that hang or die, and says what they were at."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import wait
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from clip_la.data.shards import problems
from clip_la.data.shards.crew import end_of
from clip_la.data.shards.watch import At, Board, sample_seconds

POLL_S = 1.0
# A forked process may come to a stop before its first line: another thread held a lock that nobody opens in the copy.
# One that is spawned imports torch first, which takes a busy machine half of this.
BEGIN_S = 60.0
# A process gives up its connections before it has ended.
DYING_S = 10.0
# As PyTorch words them.
_TIMED_OUT = re.compile(r"DataLoader timed out")
_DIED = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)")


class WorkerDied(Exception):
    """A loader's worker is gone. `at` says what it was at, `reason` is of `problems`; the text says both."""

    def __init__(self, at: At, reason: str, how: str) -> None:
        super().__init__(f"{str(at) or 'a loader process'}: {how}")
        self.at = at
        self.reason = reason


class WatchedLoader(DataLoader):
    """As DataLoader; iterating raises WorkerDied within seconds of a worker's end, or of one that is killed because it
    has been at one sample longer than `watch.sample_seconds`. Its other workers end with the iterator.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        *,
        num_workers: int,
        worker_init_fn: Callable[[int], None] | None = None,
        **options: Any,
    ) -> None:
        self._board = Board(num_workers)
        super().__init__(
            dataset,
            num_workers=num_workers,
            worker_init_fn=partial(_begin, self._board, worker_init_fn) if num_workers else None,
            timeout=POLL_S if num_workers else 0,
            **options,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        iterator, begun_by = self._started(), time.monotonic() + BEGIN_S
        killed: set[int] = set()
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if _TIMED_OUT.match(str(error)):
                    killed |= self._kill_overdue()
                    if time.monotonic() > begun_by:
                        self._kill_unbegun(iterator)
                    continue
                died = _DIED.match(str(error))
                if died is None:
                    raise
                raise self._death(iterator, [int(pid) for pid in died[1].split(",")], killed) from error
            except (OSError, EOFError) as error:
                # The pixels of a batch are fetched from the worker that made it.
                pids = self._dead(iterator)
                if not pids:
                    raise
                raise self._death(iterator, pids, killed) from error
            yield batch

    def _started(self) -> Any:
        """PyTorch's iterator, without its handler that raises an error of a dead worker in the middle of anything."""
        is_main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGCHLD)
        iterator = super().__iter__()
        if is_main and before is not None:
            signal.signal(signal.SIGCHLD, before)
        for process in getattr(iterator, "_workers", ()):
            # SIGKILL: they ignore SIGTERM (see `_ignore_interrupts`), and nothing waits for them.
            process._popen.terminate = process._popen.kill
        return iterator

    def check_worker_number_rationality(self) -> None:
        """Says nothing of more workers than cores: training warns where batches are waited for, the reason to care."""

    def _kill_overdue(self) -> set[int]:
        pids = {at.pid for at in self._board.overdue()}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return pids

    def _kill_unbegun(self, iterator: Any) -> None:
        """Kills the workers that have not claimed a slot, which then count as dead, not as slow at a sample."""
        begun = {self._board.at(slot).pid for slot in range(self.num_workers)}
        for process in getattr(iterator, "_workers", ()):
            if process.pid not in begun and process.is_alive():
                process.kill()

    @staticmethod
    def _dead(iterator: Any) -> list[int]:
        """The workers that have ended, soon after something of theirs was found missing."""
        processes = getattr(iterator, "_workers", ())
        ending = wait([process.sentinel for process in processes], DYING_S)
        for process in processes:
            if process.sentinel in ending:
                process.join(DYING_S)
        return [process.pid for process in processes if process.exitcode]

    def _death(self, iterator: Any, pids: list[int], killed: set[int]) -> WorkerDied:
        pid = next((pid for pid in pids if pid in killed), pids[0])
        at = self._board.of_pid(pid) or At(pid, 0.0, -1, "", "")
        if pid in killed:
            return WorkerDied(at, problems.TOOK_TOO_LONG, f"took more than {sample_seconds():g} s")
        codes = {process.pid: process.exitcode for process in getattr(iterator, "_workers", ())}
        if self._board.of_pid(pid) is None:
            return WorkerDied(at, problems.WORKER_DIED, f"the loader process did not begin ({end_of(codes.get(pid))})")
        # What it had finished with is not what it died of.
        at = at if at.since_s else At(pid, 0.0, -1, "", "")
        return WorkerDied(at, problems.WORKER_DIED, f"the loader process {end_of(codes.get(pid))}")


def _begin(board: Board, also: Callable[[int], None] | None, worker: int) -> None:
    board.claim(worker)
    if also is not None:
        also(worker)
