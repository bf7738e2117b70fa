"""A folder of hostile files: nothing stops the stream, everything good is used, everything else is counted exactly."""

import importlib.util
import itertools
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from clip_la.data.images.augment import NUM_UNIFORMS, Augmentation
from clip_la.data.shards.problems import BadSample
from clip_la.data.shards.sources import open_shard
from clip_la.data.stream.blocks import BlockIterator, ShardBlockReader
from clip_la.data.stream.loader import ShardLoader
from clip_la.data.stream.order import ShardOrder, Streams
from clip_la.data.stream.samples import Limits, SampleDecoder
from clip_la.data.stream.stream import ShardStream, WeightedSource
from clip_la.data.text.captions import Captions

SIZE = 16
LIMITS = Limits(min_side_px=2)


def script(name):
    path = Path(__file__).parents[2] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return script("hostile_shards").write_hostile(tmp_path_factory.mktemp("hostile"))


def stream_of(urls, **options):
    options = {"batch_size": 1, "rank": 0, "world_size": 1, "workers": 1, "seed": 3, "limits": LIMITS, **options}
    return ShardStream(
        [WeightedSource(tuple(urls))],
        captions=Captions(),
        augmentation=Augmentation(SIZE),
        bad_share_limit=1.0,
        **options,
    )


def test_there_are_forty_kinds_at_least(hostile):
    assert hostile[1].kinds >= 40


def test_one_pass_uses_all_that_is_good_and_counts_the_rest_exactly(hostile):
    urls, expected = hostile
    rows = SampleDecoder(Captions(), Augmentation(SIZE), LIMITS)
    walk = BlockIterator(
        ShardBlockReader(ShardOrder(0, len(urls), len(urls), False), Streams(3, 1, 1, 0, 0), urls, open_shard)
    )
    used, skipped = [], Counter()
    for item, lost in walk.items():
        skipped.update(problem.reason for problem in lost)
        if item is None:
            break
        try:
            used.append(rows.sample(item, [0.5] * NUM_UNIFORMS).key)
        except BadSample as bad:
            skipped[bad.reason] += 1
    assert sorted(used) == sorted(expected.used)
    assert skipped == expected.skipped


def test_the_memory_pool_uses_and_counts_the_same(hostile):
    urls, expected = hostile
    batch = next(iter(stream_of(urls, batch_size=len(expected.used), in_memory=True)))
    assert sorted(batch["keys"]) == sorted(expected.used)
    assert batch["skipped"] == expected.skipped


def test_worker_processes_go_on_for_passes(hostile):
    urls, expected = hostile
    loader = ShardLoader(stream_of(urls, workers=2, batch_size=10), workers=2, start_method="fork")
    batches = list(itertools.islice(loader, 30))
    keys = Counter(key for batch in batches for key in batch["keys"])
    assert keys.total() == 300
    assert keys.keys() == set(expected.used)
    assert all(batch["image"].shape == (10, 3, SIZE, SIZE) and batch["image"].dtype == torch.uint8 for batch in batches)
    skipped = sum((Counter(batch["skipped"]) for batch in batches), Counter())
    assert skipped.keys() == expected.skipped.keys()


def test_memory_stays_flat(hostile):
    growth_mb = script("memory_test").growth_mb(hostile[0], num_samples=6000)
    assert growth_mb < 60
