"""Where the streams of a rank stand, and whether a run may resume at a position saved in a checkpoint.

A position means something only in the layout that it was saved in.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from clip_la.data.shards.sources import shard_name
from clip_la.data.stream.order import WeightedSource, hashed
from clip_la.errors import UserError

SEED_BITS = 31
HASH_DIGITS = 16


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

    def advance(self, batch: dict[str, Any]) -> None:
        """Moves to the position after `batch`."""
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
