"""`ShardStream`: an endless, seeded stream of batches that can stop at any batch and resume at the very next sample.

Each loader worker of each rank reads its own blocks (see `order`). Every batch carries the cursor behind it, so the
saved position is that of the last batch trained on, whatever was prefetched.
"""

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from clip_la.data.images.augment import NUM_UNIFORMS, Augmentation
from clip_la.data.shards.problems import NOTICES, Problem, log_problem
from clip_la.data.shards.sources import GIB, ShardOpener, open_shard
from clip_la.data.stream.blocks import BlockIterator, BlockReader, ReadAhead, ShardBlockReader
from clip_la.data.stream.encoded import DeferredDecoder
from clip_la.data.stream.in_memory import Filled, load_in_memory
from clip_la.data.stream.in_memory_batches import InMemoryIterator, pooled_batches
from clip_la.data.stream.in_memory_pool import DEFAULT_POOL_GB
from clip_la.data.stream.order import PoolOrder, ShardOrder, Streams, WeightedSource, choose_sources, sample_uniforms
from clip_la.data.stream.position import Position, RankState
from clip_la.data.stream.sample_iterator import SampleIterator, check_bad_share, nothing_usable
from clip_la.data.stream.samples import Limits, SampleDecoder
from clip_la.data.text.captions import Captions
from clip_la.data.text.tokenizer import CaptionEncoder, order_of
from clip_la.errors import UserError

Batch = dict[str, Any]


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
    same. Without an augmentation there are raw samples instead, one by one, as `read_samples` gives them and with a
    cursor: `{"__key__", "__url__", "jpg", "txt", ..., "cursor"}`; a StreamPipeline takes them on from there.

    Args:
        sources: what to read; with several, each sample's source is drawn by weight.
        rank, world_size: this process and how many there are; given by the caller, never guessed.
        workers: loader workers of a rank; 0 reads in the training process.
        seed: of the order, the choice of captions and the augmentation.
        batch_size: samples in a batch, of this rank.
        captions: where captions are, and how one of several is chosen.
        augmentation: size of the images and what is varied in them; None gives raw samples.
        limits: which images are used.
        tokenizer, context_length: as for `get_tokenizer`.
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
        rank: int,
        world_size: int,
        workers: int,
        seed: int,
        batch_size: int = 1,
        captions: Captions = Captions(),  # noqa: B008 (frozen)
        augmentation: Augmentation | None = None,
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
        self.sources = tuple(sources)
        self._batch_size = batch_size
        self.rank = rank
        self._world_size = world_size
        self.workers = max(workers, 1)
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
        self._device_fraction = device_decode_fraction
        self._read_ahead = read_ahead
        self._opener = opener
        self.start = start or RankState.fresh(self.workers, len(self.sources))
        if in_memory and augmentation is None:
            raise UserError("a stream from memory holds decoded images: give it an augmentation, or stream raw samples")

    @property
    def order_options(self) -> dict[str, Any]:
        """All that decides the order besides the shards and their weights: the other fields of a StreamLayout."""
        return {
            "seed": self._seed,
            "world_size": self._world_size,
            "workers": self.workers,
            "block_shards": self._block_shards,
            "replacement": self._replacement,
            "in_memory": self.in_memory,
        }

    def starting_at(self, state: RankState) -> "ShardStream":
        """The same stream from another position on."""
        other = copy.copy(self)
        other.start = RankState.from_plain(state.to_plain())
        return other

    def __iter__(self) -> Iterator[Batch | StreamFailure]:
        info = get_worker_info()
        if info is not None and info.num_workers != self.workers:
            raise ValueError(f"a stream for {self.workers} workers cannot be read by {info.num_workers}")
        # A DataLoader always asks its worker 0 first, but the next batch may be due from another.
        yield from self.of_worker(((info.id if info else 0) + self.start.next_worker) % self.workers)

    def of_worker(self, worker: int) -> Iterator[Batch | StreamFailure]:
        """The batches of one worker of this rank."""
        streams = Streams(self._seed, self._world_size, self.workers, self.rank, worker)
        batches = self._pooled if self.in_memory else self._batches if self._augmentation else self._raw_samples
        try:
            yield from batches(streams, self.start.positions[worker])
        except UserError as error:
            # PyTorch would hand on an error of a worker as text of many lines inside another one.
            yield StreamFailure(str(error))

    def _batches(self, streams: Streams, position: Position) -> Iterator[Batch]:
        lost: list[Problem] = []
        decoder = self._decoder()
        blocks, sources = self._iterators(streams, position, decoder.sample, lost)
        encode = CaptionEncoder(self._tokenizer, self._context_length)
        weights = tuple(source.weight for source in self.sources)
        delivered = position.delivered
        while True:
            places = np.arange(delivered, delivered + self._batch_size)
            uniforms = sample_uniforms(streams, places, NUM_UNIFORMS)
            chosen = choose_sources(streams, places, weights) if len(sources) > 1 else np.zeros_like(places)
            # One after another, each to the end: a sample that is skipped moves its source on, and the next one of the
            # same source must see that.
            samples = [sources[i].next_sample(own) for i, own in zip(chosen, uniforms.tolist(), strict=True)]
            delivered += self._batch_size
            cursor = (streams.worker, delivered, [(each.number, each.offset) for each in blocks])
            tokens, ids = encode([sample.caption for sample in samples])
            yield {
                **decoder.images(samples, uniforms),
                "tokens": tokens,
                "caption_id": ids,
                **order_of(tokens),
                "keys": [sample.key for sample in samples],
                "shards": [sample.shard for sample in samples],
                "cursor": cursor,
                **self._losses(lost),
            }
            lost.clear()

    def _explain(self, source: WeightedSource, bad: Counter[str]) -> str:
        return nothing_usable(source.urls, self._captions.fields, self._opener, bad)

    def _raw_samples(self, streams: Streams, position: Position) -> Iterator[dict[str, Any]]:
        lost: list[Problem] = []
        blocks, sources = self._iterators(streams, position, lambda sample, uniforms: sample, lost)
        weights = tuple(source.weight for source in self.sources)
        for place in itertools.count(position.delivered):
            chosen = choose_sources(streams, np.array([place]), weights)[0] if len(sources) > 1 else 0
            sample = sources[chosen].next_sample(())
            # A user's own functions see samples alone, so what is lost between them goes to the log.
            for problem in lost:
                log_problem(problem)
            lost.clear()
            yield {**sample, "cursor": (streams.worker, place + 1, [(each.number, each.offset) for each in blocks])}

    def _iterators(
        self, streams: Streams, position: Position, decode: Callable[[Any, Sequence[float]], Any], lost: list[Problem]
    ) -> tuple[list[BlockIterator], list[SampleIterator]]:
        """For each source its blocks, which know the place in it, and its usable samples; losses are put in `lost`."""
        blocks, samples = [], []
        for i, (source, place) in enumerate(zip(self.sources, position.places, strict=True)):
            order = ShardOrder(i, len(source.urls), self._block_shards, self._replacement)
            reader: BlockReader = ShardBlockReader(order, streams, source.urls, self._opener)
            blocks.append(BlockIterator(ReadAhead(reader) if self._read_ahead else reader, *place))
            explain = partial(self._explain, source)
            samples.append(SampleIterator(blocks[-1], decode, lost, self._bad_share_limit, explain))
        return blocks, samples

    def _decoder(self) -> SampleDecoder:
        assert self._augmentation is not None
        if self._device_fraction:
            return DeferredDecoder(self._captions, self._augmentation, self._limits, self._device_fraction)
        return SampleDecoder(self._captions, self._augmentation, self._limits)

    def _pooled(self, streams: Streams, position: Position) -> Iterator[Batch]:
        filled = self._filled(streams)
        iterators = [
            InMemoryIterator(PoolOrder(i, self._replacement), streams, members, *place)
            for i, (members, place) in enumerate(zip(filled.members, position.places, strict=True))
        ]
        # Every stream of the run holds the same pool; the first one alone reports what was lost.
        is_first = streams.index == 0 and not position.delivered
        lost = list(itertools.chain.from_iterable(filled.problems)) if is_first else []
        weights = tuple(source.weight for source in self.sources)
        for batch in pooled_batches(filled.pool, iterators, streams, weights, self._batch_size, position.delivered):
            if self._pool_device is None:
                batch["image"] = batch.pop("pooled").images()
            yield {**batch, **self._losses(lost)}
            lost.clear()

    def _filled(self, streams: Streams) -> Filled:
        assert self._augmentation is not None
        filled = load_in_memory(
            [source.urls for source in self.sources],
            self._captions,
            self._augmentation,
            self._limits,
            self._opener,
            tokenizer=self._tokenizer,
            context_length=self._context_length,
            max_bytes=self._pool_gb * GIB,
            device=self._pool_device,
            keep_in=self._opener.cache_dir if isinstance(self._opener, ShardOpener) else None,
        )
        for source, members, found in zip(self.sources, filled.members, filled.problems, strict=True):
            bad = Counter(problem.reason for problem in found if problem.reason not in NOTICES)
            if not members:
                raise UserError(self._explain(source, bad))
            check_bad_share(bad, len(members) + bad.total(), self._bad_share_limit)
            if len(members) < streams.num_streams:
                raise UserError(f"{len(members)} samples cannot be dealt to {streams.num_streams} workers")
        return filled

    @staticmethod
    def _losses(lost: Sequence[Problem]) -> dict[str, Any]:
        return {
            "skipped": dict(Counter(problem.reason for problem in lost)),
            "problems": [(problem.reason, problem.shard, problem.key) for problem in lost],
        }
