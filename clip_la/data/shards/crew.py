"""Runs jobs in worker processes that may hang or die: they are replaced, and the sample that stopped them is skipped.

`concurrent.futures` gives up all jobs when one process dies, and waits for ever for one that hangs.
"""

import signal
import sys
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NamedTuple, TypeVar

from clip_la.data.shards import problems
from clip_la.data.shards.spawned import Spawned
from clip_la.data.shards.watch import At, Board, sample_seconds
from clip_la.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
Skips = dict[int, str]
"""Number of a sample within its job -> why it is skipped."""
Work = Callable[[Job, Skips], Result]
POLL_S = 0.2
CLOSING_S = 2.0
# Five samples of a job, each of which is tried twice.
MAX_FAILURES = 10


class Lost(NamedTuple):
    """Stands for the result of a job that could not be done: the reason, of `problems`, and where it stopped."""

    reason: str
    at: At


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection
    slot: int


def run_jobs(work: Work[Job, Result], jobs: Sequence[Job], workers: int) -> Iterator[Result | Lost]:
    """The results of all jobs, in order, made by at most `workers` processes; with one worker, by this process.

    A process that dies or takes too long at one sample is replaced and reported on stderr. Its job starts again,
    without the sample if two processes have stopped there. A job that fails more than ten times is lost. What takes
    too long in Python, not in C, is interrupted by the process itself and costs its sample at once.

    Args:
        work: called with a job and the samples to skip; pickles. Notes its progress as in `watch`.
        jobs: pickle too.
        workers: with more than one, `work` comes from a module, not from the script that is run.

    Raises:
        UserError, OSError: `work` raised one.
    """
    if workers == 1 or not jobs:
        yield from (work(job, {}) for job in jobs)
        return
    crew = _Crew(work, jobs, min(workers, len(jobs)))
    try:
        yield from crew.results()
    finally:
        crew.close()


class _Crew(Generic[Job, Result]):
    """The processes of one `run_jobs`, one job each at a time, and what is known of every job."""

    def __init__(self, work: Work[Job, Result], jobs: Sequence[Job], num: int) -> None:
        self._work, self._jobs = work, jobs
        self._board = Board(num)
        self._todo = deque(range(len(jobs)))
        self._busy: dict[_Worker, int] = {}
        self._done: dict[int, Result | Lost] = {}
        self._failures: defaultdict[int, list[At]] = defaultdict(list)
        self._skips: defaultdict[int, Skips] = defaultdict(dict)
        self._has_answered = False
        self._workers = [self._started(slot) for slot in range(num)]

    def results(self) -> Iterator[Result | Lost]:
        for worker in self._workers:
            self._give(worker)
        for number in range(len(self._jobs)):
            while number not in self._done:
                self._wait()
            yield self._done.pop(number)

    def close(self) -> None:
        """Ends all processes, also in the middle of a job."""
        for worker in self._workers:
            worker.connection.close()
            if worker in self._busy:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(CLOSING_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _started(self, slot: int) -> _Worker:
        context = Spawned()
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._board, slot, self._work), daemon=True)
        self._board.clear(slot)
        process.start()
        # Only when no other copy of their end is open does ours see that the process has died.
        theirs.close()
        return _Worker(process, ours, slot)

    def _give(self, worker: _Worker) -> None:
        if not self._todo:
            return
        number = self._todo.popleft()
        self._busy[worker] = number
        try:
            worker.connection.send((self._jobs[number], self._skips[number]))
        except OSError:  # it died before it had anything to do
            self._failed(worker, is_overdue=False)

    def _wait(self) -> None:
        ready = wait([worker.connection for worker in self._busy], POLL_S)
        for worker in [worker for worker in self._busy if worker.connection in ready]:
            try:
                answer = worker.connection.recv()
            except (EOFError, OSError):
                self._failed(worker, is_overdue=False)
            else:
                self._take(worker, answer)
        overdue = {at.pid for at in self._board.overdue()}
        for worker in [worker for worker in self._busy if worker.process.pid in overdue]:
            worker.process.kill()
            self._failed(worker, is_overdue=True)

    def _take(self, worker: _Worker, answer: tuple[str, Any]) -> None:
        kind, value = answer
        if kind == "user error":
            raise UserError(value)
        if kind == "machine":
            raise value
        if kind == "error":
            raise RuntimeError(f"in a worker process:\n{value}")
        self._has_answered = True
        self._done[self._busy.pop(worker)] = value
        self._give(worker)

    def _failed(self, worker: _Worker, *, is_overdue: bool) -> None:
        number = self._busy.pop(worker)
        worker.process.join()
        worker.connection.close()
        at, ending = self._board.at(worker.slot), end_of(worker.process.exitcode)
        how = f"took more than {sample_seconds():g} s" if is_overdue else f"the worker {ending}"
        reason = problems.TOOK_TOO_LONG if is_overdue else problems.WORKER_DIED
        if not (at.shard or self._has_answered):
            raise UserError(f"worker processes do not start: one {ending}; try with 1 worker")
        earlier = self._failures[number]
        earlier.append(at)
        if is_lost := len(earlier) > MAX_FAILURES or (is_overdue and at.number < 0):
            self._done[number] = Lost(reason, at)
        else:
            # Once may come from outside, such as a machine short of memory; twice at one sample is its own doing.
            if any(at.number == other.number >= 0 for other in earlier[:-1]):
                self._skips[number][at.number] = reason
            self._todo.appendleft(number)
        what = "given up" if is_lost else "begun again"
        print(f"{str(at) or 'a shard'}: {how}; the shard is {what}", file=sys.stderr)
        self._workers.remove(worker)
        self._workers.append(self._started(worker.slot))
        self._give(self._workers[-1])


def end_of(exitcode: int | None) -> str:
    """How a process ended, in words."""
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with code {exitcode}"


def _serve(connection: Connection, board: Board, slot: int, work: Work[Any, Any]) -> None:
    """The life of a worker. It ends with its parent, whose end of the connection closes."""
    # A terminal's Ctrl-C reaches all processes; the parent decides what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    board.claim(slot)
    while True:
        try:
            job, skips = connection.recv()
        except (EOFError, OSError):
            return
        # Errors travel as plain values: an exception with arguments of its own may not survive pickling.
        answer: tuple[str, Any]
        try:
            answer = ("result", work(job, skips))
        except UserError as error:
            answer = ("user error", str(error))
        except OSError as error:  # the machine's state, such as a full disk
            answer = ("machine", OSError(error.errno, error.strerror or str(error), error.filename))
        except Exception:
            answer = ("error", traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:  # nobody is left who waits for it
            return
