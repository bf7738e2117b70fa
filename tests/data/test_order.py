"""The order is a pure function with the properties it promises."""

from collections import Counter

import numpy as np
import pytest

from clip_la.data.stream.order import PoolOrder, ShardOrder, Streams, choose_sources, hashed, permutation, uniforms


def all_streams(world_size, workers, seed=5):
    return [Streams(seed, world_size, workers, rank, worker) for rank in range(world_size) for worker in range(workers)]


def splitmix64(state):
    """Steele, Lea and Flood 2014, in plain integers."""
    mask = (1 << 64) - 1
    z = state & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


def test_hash_is_splitmix64_over_key_then_counter():
    state, golden = 0, 0x9E3779B97F4A7C15
    for number in (7, -3, 2):  # the key, then its length
        state = splitmix64(state + golden + number)
    expected = [splitmix64(state + golden * (counter + 1)) for counter in (0, 1, 10**12)]
    assert hashed((7, -3), np.array([0, 1, 10**12])).tolist() == expected


def test_uniforms_are_uniform_and_independent_of_what_is_asked_with_them():
    numbers = uniforms((1, 2), np.arange(40_000), 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.abs(numbers.mean(0) - 0.5).max() < 4 * 12**-0.5 / 200
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 4 / 200
    assert np.array_equal(uniforms((1, 2), np.array([31, 7]), 3), numbers[[31, 7]])


def test_permutations_hold_each_number_once():
    assert sorted(permutation((1,), 101)) == list(range(101))
    assert not np.array_equal(permutation((1,), 101), permutation((2,), 101))


@pytest.mark.parametrize(
    ("num_shards", "world_size", "workers", "block_shards"), [(12, 2, 3, 1), (5, 2, 3, 1), (1, 2, 2, 3), (24, 2, 2, 3)]
)
def test_each_unit_comes_once_a_pass(num_shards, world_size, workers, block_shards):
    order = ShardOrder(0, num_shards, block_shards, replacement=False)
    streams = all_streams(world_size, workers)
    parts = order.num_parts(streams[0])
    assert num_shards * parts >= len(streams)
    # The streams' blocks of units, put back into the order in which the units were dealt.
    per_block = order.block_units(streams[0])
    num_blocks = 3 * parts * num_shards // per_block
    dealt = {
        s.index + s.num_streams * (number * per_block + i): unit
        for s in streams
        for number in range(num_blocks)
        for i, unit in enumerate(order.block(s, number))
    }
    units = num_shards * parts
    for first in range(0, 3 * units, units):
        seen = [(dealt[i].shard, dealt[i].part) for i in range(first, first + units)]
        assert sorted(seen) == [(shard, part) for shard in range(num_shards) for part in range(parts)]
    for s in streams:
        for number in range(num_blocks):
            assert len(order.block(s, number)) == per_block


def test_replacement_draws_independently():
    order = ShardOrder(0, 6, 1, replacement=True)
    (stream,) = all_streams(1, 1)
    counts = Counter(order.block(stream, number)[0].shard for number in range(6000))
    assert set(counts) == set(range(6))
    assert all(abs(count - 1000) < 5 * 29 for count in counts.values())
    firsts = [order.block(stream, number)[0].shard for number in range(6)]
    assert len(set(firsts)) < 6


def test_a_pool_is_dealt_whole_each_pass():
    order = PoolOrder(0, replacement=False)
    streams = all_streams(2, 2)
    passes = [np.concatenate([order.block(s, number, 43) for s in streams]) for number in range(2)]
    assert all(sorted(each) == list(range(43)) for each in passes)
    assert not np.array_equal(*passes)


def test_sources_are_chosen_by_weight():
    (stream,) = all_streams(1, 1)
    chosen = choose_sources(stream, np.arange(30_000), (1.0, 3.0, 2.0))
    shares = np.bincount(chosen, minlength=3) / 30_000
    assert np.abs(shares - np.array([1, 3, 2]) / 6).max() < 0.012
    assert np.array_equal(choose_sources(stream, np.array([17, 4]), (1.0, 3.0, 2.0)), chosen[[17, 4]])
