"""A pool that several processes decode is, to the bit, that of one; what stops a process costs its sample."""

import importlib
import os
import resource

import numpy as np
import pytest

from clip_la.data.images.augment import Augmentation
from clip_la.data.images.limits import Limits
from clip_la.data.shards.problems import TOOK_TOO_LONG, WORKER_DIED
from clip_la.data.shards.reader import read_samples
from clip_la.data.shards.sources import ShardOpener
from clip_la.data.stream import in_memory, in_memory_decode
from clip_la.data.stream.in_memory_decode import Recipe, decode_shards, num_processes
from clip_la.data.stream.in_memory_pool import InMemoryDataset
from clip_la.data.text.captions import Captions
from clip_la.errors import UserError

from .test_in_memory_store import assert_same, content, filled, write_shard

RECIPE = Recipe(Captions(), Limits(), 9)


@pytest.fixture(autouse=True)
def no_pool_of_other_tests():
    in_memory.forget_pool()
    yield
    in_memory.forget_pool()


@pytest.fixture
def sources(tmp_path):
    urls = [write_shard(tmp_path / f"{seed}.tar", seed) for seed in range(4)]
    empty = write_shard(tmp_path / "empty.tar", 9, modes=())
    return [(urls[0],), (empty, *urls[1:])]


# A module, which processes can import: its decoder ends the process, as a crash in C would.
DEADLY = """
import os, signal
from clip_la.data.text.captions import Captions

class Deadly(Captions):
    def read(self, sample):
        if sample["__key__"] == "2" and sample["__url__"].endswith("1.tar"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(sample)
"""


def test_processes_fill_the_pool_of_threads(tmp_path, sources, monkeypatch):
    expected = content(filled(sources, None))
    monkeypatch.setattr(in_memory_decode, "LEAST_BYTES", 1)
    monkeypatch.setattr(in_memory, "core_share", lambda: 2)
    assert num_processes([url for urls in sources for url in urls], 2) == 2
    found = content(filled(sources, None))
    assert_same(expected, found)
    assert len(found[3][1]) == 4  # each shard's damaged image, as with threads
    kept = tmp_path / "kept"
    assert_same(expected, content(filled(sources, kept)))
    assert [path.name for path in kept.iterdir()] == ["decoded"]  # nothing of what passed between processes


def test_a_sample_that_processes_die_at_is_skipped(sources, tmp_path, capfd, monkeypatch):
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    captions = importlib.import_module("deadly").Deadly()
    urls = [url for urls in sources for url in urls]
    recipe = RECIPE._replace(captions=captions)
    shards = list(decode_shards(urls, recipe, ShardOpener(), 2, str(tmp_path)))
    alone = list(decode_shards(urls, RECIPE, ShardOpener(), 1, str(tmp_path)))
    for url, found, wanted in zip(urls, shards, alone, strict=True):
        lost = [("2", WORKER_DIED)] if url.endswith("1.tar") else []
        assert [(p.key, p.reason) for p in found.problems if p not in wanted.problems] == lost
        assert found.samples == [s for s in wanted.samples if not lost or s[0] != "2"]
    assert "sample 2 of" in capfd.readouterr().err
    assert TOOK_TOO_LONG not in {p.reason for shard in shards for p in shard.problems}


def test_the_pixels_are_the_shards_own(sources, tmp_path):
    for shard in decode_shards([sources[0][0]], RECIPE, ShardOpener(), 1, str(tmp_path)):
        images = list(shard.images(RECIPE.side))
    assert [image.shape for image in images] == [(9, channels, 9) for channels in shard.channels]
    assert sorted(set(shard.channels)) == [3, 4]
    pool = InMemoryDataset(Captions(), Augmentation(9, 1.0), Limits())
    pool.add(read_samples(sources[0][0], on_problem=[].append), [].append)
    assert len(images) == len(pool) == 5
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(images, pool._images, strict=True))


def test_a_full_disk_is_one_line(sources, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(in_memory_decode.tempfile, "mkstemp", full)
    with pytest.raises(UserError, match=r"No space left on device; decoded images lie there .* local_cache or TMPDIR"):
        list(decode_shards(list(sources[1]), RECIPE, ShardOpener(), 1, str(tmp_path)))


def test_what_killed_processes_left_is_removed_and_what_others_use_is_not(sources, tmp_path):
    left, used = (tmp_path / f"{in_memory_decode.SCRATCH}{name}" for name in ("left", "used"))
    for folder in (left, used):
        folder.mkdir()
        (folder / "pixels").write_bytes(b"x")
        os.utime(folder, (0, 0))
    # Another process has just made it and is about to lock it.
    fresh = tmp_path / f"{in_memory_decode.SCRATCH}fresh"
    fresh.mkdir()
    with in_memory_decode._locked(used):
        shards = decode_shards(sources[0], RECIPE, ShardOpener(), 1, str(tmp_path))
        assert len(next(shards).samples) == 5
        assert not left.exists()
        assert (used / "pixels").exists()
        # Its own is there while it works.
        assert len(list(tmp_path.glob(f"{in_memory_decode.SCRATCH}*"))) == 3
        shards.close()
    assert set(tmp_path.glob(f"{in_memory_decode.SCRATCH}*")) == {used, fresh}


def test_few_or_small_shards_are_decoded_here(sources):
    urls = [url for urls in sources for url in urls]
    assert num_processes(urls, 32) == 1
    assert num_processes(["s3://bucket/0.tar"] * 9, 32) == 4
    assert num_processes(["s3://bucket/0.tar"] * 9, 3) == 3
    assert num_processes(["s3://bucket/0.tar"], 32) == 1


def test_more_shards_than_files_that_may_be_open(tmp_path, monkeypatch):
    urls = [write_shard(tmp_path / f"{seed}.tar", seed, modes=("RGB",)) for seed in range(80)]
    pool = InMemoryDataset(Captions(), Augmentation(9, 1.0), Limits())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, limits[1]))
    try:
        for shard in decode_shards(urls, RECIPE, ShardOpener(), 1, str(tmp_path)):
            pool.add_decoded(shard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(pool) == 80


def test_an_opener_that_does_not_pickle_decodes_here(sources, monkeypatch):
    monkeypatch.setattr(in_memory_decode, "LEAST_BYTES", 1)
    monkeypatch.setattr(in_memory, "core_share", lambda: 2)
    found = in_memory.load_in_memory(
        sources, Captions(), Augmentation(9, 1.0), Limits(), lambda url: ShardOpener()(url)
    )
    assert len(found.pool) == 20


def test_the_folder_is_made(sources, tmp_path):
    assert len(list(decode_shards([sources[0][0]], RECIPE, ShardOpener(), 1, str(tmp_path / "new" / "one")))) == 1


def test_ranks_that_each_decode_share_the_cores(sources, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(in_memory, "num_processes", lambda urls, cores: asked.append(cores) or 1)
    monkeypatch.setattr(in_memory, "core_share", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    filled(sources, None)
    filled(sources, tmp_path / "kept")
    assert asked == [2, 8]
