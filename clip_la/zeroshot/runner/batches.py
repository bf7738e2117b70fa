"""Images in batches of fixed size, over any number of ranks and worker processes, each image exactly once.

A unit is `batch_size` consecutive records of one source. Consumers share units, and a resumed evaluation skips
them whole. The last unit of a source is padded and unreadable images leave a gap, so every batch has the same shape,
and an image's digits depend neither on its neighbours nor on the number of processes.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from clip_la import distributed as ranks
from clip_la.data.shards.problems import TOOK_TOO_LONG, BadSample
from clip_la.data.shards.watch import At, TimeLimit
from clip_la.data.stream.watched_loader import WatchedLoader, WorkerDied
from clip_la.errors import UserError
from clip_la.zeroshot.datasets.records import Record, RecordSource, Skipped
from clip_la.zeroshot.runner.rows import Unit

Preprocess = Callable[[Image.Image | bytes], Tensor]
NO_FILE = "unreadable file"
# A batch of 128 images of 224 pixels is 19 MB in uint8, held by each worker: one ahead is enough to keep a GPU fed.
PREFETCH_BATCHES = 1
# Workers that die in one pass before it is given up.
MAX_DEATHS = 20


@dataclass
class ImageBatch:
    """One unit. Entry i of `keys` and `labels` belongs to row `rows[i]` of `images`; all other rows are zeros.

    `positions` counts the records of the source; `skipped` is (position, key, reason). `error` is a UserError's text
    from a worker process, which cannot raise it through the loader without a traceback in the message.
    """

    unit: Unit
    images: Tensor | None = None
    rows: list[int] = field(default_factory=list)
    labels: list[tuple[int, ...]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    captions: list[tuple[str, ...]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    skipped: list[tuple[int, str, str]] = field(default_factory=list)
    error: str | None = None

    def pin_memory(self) -> "ImageBatch":
        """Called by the loader: page-locked pixels go to an accelerator while it computes."""
        if self.images is not None:
            self.images = self.images.pin_memory()
        return self

    def unit_rows(self) -> dict[str, Any]:
        """The fields that all kinds of `UnitRows` have."""
        source, count = self.unit[0], len(self.positions)
        return {
            "sources": np.full(count, source, dtype=np.int32),
            "positions": np.array(self.positions, dtype=np.int64),
            "units": np.array([self.unit], dtype=np.int64),
            "skipped": tuple((source, *entry) for entry in self.skipped),
        }

    def padded_labels(self) -> Int64[Tensor, "rows labels"]:
        """The accepted labels of each row that holds an image, its own first, padded with -1."""
        width = max(map(len, self.labels), default=0)
        return torch.tensor([(*own, *[-1] * (width - len(own))) for own in self.labels])


def share_of(num_sources: int, consumer: int, num_consumers: int) -> list[tuple[int, int, int]]:
    """What one of several consumers reads: (source, its turn, turns); it takes the units u with u % turns == turn.

    With more sources than consumers a source has one reader; otherwise readers share a source and each decodes only its
    own units of it.
    """
    # A source costs reading up to one's own units, so it is shared only where some would have none.
    if num_sources >= num_consumers:
        return [(source, 0, 1) for source in range(consumer, num_sources, num_consumers)]
    source = consumer % num_sources
    return [(source, consumer // num_sources, len(range(source, num_consumers, num_sources)))]


class UnitStream(IterableDataset):
    """The units of the consumers of this rank; each worker process is a consumer.

    `left_out` has, by name of the source and position, why an image is skipped without being read again.
    """

    def __init__(
        self,
        sources: Sequence[RecordSource],
        preprocess: Preprocess,
        batch_size: int,
        done: frozenset[Unit] = frozenset(),
    ) -> None:
        self.sources, self.preprocess, self.batch_size, self.done = sources, preprocess, batch_size, done
        self.left_out: dict[tuple[str, int], str] = {}
        self.rank, self.world_size = ranks.rank(), ranks.world_size()

    def __iter__(self) -> Iterator[ImageBatch]:
        worker = get_worker_info()
        workers, own = (worker.num_workers, worker.id) if worker else (1, 0)
        # Rank first: with fewer sources than consumers the sources spread over the ranks.
        consumer, consumers = own * self.world_size + self.rank, workers * self.world_size
        for source, turn, turns in share_of(len(self.sources), consumer, consumers):
            try:
                records = enumerate(self.sources[source].records())
                number = 0
                while chunk := list(islice(records, self.batch_size)):
                    unit = (source, number)
                    if number % turns == turn and unit not in self.done:
                        yield self._decoded(unit, chunk)
                    number += 1
            except UserError as error:
                # Number -1 is no unit: it is never counted as done.
                yield ImageBatch((source, -1), error=str(error))
                return

    def _decoded(self, unit: Unit, chunk: Sequence[tuple[int, Record | Skipped]]) -> ImageBatch:
        batch = ImageBatch(unit)
        source = self.sources[unit[0]]
        # What messages call it: its address, if it has one.
        name = str(getattr(source, "url", None) or getattr(source, "path", None) or f"source {unit[0]}")
        pixels: list[Tensor] = []
        for row, (position, record) in enumerate(chunk):
            try:
                if isinstance(record, Skipped):
                    raise BadSample(record.reason)
                if (name, position) in self.left_out:
                    raise BadSample(self.left_out[name, position])
                with TimeLimit(name, record.key, position):
                    try:
                        data = record.read()
                    except OSError as error:
                        raise BadSample(NO_FILE) from error
                    pixels.append(self.preprocess(data))
            except BadSample as bad:
                batch.skipped.append((position, record.key, bad.reason))
                continue
            batch.rows.append(row)
            batch.labels.append(record.labels)
            batch.keys.append(record.key)
            batch.captions.append(record.captions)
            batch.positions.append(position)
        if pixels:
            batch.images = pixels[0].new_zeros(self.batch_size, *pixels[0].shape)
            for row, image in zip(batch.rows, pixels, strict=True):
                batch.images[row] = image
        return batch


def image_batches(
    sources: Sequence[RecordSource],
    preprocess: Preprocess,
    *,
    batch_size: int,
    num_workers: int,
    done: frozenset[Unit] = frozenset(),
    pin_memory: bool = False,
) -> Iterator[ImageBatch]:
    """This rank's units that are not `done`, in no particular order.

    A worker that dies, or takes too long over one image, is reported on stderr, and the workers start again with what
    is left. They skip an image that took too long or at which two workers have died.

    Raises:
        UserError: what a source raised, also in a worker process; or workers that die again and again.
    """
    stream = UnitStream(sources, preprocess, batch_size, done)
    deaths: list[At] = []
    finished: set[Unit] = set()
    while True:
        loader = WatchedLoader(
            stream,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=PREFETCH_BATCHES if num_workers else None,
            pin_memory=pin_memory,
            # Of its own: a loader draws a number, and an evaluation must not move the random state of a training.
            generator=torch.Generator(),
        )
        try:
            for batch in loader:
                if batch.error is not None:
                    raise UserError(batch.error)
                finished.add(batch.unit)
                yield batch
            return
        except WorkerDied as died:
            place, times = (died.at.shard, died.at.number), sum(at[2:4] == died.at[2:4] for at in deaths)
            deaths.append(died.at)
            # Where nothing can be skipped, a third attempt would fare no better.
            if times > 1 or len(deaths) > MAX_DEATHS or (died.reason == TOOK_TOO_LONG and died.at.number < 0):
                raise UserError(f"{died}; what was finished is kept, the same command goes on from there") from died
            if died.at.number >= 0 and (times or died.reason == TOOK_TOO_LONG):
                stream.left_out[place] = died.reason
            print(f"{died}; going on", file=sys.stderr)
            stream.done = done | finished
