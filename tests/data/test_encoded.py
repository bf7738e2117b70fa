"""Pictures decoded on a device are those that the workers would have made. Without a GPU the device is the CPU."""

import itertools
from contextlib import closing
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from clip_la.data.images.augment import Augmentation
from clip_la.data.shards import problems
from clip_la.data.stream.device import DeviceDecoder
from clip_la.data.stream.loader import ShardLoader
from clip_la.data.stream.stream import ShardStream, WeightedSource
from clip_la.data.text.captions import Captions

SIZE = 16
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
# nvJPEG enlarges colour planes by another filter than libjpeg.
MAX_ERROR, MEAN_ERROR = (12, 1.5) if DEVICE.type == "cuda" else (3, 0.3)


def jpeg_of(number, **options):
    across, down = np.linspace(0, 200, 40 + number), np.linspace(0, 50, 37)
    picture = np.stack(np.broadcast_arrays(across[None] + down[:, None], across[None], 9.0 * number), 2)
    data = BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(data, "JPEG", quality=95, **options)
    return data.getvalue()


def damaged(data):
    """Whole to look at, header and end mark, and not decodable: its quantisation tables are gone."""
    return data[: data.index(b"\xff\xdb")] + data[data.index(b"\xff\xc0") :]


def stream_of(urls, augmentation, device_decode_fraction, *, batch_size=12, workers=1):
    return ShardStream(
        [WeightedSource(tuple(urls))],
        batch_size=batch_size,
        rank=0,
        world_size=1,
        workers=workers,
        seed=3,
        captions=Captions(),
        augmentation=augmentation,
        bad_share_limit=1.0,
        device_decode_fraction=device_decode_fraction,
    )


def batch_of(urls, augmentation, device_decode_fraction):
    return next(iter(stream_of(urls, augmentation, device_decode_fraction)))


def finished(augmentation, batch):
    decoder = DeviceDecoder(augmentation, DEVICE)
    return decoder.hand_over(decoder.finish(decoder.stage(batch)))


@pytest.mark.parametrize("options", [{}, {"flip": True, "jitter": 0.2}, {"min_crop_area": 1.0}])
def test_the_device_makes_what_the_worker_makes(make_shards, options):
    # Plain and turned JPEGs, and some PNGs.
    spoil = {i: {"png": jpeg_of(i)} for i in range(7)}
    exif = Image.Exif()
    exif[0x0112] = 6
    spoil[7] = {"png": jpeg_of(7, exif=exif)}
    urls = make_shards(1, 12, spoil=spoil)
    augmentation = Augmentation(SIZE, **options)
    expected = batch_of(urls, augmentation, device_decode_fraction=0.0)
    waiting = batch_of(urls, augmentation, device_decode_fraction=1.0)
    assert "image" not in waiting
    assert len(waiting["encoded"].lengths) == 7
    got = finished(augmentation, waiting)
    assert got["keys"] == expected["keys"]
    error = (got["image"].cpu().int() - expected["image"].int()).abs()
    assert error.max() <= MAX_ERROR
    assert error.float().mean() < MEAN_ERROR


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_finishes_batches_in_the_background(make_shards, workers, share):
    urls = make_shards(2, 12, spoil={i: {"png": jpeg_of(i)} for i in range(0, 24, 2)})
    augmentation = Augmentation(SIZE, flip=True)

    def batches(device_decode_fraction, decoder=None):
        stream = stream_of(urls, augmentation, device_decode_fraction, workers=workers)
        with closing(iter(ShardLoader(stream, workers=workers, decoder=decoder))) as loader:
            return list(itertools.islice(loader, 5))

    device = DeviceDecoder(augmentation, DEVICE, chunk=5)
    for got, expected in zip(batches(share, device), batches(0.0), strict=True):
        assert got["keys"] == expected["keys"]
        assert got["cursor"] == expected["cursor"]
        assert got["image"].device == DEVICE
        assert torch.equal(got["tokens"].cpu(), expected["tokens"])
        assert torch.equal(got["caption_id"].cpu(), expected["caption_id"])
        assert (got["image"].cpu().int() - expected["image"].int()).abs().max() <= MAX_ERROR


def test_a_share_of_the_jpegs_is_left(make_shards):
    urls = make_shards(1, 200, spoil={i: {"png": jpeg_of(i % 9)} for i in range(200)})
    stream = iter(stream_of(urls, Augmentation(SIZE, flip=True), 0.3, batch_size=200))
    first, second = (next(stream)["encoded"] for _ in range(2))
    for encoded in (first, second):
        left = np.zeros(200, bool)
        left[encoded.waiting] = True
        assert abs(left.mean() - 0.3) < 4 * (0.3 * 0.7 / 200) ** 0.5
        assert abs(left[encoded.mirrored].mean() - left[~encoded.mirrored].mean()) < 0.3  # the choices are unrelated
    assert not np.array_equal(first.waiting, second.waiting)


def test_a_jpeg_that_fails_on_the_device_is_replaced_and_counted(make_shards):
    spoil = {i: {"png": jpeg_of(i)} for i in range(12)} | {5: {"png": damaged(jpeg_of(5))}}
    spoil[6] = {"png": jpeg_of(6)[:-40]}
    urls = make_shards(1, 14, spoil=spoil)
    augmentation = Augmentation(SIZE)
    batch = finished(augmentation, batch_of(urls, augmentation, device_decode_fraction=1.0))
    # The cut one is seen by the worker and passed over, the other one by the device and replaced.
    assert batch["skipped"] == {problems.IMAGE_DAMAGED: len(batch["problems"])}
    assert ("image damaged", urls[0], "shards0005") in batch["problems"]
    assert "shards0005" not in batch["keys"]
    (twice,) = {key for key in batch["keys"] if batch["keys"].count(key) == 2}
    first, second = (i for i, key in enumerate(batch["keys"]) if key == twice)
    for name in ("image", "tokens", "caption_id"):
        assert torch.equal(batch[name][first], batch[name][second])
