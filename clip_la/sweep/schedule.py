"""Which run of a sweep comes next: what a place has compiled first, then trunks and plain runs, the longest first."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from clip_la.sweep.costs import training_flops
from clip_la.sweep.plan import PlannedRun
from clip_la.sweep.state import start_of

# Between looks for the checkpoint that a running trunk writes.
POLL_S = 1.0
Fail = Callable[[PlannedRun, str], None]


class RunQueue:
    """The runs of a sweep that wait, train, are finished or failed; for the threads of several places.

    Long runs first: a long one begun last would train alone while the other places stand idle. A branch leaves its
    trunk's checkpoint as soon as that is written, while the trunk goes on. A place goes on with runs of the same
    layers, a trunk's branches for one: its process has them compiled.

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
        self.finished = [run for run in runs if not run.is_trunk and is_finished(run)]
        self.waiting = [run for run in runs if not run.is_trunk and run not in self.finished]
        # A trunk is needed for branches that lack their checkpoint, and for nothing else.
        needed = {run.trunk for run in self.waiting if run.trunk and start_of(out, run, is_trunk_at_work=False) is None}
        for run in (run for run in runs if run.is_trunk):
            (self.waiting if run.name in needed else self.finished).append(run)
        self.waiting.sort(key=lambda run: (run.trunk is not None, -training_flops(run)))

    def take(self, before: PlannedRun | None = None) -> tuple[PlannedRun, Path | None] | None:
        """The next run and the checkpoint that it branches from; waits for one, None where there will be none.

        `before` is what the place trained last: runs of the same layers are preferred.
        """
        with self._changed:
            while self.waiting and not self._is_closed:
                for run in sorted(self.waiting, key=lambda run: before is not None and run.layers != before.layers):
                    start = self._start(run) if run.trunk else None
                    if run in self.waiting and (start or not run.trunk):
                        self.waiting.remove(run)
                        self.running.append(run)
                        return run, start
                if self.waiting:
                    self._changed.wait(POLL_S)
            return None

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
            self.running.remove(run)
            (self.failed if is_failed else self.finished).append(run)
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing is given out any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
