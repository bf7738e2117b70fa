# ruff: noqa: RUF059 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Everything between the two products of a block of contrastive logits, in one pass over memory and one over the cache:
scale, mask, log-sum-exp, and the gradient, which takes the place of the cosines."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns that a program has in registers at a time, and warps that share them.
COLUMNS, WARPS = 4096, 8


@triton.jit
def logits_of(COSINES, COLUMN_IDS, own_id, c, target, columns, scale, HAS_IDS: tl.constexpr):
    """(cosines, logits, which of them count) of columns c; a column with the row's caption id that is not its own does
    not."""
    counts = c < columns
    x = tl.load(COSINES + c, mask=counts, other=0.0)
    if HAS_IDS:
        same = tl.load(COLUMN_IDS + c, mask=counts, other=0) == own_id
        counts = counts & ((c == target) | (same == 0))
    return x, tl.where(counts, x * scale, float("-inf")), counts


@triton.jit(do_not_specialize=["columns", "first"])
def contrastive_rows(
    COSINES, GRAD, LOSS, DSCALE, SCALE, ROW_IDS, COLUMN_IDS, columns, first, share, BLOCK: tl.constexpr,
    HAS_IDS: tl.constexpr, WANTED: tl.constexpr,
):  # fmt: skip
    """One row: its loss; if WANTED its part of the scale's gradient, and the gradient of its cosines times `share`.

    first: the column that is row 0's own. GRAD may be COSINES.
    """
    row = tl.program_id(0)
    target = first + row
    COSINES += tl.cast(row, tl.int64) * columns
    GRAD += tl.cast(row, tl.int64) * columns
    scale = tl.load(SCALE).to(tl.float32)
    own_id = 0
    if HAS_IDS:
        own_id = tl.load(ROW_IDS + row)
    own = tl.load(COSINES + target)
    # The row's own logit always counts, so the running maximum is finite from the start.
    top = own * scale
    total = 0.0
    for c0 in range(0, columns, BLOCK):
        c = c0 + tl.arange(0, BLOCK)
        x, logits, counts = logits_of(COSINES, COLUMN_IDS, own_id, c, target, columns, scale, HAS_IDS)
        higher = tl.maximum(top, tl.max(logits, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher), 0)
        top = higher
    lse = top + tl.log(total)
    tl.store(LOSS + row, lse - own * scale)
    if WANTED:
        dscale = 0.0
        # Reading all before anything is written: GRAD may be COSINES, and `own` is kept.
        tl.debug_barrier()
        for c0 in range(0, columns, BLOCK):
            c = c0 + tl.arange(0, BLOCK)
            x, logits, counts = logits_of(COSINES, COLUMN_IDS, own_id, c, target, columns, scale, HAS_IDS)
            grad = tl.exp(logits - lse) - tl.where(c == target, 1.0, 0.0)
            dscale += tl.sum(grad * x, 0)
            tl.store(GRAD + c, (grad * (scale * share)).to(GRAD.dtype.element_ty), mask=c < columns)
        tl.store(DSCALE + row, dscale)


def loss_and_grad(
    cosines: Tensor,
    scale: Tensor,
    first: int,
    share: float,
    ids: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, scale's gradients, gradient of the cosines in `dtype`) of a block of rows, each float32 but the last.

    cosines: float32 (rows, columns), contiguous, overwritten; dtype None: no gradients, the last two are not filled.
    """
    rows, columns = cosines.shape
    losses, dscale = (torch.empty(rows, dtype=torch.float32, device=cosines.device) for _ in range(2))
    grad = cosines if dtype in (None, torch.float32) else torch.empty_like(cosines, dtype=dtype)
    row_ids, column_ids = ids or (losses, losses)
    with torch.cuda.device_of(cosines):
        contrastive_rows[(rows,)](
            cosines, grad, losses, dscale, scale, row_ids, column_ids, columns, first, share, BLOCK=COLUMNS,
            HAS_IDS=ids is not None, WANTED=dtype is not None, num_warps=WARPS,
        )  # fmt: skip
    return losses, dscale, grad
