"""Runs a sweep: a thread for each place, fed run by run, and the table written anew after each."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_la.atomic import atomic_write
from clip_la.errors import counted
from clip_la.sweep.places import Place
from clip_la.sweep.plan import keep_manifest
from clip_la.sweep.planned_run import PlannedRun, folder_of
from clip_la.sweep.schedule import RunQueue
from clip_la.sweep.state import PLACE_NAME, drop_checkpoints, figures, is_finished, last_row, write_table
from clip_la.sweep.status import Status
from clip_la.train.lock import locked

# Which checkpoints stay when nothing of the sweep needs them any more.
KEEP = ("all", "branches", "none")


class Sweep:
    """Trains every run that is not finished, a run a place; table and status in `out` are written anew meanwhile.

    Args:
        runs: of the plan, in the order of the table.
        out: the sweep's folder.
        places: where runs train; they are closed at the end.
        num_evaluations: how many results a run has once it is finished.
        report: hears a line for each run, and one of sum each minute.
        keep: "all" checkpoints; "branches": a trunk's are deleted when its branches are finished; "none": those of
            every finished run are deleted.
        measured: folders of other sweeps whose rates predict how long the rest takes.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        out: Path,
        places: Sequence[Place],
        *,
        num_evaluations: Callable[[PlannedRun], int],
        report: Callable[[str], None],
        keep: str = "all",
        measured: Sequence[Path] = (),
    ) -> None:
        self._runs, self._out, self._places = runs, out, places
        self._report, self._keep, self._measured = report, keep, measured
        self._num_evaluations = num_evaluations
        # Held while a line is said and the table written: one thread at a time.
        self._lock = threading.RLock()
        self._faults: list[BaseException] = []
        self._is_stopped = False

    def run(self) -> list[str]:
        """Trains until nothing is left; returns the names of the runs that failed.

        Raises:
            UserError: `out` holds another sweep's runs, or another process has a sweep at work in it.
        """
        # Two sweeps would train the same runs, and each would take the other's for its own failures.
        with locked(self._out, self._report):
            return self._run()

    def _run(self) -> list[str]:
        runs, out, places = self._runs, self._out, self._places
        keep_manifest(out, runs)
        self._queue = queue = RunQueue(
            runs,
            out,
            is_finished=lambda run: is_finished(out, run, self._num_evaluations(run)),
            fail=lambda run, reason: self._say(run, f"FAILED: {reason}"),
        )
        # An earlier call may have finished them, and kept more than this one is to keep.
        if deleted := sum(self._drop_needless(run) for run in queue.finished):
            self._report(f"--keep {self._keep}: deleted {counted(deleted, 'checkpoint')} that nothing needs any more")
        todo = len(queue.waiting)
        finished = len(runs) - todo
        where = counted(len(places), "place")
        self._report(f"{counted(len(runs), 'run')}, {finished} finished already, {todo} to train on {where}")
        threads = [threading.Thread(target=self._work, args=(place,), daemon=True) for place in places[:todo]]
        status = Status(runs, out, queue, len(places), self._measured)
        try:
            for thread in threads:
                thread.start()
            status.watch(threads, self._report)
        finally:
            self._is_stopped = True
            for place in places:
                place.close()
        if self._faults:
            raise self._faults[0]
        write_table(out, runs)
        status.write()
        return [run.name for run in queue.failed]

    def _work(self, place: Place) -> None:
        """What the thread of a place does: one run after another."""
        out, queue = self._out, self._queue
        try:
            run: PlannedRun | None = None
            while (taken := queue.take(run, place.gpu)) is not None:
                run, start = taken
                if place.runs_per_gpu > 1:
                    with atomic_write(folder_of(out, run.name) / PLACE_NAME, "w") as stream:
                        json.dump({"runs_per_gpu": place.runs_per_gpu}, stream)
                if queue.is_last_try(run):
                    # No run trains on its GPU nor can begin there, so these processes have nothing to do.
                    for each in (each for each in self._places if each is place or each.gpu == place.gpu is not None):
                        each.rest()
                answer = place.train(run.name, run.arguments(out, start))
                if self._is_stopped:  # the run was ended by the sweep's own end: it is no failure
                    return
                if answer.get("out_of_memory"):
                    had_whole_gpu = answer.get("is_fresh", True) and place.runs_per_gpu == 1
                    if why := queue.put_back(run, had_whole_gpu=had_whole_gpu):
                        self._say(run, why)
                        run = None  # the process with its layers has ended
                        continue
                    alone = "no memory on the GPU with no other run of the sweep there"
                    answer["error"] = f"{alone}: {answer['error']}"
                queue.end(run, is_failed=answer["error"] is not None)
                with self._lock:
                    self._say(run, self._outcome(run, answer))
                    self._drop_needless(run)
                    write_table(out, self._runs)
        except BaseException as fault:  # a thread's own end would look like the end of its runs
            self._faults.append(fault)
            queue.close()

    def _say(self, run: PlannedRun, text: str) -> None:
        with self._lock:
            ended = len(self._queue.finished) + len(self._queue.failed)
            self._report(f"[{ended}/{len(self._runs)}] {run.name}: {text}")

    def _outcome(self, run: PlannedRun, answer: Mapping[str, Any]) -> str:
        """How a run ended, for a person: loss, rate, results; or what was wrong."""
        if answer["error"] is not None:
            return f"FAILED: {answer['error']}"
        folder = folder_of(self._out, run.name)
        last = last_row(folder)
        parts = [f"loss {float(last['loss']):.4f}", f"{float(last['pairs_per_s']):,.0f} pairs/s"] if last else []
        return ", ".join([*parts, *figures(folder), f"{answer['seconds']:.0f} s"])

    def _drop_needless(self, run: PlannedRun) -> int:
        """Deletes the checkpoints that a finished run leaves behind, as far as `keep` allows; returns how many."""
        finished, deleted = self._queue.finished, 0
        if self._keep == "none" and not run.is_trunk and run in finished:
            deleted += drop_checkpoints(self._out, run.name)
        # A trunk that is killed goes on from its newest one: they stay until the last branch is finished.
        family = [each for each in self._runs if run.trunk and run.trunk in (each.trunk, each.name)]
        if self._keep != "all" and family and all(each in finished for each in family):
            deleted += drop_checkpoints(self._out, str(run.trunk))
        return deleted


def count_evaluations(suite: str | None) -> int:
    """Results that a run evaluated on this suite has at its end. Raises UserError for a suite that cannot be read."""
    if suite is None:
        return 0
    from clip_la.zeroshot.options import read_suite

    return len(read_suite(suite)[1])
