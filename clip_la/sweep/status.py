"""How a sweep stands while it runs: a table, rewritten every few seconds, and a line of sum."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from clip_la.atomic import atomic_write
from clip_la.errors import counted
from clip_la.sweep.costs import Rates
from clip_la.sweep.planned_run import PlannedRun, folder_of
from clip_la.sweep.schedule import RunQueue
from clip_la.sweep.state import figures, last_row

STATUS_NAME = "status.txt"
# Between two writings of the file, and between two lines of sum.
STATUS_S, LINE_S = 5.0, 60.0


class Status:
    """Writes `OUT/status.txt`: state, samples, loss, rate and results of every run.

    Args:
        runs: all runs, in the order of the table.
        out: the sweep's folder.
        queue: knows which runs train.
        num_places: how many runs train at a time.
        measured: folders of other sweeps whose rates predict how long the rest takes.
    """

    def __init__(
        self, runs: Sequence[PlannedRun], out: Path, queue: RunQueue, num_places: int, measured: Sequence[Path]
    ) -> None:
        self._runs, self._out, self._queue = runs, out, queue
        self._num_places, self._measured = num_places, measured
        # What is at its end does not change: its files are read once.
        self._ended: dict[str, str] = {}

    def watch(self, threads: Sequence[threading.Thread], report: Callable[[str], None]) -> None:
        """Writes the table while the threads of the places are at work; `report` hears its first line each minute."""
        said_at = time.monotonic()
        for thread in threads:
            while thread.is_alive():
                text = self.write()
                if time.monotonic() - said_at >= LINE_S:
                    said_at = time.monotonic()
                    report(text)
                thread.join(STATUS_S)

    def write(self) -> str:
        """Writes the table anew; returns its first line: how many runs are finished, and how long the rest takes."""
        queue = self._queue
        states = {
            **{run.name: "finished" for run in queue.finished},
            **{run.name: "FAILED" for run in queue.failed},
            **{run.name: "training" for run in queue.running},
        }
        lines = [self._line(run, states.get(run.name, "waiting")) for run in self._runs]
        first = self._sum()
        width = max(len(run.name) for run in self._runs)
        header = f"{'run':<{width}}  {'state':<8}  {'samples':>13}  {'of':>13}  {'loss':>7}  {'pairs/s':>9}  results"
        with atomic_write(self._out / STATUS_NAME, "w") as stream:
            stream.write("\n".join([first, "", header, *lines]) + "\n")
        return first

    def _sum(self) -> str:
        queue = self._queue
        rates = Rates([*self._measured, self._out])
        left = [
            rates.seconds(run, int(last_row(folder_of(self._out, run.name)).get("samples_seen") or 0))
            for run in (*queue.running, *queue.waiting)
        ]
        known = [max(0.0, each) for each in left if each is not None]
        time = f"about {sum(known) / self._num_places / 60:.0f} min left" if left else "done"
        if len(known) < len(left):
            unknown = counted(len(left) - len(known), "run")
            time += f" without {unknown} of architectures not measured yet"
        failed = f", {len(queue.failed)} failed" if queue.failed else ""
        done = f"{len(queue.finished)} of {counted(len(self._runs), 'run')} finished{failed}"
        return f"{done}, {len(queue.running)} training, {time}"

    def _line(self, run: PlannedRun, state: str) -> str:
        if run.name in self._ended and state in ("finished", "FAILED"):
            return self._ended[run.name]
        folder = folder_of(self._out, run.name)
        last = {} if state == "waiting" else last_row(folder)
        seen, loss, rate = int(last.get("samples_seen") or 0), last.get("loss"), last.get("pairs_per_s")
        width = max(len(each.name) for each in self._runs)
        text = f"{run.name:<{width}}  {state:<8}  {seen:>13,}  {run.budget_samples:>13,}  "
        text += f"{float(loss):>7.4f}  " if loss else f"{'':>7}  "
        text += f"{float(rate):>9,.0f}  " if rate else f"{'':>9}  "
        text = (text + ", ".join(figures(folder) if state == "finished" else [])).rstrip()
        if state in ("finished", "FAILED"):
            self._ended[run.name] = text
        return text
