"""Bicubic resampling with antialiasing of many equal-sized pictures at once, each from a box of its own.

The filter is Pillow's: Keys' cubic (a = -0.5) widened by the scale when shrinking. Rows and columns are separable, so a
picture is two small matrix products; batched, that takes a few milliseconds for 128 pictures of 40 pixels on one core.
"""

import torch
from jaxtyping import Float
from torch import Tensor

SUPPORT = 2.0


def _cubic(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    # Keys' two polynomials written in truncated powers of u = 2 - |x| and v = 1 - |x|: u^2 (u - 1) / 2 + v^2 (1 - 2 v).
    u = x.abs().neg_().add_(SUPPORT).clamp_(min=0)
    v = (u - 1).clamp_(min=0)
    outer = (u - 1).mul_(0.5).mul_(u).mul_(u)
    return outer.add_(v.mul(-2).add_(1).mul_(v).mul_(v))


def weights(
    start: Float[Tensor, " batch"], stop: Float[Tensor, " batch"], size: int, length: int
) -> Float[Tensor, "batch {size} {length}"]:
    """Rows of filter weights that take `length` pixels, from `start` to `stop`, to `size` pixels."""
    scale = ((stop - start) / size)[:, None, None]
    centre = start[:, None, None] + (torch.arange(size, device=start.device)[None, :, None] + 0.5) * scale
    pixel = torch.arange(length, device=start.device)[None, None, :] + 0.5
    matrix = _cubic((pixel - centre).div_(scale.clamp(min=1.0)))
    # Pixels outside the box are not looked at, as with Pillow's crop before resize.
    matrix *= (pixel > start[:, None, None]) & (pixel < stop[:, None, None])
    return matrix.div_(matrix.sum(2, keepdim=True))


def resample(
    images: Float[Tensor, "batch channels height width"], boxes: Float[Tensor, "batch 4"], size: int
) -> Float[Tensor, "batch channels {size} {size}"]:
    """Each picture's box (left, top, right, bottom, in pixels) as a square of `size` pixels; values are not clamped."""
    batch, channels, height, width = images.shape
    left, top, right, bottom = boxes.unbind(1)
    across = weights(left, right, size, width)
    down = weights(top, bottom, size, height)
    # Channels go between rows and columns, so that each product is one plain matrix product a picture.
    rows = torch.bmm(images.transpose(1, 2).reshape(batch, height * channels, width), across.transpose(1, 2))
    square = torch.bmm(down, rows.reshape(batch, height, channels * size))
    return square.reshape(batch, size, channels, size).transpose(1, 2)
