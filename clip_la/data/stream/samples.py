"""From the raw parts of a sample to what a batch is made of: choose the caption, decode, crop and resize the image."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import get_worker_info

from clip_la.data.images import jpeg
from clip_la.data.images.augment import CAPTION, JITTER, Augmentation, Box, jitter_colors
from clip_la.data.images.decode import flatten
from clip_la.data.images.limits import Limits, image_bytes, read_image
from clip_la.data.images.resample import resize_box
from clip_la.data.shards.formats import KEY, URL
from clip_la.data.text.captions import Captions


class DecodedSample(NamedTuple):
    """One sample, ready to be put in a batch. `image` is UInt8[size, size, 3], or what a decoder leaves for later."""

    key: str
    shard: str
    caption: str
    image: Any


class SampleDecoder:
    """Decodes samples one by one as they come from the shards, each varied by the uniform numbers of its position.

    Args:
        captions: where captions are, and how one of them is chosen.
        augmentation: how images are cropped, mirrored and coloured.
        limits: which images are used.
    """

    def __init__(self, captions: Captions, augmentation: Augmentation, limits: Limits) -> None:
        self._captions = captions
        self._augmentation = augmentation
        self._limits = limits

    def sample(self, sample: dict[str, Any], uniforms: Sequence[float]) -> DecodedSample:
        """One sample decoded; raises BadSample. `uniforms` are NUM_UNIFORMS numbers in [0, 1)."""
        caption = self._captions.choose(sample, uniforms[CAPTION])
        return DecodedSample(sample[KEY], sample[URL], caption, self._image(sample, uniforms))

    def images(self, samples: Sequence[DecodedSample], uniforms: np.ndarray) -> dict[str, Any]:
        """`image` UInt8[batch, 3, size, size] of a batch, channels last in memory."""
        images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
        if self._augmentation.jitter:
            images = jitter_colors(images, self._augmentation.jitter, torch.from_numpy(uniforms[:, JITTER]))
        return {"image": images}

    def _image(self, sample: dict[str, Any], uniforms: Sequence[float]) -> Any:
        return self.square(*self.decode(sample, uniforms), uniforms)

    def decode(
        self, sample: dict[str, Any], uniforms: Sequence[float]
    ) -> tuple[UInt8[np.ndarray, "height width 3"], Box]:
        """The sample's image, reduced where little of it is wanted, and the part that is wanted. Raises BadSample."""
        data = image_bytes(sample)
        size = jpeg.plain_size(data)
        if size is not None:
            self._limits.check(*size)
            left, top, right, bottom = self._augmentation.crop(*size, uniforms)
            reduced = jpeg.reduction(min(right - left, bottom - top), self._augmentation.image_size)
            pixels = jpeg.pixels(data, size, reduced)
            if pixels is not None:
                return pixels, (left // reduced, top // reduced, -(-right // reduced), -(-bottom // reduced))
        # No plain JPEG, or a damaged one: the careful decoder knows every case and gives the reason.
        image = read_image(sample, self._limits)
        box = self._augmentation.crop(*image.size, uniforms)
        return np.asarray(flatten(image, self._augmentation.background_color(uniforms))), box

    def square(
        self, pixels: UInt8[np.ndarray, "height width 3"], box: Box, uniforms: Sequence[float]
    ) -> UInt8[np.ndarray, "size size 3"]:
        """That part, resized and perhaps mirrored."""
        square = resize_box(pixels, box, self._augmentation.image_size)
        return square[:, ::-1] if self._augmentation.is_flipped(uniforms) else square


def new_bytes(count: int) -> UInt8[Tensor, " {count}"]:
    """Memory for a batch. In a loader's worker it is shared, so that the training process gets it without copying."""
    if get_worker_info() is None:
        return torch.empty(count, dtype=torch.uint8)
    # As PyTorch's own collating does it.
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(count))
