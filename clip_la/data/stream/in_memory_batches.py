"""Batches of a pool in the order of one stream, worked out a batch at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from clip_la.data.images.augment import NUM_UNIFORMS
from clip_la.data.stream.in_memory_pool import InMemoryDataset
from clip_la.data.stream.order import PoolOrder, Streams, choose_sources, sample_uniforms


class InMemoryIterator:
    """A place in the endless sequence of a source's passes, behind `offset` samples of pass `number`.

    Args:
        order: of the source's samples.
        streams: which stream this is.
        members: the numbers that the source's samples have in the pool; not fewer than there are streams.
        number, offset: where the iteration begins.
    """

    def __init__(self, order: PoolOrder, streams: Streams, members: range, number: int = 0, offset: int = 0) -> None:
        self.number = number
        self.offset = offset
        self._order = order
        self._streams = streams
        self._members = members
        self._pass = self._load()

    def take(self, count: int) -> Int64[np.ndarray, " {count}"]:
        """The numbers of the next samples."""
        taken = []
        while count:
            # A pass is left only when more is wanted, as a saved place would have it.
            if self.offset == len(self._pass):
                self.number, self.offset = self.number + 1, 0
                self._pass = self._load()
            part = self._pass[self.offset : self.offset + count]
            self.offset += len(part)
            count -= len(part)
            taken.append(part)
        return np.concatenate(taken) if taken else np.empty(0, np.int64)

    def _load(self) -> Int64[np.ndarray, " share"]:
        return self._order.block(self._streams, self.number, len(self._members)) + self._members.start


def pooled_batches(
    pool: InMemoryDataset,
    iterators: Sequence[InMemoryIterator],
    streams: Streams,
    weights: tuple[float, ...],
    batch_size: int,
    delivered: int,
) -> Iterator[dict[str, Any]]:
    """Batches without end, each by `InMemoryDataset.batch` and with its `cursor`; `delivered` samples came before."""
    while True:
        places = np.arange(delivered, delivered + batch_size)
        uniforms = sample_uniforms(streams, places, NUM_UNIFORMS)
        numbers = np.empty(batch_size, np.int64)
        chosen = choose_sources(streams, places, weights) if len(iterators) > 1 else np.zeros_like(places)
        # A source's samples keep their order in the batch, so that the place in it says which were taken.
        for i, iterator in enumerate(iterators):
            mine = chosen == i
            numbers[mine] = iterator.take(int(mine.sum()))
        delivered += batch_size
        cursor = (streams.worker, delivered, [(each.number, each.offset) for each in iterators])
        yield {**pool.batch(numbers, uniforms), "cursor": cursor}
