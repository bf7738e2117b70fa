"""Which run of a sweep comes next: of the first grid, what a place has compiled, trunks and plain runs, the longest."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from clip_la.errors import counted
from clip_la.sweep.costs import training_flops
from clip_la.sweep.planned_run import PlannedRun
from clip_la.sweep.state import start_of

# Between looks for the checkpoint that a running trunk writes.
POLL_S = 1.0
# How often a run that found no memory on its GPU is put back into the queue.
MAX_RETRIES = 2
Fail = Callable[[PlannedRun, str], None]


class RunQueue:
    """The runs of a sweep that wait, train, are finished or failed; for the threads of several places.

    The runs of the first grid come before those of the second: a sweep that is cut off has whole grids. Within a grid
    long runs come first: a long one begun last would train alone while the other places stand idle. A branch leaves its
    trunk's checkpoint as soon as that is written, while the trunk goes on. A place goes on with
    runs of the same layers, then of the same data, such as a trunk's branches: its process has compiled and decoded
    these.

    A run that found no memory on its GPU waits behind all others, until fewer runs are on a GPU than stood beside it;
    the last time until none is, and none joins it.

    Args:
        runs: all runs of the sweep.
        out: its folder.
        is_finished: whether a run that is no trunk has been trained and evaluated.
        fail: is called with each branch that cannot start, and the reason.
    """

    def __init__(
        self, runs: Sequence[PlannedRun], out: Path, is_finished: Callable[[PlannedRun], bool], fail: Fail
    ) -> None:
        self._out, self._fail = out, fail
        self._changed = threading.Condition(threading.RLock())
        self._is_closed = False
        self.running: list[PlannedRun] = []
        self.failed: list[PlannedRun] = []
        # By name of a run that trains: its GPU, and the most others of the sweep that were there at a time.
        self._gpus: dict[str, str | None] = {}
        self._beside: dict[str, int] = {}
        # By name of a run that found no memory: how often, and how many others a GPU may have for it to start.
        self._retries: Counter[str] = Counter()
        self._allowed: dict[str, int] = {}
        self.finished = [run for run in runs if not run.is_trunk and is_finished(run)]
        self.waiting = [run for run in runs if not run.is_trunk and run not in self.finished]
        # A trunk is needed for branches that lack their checkpoint, and for nothing else.
        needed = {run.trunk for run in self.waiting if run.trunk and start_of(out, run, is_trunk_at_work=False) is None}
        for run in (run for run in runs if run.is_trunk):
            (self.waiting if run.name in needed else self.finished).append(run)
        # `take` puts the grids in order.
        self.waiting.sort(key=lambda run: (run.trunk is not None, -training_flops(run)))

    def take(self, before: PlannedRun | None = None, gpu: str | None = None) -> tuple[PlannedRun, Path | None] | None:
        """The next run and the checkpoint that it branches from; waits for one, None where there will be none.

        `before` is what the place trained last: runs of the same layers, then of the same data are preferred. `gpu` is
        the place's, which other places may share; None: its own.
        """

        def order(run: PlannedRun) -> tuple[bool, int, bool, bool]:
            # A process keeps one corpus decoded: runs that change it each time would decode it each time.
            last = before or run
            return self._retries[run.name] > 0, run.grid, run.layers != last.layers, run.data != last.data

        with self._changed:
            while self.waiting and not self._is_closed:
                for run in sorted(self.waiting, key=order):
                    if not self._has_room(run, gpu):
                        continue
                    start = self._start(run) if run.trunk else None
                    if run in self.waiting and (start or not run.trunk):
                        self.waiting.remove(run)
                        self.running.append(run)
                        self._gpus[run.name] = gpu
                        on_gpu = [run.name, *self._others(gpu, run)]
                        for name in on_gpu:
                            self._beside[name] = max(self._beside.get(name, 0), len(on_gpu) - 1)
                        return run, start
                if self.waiting:
                    self._changed.wait(POLL_S)
            return None

    def _others(self, gpu: str | None, run: PlannedRun) -> list[str]:
        """The runs that train on a GPU, but for `run`."""
        return [each for each, own in self._gpus.items() if gpu is not None and own == gpu and each != run.name]

    def _has_room(self, run: PlannedRun, gpu: str | None) -> bool:
        """Whether a GPU may have memory for a run, as far as those tell that found none."""
        others = self._others(gpu, run)
        # One at its last try is the only one there: it would fail for what a newcomer takes.
        is_reserved = any(self._retries[name] == MAX_RETRIES for name in others)
        return not is_reserved and len(others) <= self._allowed.get(run.name, len(others))

    def _start(self, branch: PlannedRun) -> Path | None:
        """Where a branch starts, None as long as it has to wait; one that waits for nothing has failed."""
        if any(run.name == branch.trunk for run in self.waiting):
            return None
        at_work = any(run.name == branch.trunk for run in self.running)
        start = start_of(self._out, branch, is_trunk_at_work=at_work)
        if at_work or start:
            return start
        self.waiting.remove(branch)
        self.failed.append(branch)
        if any(run.name == branch.trunk for run in self.failed):
            self._fail(branch, f"its trunk failed: see {branch.trunk}")
        else:
            why = f"its trunk {branch.trunk} has no checkpoint up to {branch.leaves_at:,} samples"
            self._fail(branch, f"{why}: a budget below those it was trained for needs another --out")
        return None

    def end(self, run: PlannedRun, *, is_failed: bool) -> None:
        """Marks a run that `take` gave as finished or failed."""
        with self._changed:
            self._leave(run)
            (self.failed if is_failed else self.finished).append(run)
            self._changed.notify_all()

    def put_back(self, run: PlannedRun, *, had_whole_gpu: bool) -> str | None:
        """Puts a run that `take` gave and that found no memory on its GPU behind the others; says why, for a person.

        None where another try would find no more: no run of the sweep was beside it, nor, as `had_whole_gpu` says,
        what earlier ones had left in processes; or it was the last try. The run then still counts as running: `end` it.
        """
        with self._changed:
            beside = self._beside[run.name]
            if (not beside and had_whole_gpu) or self.is_last_try(run):
                return None
            self._leave(run)
            # Where no run was beside it, only a GPU without idle processes can have more.
            self._retries[run.name] = self._retries[run.name] + 1 if beside else MAX_RETRIES
            self._allowed[run.name] = 0 if self._retries[run.name] == MAX_RETRIES else max(0, beside - 1)
            self.waiting.append(run)
            self._changed.notify_all()
        if beside:
            return f"no memory on the GPU beside {counted(beside, 'other run')}: again later"
        return "no memory on the GPU beside what earlier runs left in their processes: again without these"

    def is_last_try(self, run: PlannedRun) -> bool:
        """Whether a run has been put back so often that it fails if it finds no memory now; the GPU is its alone."""
        return self._retries[run.name] == MAX_RETRIES

    def _leave(self, run: PlannedRun) -> None:
        self.running.remove(run)
        del self._gpus[run.name], self._beside[run.name]

    def close(self) -> None:
        """Nothing is given out any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
