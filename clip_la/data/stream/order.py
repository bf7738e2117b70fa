"""The order of an endless stream, as pure functions: which shard, which sample, which augmentation comes at a position.

Everything random is a hash of integers (the finaliser of splitmix64, Steele et al. 2014), so that any position can be
asked for by itself, and the answer is the same in every process, start method, platform and library version.

Words: `world_size` ranks with `workers` loader workers each make `num_streams` streams. A *unit* is a shard, or a part
of one where there are fewer shards than streams. Streams take turns in drawing units from one endless sequence; a
*block* is what a stream reads at a time, permuted inside.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64, UInt64

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
MASK = (1 << 64) - 1
DOUBLE_BITS = 53
# What a number is drawn for: keys of different uses must not coincide.
PASS, REPLACEMENT, INSIDE, MIXING, AUGMENTATION, PATCHES = range(6)


def _mix(x: UInt64[np.ndarray, "*any"]) -> UInt64[np.ndarray, "*any"]:
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * FIRST
        x = (x ^ (x >> np.uint64(27))) * SECOND
        return x ^ (x >> np.uint64(31))


def key_state(key: tuple[int, ...]) -> UInt64[np.ndarray, "1"]:
    """64 bits that stand for a key of integers."""
    state = np.zeros(1, np.uint64)
    # The key's length is part of it: (1, 2) and (1, 2, 0) must not give the same numbers.
    with np.errstate(over="ignore"):
        for number in (*key, len(key)):
            state = _mix(state + GOLDEN + np.uint64(number & MASK))
    return state


def hashed(key: tuple[int, ...], counters: Int64[np.ndarray, "*any"]) -> UInt64[np.ndarray, "*any"]:
    """64 well-mixed bits for each counter under a key of integers."""
    with np.errstate(over="ignore"):
        return _mix(key_state(key) + GOLDEN * (counters.astype(np.uint64) + np.uint64(1)))


def uniforms(key: tuple[int, ...], positions: Int64[np.ndarray, " n"], count: int) -> Float64[np.ndarray, "n {count}"]:
    """`count` numbers in [0, 1) for each position."""
    counters = positions[:, None] * count + np.arange(count, dtype=np.int64)
    return (hashed(key, counters) >> np.uint64(64 - DOUBLE_BITS)) * 2.0**-DOUBLE_BITS


def permutation(key: tuple[int, ...], size: int) -> Int64[np.ndarray, " {size}"]:
    """A random order of `range(size)`."""
    # Stable, so that two equal hashes do not leave the order to the library's version.
    return np.argsort(hashed(key, np.arange(size, dtype=np.int64)), kind="stable")


# A stream asks for the same pass once a block; two sources at a turn of passes need four.
@lru_cache(maxsize=8)
def _pass_order(seed: int, source: int, passes: int, size: int) -> Int64[np.ndarray, " {size}"]:
    return permutation((PASS, seed, source, passes), size)


@dataclass(frozen=True)
class Streams:
    """All streams of a run, and which of them this one is."""

    seed: int
    world_size: int
    workers: int
    rank: int
    worker: int

    @property
    def num_streams(self) -> int:
        return self.world_size * self.workers

    @property
    def index(self) -> int:
        return self.rank * self.workers + self.worker


@dataclass(frozen=True)
class Unit:
    """The samples `part`, `part + num_parts`, `part + 2 num_parts`, ... of shard number `shard`."""

    shard: int
    part: int
    num_parts: int


@dataclass(frozen=True)
class ShardOrder:
    """The endless sequence of units of one source, and its deal to the streams.

    Without replacement each pass is a new permutation of all units and the streams take turns in it, so that every unit
    comes once before any comes again; with replacement each draw is independent.
    """

    source: int
    num_shards: int
    block_shards: int
    replacement: bool

    def num_parts(self, streams: Streams) -> int:
        """Parts a shard is split into, so that each stream has a unit of its own."""
        return -(-streams.num_streams // self.num_shards)

    def block_units(self, streams: Streams) -> int:
        """Units a block holds: never so many that a stream would meet the same one twice in it."""
        num_units = self.num_shards * self.num_parts(streams)
        return max(1, min(self.block_shards * self.num_parts(streams), num_units // streams.num_streams))

    def pass_blocks(self, streams: Streams) -> int:
        """Blocks after which a stream has drawn its share of one pass."""
        num_units = self.num_shards * self.num_parts(streams)
        return -(-num_units // (streams.num_streams * self.block_units(streams)))

    def block(self, streams: Streams, number: int) -> list[Unit]:
        """The units of block `number` (from 0) of this stream."""
        per_block = self.block_units(streams)
        return [
            self._unit(streams, streams.index + streams.num_streams * (number * per_block + i))
            for i in range(per_block)
        ]

    def _unit(self, streams: Streams, draw: int) -> Unit:
        num_parts = self.num_parts(streams)
        num_units = self.num_shards * num_parts
        if self.replacement:
            key = (REPLACEMENT, streams.seed, self.source)
            chosen = int(hashed(key, np.array([draw]))[0] % np.uint64(num_units))
        else:
            passes, place = divmod(draw, num_units)
            chosen = int(_pass_order(streams.seed, self.source, passes, num_units)[place])
        return Unit(*divmod(chosen, num_parts), num_parts)

    def inside(self, streams: Streams, number: int, size: int) -> Int64[np.ndarray, " {size}"]:
        """The order in which the `size` samples of block `number` are taken."""
        return permutation((INSIDE, streams.seed, self.source, streams.index, number), size)


@dataclass(frozen=True)
class PoolOrder:
    """The endless order of the samples of a source in memory: each pass is one block, dealt to the streams."""

    source: int
    replacement: bool

    def block(self, streams: Streams, number: int, size: int) -> Int64[np.ndarray, " share"]:
        """Sample numbers (0 to `size` - 1) that this stream takes in pass `number`."""
        mine = np.arange(streams.index, size, streams.num_streams)
        if self.replacement:
            drawn = hashed((REPLACEMENT, streams.seed, self.source, number), mine)
            return (drawn % np.uint64(size)).astype(np.int64)
        return _pass_order(streams.seed, self.source, number, size)[mine]


@dataclass(frozen=True)
class WeightedSource:
    """Shards that are mixed as one, and their share of all samples relative to other sources' weights."""

    urls: tuple[str, ...]
    weight: float = 1.0


def choose_sources(
    streams: Streams, positions: Int64[np.ndarray, " n"], weights: tuple[float, ...]
) -> Int64[np.ndarray, " n"]:
    """Which source gives the sample at each position: independent draws by weight, so shares are of samples."""
    edges = np.cumsum(weights) / np.sum(weights)
    # Rounding can leave the last edge below 1, and a number above it.
    drawn = uniforms((MIXING, streams.seed, streams.index), positions, 1)[:, 0]
    return np.minimum(np.searchsorted(edges, drawn, side="right"), len(weights) - 1)


def sample_uniforms(
    streams: Streams, positions: Int64[np.ndarray, " n"], count: int
) -> Float64[np.ndarray, "n {count}"]:
    """The uniform numbers that decide caption and augmentation of the sample at each position of this stream."""
    return uniforms((AUGMENTATION, streams.seed, streams.index), positions, count)
