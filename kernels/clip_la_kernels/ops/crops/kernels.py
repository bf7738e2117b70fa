# mypy: ignore-errors
"""Crop and resize many images of different sizes in one launch: a program makes one row of one result."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from clip_la_kernels.runtime.common import kernel

WARPS = 4


@triton.jit
def cubic(x):
    """Keys' cubic, a = -0.5, at a distance x: the filter that Pillow calls bicubic."""
    x = tl.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1.0
    outer = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return tl.where(x < 1.0, inner, tl.where(x < 2.0, outer, 0.0))


@kernel
def crop_row(FLAT, OFFSETS, SIZES, BOXES, MIRRORED, OUT, SIZE, BLOCK: tl.constexpr):
    """Row program_id(0) of result program_id(1). FLAT: bytes of all images, each [3, height, width], from OFFSETS."""
    row = tl.program_id(0)
    image = tl.program_id(1)
    height = tl.load(SIZES + 2 * image)
    width = tl.load(SIZES + 2 * image + 1)
    left = tl.load(BOXES + 4 * image)
    top = tl.load(BOXES + 4 * image + 1)
    right = tl.load(BOXES + 4 * image + 2)
    bottom = tl.load(BOXES + 4 * image + 3)
    red = FLAT + tl.load(OFFSETS + image)
    green = red + height * width
    blue = green + height * width

    scale_y = (bottom - top) / SIZE
    scale_x = (right - left) / SIZE
    # When shrinking the filter covers as many source pixels as go into one result pixel, twice to each side.
    reach_y = tl.maximum(scale_y, 1.0)
    reach_x = tl.maximum(scale_x, 1.0)
    centre_y = top + (row + 0.5) * scale_y
    first_y = tl.maximum(centre_y - 2.0 * reach_y, top).to(tl.int32)
    last_y = tl.minimum(centre_y + 2.0 * reach_y + 1.0, bottom).to(tl.int32)
    sum_y = 0.0
    for y in range(first_y, last_y):
        sum_y += cubic((y + 0.5 - centre_y) / reach_y)

    column = tl.arange(0, BLOCK)
    centre_x = left + (column + 0.5) * scale_x
    first_x = tl.floor(centre_x - 2.0 * reach_x).to(tl.int32)
    taps = (4.0 * reach_x + 2.0).to(tl.int32)
    sum_x = tl.zeros([BLOCK], tl.float32)
    r = tl.zeros([BLOCK], tl.float32)
    g = tl.zeros([BLOCK], tl.float32)
    b = tl.zeros([BLOCK], tl.float32)
    for tap in range(taps):
        x = first_x + tap
        real = (x >= left) & (x < right) & (column < SIZE)
        weight = tl.where(real, cubic((x + 0.5 - centre_x) / reach_x), 0.0)
        sum_x += weight
        for y in range(first_y, last_y):
            both = weight * cubic((y + 0.5 - centre_y) / reach_y)
            at = y * width + x
            r += both * tl.load(red + at, mask=real, other=0).to(tl.float32)
            g += both * tl.load(green + at, mask=real, other=0).to(tl.float32)
            b += both * tl.load(blue + at, mask=real, other=0).to(tl.float32)

    # Columns beyond the result, which nobody stores, have no weights.
    scale = 1.0 / (tl.where(column < SIZE, sum_x, 1.0) * sum_y)
    to = tl.where(tl.load(MIRRORED + image) != 0, SIZE - 1 - column, column)
    out = OUT + image.to(tl.int64) * (3 * SIZE * SIZE) + row * SIZE + to
    plane = SIZE * SIZE
    written = column < SIZE
    tl.store(out, tl.clamp(r * scale + 0.5, 0.0, 255.0).to(tl.uint8), mask=written)
    tl.store(out + plane, tl.clamp(g * scale + 0.5, 0.0, 255.0).to(tl.uint8), mask=written)
    tl.store(out + 2 * plane, tl.clamp(b * scale + 0.5, 0.0, 255.0).to(tl.uint8), mask=written)


def crop_resize(flat: Tensor, offsets: Tensor, sizes: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """See `ops.crops.crops`: flat (bytes,) uint8, offsets (n,) int64, sizes (n, 2) int32, boxes (n, 4) float."""
    out = flat.new_empty(len(offsets), 3, size, size)
    block = triton.next_power_of_2(size)
    with torch.cuda.device_of(flat):
        crop_row[(size, len(offsets))](
            flat, offsets, sizes, boxes, mirrored.view(torch.uint8), out, size, BLOCK=block, num_warps=WARPS
        )
    return out
