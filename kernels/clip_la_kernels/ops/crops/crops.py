"""Crop and resize images of different sizes to one square size, as Pillow's bicubic filter does, in one launch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def crop_resize(images: Sequence[Tensor], boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """The boxes of images as squares; wants Triton (see `dispatch.runs_kernels`).

    Args:
        images: n uint8 tensors (3, height, width) on one device.
        boxes: float32 (n, 4) on the CPU: left, top, right, bottom in whole pixels, inside each image.
        mirrored: bool (n,) on the CPU: which results are turned left to right.
        size: side of the results in pixels.

    Returns:
        uint8 (n, 3, size, size). Rows and columns are weighed in float32 and rounded once, Pillow rounds in between.
    """
    from clip_la_kernels.ops.crops import kernels as crops

    device = images[0].device
    sizes = torch.tensor([image.shape[1:] for image in images], dtype=torch.int32)
    lengths = sizes.to(torch.int64).prod(1) * 3
    offsets = lengths.cumsum(0) - lengths
    flat = torch.cat([image.reshape(-1) for image in images])
    offsets, sizes, boxes, mirrored = (t.to(device, non_blocking=True) for t in (offsets, sizes, boxes, mirrored))
    return crops.crop_resize(flat, offsets, sizes, boxes, mirrored, size)


def crop_resize_stacked(
    images: Tensor, numbers: Tensor | None, boxes: Tensor, mirrored: Tensor | None, size: int
) -> Tensor:
    """`crop_resize` of images of one size that lie in one tensor, everything on its device; nothing waits for it.

    Args:
        images: uint8 (m, 3, height, width).
        numbers: int64 (n,), which of them; None: all.
        boxes: float32 (n, 4).
        mirrored: bool (n,); None: none is.
        size: side of the results in pixels.

    Returns:
        uint8 (n, 3, size, size).
    """
    from clip_la_kernels.ops.crops import kernels as crops

    device, count = images.device, len(boxes)
    if numbers is None:
        numbers = torch.arange(count, device=device)
    offsets = numbers * (images[0].numel() if len(images) else 0)
    sizes = torch.empty(count, 2, dtype=torch.int32, device=device)
    sizes[:, 0], sizes[:, 1] = images.shape[2], images.shape[3]
    if mirrored is None:
        mirrored = torch.zeros(count, dtype=torch.bool, device=device)
    return crops.crop_resize(images.contiguous().view(-1), offsets, sizes, boxes, mirrored, size)
