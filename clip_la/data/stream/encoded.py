"""Samples whose JPEGs are decoded later, on the GPU: workers only read, check and choose; `device` decodes and crops.

Images that nvJPEG is not for (other formats, turned or CMYK JPEGs, very large ones) are made by the worker, as without
a GPU; so is, where the workers have time for it, a share of the others.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from clip_la.data.images import jpeg
from clip_la.data.images.augment import FLIP, JITTER, Augmentation, Box
from clip_la.data.stream.samples import DecodedSample, Limits, SampleDecoder, image_bytes, new_bytes
from clip_la.data.text.captions import Captions

# Decoded images of a chunk are held on the GPU together, so a large one is left to the worker.
MAX_SIDE_PX = 1024
# The share of plain JPEGs that the device decodes, by the name of the way to decode.
DEVICE_DECODE_FRACTION = {"cpu": 0.0, "gpu": 1.0, "hybrid": 0.67}


class Encoded(NamedTuple):
    """A JPEG still to be decoded, and what is wanted of it."""

    data: bytes
    box: Box


class EncodedBatch(NamedTuple):
    """The images of a batch on their way to the device, in one piece of memory.

    Everything small is an array of NumPy: each tensor that passes between processes costs a connection of its own.
    """

    payload: UInt8[Tensor, " bytes"]
    """The images that the worker made, each size x size x 3, then the JPEGs, end to end."""
    lengths: np.ndarray
    """Bytes of each JPEG."""
    boxes: np.ndarray
    """What to keep of each JPEG, float32 (left, top, right, bottom) in pixels."""
    waiting: np.ndarray
    """Places in the batch of the JPEGs."""
    made: np.ndarray
    """Places in the batch of the others."""
    mirrored: np.ndarray
    """Which images of the batch are mirrored; those that the worker made are so already."""
    jitter: np.ndarray
    """The uniform numbers for colour jitter, float32 (batch, 3)."""


class DeferredDecoder(SampleDecoder):
    """As SampleDecoder, with plain JPEGs left encoded for a DeviceDecoder.

    Args:
        share: the share of plain JPEGs that is left encoded, in (0, 1]; the uniform numbers of their positions decide.
    """

    def __init__(self, captions: Captions, augmentation: Augmentation, limits: Limits, share: float = 1.0) -> None:
        super().__init__(captions, augmentation, limits)
        self._share = share

    def images(self, samples: Sequence[DecodedSample], uniforms: np.ndarray) -> dict[str, Any]:
        """The images of a batch, as a DeviceDecoder wants them: `encoded`, an EncodedBatch."""
        images = [sample.image for sample in samples]
        waiting = [i for i, image in enumerate(images) if isinstance(image, Encoded)]
        made = [i for i, image in enumerate(images) if not isinstance(image, Encoded)]
        pieces = [np.ascontiguousarray(images[i]).reshape(-1) for i in made]
        pieces += [np.frombuffer(images[i].data, np.uint8) for i in waiting]
        payload = new_bytes(sum(map(len, pieces)))
        np.concatenate(pieces, out=payload.numpy())
        return {
            "encoded": EncodedBatch(
                payload,
                lengths=np.array([len(images[i].data) for i in waiting], np.int64),
                boxes=np.array([images[i].box for i in waiting], np.float32).reshape(-1, 4),
                waiting=np.array(waiting, np.int64),
                made=np.array(made, np.int64),
                mirrored=np.array([self._augmentation.is_flipped(own) for own in uniforms]),
                jitter=uniforms[:, JITTER].astype(np.float32),
            )
        }

    def _image(self, sample: dict[str, Any], uniforms: Sequence[float]) -> Any:
        data = image_bytes(sample)
        size = jpeg.plain_size(data)
        # The leading bit of this number decides about mirroring; its other bits are as random.
        is_left = (2 * uniforms[FLIP]) % 1 < self._share
        if size is None or not is_left or max(size) > MAX_SIDE_PX or not jpeg.has_end(data):
            return super()._image(sample, uniforms)
        self._limits.check(*size)
        return Encoded(data, self._augmentation.crop(*size, uniforms))
