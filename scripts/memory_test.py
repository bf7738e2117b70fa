#!/usr/bin/env python
"""Streams many samples, hostile ones among them, and says how the memory of the process grew.

python scripts/memory_test.py --samples 200000
"""

import argparse
import gc
import sys
import tempfile
import time
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clip_la.data.images.augment import Augmentation
from clip_la.data.shards.reader import ShardWriter
from clip_la.data.stream.samples import Limits
from clip_la.data.stream.stream import ShardStream, StreamFailure, WeightedSource
from clip_la.data.text.captions import Captions

BATCH_SIZE, IMAGE_SIZE = 100, 32
NUM_SHARDS, SAMPLES_A_SHARD = 8, 400
MIB = 1 << 20
REPORTS = 10
# The allocator, caches and lookup tables fill up first.
WARM_UP_SHARE = 0.2


def resident_mb() -> float:
    """Memory of this process that is in use now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / MIB


def write_good(folder: Path) -> list[str]:
    """Plain JPEGs, each caption new."""
    rng = np.random.default_rng(0)
    paths = []
    for shard in range(NUM_SHARDS):
        path = folder / f"good{shard:02d}.tar"
        with ShardWriter(path) as writer:
            for i in range(SAMPLES_A_SHARD):
                data = BytesIO()
                Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(data, "JPEG")
                writer.write({"__key__": f"{shard}-{i}", "jpg": data.getvalue(), "txt": f"picture {shard} {i}"})
        paths.append(str(path))
    return paths


def growth_mb(urls: list[str], num_samples: int, *, verbose: bool = False) -> float:
    """MiB by which the process grew from a fifth of the way to the end."""
    torch.set_num_threads(1)
    stream = ShardStream(
        [WeightedSource(tuple(urls))],
        batch_size=BATCH_SIZE,
        rank=0,
        world_size=1,
        workers=1,
        seed=0,
        captions=Captions(),
        augmentation=Augmentation(IMAGE_SIZE),
        limits=Limits(min_side_px=2),
        bad_share_limit=1.0,
    )
    num_batches = num_samples // BATCH_SIZE
    warm, skipped, start = 0.0, Counter[str](), time.perf_counter()
    for number, batch in enumerate(stream):
        if isinstance(batch, StreamFailure):
            sys.exit(batch.message)
        skipped.update(batch["skipped"])
        if number == int(WARM_UP_SHARE * num_batches):
            gc.collect()
            warm = resident_mb()
        if verbose and (number + 1) % max(num_batches // REPORTS, 1) == 0:
            done, elapsed_s = (number + 1) * BATCH_SIZE, time.perf_counter() - start
            print(f"{done:>8} used, {skipped.total():>7} skipped, {resident_mb():7.1f} MiB, {elapsed_s:5.0f} s")
        if number + 1 >= num_batches:
            break
    gc.collect()
    return resident_mb() - warm


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000)
    args = parser.parse_args()
    from hostile_shards import write_hostile

    with tempfile.TemporaryDirectory() as folder:
        urls = write_hostile(Path(folder) / "hostile")[0] + write_good(Path(folder))
        growth = growth_mb(urls, args.samples, verbose=True)
    print(f"{args.samples} samples: memory grew by {growth:.1f} MiB after the first fifth")


if __name__ == "__main__":
    main()
