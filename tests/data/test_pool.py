"""Batches from the memory pool are what single pictures would give."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from clip_la.data.augment import BACKGROUND, FLIP, NUM_DRAWS, Augmentation, random_crop
from clip_la.data.captions import Captions
from clip_la.data.pool import Pool
from clip_la.data.rows import Limits

SIZE = 24


def drawing(rng, mode):
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, len(mode)), dtype=np.uint8), mode)
    return coarse.resize((30, 30), Image.Resampling.BICUBIC)


def pool_of(images, augmentation):
    pool = Pool(Captions(), augmentation, Limits())
    samples = []
    for i, image in enumerate(images):
        data = BytesIO()
        image.save(data, "PNG")
        samples.append({"__key__": str(i), "__shard__": "s", ".png": data.getvalue(), ".txt": b"text"})
    members = pool.add(samples, pytest.fail)
    pool.seal()
    return pool, members


@pytest.mark.parametrize("min_crop_area", [0.64, 1.0])
@pytest.mark.parametrize("background", ["white", "random"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_pooled_batch_is_pillows_one_by_one(min_crop_area, background, flip):
    rng = np.random.default_rng(0)
    images = [drawing(rng, mode) for mode in ("RGBA", "RGB", "RGBA")]
    augmentation = Augmentation(SIZE, min_crop_area, flip, background)
    pool, members = pool_of(images, augmentation)
    draws = rng.random((3, NUM_DRAWS))
    got = pool.pictures([pool.row(i, row) for i, row in zip(members, draws, strict=True)], draws)["image"]
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
