"""The DataLoader of a ShardStream. Free of Lightning, so that spawned loader processes start in little time."""

import itertools
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clip_la.data.shards.problems import TOOK_TOO_LONG
from clip_la.data.stream.prefetch import Prefetcher
from clip_la.data.stream.stream import ShardStream, StreamFailure
from clip_la.data.stream.watched_loader import WatchedLoader, WorkerDied
from clip_la.errors import UserError

if TYPE_CHECKING:  # loader processes have no use for it
    from clip_la.data.stream.device import DeviceDecoder, Timer
    from clip_la.data.stream.pipeline import StreamPipeline

# Tensors that are small: between processes each tensor costs a connection of its own, an array travels with the rest.
SMALL = ("tokens", "caption_id", "by_length")
# Names of the background threads.
COLLECTING, DECODING = "collecting thread", "decoding thread"


class ShardLoader(WatchedLoader):
    """Batches of a stream, from its workers by turns. A stream from memory has no use for worker processes.

    Args:
        stream: what to read: the batches of a ShardStream, or the items of a StreamPipeline.
        start_method: of the worker processes, "fork", "spawn" or "forkserver"; the platform's own if None.
        prefetch_batches: how many batches each worker makes ahead.
        decoder: puts batches on a device, in background threads that work a batch ahead each; without one they come as
            the workers made them.
        timed: called with the name of each part of the work; the part runs inside the context that it returns.

    Raises (while iterating):
        UserError: the stream failed (its message, one line), or a worker died or hung.
    """

    def __init__(
        self,
        stream: "ShardStream | StreamPipeline",
        *,
        workers: int,
        start_method: str | None = None,
        prefetch_batches: int = 2,
        decoder: "DeviceDecoder | None" = None,
        timed: "Timer" = nullcontext,
    ) -> None:
        if stream.in_memory:
            workers = 0
        self._stream = stream
        super().__init__(
            stream,
            batch_size=None,
            collate_fn=_packed,
            num_workers=workers,
            multiprocessing_context=start_method if workers else None,
            prefetch_factor=prefetch_batches if workers else None,
            worker_init_fn=_ignore_interrupts,
        )
        self._decoder = decoder
        self._timed = timed

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        in_process = self._stream.in_memory or (not self.num_workers and self._stream.workers > 1)
        batches = self._collected(self._by_turns() if in_process else super().__iter__())
        if self._decoder is None:
            yield from batches
            return
        staged = Prefetcher(map(self._decoder.stage, batches), COLLECTING)
        finished = Prefetcher(map(self._decoder.finish, self._waited_for(staged)), DECODING)
        try:
            yield from map(self._decoder.hand_over, self._waited_for(finished))
        finally:
            # The first one first: its end is what the second one may be waiting for.
            staged.close()
            finished.close()

    def _by_turns(self) -> Iterator[Any]:
        """The items of all workers, made in this process, in the order in which processes would deliver them."""
        workers = [self._stream.of_worker(worker) for worker in range(self._stream.workers)]
        for turn in itertools.count(self._stream.start.next_worker):
            item = next(workers[turn % len(workers)])
            yield item
            if isinstance(item, StreamFailure):
                return

    def _collected(self, batches: Iterator[Any]) -> Iterator[Any]:
        try:
            for batch in self._waited_for(batches, "wait for workers"):
                if isinstance(batch, StreamFailure):
                    raise UserError(batch.message)
                for name in SMALL if isinstance(batch, dict) else ():
                    if not isinstance(batch[name], Tensor):
                        batch[name] = torch.from_numpy(batch[name])
                yield batch
        except WorkerDied as died:
            mend = "take the sample out" if died.reason == TOOK_TOO_LONG else "fewer workers take less memory"
            raise UserError(f"{died}; {mend}; a run goes on from its newest checkpoint with --resume") from died

    def _waited_for(self, items: Any, name: str = "wait for a batch") -> Iterator[Any]:
        iterator = iter(items)
        while True:
            with self._timed(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item


def _ignore_interrupts(worker: int) -> None:
    """A terminal's Ctrl-C reaches all processes, torchrun's or Slurm's SIGTERM too; what to do about it is for the
    training process to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _packed(batch: Any) -> Any:
    if not isinstance(batch, dict):
        return batch
    return {name: value.numpy() if name in SMALL else value for name, value in batch.items()}
