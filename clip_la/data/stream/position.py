"""Whether a run may resume at a position saved in a checkpoint: only in the layout that it was saved in."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clip_la.data.shards.sources import shard_name
from clip_la.data.stream.order import hashed
from clip_la.data.stream.stream import RankState, WeightedSource
from clip_la.errors import UserError

SEED_BITS = 31
HASH_DIGITS = 16


@dataclass(frozen=True)
class StreamLayout:
    """All that decides the order of the stream. Shards count by name and place in the list: folders may move."""

    seed: int
    world_size: int
    workers: int
    shards: str
    weights: list[float]
    block_shards: int
    replacement: bool
    in_memory: bool

    @classmethod
    def of(cls, sources: Sequence[WeightedSource], **options: Any) -> "StreamLayout":
        """The layout of these sources; options are the other fields."""
        # Names alone: data sets are copied to faster disks between two parts of a run.
        names = "\n\n".join("\n".join(shard_name(url) for url in source.urls) for source in sources)
        digest = hashlib.sha256(names.encode()).hexdigest()[:HASH_DIGITS]
        num_shards = sum(len(source.urls) for source in sources)
        weights = [float(source.weight) for source in sources]
        return cls(shards=f"{num_shards} shards, names {digest}", weights=weights, **options)

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """`"workers 3, now 4"` for each field that differs from a saved layout."""
        return [f"{name} {saved.get(name)}, now {now}" for name, now in asdict(self).items() if saved.get(name) != now]


def choose_state(
    saved: dict[str, Any], layout: StreamLayout, rank: int, *, reshuffle: bool
) -> tuple[int, RankState, Counter[str]]:
    """Order seed, position and skipped counts for one rank, from what all ranks saved.

    In another layout the old position means nothing. `reshuffle` then starts a new order; its seed follows from the
    samples seen so far, so it differs from the old one.

    Raises:
        UserError: the layout differs and `reshuffle` is not asked for.
    """
    differences = layout.differences(saved["layout"])
    if not differences:
        mine = saved["ranks"][rank]
        return saved["order_seed"], RankState.from_plain(mine), Counter(mine["skipped"])
    if not reshuffle:
        raise UserError(
            f"the checkpoint's place in the data was taken with {'; '.join(differences)}; train with the old values, "
            "or set changed_layout to 'reshuffle' to go on in a new random order"
        )
    states = [RankState.from_plain(plain) for plain in saved["ranks"]]
    delivered = sum(position.delivered for state in states for position in state.positions)
    seed = int(hashed((layout.seed,), np.array([delivered]))[0] >> np.uint64(64 - SEED_BITS))
    return seed, RankState.fresh(layout.workers, len(layout.weights)), Counter()
