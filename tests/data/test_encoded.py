"""Pictures decoded on a device are those that the workers would have made; here the device is the CPU."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from clip_la.data import problems
from clip_la.data.augment import Augmentation
from clip_la.data.captions import Captions
from clip_la.data.encoded import DeviceDecoder
from clip_la.data.stream import ShardStream, Source

SIZE = 16
CPU = torch.device("cpu")


def jpeg_of(number, **options):
    across, down = np.linspace(0, 200, 40 + number), np.linspace(0, 50, 37)
    picture = np.stack(np.broadcast_arrays(across[None] + down[:, None], across[None], 9.0 * number), 2)
    data = BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(data, "JPEG", quality=95, **options)
    return data.getvalue()


def damaged(data):
    """Whole to look at, header and end mark, and not decodable: its quantisation tables are gone."""
    return data[: data.index(b"\xff\xdb")] + data[data.index(b"\xff\xc0") :]


def batch_of(urls, augmentation, leave_jpegs):
    stream = ShardStream(
        [Source(tuple(urls))],
        batch_size=12,
        rank=0,
        world_size=1,
        workers=1,
        seed=3,
        captions=Captions(),
        augmentation=augmentation,
        bad_share_limit=1.0,
        leave_jpegs=leave_jpegs,
    )
    return next(iter(stream))


@pytest.mark.parametrize("options", [{}, {"flip": True, "jitter": 0.2}, {"min_crop_area": 1.0}])
def test_the_device_makes_what_the_worker_makes(make_shards, options):
    # Plain and turned JPEGs, and some PNGs.
    spoil = {i: {".png": jpeg_of(i)} for i in range(7)}
    exif = Image.Exif()
    exif[0x0112] = 6
    spoil[7] = {".png": jpeg_of(7, exif=exif)}
    urls = make_shards(1, 12, spoil=spoil)
    augmentation = Augmentation(SIZE, **options)
    expected = batch_of(urls, augmentation, leave_jpegs=False)
    waiting = batch_of(urls, augmentation, leave_jpegs=True)
    assert "image" not in waiting
    assert len(waiting["encoded"]["lengths"]) == 7
    got = DeviceDecoder(augmentation, CPU).finish(waiting)
    assert got["keys"] == expected["keys"]
    error = (got["image"].int() - expected["image"].int()).abs()
    assert error.max() <= 3
    assert error.float().mean() < 0.3


def test_a_jpeg_that_fails_on_the_device_is_replaced_and_counted(make_shards):
    spoil = {i: {".png": jpeg_of(i)} for i in range(12)} | {5: {".png": damaged(jpeg_of(5))}}
    spoil[6] = {".png": jpeg_of(6)[:-40]}
    urls = make_shards(1, 14, spoil=spoil)
    augmentation = Augmentation(SIZE)
    batch = DeviceDecoder(augmentation, CPU).finish(batch_of(urls, augmentation, leave_jpegs=True))
    # The cut one is seen by the worker and passed over, the other one by the device and replaced.
    assert batch["skipped"] == {problems.IMAGE_DAMAGED: len(batch["problems"])}
    assert ("image damaged", urls[0], "shards0005") in batch["problems"]
    assert "shards0005" not in batch["keys"]
    (twice,) = {key for key in batch["keys"] if batch["keys"].count(key) == 2}
    first, second = (i for i, key in enumerate(batch["keys"]) if key == twice)
    for name in ("image", "tokens", "caption_id"):
        assert torch.equal(batch[name][first], batch[name][second])
