"""One pass over shards through the training stream's own blocks, decoder and augmentation, without training.

What a trainer would have used or skipped, sample by sample: a log, and a measure of the loader's speed.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clip_la.atomic import atomic_write
from clip_la.data.shards.crew import Lost, Skips, run_jobs
from clip_la.data.shards.formats import KEY, URL
from clip_la.data.shards.problems import BadSample
from clip_la.data.shards.sources import place_of, shard_name
from clip_la.data.shards.watch import TimeLimit
from clip_la.data.text.captions import Captions
from clip_la.json_text import json_text

OK, SKIPPED = "ok", "skipped"
Outcome = tuple[str, str | None, str | None]
"""Shard, key (None where damage hides it), reason (None for a usable sample)."""


@dataclass(frozen=True)
class Reading:
    """How shards are read: the part of a training run that decides which samples are used."""

    urls: tuple[str, ...]
    image_size: int = 224
    seed: int = 0
    captions: Captions = field(default_factory=Captions)
    min_side_px: int = 1

    def block(self, number: int, skips: Skips) -> tuple[list[Outcome], float]:
        """The outcomes of block `number` of the stream, which is one shard, in its order; and seconds taken.

        Samples of `skips` count under the reason given there.
        """
        import numpy as np

        from clip_la.data.images.augment import NUM_UNIFORMS, Augmentation
        from clip_la.data.shards.sources import open_shard
        from clip_la.data.stream.blocks import ShardBlockReader
        from clip_la.data.stream.order import ShardOrder, Streams, sample_uniforms
        from clip_la.data.stream.samples import Limits, SampleDecoder

        began = time.perf_counter()
        streams = Streams(self.seed, world_size=1, workers=1, rank=0, worker=0)
        order = ShardOrder(source=0, num_shards=len(self.urls), block_shards=1, replacement=False)
        items, lost = ShardBlockReader(order, streams, self.urls, open_shard).load(number)
        outcomes: list[Outcome] = [(problem.shard, problem.key, problem.reason) for problem in lost]
        decoder = SampleDecoder(self.captions, Augmentation(self.image_size), Limits(min_side_px=self.min_side_px))
        uniforms = sample_uniforms(streams, np.arange(len(items)), NUM_UNIFORMS).tolist()
        for place, (item, own) in enumerate(zip(items, uniforms, strict=True)):
            try:
                if place in skips:
                    raise BadSample(skips[place])
                with TimeLimit(item[URL], item[KEY], place):
                    decoder.sample(item, own)
                outcomes.append((item[URL], item[KEY], None))
            except BadSample as bad:
                outcomes.append((item[URL], item[KEY], bad.reason))
        return outcomes, time.perf_counter() - began

    def blocks(self, workers: int) -> Iterator[tuple[list[Outcome], float]]:
        """All blocks of one pass, in order, read by `workers` processes."""
        for result in run_jobs(self._job, range(len(self.urls)), workers):
            if isinstance(result, Lost):
                yield [(result.at.shard, result.at.key or None, result.reason)], 0.0
            else:
                yield result

    def _job(self, number: int, skips: Skips) -> tuple[list[Outcome], float]:
        # One thread each: the processes together have all cores. This process is the caller's, and is left as it is.
        if parent_process() is not None:
            import torch

            torch.set_num_threads(1)
        return self.block(number, skips)


def read(reading: Reading, *, keys: Path | None = None, workers: int = 1, quiet: bool = False) -> dict[str, Any]:
    """Reads every shard once and counts what became of each sample.

    Args:
        reading: what to read and how.
        keys: where to write one JSON object a sample: `{"shard", "key", "outcome": "ok" | "skipped", "reason"}`.
        workers: processes.

    Returns:
        `{"shards", "samples", "ok", "skipped": {reason: count}, "examples": {reason: "SHARD: KEY"}, "skipped_total",
        "by_shard", "pairs_per_s_per_core"}`; `skipped` counts damage of shards too, which may hide samples.

    Raises:
        UserError: a shard does not exist.
    """
    counts: dict[str, Counter[str]] = {url: Counter() for url in reading.urls}
    examples: dict[str, str] = {}
    busy_s = 0.0
    with (
        atomic_write(keys, "w") if keys else nullcontext() as stream,
        tqdm(desc="reading", unit="pair", disable=quiet or None) as bar,
    ):
        for outcomes, seconds in reading.blocks(workers):
            busy_s += seconds
            for shard, key, reason in outcomes:
                counts[shard][reason or OK] += 1
                if reason:
                    examples.setdefault(reason, place_of(shard, key))
                if stream:
                    line = {"shard": shard, "key": key, "outcome": SKIPPED if reason else OK, "reason": reason}
                    stream.write(json_text(line) + "\n")
            bar.update(len(outcomes))
    return _summary(counts, examples, busy_s)


def _summary(counts: dict[str, Counter[str]], examples: dict[str, str], busy_s: float) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for own in counts.values():
        total.update(own)
    ok = total.pop(OK, 0)
    return {
        "shards": len(counts),
        "samples": ok + total.total(),
        "ok": ok,
        "skipped": dict(sorted(total.items())),
        "examples": dict(sorted(examples.items())),
        "skipped_total": total.total(),
        "by_shard": {shard_name(url): dict(sorted(own.items())) for url, own in counts.items()},
        "pairs_per_s_per_core": round(ok / max(busy_s, 1e-9), 1),
    }
