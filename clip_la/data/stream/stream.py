"""`ShardStream`: an endless, seeded stream of batches that can stop at any batch and resume at the very next sample.

Each loader worker of each rank reads its own blocks (see `order`). Every batch carries the cursor behind it, so the
saved position is that of the last batch trained on, whatever was prefetched.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from clip_la.data.images.augment import NUM_DRAWS, Augmentation
from clip_la.data.shards.problems import NOTICES, Problem
from clip_la.data.shards.sources import open_shard
from clip_la.data.stream.blocks import BlockIterator, BlockReader, ReadAhead, ShardBlockReader
from clip_la.data.stream.encoded import EncodedRows
from clip_la.data.stream.in_memory import DEFAULT_POOL_GB, GIB, Filled, load_in_memory
from clip_la.data.stream.in_memory_batches import InMemoryIterator, pooled_batches
from clip_la.data.stream.order import PoolOrder, ShardOrder, Streams, choose_sources, draws_for_samples
from clip_la.data.stream.sample_iterator import SampleIterator, check_bad_share, nothing_usable
from clip_la.data.stream.samples import Limits, StreamedRows
from clip_la.data.text.captions import Captions
from clip_la.data.text.tokenizer import CaptionEncoder, order_of
from clip_la.errors import UserError

Batch = dict[str, Any]


@dataclass(frozen=True)
class WeightedSource:
    """Shards that are mixed as one, and their share of all samples relative to other sources' weights."""

    urls: tuple[str, ...]
    weight: float = 1.0


@dataclass
class Position:
    """Where one stream stands: samples delivered, and block and offset in each source."""

    delivered: int = 0
    places: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class RankState:
    """Where all streams of one rank stand, and which of its workers delivers the next batch."""

    next_worker: int
    positions: list[Position]

    @classmethod
    def fresh(cls, workers: int, num_sources: int) -> "RankState":
        """The state before the first batch."""
        return cls(0, [Position(0, [(0, 0)] * num_sources) for _ in range(workers)])

    def consumed(self, batch: Batch) -> None:
        """Moves on to the position after `batch`."""
        worker, delivered, places = batch["cursor"]
        self.positions[worker] = Position(delivered, [(block, offset) for block, offset in places])
        self.next_worker = (worker + 1) % len(self.positions)

    def to_plain(self) -> dict[str, Any]:
        """Numbers and lists only, for a checkpoint."""
        positions = [[p.delivered, [list(place) for place in p.places]] for p in self.positions]
        return {"next_worker": self.next_worker, "positions": positions}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "RankState":
        """What `to_plain` gave."""
        positions = [Position(delivered, [(b, o) for b, o in places]) for delivered, places in plain["positions"]]
        return cls(plain["next_worker"], positions)


@dataclass(frozen=True)
class StreamFailure:
    """What a stream yields instead of a batch when it fails: exceptions lose their shape between processes."""

    message: str


class ShardStream(IterableDataset):
    """Batches without end from shards, for a DataLoader with `batch_size=None` and exactly `workers` workers.

    Order is a function of `seed`, `world_size`, `workers` and position alone. A batch is a dict:
    image UInt8[batch, 3, size, size]; tokens Int64[batch, longest], zero-padded; caption_id Int64[batch], equal for
    equal captions; by_length Int64[batch] and sorted_lengths, see `order_of`; keys and shards, lists of str; cursor;
    skipped, a dict of counts by reason since this stream's last batch; problems, a list of (reason, shard, key) of the
    same.

    Args:
        sources: what to read; with several, each sample's source is drawn by weight.
        batch_size: samples in a batch, of this rank.
        rank, world_size: this process and how many there are; given by the caller, never guessed.
        workers: loader workers of a rank; 0 reads in the training process.
        block_shards: shards that are shuffled together.
        replacement: draw shards independently instead of in passes.
        in_memory: decode everything once into memory; each pass is then one block.
        pool_gb: GiB of decoded pixels that this may take.
        pool_device: a GPU whose memory is meant, if it has room; batches then hold `pooled`, for a DeviceDecoder,
            instead of `image`.
        bad_share_limit: share of samples tried that may be unusable, in [0, 1].
        device_decode_fraction: the share of plain JPEGs that is left encoded; if above 0, batches hold `encoded`, for a
            DeviceDecoder, instead of `image`.
        read_ahead: read the next block in the background, at the price of holding two.
        opener: opens a shard.
        start: where to begin; None is the beginning.
    """

    def __init__(
        self,
        sources: Sequence[WeightedSource],
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        workers: int,
        seed: int,
        captions: Captions,
        augmentation: Augmentation,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        tokenizer: str = "clip",
        context_length: int = 77,
        block_shards: int = 1,
        replacement: bool = False,
        in_memory: bool = False,
        pool_gb: float = DEFAULT_POOL_GB,
        pool_device: torch.device | None = None,
        bad_share_limit: float = 0.1,
        device_decode_fraction: float = 0.0,
        read_ahead: bool = False,
        opener: Callable[[str], IO[bytes]] = open_shard,
        start: RankState | None = None,
    ) -> None:
        self._sources = tuple(sources)
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._workers = max(workers, 1)
        self._seed = seed
        self._captions = captions
        self._augmentation = augmentation
        self._limits = limits
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._block_shards = block_shards
        self._replacement = replacement
        self.in_memory = in_memory
        self._pool_gb = pool_gb
        self._pool_device = pool_device
        self._bad_share_limit = bad_share_limit
        self._leave_jpegs = device_decode_fraction
        self._read_ahead = read_ahead
        self._opener = opener
        self._start = start or RankState.fresh(self._workers, len(self._sources))

    def __iter__(self) -> Iterator[Batch | StreamFailure]:
        info = get_worker_info()
        if info is not None and info.num_workers != self._workers:
            raise ValueError(f"a stream for {self._workers} workers cannot be read by {info.num_workers}")
        # A DataLoader always asks its worker 0 first, but the next batch may be due from another.
        yield from self._of_worker(((info.id if info else 0) + self._start.next_worker) % self._workers)

    def by_turns(self) -> Iterator[Batch | StreamFailure]:
        """The batches of all workers of this rank, in the order in which a loader's processes would deliver them."""
        workers = [self._of_worker(worker) for worker in range(self._workers)]
        for turn in itertools.count(self._start.next_worker):
            batch = next(workers[turn % self._workers])
            yield batch
            if isinstance(batch, StreamFailure):
                return

    def _of_worker(self, worker: int) -> Iterator[Batch | StreamFailure]:
        streams = Streams(self._seed, self._world_size, self._workers, self._rank, worker)
        batches = self._pooled if self.in_memory else self._batches
        try:
            yield from batches(streams, self._start.positions[worker])
        except UserError as error:
            yield StreamFailure(str(error))

    def _batches(self, streams: Streams, position: Position) -> Iterator[Batch]:
        lost: list[Problem] = []
        rows_of, blocks = self._streamed(streams)
        walks = [BlockIterator(b, *place) for b, place in zip(blocks, position.places, strict=True)]
        feeds = [
            SampleIterator(walk, rows_of.row, lost, self._bad_share_limit, partial(self._explain, source))
            for walk, source in zip(walks, self._sources, strict=True)
        ]
        encode = CaptionEncoder(self._tokenizer, self._context_length)
        weights = tuple(source.weight for source in self._sources)
        delivered = position.delivered
        while True:
            places = np.arange(delivered, delivered + self._batch_size)
            draws = draws_for_samples(streams, places, NUM_DRAWS)
            chosen = choose_sources(streams, places, weights) if len(feeds) > 1 else np.zeros_like(places)
            rows = [feeds[i].next_row(numbers) for i, numbers in zip(chosen, draws.tolist(), strict=True)]
            delivered += self._batch_size
            cursor = (streams.worker, delivered, [(walk.number, walk.offset) for walk in walks])
            tokens, ids = encode([row.caption for row in rows])
            yield {
                **rows_of.pictures(rows, draws),
                "tokens": tokens,
                "caption_id": ids,
                **order_of(tokens),
                "keys": [row.key for row in rows],
                "shards": [row.shard for row in rows],
                "cursor": cursor,
                **_told(lost),
            }
            lost.clear()

    def _explain(self, source: WeightedSource, bad: Counter[str]) -> str:
        return nothing_usable(source.urls, self._captions.fields, self._opener, bad)

    def _streamed(self, streams: Streams) -> tuple[StreamedRows, list[BlockReader]]:
        blocks: list[BlockReader] = []
        for i, source in enumerate(self._sources):
            order = ShardOrder(i, len(source.urls), self._block_shards, self._replacement)
            read = ShardBlockReader(order, streams, source.urls, self._opener)
            blocks.append(ReadAhead(read) if self._read_ahead else read)
        return self._rows(), blocks

    def _rows(self) -> StreamedRows:
        if self._leave_jpegs:
            return EncodedRows(self._captions, self._augmentation, self._limits, self._leave_jpegs)
        return StreamedRows(self._captions, self._augmentation, self._limits)

    def _pooled(self, streams: Streams, position: Position) -> Iterator[Batch]:
        filled = self._filled(streams)
        walks = [
            InMemoryIterator(PoolOrder(i, self._replacement), streams, members, *place)
            for i, (members, place) in enumerate(zip(filled.members, position.places, strict=True))
        ]
        # Every stream of the run holds the same pool; the first one alone reports what was lost.
        is_first = streams.index == 0 and not position.delivered
        lost = list(itertools.chain.from_iterable(filled.problems)) if is_first else []
        weights = tuple(source.weight for source in self._sources)
        for batch in pooled_batches(filled.pool, walks, streams, weights, self._batch_size, position.delivered):
            if self._pool_device is None:
                batch["image"] = batch.pop("pooled").images()
            yield {**batch, **_told(lost)}
            lost.clear()

    def _filled(self, streams: Streams) -> Filled:
        filled = load_in_memory(
            [source.urls for source in self._sources],
            self._captions,
            self._augmentation,
            self._limits,
            self._opener,
            tokenizer=self._tokenizer,
            context_length=self._context_length,
            max_bytes=self._pool_gb * GIB,
            device=self._pool_device,
            keep_in=self._opener.cache_dir,
        )
        for source, members, found in zip(self._sources, filled.members, filled.problems, strict=True):
            bad = Counter(problem.reason for problem in found if problem.reason not in NOTICES)
            if not members:
                raise UserError(self._explain(source, bad))
            check_bad_share(bad, len(members) + bad.total(), self._bad_share_limit)
            if len(members) < streams.num_streams:
                raise UserError(f"{len(members)} samples cannot be dealt to {streams.num_streams} workers")
        return filled


def _told(lost: Sequence[Problem]) -> dict[str, Any]:
    return {
        "skipped": dict(Counter(problem.reason for problem in lost)),
        "problems": [(problem.reason, problem.shard, problem.key) for problem in lost],
    }
