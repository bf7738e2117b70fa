"""A decoded corpus kept on the disk gives the batches of one decoded anew, and is never used where it does not fit."""

import gc
import io
import multiprocessing
import os
import shutil
import tarfile
import time
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from clip_la.data.images.augment import NUM_UNIFORMS, Augmentation
from clip_la.data.images.limits import Limits
from clip_la.data.shards.sources import ShardOpener
from clip_la.data.stream import in_memory, in_memory_decode
from clip_la.data.stream.in_memory import load_in_memory
from clip_la.data.text.captions import Captions
from clip_la.errors import UserError

SIZE = 24
MODES = ("RGB", "RGBA", "RGB", "RGB", "RGBA")


@pytest.fixture(autouse=True)
def no_pool_of_other_tests():
    in_memory.forget_pool()
    yield
    in_memory.forget_pool()


def write_shard(path, seed=0, modes=MODES):
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:

        def member(name, data):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for i, mode in enumerate(modes):
            data = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (30, 37, len(mode)), dtype=np.uint8), mode).save(data, "PNG")
            member(f"{i}.png", data.getvalue())
            member(f"{i}.txt", f"text {i} of {seed}".encode())
        member("bad.png", b"no image")
        member("bad.txt", b"text")
    return str(path)


def filled(sources, folder, augmentation=None, max_bytes=in_memory.GIB):
    in_memory.forget_pool()
    augmentation = augmentation or Augmentation(SIZE, 0.64, background="random")
    keep_in = None if folder is None else str(folder)
    return load_in_memory(
        sources, Captions(), augmentation, Limits(), ShardOpener(), max_bytes=max_bytes, keep_in=keep_in
    )


def content(pools):
    """All that training sees of a pool."""
    draws = np.random.default_rng(1).random((len(pools.pool._keys), NUM_UNIFORMS))
    numbers = np.arange(len(draws))[::-1].copy()
    batch = pools.pool.batch(numbers, draws)
    images = batch.pop("pooled").images()
    return images, batch, pools.members, pools.problems


def assert_same(one, other):
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        assert torch.equal(value, other[1][name]) if isinstance(value, torch.Tensor) else value == other[1][name]
    assert one[2:] == other[2:]


@pytest.fixture
def sources(tmp_path):
    return [
        (write_shard(tmp_path / "a.tar"),),
        (write_shard(tmp_path / "b.tar", 1), write_shard(tmp_path / "c.tar", 2)),
    ]


def test_a_pool_is_shared_and_gone_before_the_next_one_is_filled(sources, monkeypatch):
    options = (Captions(), Augmentation(SIZE, 0.64), Limits(), ShardOpener())
    last = weakref.ref(load_in_memory(sources, *options).pool)
    assert load_in_memory(sources, *options).pool is last()
    fill = in_memory._fill

    def fill_alone(*recipe):
        # Threads that have decoded it may be about to end.
        ends = time.monotonic() + 10
        while last() is not None and time.monotonic() < ends:
            gc.collect()
        assert last() is None, "two pools at once"
        return fill(*recipe)

    monkeypatch.setattr(in_memory, "_fill", fill_alone)
    assert len(load_in_memory(sources[:1], *options).members) == 1


def decoding_fails(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("decoded again")

    monkeypatch.setattr(in_memory_decode, "read_image", fail)


@pytest.mark.parametrize("on_gpu", [False, True], ids=["on-the-host", "as-on-a-gpu"])
def test_the_kept_corpus_gives_the_same_batches(tmp_path, sources, monkeypatch, on_gpu):
    monkeypatch.setattr("clip_la.data.stream.in_memory_pool._has_room", lambda device, size: on_gpu)
    expected = content(filled(sources, None))
    first = content(filled(sources, tmp_path / "kept"))
    decoding_fails(monkeypatch)
    second = content(filled(sources, tmp_path / "kept"))
    assert len(second[3][0]) == 1
    assert_same(expected, first)
    assert_same(expected, second)


@pytest.mark.parametrize("change", ["shard", "size", "crop", "json", "npy", "cut"])
def test_what_does_not_fit_is_decoded_anew(tmp_path, sources, change):
    folder = tmp_path / "kept"
    filled(sources, folder)
    augmentation = None
    if change == "shard":
        write_shard(tmp_path / "a.tar", 7, MODES[:3])
    elif change == "size":
        augmentation = Augmentation(SIZE + 2, 0.64, background="random")
    elif change == "crop":
        augmentation = Augmentation(SIZE, 1.0, background="random")
    elif change == "cut":
        (kept,) = (folder / "decoded").glob("*.npy")
        os.truncate(kept, kept.stat().st_size // 2)
    else:
        (kept,) = (folder / "decoded").glob(f"*.{change}")
        kept.write_bytes(b"damaged")
    assert_same(content(filled(sources, None, augmentation)), content(filled(sources, folder, augmentation)))
    assert_same(content(filled(sources, None, augmentation)), content(filled(sources, folder, augmentation)))


def test_without_room_nothing_is_kept_and_the_run_goes_on(tmp_path, sources, monkeypatch, capsys):
    monkeypatch.setattr("os.statvfs", lambda path: os.statvfs_result((1,) * 10))
    assert_same(content(filled(sources, None)), content(filled(sources, tmp_path / "kept")))
    assert not [path for path in (tmp_path / "kept" / "decoded").iterdir() if path.suffix != ".lock"]
    (note,) = capsys.readouterr().err.splitlines()
    assert f"local_cache {tmp_path / 'kept'}: no room for " in note
    assert "decoded in this process only" in note
    # Of the processes of a job one says so.
    monkeypatch.setenv("RANK", "1")
    filled(sources, tmp_path / "kept")
    assert capsys.readouterr().err == ""


def test_a_kept_corpus_may_not_be_larger_than_allowed(tmp_path, sources):
    filled(sources, tmp_path / "kept")
    with pytest.raises(UserError, match="cache_gb"):
        filled(sources, tmp_path / "kept", max_bytes=1000)


@pytest.mark.parametrize("keeps", [False, True], ids=["decoded", "kept"])
def test_one_transparent_image_gives_all_of_them_a_fourth_channel(tmp_path, keeps):
    sources = [(write_shard(tmp_path / "mixed.tar", modes=("RGBA", *["RGB"] * 9)),)]
    folder, size = tmp_path / "kept" if keeps else None, 10 * 4 * 30 * 30
    filled(sources, folder, max_bytes=size)
    with pytest.raises(UserError, match="cache_gb"):
        filled(sources, folder, max_bytes=size - 1)


def _decode_in_a_process(sources, folder, queue):
    counted, read = [], in_memory_decode.read_image

    def slowly(*args):
        # So that all processes would be at it together, were there no lock.
        counted.append(1)
        time.sleep(0.05)
        return read(*args)

    in_memory_decode.read_image = slowly
    content(filled(sources, folder))
    queue.put(len(counted))


def test_of_several_processes_one_decodes(tmp_path, sources):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=_decode_in_a_process, args=(sources, tmp_path / "kept", queue)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    counts = sorted(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert counts[:2] == [0, 0]
    assert counts[2] == 3 * (len(MODES) + 1)
    shutil.rmtree(tmp_path / "kept")
