"""Contrastive loss that never forms the batch x batch matrix: a block of rows at a time, forward and gradient together.

The products are the whole cost and the vendor's library is best at them, so this is PyTorch on every device.
"""

from typing import Any

import torch
from torch import Tensor

from clip_la_kernels.autograd import first_order_only


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
    tensor.
    row_ids (n,), column_ids (m,): integer caption ids; a column with the row's id that is not its own is no negative.
    block_rows: rows handled at a time; by default so many that their logits take about as much room as the columns.
    Gradients flow to rows, columns and scale, computed on the way forward. ValueError for what does not fit.
    """
    if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != columns.shape[1]:
        raise ValueError(f"rows (n, E) and columns (m, E) do not fit: {tuple(rows.shape)}, {tuple(columns.shape)}")
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
    block = max(1, rows.shape[1]) if block_rows is None else block_rows
    if block < 1:
        raise ValueError(f"block_rows must be at least 1, got {block}")
    with torch.autocast(rows.device.type, enabled=False):
        return ContrastiveLoss.apply(rows, columns, scale, offset, row_ids, column_ids, block)


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
    ) -> Tensor:
        count = rows.shape[0]
        wanted = any(ctx.needs_input_grad[:3])
        work = torch.promote_types(rows.dtype, torch.float32)
        factor = scale.to(work)
        total = torch.zeros((), dtype=work, device=rows.device)
        drows, dcolumns, dscale = torch.empty_like(rows), torch.zeros_like(columns, dtype=work), torch.zeros_like(total)
        for start in range(0, count, block):
            x = rows[start : start + block]
            cosine = (x @ columns.T).to(work)
            own = torch.arange(x.shape[0], device=rows.device)
            target = own + (offset + start)
            logits = factor * cosine
            if row_ids is not None and column_ids is not None:
                duplicate = row_ids[start : start + block, None] == column_ids[None, :]
                duplicate[own, target] = False
                logits = logits.masked_fill_(duplicate, float("-inf"))
            lse = logits.logsumexp(1)
            total += (lse - logits[own, target]).sum()
            if not wanted:
                continue
            grad = logits.sub_(lse[:, None]).exp_()
            grad[own, target] -= 1
            dscale += (grad * cosine).sum()
            grad = (grad * (factor / count)).to(rows.dtype)
            drows[start : start + block] = grad @ columns
            dcolumns += grad.T @ x
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
        )
