"""Photographs for measuring the loader: crops of real ones at LAION's usual size, JPEG quality 92, in shards.

The real ones come from scikit-image (its package holds eight in colour) or from Debian's tuxpaint stamps.
"""

import importlib.util
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from clip_la.data.images.decode import decode_image
from clip_la.data.shards.reader import ShardWriter
from clip_la.errors import UserError

SKIMAGE_PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
)
STAMPS = Path("/usr/share/tuxpaint/stamps")
SHORTER_SIDE_PX = (256, 340)
QUALITY = 92
# Shards repeat so many distinct files under further names: each is read and decoded every time all the same.
NUM_DISTINCT = 2048
WORDS = """photograph portrait view picture of a an the old young red blue green yellow small large dog cat street
mountain house garden river beach city car bicycle table chair window morning evening winter summer sale new"""
WORDS_A_CAPTION = (4, 16)


def photograph_files() -> list[Path]:
    """The real photographs of this machine.

    Raises:
        UserError: neither package is installed.
    """
    package = importlib.util.find_spec("skimage")
    if package is not None and package.submodule_search_locations:
        folder = Path(package.submodule_search_locations[0]) / "data"
        found = [folder / name for name in SKIMAGE_PHOTOS if (folder / name).exists()]
        if found:
            return found
    stamps = sorted(STAMPS.glob("animals/**/*.png"))
    if not stamps:
        raise UserError("no photographs to measure with; pip install scikit-image, or name shards of your own")
    return stamps


@cache
def _photograph(path: Path) -> Image.Image:
    return decode_image(path.read_bytes())


def make_jpeg(number: int, files: list[Path]) -> bytes:
    """Photograph number `number`: a random crop of a real one, 256 to 340 pixels on its shorter side."""
    draw = np.random.default_rng(number)
    photo = _photograph(files[draw.integers(len(files))])
    width = int(draw.uniform(0.5, 1.0) * min(photo.size))
    height = min(photo.height, int(width * draw.uniform(0.75, 1.33)))
    left, top = draw.integers(photo.width - width + 1), draw.integers(photo.height - height + 1)
    shorter = int(draw.integers(SHORTER_SIDE_PX[0], SHORTER_SIDE_PX[1] + 1))
    scale = shorter / min(width, height)
    size = (max(shorter, round(width * scale)), max(shorter, round(height * scale)))
    box = (float(left), float(top), float(left + width), float(top + height))
    data = BytesIO()
    photo.resize(size, Image.Resampling.BICUBIC, box=box).save(data, "JPEG", quality=QUALITY)
    return data.getvalue()


def write_photo_shards(folder: Path, num_shards: int, per_shard: int, workers: int) -> list[str]:
    """Writes shards of photographs and returns their paths; the same on every machine with the same photographs.

    Captions have 4 to 16 words and are new for each sample. Raises UserError where there are no photographs.
    """
    distinct = min(NUM_DISTINCT, num_shards * per_shard)
    files = photograph_files()
    with ProcessPoolExecutor(workers) as pool:
        jpegs = list(pool.map(partial(make_jpeg, files=files), range(distinct), chunksize=32))
    paths = [folder / f"{shard:05d}.tar" for shard in range(num_shards)]
    for shard, path in enumerate(paths):
        with ShardWriter(path) as writer:
            for i in range(shard * per_shard, (shard + 1) * per_shard):
                draw = np.random.default_rng(i)
                words = draw.choice(WORDS.split(), draw.integers(*WORDS_A_CAPTION))
                caption = f"{' '.join(words)} {i}"
                writer.write({"__key__": f"{i:08d}", ".jpg": jpegs[i % len(jpegs)], ".txt": caption})
    return list(map(str, paths))
