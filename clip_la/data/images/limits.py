"""The image of a sample, and which images are used at all. Free of torch, for commands that need no tensors."""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from clip_la.data.images.decode import MAX_PIXELS, decode_keeping_alpha
from clip_la.data.shards import problems
from clip_la.data.shards.formats import image_part
from clip_la.data.shards.problems import BadSample


@dataclass(frozen=True)
class Limits:
    """Which images are used: shorter side at least `min_side_px`, at most `max_aspect` times as long as wide or the
    other way round, and at most `max_pixels` in all, which is checked before anything is decoded."""

    min_side_px: int = 1
    max_aspect: float = 20.0
    max_pixels: int = MAX_PIXELS

    def check(self, width: int, height: int) -> None:
        """Raises BadSample for an image outside the limits."""
        if width * height > self.max_pixels:
            raise BadSample(problems.IMAGE_TOO_LARGE)
        if min(width, height) < self.min_side_px:
            raise BadSample(problems.IMAGE_TOO_SMALL)
        if max(width, height) > self.max_aspect * min(width, height):
            raise BadSample(problems.IMAGE_TOO_LONG)


def image_bytes(sample: dict[str, Any]) -> bytes:
    """The bytes of the sample's image file; raises BadSample where it has none."""
    part = image_part(sample)
    if part is None:
        raise BadSample(problems.NO_IMAGE)
    return sample[part]


def read_image(sample: dict[str, Any], limits: Limits) -> Image.Image:
    """The sample's image, RGB or RGBA, within the limits; raises BadSample."""
    image = decode_keeping_alpha(image_bytes(sample), max_pixels=limits.max_pixels)
    limits.check(*image.size)
    return image
