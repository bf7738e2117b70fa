"""An iterator that runs ahead in its own thread."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
# How long closing waits for the item that is being made; a thread that is stuck longer dies with the process.
CLOSING_S = 10.0
POLL_S = 0.05


class _Failure(NamedTuple):
    error: BaseException


class _End:
    pass


class Prefetcher(Generic[T]):
    """The items of another iterable, made by a thread at most `ahead` items ahead of the consumer.

    An error of the iterable is raised where its item would have come. Call `close` when no more items are needed.
    """

    def __init__(self, items: Iterable[T], name: str, ahead: int = 1) -> None:
        self._queue: queue.Queue[T | _Failure | _End] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, args=(items,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item = self._queue.get()
            if isinstance(item, _End):
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item

    def close(self) -> None:
        """Ends the thread after the item at hand, and whoever waits for another item."""
        self._stop.set()
        deadline = time.monotonic() + CLOSING_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._drain()
            self._thread.join(POLL_S)
        while True:
            self._drain()
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(_End())
                return

    def _run(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                self._queue.put(item)
                if self._stop.is_set():
                    return
            self._queue.put(_End())
        # The consumer raises it; there may be none.
        except BaseException as error:
            self._queue.put(_Failure(error))

    def _drain(self) -> None:
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return
