"""Launches of the depthwise kernels: tiles, and how many programs share the gradient of the weights."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from clip_la_kernels.ops.depthwise.kernels import depthwise_tokens, depthwise_weight_grad

WARPS = 4
CHANNELS = 64
# Tokens of a tile, the most that leave at most an eighth of the last one empty; of the weights' gradient, whose sums
# are one a column of the kernel.
TILES = (32, 16)
GRAD_TILE = 16
# Programs of the weights' gradient at least, where there are sequences enough: several for each multiprocessor.
GRAD_PROGRAMS = 1024


class Grid(NamedTuple):
    """Where tokens lie: `prefix` tokens, then rows x columns; causal: one row, of which each sees what came before."""

    prefix: int
    rows: int
    columns: int
    causal: bool

    def reach(self, kernel_rows: int, kernel_columns: int) -> tuple[int, int]:
        """Rows above and columns to the left that a kernel sees."""
        return (0, kernel_columns - 1) if self.causal else (kernel_rows // 2, kernel_columns // 2)


def tokens_of_tile(tokens: int) -> int:
    """Of a grid of so many tokens."""
    return next((tile for tile in TILES if -tokens % tile <= tokens / 8), TILES[-1])


def convolve(v: Tensor, weight: Tensor, grid: Grid, back: bool) -> Tensor:
    """v (B, N, C) convolved with weight (C, 1, KR, KC), or with its transpose if `back`: (B, N, C), contiguous."""
    batch, tokens, channels = v.shape
    kernel_rows, kernel_columns = weight.shape[2:]
    top, left = grid.reach(kernel_rows, kernel_columns)
    out = torch.empty(batch, tokens, channels, dtype=v.dtype, device=v.device)
    tile = tokens_of_tile(grid.rows * grid.columns)
    splits = triton.cdiv(grid.rows * grid.columns, tile)
    taps = weight.flatten(1).t().float().contiguous()
    depthwise_tokens[(batch * splits, triton.cdiv(channels, CHANNELS))](
        v, taps, out, v.stride(0), v.stride(1), tokens, channels, grid.prefix, grid.rows, grid.columns, splits,
        KR=kernel_rows, KC=kernel_columns, TOP=top, LEFT=left, BACK=back, TB=tile, CB=CHANNELS, num_warps=WARPS,
    )  # fmt: skip
    return out


def weight_grad(v: Tensor, grad: Tensor, weight: Tensor, grid: Grid) -> Tensor:
    """The gradient of weight (C, 1, KR, KC), in its dtype, from that of the result; sums in float32, in fixed order."""
    batch, _, channels = v.shape
    kernel_rows, kernel_columns = weight.shape[2:]
    top, left = grid.reach(kernel_rows, kernel_columns)
    blocks = triton.cdiv(channels, CHANNELS)
    splits = max(1, min(batch, triton.cdiv(GRAD_PROGRAMS, blocks * kernel_rows)))
    taps = kernel_rows * kernel_columns
    sums = torch.empty(splits, taps, channels, dtype=torch.float32, device=v.device)
    depthwise_weight_grad[(blocks, kernel_rows, splits)](
        v, grad, sums, v.stride(0), v.stride(1), grad.stride(0), grad.stride(1), batch, channels, grid.prefix,
        grid.rows, grid.columns, splits,
        KR=kernel_rows, KC=kernel_columns, TOP=top, LEFT=left, TB=GRAD_TILE, CB=CHANNELS, num_warps=WARPS,
    )  # fmt: skip
    return sums.sum(0).t().contiguous().view(weight.shape).to(weight.dtype)
