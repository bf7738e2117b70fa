"""Decodes the shards of a small corpus into one pool: by processes or threads, or from what an earlier run has kept."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Hashable, Sequence
from itertools import chain, islice
from typing import IO, NamedTuple

import torch

from clip_la.data.images.augment import Augmentation
from clip_la.data.images.limits import Limits
from clip_la.data.shards.problems import Problem
from clip_la.data.shards.reader import read_samples
from clip_la.data.shards.sources import GIB
from clip_la.data.stream.in_memory_decode import can_travel, decode_shards, num_processes
from clip_la.data.stream.in_memory_pool import DEFAULT_POOL_GB, Crops, InMemoryDataset
from clip_la.data.stream.in_memory_store import DecodedStore
from clip_la.data.text.captions import Captions
from clip_la.launched import core_share

# The pool is found here as well, with what fills it.
__all__ = ["DEFAULT_POOL_GB", "GIB", "Crops", "Filled", "InMemoryDataset", "forget_pool", "load_in_memory"]


class Filled(NamedTuple):
    """A sealed pool, and for each source the numbers of its samples and what could not be used."""

    pool: InMemoryDataset
    members: tuple[range, ...]
    problems: tuple[tuple[Problem, ...], ...]


def load_in_memory(
    sources: Sequence[tuple[str, ...]],
    captions: Captions,
    augmentation: Augmentation,
    limits: Limits,
    opener: Callable[[str], IO[bytes]],
    *,
    tokenizer: str = "clip",
    context_length: int = 77,
    max_bytes: float = DEFAULT_POOL_GB * GIB,
    device: torch.device | None = None,
    keep_in: str | None = None,
) -> Filled:
    """Decodes the shards of each source into one pool, which lies on `device` if that is a GPU with room for it.

    The last pool is kept: runs that follow each other in one process on the same, unchanged shards share it. With a
    folder `keep_in`, pools of local shards are kept there, for other processes and later runs.
    """
    # Size and time of change tell another state of a local file.
    states = [os.stat(url) if os.path.isfile(url) else None for urls in sources for url in urls]
    stamps = tuple(state and (state.st_size, state.st_mtime_ns) for state in states)
    sealed = (tokenizer, context_length, device)
    recipe = (tuple(sources), stamps, captions, augmentation, limits, opener, max_bytes, sealed, keep_in)
    if recipe not in _LAST:
        # First: a second one would not fit beside it where each fills the memory that was allowed.
        _LAST.clear()
        _LAST[recipe] = _fill(*recipe)
    return _LAST[recipe]


# The pool that was filled last, under what it was filled from.
_LAST: dict[Hashable, Filled] = {}


def forget_pool() -> None:
    """Lets go of the pool that is kept for the next run."""
    _LAST.clear()


def _fill(
    sources: tuple[tuple[str, ...], ...],
    stamps: tuple[tuple[int, int] | None, ...],
    captions: Captions,
    augmentation: Augmentation,
    limits: Limits,
    opener: Callable[[str], IO[bytes]],
    max_bytes: float,
    sealed: tuple[str, int, torch.device | None],
    keep_in: str | None,
) -> Filled:
    pool = InMemoryDataset(captions, augmentation, limits, max_bytes)
    store = None
    if keep_in is not None and None not in stamps:
        urls = [[os.path.abspath(url) for url in source] for source in sources]
        store = DecodedStore(keep_in, [urls, stamps, repr(captions), repr(limits), pool.side])
    with store.locked() if store is not None else contextlib.nullcontext():
        kept = store.load() if store is not None else None
        if kept is not None:
            samples, images, members, problems = kept
            pool.restore(samples, images)
        else:
            # Without a store, which one process of a job fills for all, each one decodes, beside the others.
            ranks = 1 if store is not None else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            workers = num_processes(list(chain.from_iterable(sources)), max(1, core_share() // ranks))
            members, problems = _decode_sources(pool, sources, opener, keep_in, workers)
            if store is not None:
                pool.keep(store, members, problems)
    pool.seal(*sealed)
    return Filled(pool, members, problems)


def _decode_sources(
    pool: InMemoryDataset,
    sources: tuple[tuple[str, ...], ...],
    opener: Callable[[str], IO[bytes]],
    folder: str | None,
    workers: int,
) -> tuple[tuple[range, ...], tuple[tuple[Problem, ...], ...]]:
    urls = list(chain.from_iterable(sources))
    members, problems = [], []
    if workers == 1 or multiprocessing.current_process().daemon or not can_travel(pool.recipe, opener):
        for source in sources:
            found: list[Problem] = []
            reads = [read_samples(url, on_problem=found.append, opener=opener) for url in source]
            members.append(pool.add(chain.from_iterable(reads), found.append))
            problems.append(tuple(found))
        return tuple(members), tuple(problems)
    shards = decode_shards(urls, pool.recipe, opener, workers, folder)
    try:
        for source in sources:
            first, found = len(pool), []
            for shard in islice(shards, len(source)):
                pool.add_decoded(shard)
                found += shard.problems
            members.append(range(first, len(pool)))
            problems.append(tuple(found))
    finally:
        shards.close()
    return tuple(members), tuple(problems)
