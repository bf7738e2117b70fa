"""Losses over all pairs of two sets of features that never form the matrix of logits: a block of its rows at a time.

The products are the vendor's library's, which is best at them; what lies between them is one pass over a block: a
Triton kernel on a GPU (`kernels`), a few PyTorch operations elsewhere (`torch_path`).

- Softmax losses: the softmax of a column is known when all rows have been seen. The forward pass keeps log-sum-exps
  alone, of rows and columns at once; the backward pass forms each block once more and takes both gradients from it.
  Four products of n x m x E in all, for both directions.
- Sigmoid loss: every pair stands alone, so the gradients are computed on the way forward. Three products in all.

Shapes: rows (n, E), this process's features; columns (m, E), all processes' features of the other tower; column
`offset + i` is row i's own pair. Ids (n,), (m,): integers; a column with the row's id that is not its own does not
count. float32, float64, bfloat16 or float16; sums are in float32, in float64 for float64.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip_la_kernels.ops.contrastive import torch_path
from clip_la_kernels.runtime.autograd import first_order_only, wants_gradient
from clip_la_kernels.runtime.dispatch import runs_kernels

# Logits of a block, whatever the width: fewer would leave a GPU waiting for the next launch. 128 MiB in float32.
LOGITS_AT_ONCE = 1 << 25


def contrastive_logsumexp(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    *,
    offset: int = 0,
    row_ids: Tensor | None = None,
    column_ids: Tensor | None = None,
    block_rows: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What softmax losses are made of: log-sum-exps of the rows (n,) and columns (m,) of scale * rows @ columns.T, and
    the logits of the own pairs (n,). O((n + m) E) memory.

    On several processes a column's log-sum-exp over all rows is that over the processes' values. A column that counts
    in no row here has -inf.

    Args:
        rows, columns, offset, row_ids, column_ids: see the module.
        scale: scalar tensor.
        block_rows: rows handled at a time; by default so many that their logits are LOGITS_AT_ONCE, or take about as
            much room as the columns if that is more.

    Gradients flow from all three results to rows, columns and scale. Raises ValueError for what does not fit.
    """
    pairs = _Pairs.checked(rows, columns, (scale,), offset, row_ids, column_ids, block_rows)
    with torch.autocast(rows.device.type, enabled=False):
        return _LogSumExp.apply(rows, columns, scale, pairs)


def contrastive_loss(rows: Tensor, columns: Tensor, scale: Tensor, **pairs: Any) -> Tensor:
    """Mean cross-entropy (scalar) of scale * rows @ columns.T against the own pairs: one direction of CLIP's loss.

    Arguments, gradients and errors as for `contrastive_logsumexp`.
    """
    row_lse, _, own = contrastive_logsumexp(rows, columns, scale, **pairs)
    return (row_lse - own).mean()


def sigmoid_loss(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    offset: int = 0,
    row_ids: Tensor | None = None,
    column_ids: Tensor | None = None,
    block_rows: int | None = None,
) -> Tensor:
    """Sum of softplus(-sign * (scale * row.column + bias)) over all pairs that count, divided by n (SigLIP, arXiv
    2303.15343, Eq. 1); the sign is 1 for own pairs, else -1. Scalar; O((n + m) E) memory.

    bias: scalar tensor; the other arguments and errors as for `contrastive_logsumexp`. Gradients flow to rows, columns,
    scale and bias.
    """
    pairs = _Pairs.checked(rows, columns, (scale, bias), offset, row_ids, column_ids, block_rows)
    wanted = wants_gradient(rows, columns, scale, bias)
    with torch.autocast(rows.device.type, enabled=False):
        return _SigmoidLoss.apply(rows, columns, scale, bias, pairs, wanted)


class _Pairs(NamedTuple):
    """Which column is a row's own, which count, and how many rows are handled at a time."""

    offset: int
    row_ids: Tensor | None
    column_ids: Tensor | None
    block: int

    @classmethod
    def checked(
        cls,
        rows: Tensor,
        columns: Tensor,
        scalars: tuple[Tensor, ...],
        offset: int,
        row_ids: Tensor | None,
        column_ids: Tensor | None,
        block_rows: int | None,
    ) -> "_Pairs":
        """Of the arguments of a loss; raises ValueError for what does not fit."""
        if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != columns.shape[1]:
            raise ValueError(f"rows (n, E) and columns (m, E) do not fit: {tuple(rows.shape)}, {tuple(columns.shape)}")
        if not rows.shape[0]:
            raise ValueError("the loss of no rows is not defined")
        for name, value in zip(("scale", "bias"), scalars, strict=False):
            if value.ndim:
                raise ValueError(f"{name} must be a scalar tensor, got shape {tuple(value.shape)}")
        if not 0 <= offset <= columns.shape[0] - rows.shape[0]:
            raise ValueError(
                f"offset {offset} with {rows.shape[0]} rows does not lie within {columns.shape[0]} columns"
            )
        if (row_ids is None) != (column_ids is None):
            raise ValueError("give both row_ids and column_ids, or neither")
        if row_ids is not None and column_ids is not None:
            if row_ids.shape != rows.shape[:1] or column_ids.shape != columns.shape[:1]:
                shapes = f"{tuple(row_ids.shape)}, {tuple(column_ids.shape)}"
                raise ValueError(f"caption ids {shapes} do not fit rows and columns")
            row_ids, column_ids = row_ids.contiguous(), column_ids.contiguous()
        block = max(1, rows.shape[1], LOGITS_AT_ONCE // columns.shape[0]) if block_rows is None else block_rows
        if block < 1:
            raise ValueError(f"block_rows must be at least 1, got {block}")
        return cls(offset, row_ids, column_ids, block)

    def blocks(self, rows: Tensor, columns: Tensor, scale: Tensor) -> Iterator[tuple[slice, Any]]:
        """(rows, their `TorchBlock` or `KernelBlock`) of each block; its cosines are float32, or float64 for that."""
        block: Any = torch_path.TorchBlock
        if runs_kernels(rows):
            # Triton need not be installed where nothing asks for its kernels.
            from clip_la_kernels.ops.contrastive import kernels

            block = kernels.KernelBlock
        work = torch.promote_types(rows.dtype, torch.float32)
        for start in range(0, rows.shape[0], self.block):
            here = slice(start, min(start + self.block, rows.shape[0]))
            if rows.is_cuda and rows.dtype != work:
                # Without rounding to the operands' dtype, as the vendor's library can do.
                cosines = torch.mm(rows[here], columns.T, out_dtype=work)
            else:
                cosines = (rows[here] @ columns.T).to(work)
            ids = None if self.row_ids is None or self.column_ids is None else (self.row_ids[here], self.column_ids)
            yield here, block(cosines, scale, self.offset + start, ids)


class _LogSumExp(torch.autograd.Function):
    """`contrastive_logsumexp`; saves its inputs and the log-sum-exps, (n + m) numbers."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, pairs: _Pairs) -> tuple[Tensor, ...]:
        row_lse, owns = [], []
        column_lse: Tensor | None = None
        for _, block in pairs.blocks(rows, columns, scale):
            row, column, own = block.logsumexp()
            row_lse.append(row)
            owns.append(own)
            column_lse = column if column_lse is None else torch.logaddexp(column_lse, column)
        assert column_lse is not None
        results = torch.cat(row_lse), column_lse, torch.cat(owns)
        ctx.save_for_backward(rows, columns, scale, *results[:2])
        ctx.pairs = pairs
        return results

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad_rows: Tensor, grad_columns: Tensor, grad_own: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, row_lse, column_lse = ctx.saved_tensors
        gradients = _Gradients(rows, columns)
        for here, block in ctx.pairs.blocks(rows, columns, scale):
            lse, weights = (row_lse[here], column_lse), (grad_rows[here], grad_columns, grad_own[here])
            gradients.add(here, block.logsumexp_grad(lse, weights, rows.dtype))
        wanted = ctx.needs_input_grad[:3]
        return (*(t if w else None for t, w in zip(gradients.scaled(scale), wanted, strict=True)), None)


class _SigmoidLoss(torch.autograd.Function):
    """`sigmoid_loss`; the forward pass leaves the gradients, if a backward pass will come (`wanted`)."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, pairs: _Pairs, wanted: bool
    ) -> Tensor:
        share = 1 / rows.shape[0]
        loss, dbias = torch.zeros(2, dtype=torch.promote_types(rows.dtype, torch.float32), device=rows.device)
        gradients = _Gradients(rows, columns) if wanted else None
        for here, block in pairs.blocks(rows, columns, scale):
            part, dbias_part, grad = block.sigmoid(bias, share, rows.dtype if wanted else None)
            loss += part
            if gradients is not None:
                gradients.add(here, grad)
                dbias += dbias_part
        if gradients is not None:
            ctx.save_for_backward(*gradients.scaled(scale), dbias.to(bias.dtype))
        return loss

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:4]
        found = (t * grad.to(t.dtype) if w else None for t, w in zip(ctx.saved_tensors, wanted, strict=True))
        return (*found, None, None)


class _Gradients:
    """Gradients of rows, columns and scale from those of the logits, block after block."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self._of = rows, columns
        self._rows = torch.empty_like(rows)
        # Many blocks add up here: bfloat16 would lose the later ones.
        self._columns = torch.zeros_like(columns, dtype=torch.promote_types(columns.dtype, torch.float32))

    def add(self, here: slice, grad: Tensor) -> None:
        """grad: of the logits of the rows `here`, in the rows' dtype."""
        rows, columns = self._of
        self._rows[here] = grad @ columns
        self._columns += grad.T @ rows[here]

    def scaled(self, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows, columns and scale, each in its own dtype."""
        rows, columns = self._of
        work = self._columns.dtype
        # sum of G * cosines = sum of (G @ columns) * rows: nothing of the size of the logits is read once more.
        dscale = (self._rows.to(work) * rows.to(work)).sum()
        return self._rows * scale.to(rows.dtype), (self._columns * scale).to(columns.dtype), dscale.to(scale.dtype)
