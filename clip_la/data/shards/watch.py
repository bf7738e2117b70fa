"""How long a sample may take, and which sample each worker process is at, so that hangs and deaths have a name.

A decoder that sleeps is interrupted where it runs, by an alarm. One that does not come back from its C code is found by
the process that waits for it: each worker notes on a `Board` what it works on and since when.
"""

import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing.sharedctypes import RawArray
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from clip_la.data.shards import problems
from clip_la.data.shards.problems import BadSample
from clip_la.errors import UserError, printable

T = TypeVar("T")
VARIABLE = "CLIP_LA_SAMPLE_SECONDS"
DEFAULT_S = 60.0
# Beyond the limit, for the alarm to do it first.
GRACE_S = 2.0
SLOT_BYTES = 1024
_HEAD = struct.Struct("=qdqq")  # process id, seconds since when (0: at nothing), number, bytes of text


def sample_seconds() -> float:
    """The seconds that a sample may take to read and decode: CLIP_LA_SAMPLE_SECONDS, else 60.

    Raises:
        UserError: it is not a positive number.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return DEFAULT_S
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{VARIABLE} '{given}': the seconds that a sample may take are a number above 0")
    return seconds


def set_sample_seconds(seconds: float | str | None) -> None:
    """Sets the limit for this process and those it starts; None leaves it. Raises UserError unless it is positive."""
    if seconds is not None:
        os.environ[VARIABLE] = str(seconds)
    sample_seconds()


class At(NamedTuple):
    """What a process is at, or was when it died: `number` of a sample among those of its job, -1 while it reads."""

    pid: int
    since_s: float
    number: int
    shard: str
    key: str

    def __str__(self) -> str:
        return f"sample {printable(self.key)} of {self.shard}" if self.key else self.shard


class Board:
    """Memory shared between a process and its workers, a slot each; pickles on its way to a new process."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._memory = RawArray("c", slots * SLOT_BYTES)

    def claim(self, slot: int) -> None:
        """Called by a worker: this process's notes go to that slot from now on."""
        global _own
        _own = memoryview(self._memory).cast("B")[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]
        _HEAD.pack_into(_own, 0, os.getpid(), 0.0, -1, 0)

    def at(self, slot: int) -> At:
        """What the slot says."""
        start = slot * SLOT_BYTES
        pid, since_s, number, length = _HEAD.unpack_from(self._memory, start)
        first = start + _HEAD.size
        shard, _, key = bytes(self._memory[first : first + length]).decode("utf-8", "replace").partition("\0")
        return At(pid, since_s, number, shard, key)

    def clear(self, slot: int) -> None:
        """For the next worker."""
        _HEAD.pack_into(self._memory, slot * SLOT_BYTES, 0, 0.0, -1, 0)

    def of_pid(self, pid: int) -> At | None:
        """What that worker is at."""
        return next((at for at in map(self.at, range(self._slots)) if at.pid == pid), None)

    def overdue(self) -> list[At]:
        """Workers that have been at one thing longer than they may."""
        before_s = time.monotonic() - sample_seconds() - GRACE_S
        return [at for at in map(self.at, range(self._slots)) if at.pid and 0 < at.since_s < before_s]


_own: memoryview | None = None


def _is_main() -> bool:
    """Other threads, such as those that read ahead, note nothing: they would write over each other."""
    return threading.current_thread() is threading.main_thread()


def note(shard: str, key: str = "", number: int = -1) -> None:
    """Says what this process begins; its time runs from here."""
    if _own is not None and _is_main():
        text = f"{shard}\0{key}".encode("utf-8", "replace")[: SLOT_BYTES - _HEAD.size]
        _own[_HEAD.size : _HEAD.size + len(text)] = text
        _HEAD.pack_into(_own, 0, os.getpid(), time.monotonic(), number, len(text))


def rest() -> None:
    """Says that this process is at nothing that has a limit."""
    if _own is not None and _is_main():
        struct.pack_into("=d", _own, 8, 0.0)


def noted(items: Iterable[T], shard: str) -> Iterator[T]:
    """The items, with the time that it takes to get each noted as reading that shard."""
    iterator = iter(items)
    while True:
        note(shard)
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            rest()
        yield item


class _Overdue(BaseException):
    """Not an Exception: decoders catch those."""

    @classmethod
    def on_alarm(cls, *_: Any) -> None:
        raise cls


class TimeLimit:
    """A context in which one sample is made; what takes longer than `sample_seconds` raises BadSample.

    Only the main thread of a process can be interrupted; elsewhere the board alone knows.
    """

    def __init__(self, shard: str, key: str, number: int = -1) -> None:
        self._what = (shard, key, number)

    def __enter__(self) -> None:
        note(*self._what)
        self._interrupts = _is_main()
        if self._interrupts:
            self._previous = signal.signal(signal.SIGALRM, _Overdue.on_alarm)
            signal.setitimer(signal.ITIMER_REAL, sample_seconds())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        overdue = isinstance(error, _Overdue)
        if self._interrupts:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
            except _Overdue:
                # The alarm rang between the end of the work and this line: an error of the work's own counts first.
                overdue = error is None
            signal.signal(signal.SIGALRM, self._previous)
        rest()
        if overdue:
            raise took_too_long(*self._what) from None


def took_too_long(shard: str, key: str, number: int = -1) -> BadSample:
    """Names on stderr a sample that took too long; returns the error that it counts under."""
    at = At(os.getpid(), 0.0, number, shard, key)
    print(f"{at}: took more than {sample_seconds():g} s; skipped", file=sys.stderr)
    return BadSample(problems.TOOK_TOO_LONG)
