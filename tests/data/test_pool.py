"""Batches from the memory pool are what single pictures would give, in the order of the streams."""

import threading
from io import BytesIO

import numpy as np
import pytest
import torch
from clip_la_kernels.runtime.dispatch import use_backend
from PIL import Image

from clip_la.data.images.augment import BACKGROUND, FLIP, NUM_UNIFORMS, Augmentation, random_crop
from clip_la.data.shards import problems, watch
from clip_la.data.shards.problems import Problem
from clip_la.data.stream import in_memory_decode as decode_module
from clip_la.data.stream.device import DeviceDecoder
from clip_la.data.stream.in_memory_batches import InMemoryIterator, pooled_batches
from clip_la.data.stream.in_memory_captions import CaptionTable
from clip_la.data.stream.in_memory_pool import InMemoryDataset
from clip_la.data.stream.order import PoolOrder, Streams, choose_sources
from clip_la.data.stream.samples import Limits
from clip_la.data.text.captions import Captions
from clip_la.data.text.tokenizer import caption_ids, get_tokenizer
from clip_la.errors import UserError

SIZE = 24


def drawing(rng, mode):
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, len(mode)), dtype=np.uint8), mode)
    return coarse.resize((30, 30), Image.Resampling.BICUBIC)


def pool_of(images, augmentation, device=None):
    pool = InMemoryDataset(Captions(), augmentation, Limits())
    samples = []
    for i, image in enumerate(images):
        data = BytesIO()
        image.save(data, "PNG")
        samples.append({"__key__": str(i), "__url__": "s", "png": data.getvalue(), "txt": b"text"})
    members = pool.add(samples, pytest.fail)
    pool.seal("clip", 77, device)
    return pool, members


@pytest.mark.parametrize("min_crop_area", [0.64, 1.0])
@pytest.mark.parametrize("background", ["white", "random"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_pooled_batch_is_pillows_one_by_one(min_crop_area, background, flip):
    rng = np.random.default_rng(0)
    images = [drawing(rng, mode) for mode in ("RGBA", "RGB", "RGBA")]
    augmentation = Augmentation(SIZE, min_crop_area, flip, background)
    pool, members = pool_of(images, augmentation)
    draws = rng.random((3, NUM_UNIFORMS))
    got = pool.batch(np.array(members), draws)["pooled"].images()
    side = 30 if min_crop_area < 1 else SIZE  # 24 / sqrt(0.64) = 30
    for image, row, result in zip(images, draws, got, strict=True):
        color = tuple(int(256 * c) for c in row[BACKGROUND]) if background == "random" else (255, 255, 255)
        square = image.resize((side, side), Image.Resampling.BICUBIC).convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", square.size, (*color, 255)), square).convert("RGB")
        if min_crop_area < 1:
            box = random_crop(side, side, min_crop_area, row.tolist())
            flat = flat.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        expected = np.asarray(flat)
        if flip and row[FLIP] < 0.5:
            expected = expected[:, ::-1]
        error = np.abs(result.permute(1, 2, 0).numpy().astype(int) - expected)
        assert error.max() <= 5
        assert error.mean() < 0.8


@pytest.mark.parametrize("on_gpu", [False, True], ids=["on-the-host", "as-on-a-gpu"])
@pytest.mark.parametrize(("mode", "kernel"), [("RGB", True), ("RGB", False), ("RGBA", False)])
def test_a_device_makes_the_images_that_the_processor_makes(monkeypatch, mode, kernel, on_gpu):
    rng = np.random.default_rng(0)
    images = [drawing(rng, mode) for _ in range(5)]
    # Triton's interpreter takes 40 ms a row of an image.
    size = 9 if kernel else SIZE
    augmentation = Augmentation(size, 0.64, flip=True, background="random", jitter=0.3)
    plain, members = pool_of(images, augmentation)
    numbers, draws = np.array([members[i] for i in (3, 0, 3, 4)]), rng.random((4, NUM_UNIFORMS))
    wanted = plain.batch(numbers, draws)["pooled"].images()
    # Pictures lie on a GPU channels first; here the processor stands for it.
    monkeypatch.setattr("clip_la.data.stream.in_memory_pool._has_room", lambda device, size: on_gpu)
    pool, _ = pool_of(images, augmentation, torch.device("cpu"))
    decoder = DeviceDecoder(augmentation, torch.device("cpu"))
    with use_backend("triton" if kernel else "torch"):
        got = decoder.finish(decoder.stage(pool.batch(numbers, draws)))
    assert "pooled" not in got
    difference = (got["image"].int() - wanted.int()).abs()
    assert difference.max() <= (1 if kernel else 0)
    assert difference.float().mean() < 0.05


def test_a_larger_pool_than_allowed_is_refused():
    pool = InMemoryDataset(Captions(), Augmentation(SIZE, 1.0), Limits(), max_bytes=2 * 3 * SIZE * SIZE)
    data = BytesIO()
    Image.new("RGB", (30, 30)).save(data, "PNG")
    sample = {"__key__": "k", "__url__": "s", "png": data.getvalue(), "txt": b"text"}
    assert pool.add([sample] * 2, pytest.fail) == range(2)
    with pytest.raises(UserError, match=r"more than cache_gb .* cache 'none'"):
        pool.add([sample], pytest.fail)


def test_decoders_that_hang_cost_their_samples_however_many_there_are(monkeypatch, capfd):
    """Also more of them than threads."""
    monkeypatch.setenv(watch.VARIABLE, "0.3")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    released, read = threading.Event(), decode_module.read_image

    def hang(sample, limits):
        if sample["__key__"] in "246":
            released.wait(60)
        return read(sample, limits)

    monkeypatch.setattr(decode_module, "read_image", hang)
    data, found = BytesIO(), []
    Image.new("RGB", (30, 30)).save(data, "PNG")
    samples = [{"__key__": str(n), "__url__": "s", "png": data.getvalue(), "txt": b"text"} for n in range(10)]
    pool = InMemoryDataset(Captions(), Augmentation(SIZE), Limits())
    try:
        assert pool.add(samples, found.append) == range(7)
    finally:
        released.set()
    assert found == [Problem(problems.TOOK_TOO_LONG, "s", key) for key in "246"]
    told = capfd.readouterr().err.splitlines()
    assert told == [f"sample {key} of s: took more than 0.3 s; skipped" for key in "246"]


def test_captions_are_picked_as_one_by_one():
    captions = Captions(("a", "json.b", "c"), (2.0, 1.0, 1.0))
    texts = [
        [["one"], ["two", "three", "a longer caption of several words"], ["four"]],
        [[], ["five", "six"], ["seven"]],
        [[], [], ["eight"]],
        [["one"], [], ["nine"]],
    ]
    table = CaptionTable(captions, texts, "clip", 77)
    rng = np.random.default_rng(1)
    numbers, draws = rng.integers(0, 4, 200), rng.random((200, 2))
    wanted = [captions.pick(texts[i], row.tolist()) for i, row in zip(numbers, draws, strict=True)]
    assert set(wanted) >= {"one", "two", "three", "five", "six", "seven", "eight", "nine"}
    batch = table.batch(numbers, draws)
    assert torch.equal(batch["caption_id"], caption_ids(wanted))
    tokens = get_tokenizer()(wanted)
    assert torch.equal(batch["tokens"], tokens[:, : batch["tokens"].shape[1]])
    assert not tokens[:, batch["tokens"].shape[1] :].any()
    assert batch["tokens"][:, -1].any()


@pytest.mark.parametrize("replacement", [False, True])
def test_a_walk_by_batches_is_a_walk_sample_by_sample(replacement):
    streams = Streams(5, 2, 2, 1, 0)
    sizes, weights = (13, 6), (1.0, 3.0)
    orders = [PoolOrder(i, replacement) for i in range(2)]
    pool, _ = pool_of([drawing(np.random.default_rng(0), "RGB")] * sum(sizes), Augmentation(SIZE))
    members = [range(13), range(13, 19)]

    def walks(places):
        return [InMemoryIterator(o, streams, m, *p) for o, m, p in zip(orders, members, places, strict=True)]

    def taken(start, delivered, count):
        stream = pooled_batches(pool, walks(start), streams, weights, 7, delivered)
        return [next(stream) for _ in range(count)]

    batches = taken([(0, 0)] * 2, 0, 6)
    chosen = choose_sources(streams, np.arange(42), weights)
    shares = [
        [m[i] for number in range(40) for i in order.block(streams, number, len(m))]
        for order, m in zip(orders, members, strict=True)
    ]
    queues = [iter(share) for share in shares]
    assert [int(key) for batch in batches for key in batch["keys"]] == [next(queues[i]) for i in chosen]
    for after in range(1, 6):
        _, delivered, places = batches[after - 1]["cursor"]
        again = taken(places, delivered, 6 - after)
        assert [b["keys"] for b in again] == [b["keys"] for b in batches[after:]]
        assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(again, batches[after:], strict=True))
        # A pass that has just been finished is not left before more is wanted.
        assert all(0 <= offset <= len(m) for (_, offset), m in zip(places, members, strict=True))
