"""Crop and resize pictures of different sizes to one square size, as Pillow's bicubic filter does, in one launch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def crop_resize(pictures: Sequence[Tensor], boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """The boxes of pictures as squares; wants Triton (see `dispatch.runs_kernels`).

    Args:
        pictures: n uint8 tensors (3, height, width) on one device.
        boxes: float32 (n, 4) on the CPU: left, top, right, bottom in whole pixels, inside each picture.
        mirrored: bool (n,) on the CPU: which results are turned left to right.
        size: side of the results in pixels.

    Returns:
        uint8 (n, 3, size, size). Rows and columns are weighed in float32 and rounded once, Pillow rounds in between.
    """
    from clip_la_kernels.triton_path import crops

    device = pictures[0].device
    sizes = torch.tensor([picture.shape[1:] for picture in pictures], dtype=torch.int32)
    lengths = sizes.to(torch.int64).prod(1) * 3
    offsets = lengths.cumsum(0) - lengths
    flat = torch.cat([picture.reshape(-1) for picture in pictures])
    offsets, sizes, boxes, mirrored = (t.to(device, non_blocking=True) for t in (offsets, sizes, boxes, mirrored))
    return crops.crop_resize(flat, offsets, sizes, boxes, mirrored, size)
