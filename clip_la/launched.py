"""How a process that torchrun started ends after an error: with one line for the whole job, which names a lost rank.

torchrun answers any exit code but 0 with a traceback of its own and a table, some thirty lines, and its own code 1;
nothing a process can return changes that. So the one process that reports an error to the user also ends its launcher,
by a signal that torchrun does not handle, and then the processes beside it. That is done on one machine only, and only
where the parent is torchrun itself; elsewhere the line comes once and torchrun's words follow.
"""

import contextlib
import errno
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, NoReturn

from clip_la.errors import EXIT_CODE, UserError, shown

_PARENT = os.getppid()
_PROC = Path("/proc")
_LAUNCHERS = re.compile(
    rb"(^|[/\0])torchrun\0|\0torch\.distributed\.(run|launch)\0|/torch/distributed/(run|launch)\.py\0"
)
_SIGNAL = signal.SIGUSR1
_POLL_S = 0.02
_claim: socket.socket | None = None  # held until this process ends
# How long the others get: to see the end by themselves, after SIGTERM, after SIGKILL.
_ENDING_S = ((None, 1.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0))
# How long a process waits for the one that has spoken to end it.
_WAITING_S = 15.0
# What a collective call raises when a process of the job is gone or silent: of gloo, NCCL, and their sockets.
_LOST = re.compile(
    r"gloo|nccl|connection (was )?(likely )?(closed|reset)|closed by peer|timed out waiting|broken pipe", re.I
)
_PLACES = re.compile(r"\[[^\]]*\]:?\S*")
GONE = "is gone: killed, or out of memory"
SIGNAL_EXIT_CODE = 128
RANK_SECONDS_VARIABLE = "CLIP_LA_RANK_SECONDS"
DEFAULT_RANK_S = 900.0
# How many jobs share the cores of this machine: what starts several beside each other, as a sweep does, sets it.
SHARED_BY_VARIABLE = "CLIP_LA_CORES_SHARED_BY"


def core_share() -> int:
    """The cores that this process may use, divided among the jobs that share them; one at least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get(SHARED_BY_VARIABLE, "1")))


def rank_timeout() -> timedelta:
    """How long a process waits for another one of its job: CLIP_LA_RANK_SECONDS, else 15 minutes.

    Raises UserError where the variable holds no number of seconds above 0.
    """
    given = os.environ.get(RANK_SECONDS_VARIABLE)
    if not given:
        return timedelta(seconds=DEFAULT_RANK_S)
    try:
        waited = timedelta(seconds=float(given))
    except (ValueError, OverflowError):
        waited = timedelta(0)
    if waited <= timedelta(0):
        raise UserError(
            f"{RANK_SECONDS_VARIABLE} is {shown(given)}: give the seconds that ranks wait for each other, a number "
            f"above 0, or leave it out ({DEFAULT_RANK_S:g})"
        )
    return waited


def speaks() -> bool:
    """Whether this process reports an error to the user: the first of its job to ask does."""
    global _claim
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends in any case, and is not to be cut short
        if _is_orphan():  # another one has spoken, and ended the launcher
            return False
        parts = (os.environ.get(f"TORCHELASTIC_{part}", "") for part in ("RUN_ID", "RESTART_COUNT"))
        job = (str(_PARENT), *parts)
    else:
        # With --devices the first process starts the others, which have a LOCAL_RANK.
        job = ("devices", str(_PARENT if os.environ.get("LOCAL_RANK", "0") != "0" else os.getpid()))
    if _claim is not None:
        return True
    # Whoever binds the name first has it until it ends; torchrun's own store would answer its end with warnings.
    try:
        _claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        _claim.bind("\0clip-la-error-" + "-".join(job))
    except OSError as error:
        _claim = None
        # Where there are no such names at all, the first rank speaks.
        return error.errno != errno.EADDRINUSE and os.environ.get("RANK", "0") == "0"
    return True


def end_job() -> None:
    """After the error was printed: ends torchrun and the processes beside this one, where that can be done."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.environ.get("GROUP_WORLD_SIZE") != "1" or not _Process(_PARENT).is_launcher:
        return
    others = [process for process in _Process.beside().values() if process.pid != os.getpid()]
    os.kill(_PARENT, _SIGNAL)
    if not _wait(lambda: os.getppid() != _PARENT, _ENDING_S[1][1]):
        return  # the first process of a container takes no such signal
    for number, seconds in _ENDING_S:
        for process in others:
            if number is not None and process.is_running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
        if _wait(lambda: not any(process.is_running for process in others), seconds):
            return


def wait_for_end() -> None:
    """For a process that is not to speak: by exiting first it would make torchrun speak."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    _wait(_is_orphan, _WAITING_S)


def end_for_lost(ranks: list[int], how: str) -> NoReturn:
    """Ends this process and the job, as far as it can reach, because other ranks are lost; from any thread.

    The line comes once, whoever else finds them lost.
    """
    if speaks():
        print(f"clip-la: error: {_report_of(ranks, how)}", file=sys.stderr, flush=True)
        end_job()
    else:
        wait_for_end()
    # The main thread waits in a collective call that does not end.
    os._exit(EXIT_CODE)


def lost_rank(error: Exception) -> str | None:
    """The report of a collective call that failed because another process is gone or silent; None for other errors."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or not _LOST.search(str(error)):
        return None
    if gone := _gone():
        return _report_of(gone, GONE)
    stopped = [rank for rank, process in _Process.beside().items() if process.state in "Tt"]
    seen = _PLACES.sub("", str(error).partition(". ")[0].partition("\n")[0]).strip()
    how = f"does not answer (seen by rank {os.environ.get('RANK', '0')}: {seen})"
    return _report_of(stopped, how)


def listen() -> None:
    """Under torchrun: has this process report the one that is gone when torchrun, for that, ends it by SIGTERM."""

    def end(number: int, frame: object) -> None:
        gone = _gone()
        if gone and speaks():
            print(f"clip-la: error: {_report_of(gone, GONE)}", file=sys.stderr, flush=True)
        # No clean-up: collective calls of the others would be waited for.
        os._exit(SIGNAL_EXIT_CODE + number)

    if "TORCHELASTIC_RUN_ID" in os.environ and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


def _report_of(ranks: list[int], how: str) -> str:
    """The report of these ranks; without any, of "another rank"."""
    who = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}" if ranks else "another rank"
    return (
        f"{who} of {os.environ['WORLD_SIZE']} {how}; what was saved is whole: the same command, for a training with "
        "--resume, goes on from there"
    )


def _gone() -> list[int]:
    """The ranks of this machine that have ended; none where /proc does not show them."""
    alive = _Process.beside()
    first = int(os.environ.get("RANK", "0")) - int(os.environ.get("LOCAL_RANK", "0"))
    own = range(first, first + int(os.environ.get("LOCAL_WORLD_SIZE", "0")))
    return [rank for rank in own if rank not in alive] if alive else []


def _is_orphan() -> bool:
    """Also of a parent that ended before this module was read: the first process stands in for it."""
    return os.getppid() != _PARENT or (_PARENT == 1 and not _Process(1).is_launcher)


class _Process(NamedTuple):
    """A process of this machine as /proc shows it; where there is no /proc, none is running."""

    pid: int

    def read(self, name: str) -> bytes:
        try:
            return (_PROC / str(self.pid) / name).read_bytes()
        except OSError:
            return b""

    @property
    def state(self) -> str:
        """One letter: R, S, D, T (stopped), Z (ended); X for no process."""
        # The name before it, in brackets, may hold spaces and brackets of its own.
        fields = self.read("stat").rpartition(b")")[2].split()
        return fields[0].decode() if fields else "X"

    @property
    def parent(self) -> int:
        fields = self.read("stat").rpartition(b")")[2].split()
        return int(fields[1]) if len(fields) > 1 else 0

    @property
    def is_running(self) -> bool:
        return self.state not in "ZX"

    @property
    def is_launcher(self) -> bool:
        """Is it torchrun, however that was started?"""
        return bool(_LAUNCHERS.search(self.read("cmdline") + b"\0"))

    @classmethod
    def beside(cls) -> "dict[int, _Process]":
        """Rank -> process of those running that the same torchrun has started here, this one included."""
        own = os.environ.get("TORCHELASTIC_RUN_ID", "").encode()
        found = {}
        names = [path.name for path in _PROC.iterdir()] if _PROC.is_dir() else []
        for process in (cls(int(name)) for name in names if name.isdigit()):
            if not process.is_running or process.parent != _PARENT:
                continue
            environment = dict(entry.partition(b"=")[::2] for entry in process.read("environ").split(b"\0"))
            if environment.get(b"TORCHELASTIC_RUN_ID") == own and environment.get(b"RANK", b"").isdigit():
                found[int(environment[b"RANK"])] = process
        return found


def _wait(is_done: Callable[[], bool], seconds: float) -> bool:
    """Whether it is done in time."""
    deadline = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
