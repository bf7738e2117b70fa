"""A test set's batches, decoded by as many workers as its size is worth; small sets stay decoded for the next model.

A process that evaluates run after run, as a sweep's worker does, would start loader processes and decode the same
images each time, which takes longer than a small model takes to encode them.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from clip_la import distributed as ranks
from clip_la.data.shards.problems import TOOK_TOO_LONG, WORKER_DIED
from clip_la.fingerprint import settled_states
from clip_la.zeroshot.datasets.records import Content, EvalDataset, RecordSource
from clip_la.zeroshot.runner.batches import NO_FILE, ImageBatch, Preprocess, image_batches
from clip_la.zeroshot.runner.rows import Unit

# Of decoded images that a process keeps.
MAX_BYTES = 1 << 30
# Of a test set's files for each worker: a thousand images of 40 pixels, or forty photographs. Starting a process takes
# longer than decoding fewer.
BYTES_PER_WORKER = 4 << 20
# These may not happen again, so a set in which they did is read anew.
PASSING = {TOOK_TOO_LONG, WORKER_DIED, NO_FILE}


@dataclass(frozen=True)
class _Decoded:
    """All units of a rank, and what they follow from: files, sources with their labels, preparation, sizes."""

    recipe: tuple[Any, ...]
    batches: tuple[ImageBatch, ...]
    num_bytes: int


class DecodedSets:
    """Decoded test sets, those used last; together at most `max_bytes` of pixels."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        # The one used last is at the end.
        self._sets: list[_Decoded] = []

    def find(self, recipe: tuple[Any, ...]) -> tuple[ImageBatch, ...] | None:
        """The batches under this recipe; None where there are none."""
        for number, own in enumerate(self._sets):
            if own.recipe == recipe:
                self._sets.append(self._sets.pop(number))
                return own.batches
        return None

    def keep(self, recipe: tuple[Any, ...], batches: Sequence[ImageBatch]) -> None:
        """Keeps batches that take at most `max_bytes`; the sets that were not used for longest make room."""
        size = sum(map(pixel_bytes, batches))
        while self._sets and sum(own.num_bytes for own in self._sets) + size > self._max_bytes:
            self._sets.pop(0)
        self._sets.append(_Decoded(recipe, tuple(batches), size))

    def clear(self) -> None:
        """Forgets all."""
        self._sets.clear()

    def passing_through(self, batches: Iterable[ImageBatch], recipe: tuple[Any, ...]) -> Iterator[ImageBatch]:
        """The batches as they come; once all have come they are kept, if they are few enough, uint8 and sound."""
        copies: list[ImageBatch] | None = []
        size = 0
        for batch in batches:
            yield batch
            size += pixel_bytes(batch)
            is_sound = not PASSING.intersection(reason for *_, reason in batch.skipped)
            if batch.images is not None and batch.images.dtype != torch.uint8:
                is_sound = False
            if copies is None or not is_sound or size > self._max_bytes:
                copies = None
                continue
            # A copy in this process's own memory: a worker's is shared and holds an open file, a pinned one is scarce.
            copies.append(replace(batch, images=None if batch.images is None else batch.images.clone()))
        if copies is not None:
            self.keep(recipe, copies)


# One for the process: models come and go, and each evaluation opens its test set anew.
DECODED = DecodedSets()


def pixel_bytes(batch: ImageBatch) -> int:
    """Bytes that a batch's images take."""
    return 0 if batch.images is None else batch.images.nbytes


def worker_count(test_set: EvalDataset, num_workers: int | None) -> int:
    """The number given, else this rank's share of the cores, but no more than the test set's size is worth, one at
    least. The size of files that are elsewhere is not known; they are worth all."""
    if num_workers is not None:
        return num_workers
    most = ranks.default_workers()
    if not isinstance(test_set.content, Content) or not all(map(os.path.isfile, test_set.content.urls)):
        return most
    num_bytes = sum(map(os.path.getsize, test_set.content.urls)) // ranks.world_size()
    return min(most, -(-num_bytes // BYTES_PER_WORKER) or 1)


def decoded_batches(
    test_set: EvalDataset,
    preprocess: Preprocess,
    *,
    batch_size: int,
    num_workers: int | None,
    done: frozenset[Unit] = frozenset(),
    pin_memory: bool = False,
) -> Iterator[ImageBatch]:
    """`image_batches` of a test set, from memory where this process has decoded it before and its files are unchanged.

    Files that changed within the last seconds are not settled, and those that are elsewhere cannot be compared: they
    are read each time.

    Args:
        num_workers: processes that read and decode; None: `worker_count`.

    Raises:
        UserError: as image_batches.
    """
    sources: tuple[RecordSource, ...] = test_set.sources
    files = test_set.content.urls if isinstance(test_set.content, Content) else ()
    states = settled_states(files)
    recipe = (states, sources, preprocess, batch_size, ranks.rank(), ranks.world_size())
    kept = DECODED.find(recipe) if states else None
    if kept is not None:
        for batch in kept:
            if batch.unit not in done:
                # Of its own: pinning replaces the pixels.
                yield replace(batch).pin_memory() if pin_memory else batch
        return
    decoded = image_batches(
        sources,
        preprocess,
        batch_size=batch_size,
        num_workers=worker_count(test_set, num_workers),
        done=done,
        pin_memory=pin_memory,
    )
    # Of a set of which some is done already, not all comes.
    if not states or done:
        yield from decoded
        return
    yield from DECODED.passing_through(decoded, recipe)
    if settled_states(files) != states:
        # They changed while they were read: some batches may be of the new state.
        DECODED.clear()
