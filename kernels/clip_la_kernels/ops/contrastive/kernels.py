# ruff: noqa: RUF059 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""What lies between the products of a block of logits, as Triton kernels: the methods of `torch_path.TorchBlock`,
for float32 cosines.

A program has one tile of the block in registers: it reads the cosines once and writes at most their gradient, in their
place, so the block passes through memory as seldom as can be. Sums over rows and columns leave the tiles as partial
results, under 3 % of the block's size, which PyTorch adds up in a fixed order: no atomics, so results repeat.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from clip_la_kernels.ops.contrastive.torch_path import Ids

# A tile, 32 numbers for each of its threads: two of them (cosines and gradient) fit the registers with room to spare.
# Long rows of it make long reads.
ROWS, COLUMNS, WARPS = 32, 256, 8


@triton.jit
def load_logits(
    COSINES, SCALE, ROW_IDS, COLUMN_IDS, rows, columns, first, BR: tl.constexpr, BC: tl.constexpr, HAS_IDS: tl.constexpr
):
    """(r, c, their cells, logits, which count, which are own pairs) of this program's tile.

    A column with the row's id that is not its own does not count; nor does what lies beyond the block.
    """
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    # 64-bit: a block may have more than 2^31 logits.
    cells = r.to(tl.int64)[:, None] * columns + c[None, :]
    counts = (r < rows)[:, None] & (c < columns)[None, :]
    x = tl.load(COSINES + cells, mask=counts, other=0.0)
    own = c[None, :] == (first + r)[:, None]
    if HAS_IDS:
        row_id = tl.load(ROW_IDS + r, mask=r < rows, other=0)
        column_id = tl.load(COLUMN_IDS + c, mask=c < columns, other=0)
        counts = counts & (own | (row_id[:, None] != column_id[None, :]))
    return r, c, cells, x * tl.load(SCALE).to(tl.float32), counts, own & counts


@triton.jit
def lse_of(logits, counts, AXIS: tl.constexpr):
    """log(sum(exp)) along an axis of what counts; -inf where nothing does."""
    logits = tl.where(counts, logits, float("-inf"))
    top = tl.max(logits, AXIS)
    top = tl.where(top == float("-inf"), 0.0, top)
    return top + tl.log(tl.sum(tl.exp(logits - tl.expand_dims(top, AXIS)), AXIS))


@triton.jit(do_not_specialize=["rows", "columns", "first"])
def logsumexp_tile(
    COSINES, SCALE, ROW_IDS, COLUMN_IDS, ROW_LSE, COLUMN_LSE, OWN, rows, columns, first, BR: tl.constexpr,
    BC: tl.constexpr, HAS_IDS: tl.constexpr,
):  # fmt: skip
    """Log-sum-exps of a tile's rows into ROW_LSE (rows, tiles) and of its columns into COLUMN_LSE (tiles, columns); the
    own pairs' logits, each in one tile, into OWN (rows,)."""
    r, c, cells, logits, counts, own = load_logits(
        COSINES, SCALE, ROW_IDS, COLUMN_IDS, rows, columns, first, BR, BC, HAS_IDS
    )
    tl.store(ROW_LSE + r * tl.num_programs(0) + tl.program_id(0), lse_of(logits, counts, 1), mask=r < rows)
    column_lse = COLUMN_LSE + tl.cast(tl.program_id(1), tl.int64) * columns + c
    tl.store(column_lse, lse_of(logits, counts, 0), mask=c < columns)
    is_here = (first + r >= tl.program_id(0) * BC) & (first + r < (tl.program_id(0) + 1) * BC)
    tl.store(OWN + r, tl.sum(tl.where(own, logits, 0.0), 1), mask=is_here & (r < rows))


@triton.jit(do_not_specialize=["rows", "columns", "first"])
def logsumexp_grad_tile(
    COSINES, SCALE, ROW_IDS, COLUMN_IDS, GRAD, ROW_LSE, COLUMN_LSE, ROW_WEIGHTS, COLUMN_WEIGHTS, OWN_WEIGHTS,
    rows, columns, first, BR: tl.constexpr, BC: tl.constexpr, HAS_IDS: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile's logits into GRAD, which may be COSINES."""
    r, c, cells, logits, counts, own = load_logits(
        COSINES, SCALE, ROW_IDS, COLUMN_IDS, rows, columns, first, BR, BC, HAS_IDS
    )
    row_lse = tl.load(ROW_LSE + r, mask=r < rows, other=0.0)
    column_lse = tl.load(COLUMN_LSE + c, mask=c < columns, other=0.0)
    row_weight = tl.load(ROW_WEIGHTS + r, mask=r < rows, other=0.0)
    column_weight = tl.load(COLUMN_WEIGHTS + c, mask=c < columns, other=0.0)
    own_weight = tl.load(OWN_WEIGHTS + r, mask=r < rows, other=0.0)
    grad = tl.exp(logits - row_lse[:, None]) * row_weight[:, None]
    grad += tl.exp(logits - column_lse[None, :]) * column_weight[None, :]
    # A column left out in all rows has -inf, and NaN above.
    grad = tl.where(counts, grad, 0.0) + tl.where(own, own_weight[:, None], 0.0)
    tl.store(GRAD + cells, grad.to(GRAD.dtype.element_ty), mask=(r < rows)[:, None] & (c < columns)[None, :])


@triton.jit(do_not_specialize=["rows", "columns", "first"])
def sigmoid_tile(
    COSINES, SCALE, ROW_IDS, COLUMN_IDS, GRAD, SUMS, BIAS, share, rows, columns, first, BR: tl.constexpr,
    BC: tl.constexpr, HAS_IDS: tl.constexpr, WANTED: tl.constexpr,
):  # fmt: skip
    """A tile's sums of losses and of the bias's gradients into SUMS (2, programs); if WANTED, the gradient of its
    logits times `share` into GRAD, which may be COSINES."""
    r, c, cells, logits, counts, own = load_logits(
        COSINES, SCALE, ROW_IDS, COLUMN_IDS, rows, columns, first, BR, BC, HAS_IDS
    )
    sign = tl.where(own, -1.0, 1.0)
    wrong = sign * (logits + tl.load(BIAS).to(tl.float32))
    small = tl.exp(-tl.abs(wrong))
    # log(1 + small) without losing the small ones to the rounding of 1 + small: nearly all losses of a batch are such.
    # 2 artanh(small / (2 + small)), whose series is exact to float32 after seven terms.
    t = small / (2.0 + small)
    s = t * t
    series = 1 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * (1 / 9 + s * (1 / 11 + s * (1 / 13))))))
    loss = tl.where(counts, tl.maximum(wrong, 0.0) + 2.0 * t * series, 0.0)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    programs = tl.num_programs(0) * tl.num_programs(1)
    tl.store(SUMS + program, tl.sum(tl.sum(loss, 1), 0))
    if WANTED:
        # sigmoid(wrong), the derivative of its softplus.
        grad = sign * tl.where(wrong >= 0, 1.0, small) / (1.0 + small)
        grad = tl.where(counts, grad, 0.0)
        tl.store(SUMS + programs + program, tl.sum(tl.sum(grad, 1), 0))
        tl.store(
            GRAD + cells, (grad * share).to(GRAD.dtype.element_ty), mask=(r < rows)[:, None] & (c < columns)[None, :]
        )


class KernelBlock(NamedTuple):
    """As `torch_path.TorchBlock`, for float32 cosines; gradients in float32 take the place of the cosines."""

    cosines: Tensor
    scale: Tensor
    first: int
    ids: Ids

    def tiles(self) -> tuple[int, int]:
        """(tiles down, tiles across) that cover the block, a program each."""
        rows, columns = self.cosines.shape
        return triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS)

    def launch(self, kernel, rest: tuple, **more) -> None:
        """Launches a kernel on all tiles; `rest` comes between the ids and the sizes."""
        # Something that is never read in place of ids that are absent.
        ids_or_dummies = self.ids or (self.cosines, self.cosines)
        with torch.cuda.device_of(self.cosines):
            kernel[self.tiles()[::-1]](
                self.cosines, self.scale, *ids_or_dummies, *rest, *self.cosines.shape, self.first, BR=ROWS, BC=COLUMNS,
                HAS_IDS=self.ids is not None, num_warps=WARPS, **more,
            )  # fmt: skip

    def logsumexp(self) -> tuple[Tensor, Tensor, Tensor]:
        (rows, columns), (down, across) = self.cosines.shape, self.tiles()
        row_lse, column_lse = self.cosines.new_empty(rows, across), self.cosines.new_empty(down, columns)
        own = self.cosines.new_empty(rows)
        self.launch(logsumexp_tile, (row_lse, column_lse, own))
        return row_lse.logsumexp(1), column_lse.logsumexp(0), own

    def logsumexp_grad(
        self, lse: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype
    ) -> Tensor:
        grad = self.cosines if dtype == torch.float32 else torch.empty_like(self.cosines, dtype=dtype)
        # The gradient of a mean is one number, expanded.
        dense = (w.contiguous() for w in weights)
        self.launch(logsumexp_grad_tile, (grad, *lse, *dense))
        return grad

    def sigmoid(self, bias: Tensor, share: float, dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor | None]:
        grad = self.cosines if dtype in (None, torch.float32) else torch.empty_like(self.cosines, dtype=dtype)
        down, across = self.tiles()
        sums = self.cosines.new_zeros(2, down * across)
        self.launch(sigmoid_tile, (grad, sums, bias, share), WANTED=dtype is not None)
        return *(sums.sum(1) * share).unbind(), None if dtype is None else grad
