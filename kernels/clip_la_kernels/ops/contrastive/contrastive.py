"""Contrastive loss that never forms the batch x batch matrix: a block of rows at a time, forward and gradient together.

The products are the vendor's library's, which is best at them; what lies between them is one kernel on a GPU.
"""

from typing import Any

import torch
from torch import Tensor

from clip_la_kernels.runtime.autograd import first_order_only, wants_gradient
from clip_la_kernels.runtime.dispatch import runs_kernels


def contrastive_loss(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    *,
    offset: int = 0,
    row_ids: Tensor | None = None,
    column_ids: Tensor | None = None,
    block_rows: int | None = None,
) -> Tensor:
    """Mean cross-entropy (float32 scalar) of scale * rows @ columns.T against column `offset + row`, in O((n + m) E)
    memory.

    rows: (n, E), this process's features; columns: (m, E), all processes' features of the other tower; scale: scalar
    tensor. row_ids (n,), column_ids (m,): integer caption ids; a column with the row's id that is not its own is no
    negative.
    block_rows: rows handled at a time; by default so many that their logits are LOGITS_AT_ONCE, or take about as much
    room as the columns if that is more. Gradients flow to rows, columns and scale, computed on the way forward.
    ValueError for what does not fit.
    """
    if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != columns.shape[1]:
        raise ValueError(f"rows (n, E) and columns (m, E) do not fit: {tuple(rows.shape)}, {tuple(columns.shape)}")
    if not rows.shape[0]:
        raise ValueError("the loss of no rows is not defined")
    if scale.ndim:
        raise ValueError(f"scale must be a scalar tensor, got shape {tuple(scale.shape)}")
    if not 0 <= offset <= columns.shape[0] - rows.shape[0]:
        raise ValueError(f"offset {offset} with {rows.shape[0]} rows does not lie within {columns.shape[0]} columns")
    if (row_ids is None) != (column_ids is None):
        raise ValueError("give both row_ids and column_ids, or neither")
    if (
        row_ids is not None
        and column_ids is not None
        and (row_ids.shape != rows.shape[:1] or column_ids.shape != columns.shape[:1])
    ):
        raise ValueError(f"caption ids {tuple(row_ids.shape)}, {tuple(column_ids.shape)} do not fit rows and columns")
    block = max(1, rows.shape[1], LOGITS_AT_ONCE // columns.shape[0]) if block_rows is None else block_rows
    if block < 1:
        raise ValueError(f"block_rows must be at least 1, got {block}")
    wanted = wants_gradient(rows, columns, scale)
    with torch.autocast(rows.device.type, enabled=False):
        return ContrastiveLoss.apply(rows, columns, scale, offset, row_ids, column_ids, block, wanted)


# Logits of a block, whatever the width: fewer would leave a GPU waiting for the next launch. 128 MiB in float32.
LOGITS_AT_ONCE = 1 << 25

Ids = tuple[Tensor, Tensor] | None


class ContrastiveLoss(torch.autograd.Function):
    """The forward pass leaves the gradients, so nothing of size n x m is saved or computed twice."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        offset: int,
        row_ids: Tensor | None,
        column_ids: Tensor | None,
        block: int,
        wanted: bool,
    ) -> Tensor:
        count = rows.shape[0]
        work = torch.promote_types(rows.dtype, torch.float32)
        ids = None if row_ids is None or column_ids is None else (row_ids.contiguous(), column_ids.contiguous())
        step = _step_of_kernel if runs_kernels(rows) else _step
        dtype = rows.dtype if wanted else None
        total = torch.zeros((), dtype=work, device=rows.device)
        drows, dcolumns, dscale = _room(rows, columns, total) if wanted else (total, total, total)
        for start in range(0, count, block):
            x = rows[start : start + block]
            own_ids = None if ids is None else (ids[0][start : start + block], ids[1])
            cosine = _products(x, columns, work)
            loss, dscale_part, grad = step(cosine, scale, offset + start, 1 / count, own_ids, dtype)
            total += loss
            if grad is None or dscale_part is None:
                continue
            dscale += dscale_part
            drows[start : start + block] = grad @ columns
            dcolumns += grad.T @ x
        if wanted:
            ctx.save_for_backward(drows, dcolumns.to(columns.dtype), (dscale / count).to(scale.dtype))
        return total / count

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:3]
        return (
            *(t * grad.to(t.dtype) if w else None for t, w in zip(ctx.saved_tensors, wanted, strict=True)),
            None,
            None,
            None,
            None,
            None,
        )


def _room(rows: Tensor, columns: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(rows), torch.zeros_like(columns, dtype=total.dtype), torch.zeros_like(total)


def _products(x: Tensor, columns: Tensor, work: torch.dtype) -> Tensor:
    """x @ columns.T in `work`, without rounding to the operands' dtype where the vendor's library can do so."""
    if x.is_cuda and x.dtype != work:
        return torch.mm(x, columns.T, out_dtype=work)
    return (x @ columns.T).to(work)


def _step(
    cosine: Tensor, scale: Tensor, first: int, share: float, ids: Ids, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(sum of a block's losses, that of the scale's gradients, the gradient of its cosines times `share` in `dtype`).

    first: the column of row 0's own pair; dtype None: no gradients.
    """
    factor = scale.to(cosine.dtype)
    own = torch.arange(cosine.shape[0], device=cosine.device)
    target = own + first
    logits = factor * cosine
    if ids is not None:
        duplicate = ids[0][:, None] == ids[1][None, :]
        duplicate[own, target] = False
        logits = logits.masked_fill_(duplicate, float("-inf"))
    lse = logits.logsumexp(1)
    loss = (lse - logits[own, target]).sum()
    if dtype is None:
        return loss, None, None
    grad = logits.sub_(lse[:, None]).exp_()
    grad[own, target] -= 1
    return loss, (grad * cosine).sum(), (grad * (factor * share)).to(dtype)


def _step_of_kernel(
    cosine: Tensor, scale: Tensor, first: int, share: float, ids: Ids, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`_step` by one kernel, which writes the gradient over the cosines."""
    from clip_la_kernels.ops.contrastive.kernels import loss_and_grad

    losses, dscale, grad = loss_and_grad(cosine, scale, first, share, ids, dtype)
    return losses.sum(), *((None, None) if dtype is None else (dscale.sum(), grad))
