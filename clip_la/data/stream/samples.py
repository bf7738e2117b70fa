"""From the raw parts of a sample to a row of a batch: choose the caption, decode, crop and resize the picture."""

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
from clip_la.data.images.limits import Limits, image_bytes, read_picture
from clip_la.data.images.resample import resize_box
from clip_la.data.shards.reader import KEY, SHARD
from clip_la.data.text.captions import Captions


class DecodedSample(NamedTuple):
    """One sample, ready to be put in a batch."""

    key: str
    shard: str
    caption: str
    picture: Any


class StreamedRows:
    """Rows made sample by sample, as they come from the shards."""

    def __init__(self, captions: Captions, augmentation: Augmentation, limits: Limits) -> None:
        self._captions = captions
        self._augmentation = augmentation
        self._limits = limits

    def row(self, sample: dict[str, Any], draws: Sequence[float]) -> DecodedSample:
        """The row of one sample; its picture is UInt8[image_size, image_size, 3]. Raises BadSample."""
        caption = self._captions.choose(sample, draws[CAPTION])
        return DecodedSample(sample[KEY], sample[SHARD], caption, self._picture(sample, draws))

    def pictures(self, rows: Sequence[DecodedSample], draws: np.ndarray) -> dict[str, Any]:
        """`image` UInt8[batch, 3, size, size] of a batch, channels last in memory."""
        images = torch.from_numpy(np.stack([row.picture for row in rows])).permute(0, 3, 1, 2)
        return {"image": jitter_batch(images, self._augmentation, draws) if self._augmentation.jitter else images}

    def _picture(self, sample: dict[str, Any], draws: Sequence[float]) -> Any:
        return self.square(*self.decode(sample, draws), draws)

    def decode(self, sample: dict[str, Any], draws: Sequence[float]) -> tuple[UInt8[np.ndarray, "height width 3"], Box]:
        """The sample's picture, reduced where little of it is wanted, and the part that is wanted. Raises BadSample."""
        return self._plain_jpeg(image_bytes(sample), draws) or self._any_picture(sample, draws)

    def square(
        self, pixels: UInt8[np.ndarray, "height width 3"], box: Box, draws: Sequence[float]
    ) -> UInt8[np.ndarray, "size size 3"]:
        """That part, resized and perhaps mirrored."""
        square = resize_box(pixels, box, self._augmentation.image_size)
        return square[:, ::-1] if self._augmentation.is_flipped(draws) else square

    def _plain_jpeg(self, data: bytes, draws: Sequence[float]) -> tuple[np.ndarray, Box] | None:
        size = jpeg.plain_size(data)
        if size is None:
            return None
        self._limits.check(*size)
        left, top, right, bottom = self._augmentation.crop(*size, draws)
        reduced = jpeg.reduction(min(right - left, bottom - top), self._augmentation.image_size)
        pixels = jpeg.pixels(data, size, reduced)
        if pixels is None:
            return None
        return pixels, (left // reduced, top // reduced, -(-right // reduced), -(-bottom // reduced))

    def _any_picture(self, sample: dict[str, Any], draws: Sequence[float]) -> tuple[np.ndarray, Box]:
        image = read_picture(sample, self._limits)
        box = self._augmentation.crop(*image.size, draws)
        return np.asarray(flatten(image, self._augmentation.background_color(draws))), box


def new_bytes(count: int) -> UInt8[Tensor, " {count}"]:
    """Memory for a batch. In a loader's worker it is shared, so that the training process gets it without copying."""
    if get_worker_info() is None:
        return torch.empty(count, dtype=torch.uint8)
    # As PyTorch's own collating does it.
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(count))


def jitter_batch(
    images: UInt8[Tensor, "batch 3 size size"], augmentation: Augmentation, draws: np.ndarray
) -> UInt8[Tensor, "batch 3 size size"]:
    """Colour jitter of a batch by the numbers drawn for it."""
    return jitter_colors(images, augmentation.jitter, torch.from_numpy(draws[:, JITTER]))
