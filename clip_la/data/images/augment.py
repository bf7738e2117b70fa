"""Random augmentation of training images, each a function of uniform numbers that belong to the sample's position.

`random_crop` draws as torchvision's RandomResizedCrop does, which is what open_clip trains with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor

from clip_la.errors import UserError

CROP_ATTEMPTS = 10
RATIO_LOW, RATIO_HIGH = math.log(3 / 4), math.log(4 / 3)
# What each of a sample's uniform numbers, all in [0, 1), decides. Their places are part of the order of a run: moved,
# they give other crops from the same seed.
CAPTION = slice(0, 2)
FLIP = 2
BACKGROUND = slice(3, 6)
JITTER = slice(6, 9)
CROP_PLACE = slice(9, 11)
CROP_SHAPE = slice(11, 11 + 2 * CROP_ATTEMPTS)
NUM_UNIFORMS = CROP_SHAPE.stop
# ITU-R BT.601, as Pillow and torchvision weigh colours to grey.
LUMA = (0.299, 0.587, 0.114)

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Augmentation:
    """What is varied in a training image.

    Args:
        image_size: side of the square result, in pixels.
        min_crop_area: least share of the image's area that a random crop keeps, in (0, 1]; 1 takes the centre square.
        flip: mirror half of the images left to right. Wrong for writing, and for captions that say left or right.
        background: what shows through transparent images: white, or a random colour each time.
        jitter: largest relative change of brightness, contrast and saturation, in [0, 1).
    """

    image_size: int
    min_crop_area: float = 0.9
    flip: bool = False
    background: Literal["white", "random"] = "white"
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UserError(f"image_size {self.image_size} must be at least 1 pixel")
        if not 0 < self.min_crop_area <= 1:
            raise UserError(f"min_crop_area {self.min_crop_area} must lie in (0, 1]; open_clip trains with 0.9")
        if not 0 <= self.jitter < 1:
            raise UserError(f"jitter {self.jitter} must lie in [0, 1)")

    def crop(self, width: int, height: int, uniforms: Sequence[float]) -> Box:
        """The part of the image to keep: left, top, right, bottom in pixels."""
        if self.min_crop_area == 1:
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            return left, top, left + side, top + side
        return random_crop(width, height, self.min_crop_area, uniforms)

    def background_color(self, uniforms: Sequence[float]) -> tuple[int, int, int]:
        """The colour behind a transparent image."""
        if self.background == "white":
            return 255, 255, 255
        red, green, blue = (int(256 * uniform) for uniform in uniforms[BACKGROUND])
        return red, green, blue

    def background_colors(self, uniforms: Float64[np.ndarray, "batch uniforms"]) -> Float32[Tensor, "batch 3"]:
        """`background_color` of a whole batch."""
        if self.background == "white":
            return torch.full((len(uniforms), 3), 255.0)
        return torch.from_numpy(np.floor(256 * uniforms[:, BACKGROUND]).astype(np.float32))

    def is_flipped(self, uniforms: Sequence[float]) -> bool:
        """Whether this sample is mirrored."""
        return self.flip and uniforms[FLIP] < 0.5


def random_crop(width: int, height: int, min_area: float, uniforms: Sequence[float]) -> Box:
    """A random part of at least `min_area` of the image, of aspect 3/4 to 4/3: left, top, right, bottom in pixels.

    Ten attempts at area and aspect; if none fits, the largest centred part of an allowed aspect.
    """
    shapes = uniforms[CROP_SHAPE]
    for for_area, for_ratio in zip(shapes[::2], shapes[1::2], strict=True):
        area = width * height * (min_area + (1 - min_area) * for_area)
        ratio = math.exp(RATIO_LOW + (RATIO_HIGH - RATIO_LOW) * for_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            across, down = uniforms[CROP_PLACE]
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if w / h < 3 / 4:
        h = round(w / (3 / 4))
    elif w / h > 4 / 3:
        w = round(h * (4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_crops(
    side: int, min_area: float, uniforms: Float64[np.ndarray, "batch uniforms"]
) -> Float32[Tensor, "batch 4"]:
    """`random_crop` of a whole batch of squares at once."""
    shapes = uniforms[:, CROP_SHAPE]
    area = side * side * (min_area + (1 - min_area) * shapes[:, ::2])
    ratio = np.exp(RATIO_LOW + (RATIO_HIGH - RATIO_LOW) * shapes[:, 1::2])
    widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (widths > 0) & (widths <= side) & (heights > 0) & (heights <= side)
    # Where no attempt fits, the whole square has an allowed aspect.
    first, found = np.asarray(fits.argmax(1))[:, None], np.asarray(fits.any(1))
    sizes = np.stack([np.take_along_axis(each, first, 1)[:, 0] for each in (widths, heights)], 1)
    sizes = np.where(found[:, None], sizes, side)
    corner = np.where(found[:, None], np.floor(uniforms[:, CROP_PLACE] * (side - sizes + 1)), 0)
    return torch.from_numpy(np.concatenate([corner, corner + sizes], 1).astype(np.float32))


def jitter_colors(
    images: UInt8[Tensor, "batch 3 height width"], strength: float, uniforms: Float[Tensor, "batch 3"]
) -> UInt8[Tensor, "batch 3 height width"]:
    """Brightness, contrast and saturation of each image times its own factor in [1 - strength, 1 + strength].

    Args:
        uniforms: three numbers in [0, 1) for each image, which give its factors.
    """
    factors = (1 + strength * (2 * uniforms.to(images.device, torch.float32) - 1))[:, :, None, None, None]
    pixels = images.float() * factors[:, 0]
    grey = (pixels * _luma(images.device)).sum(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    # Contrast c about the mean and saturation s about grey, in one linear step: c s x + c (1 - s) grey + (1 - c) mean.
    contrast, saturation = factors[:, 1], factors[:, 2]
    pixels = pixels * (contrast * saturation) + grey * (contrast * (1 - saturation)) + mean * (1 - contrast)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


@lru_cache
def _luma(device: torch.device) -> Float32[Tensor, "3 1 1"]:
    # Remembered: copying numbers to a GPU waits for all work that it was given before.
    return torch.tensor(LUMA, device=device)[:, None, None]
