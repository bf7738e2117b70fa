"""The losses over all pairs by their definitions, from the whole matrix of logits: what the tests compare with.

Arguments as in `losses`; plain differentiable PyTorch, for float64.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def pairs_left_out(rows: Tensor, offset: int, row_ids: Tensor, column_ids: Tensor) -> Tensor:
    """True (n, m) where a column has the row's id and is not the row's own pair: a duplicate is no negative."""
    here = torch.arange(rows.shape[0], device=rows.device)
    duplicate = row_ids[:, None] == column_ids[None, :]
    duplicate[here, here + offset] = False
    return duplicate


def contrastive_reference(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    offset: int = 0,
    row_ids: Tensor | None = None,
    column_ids: Tensor | None = None,
) -> Tensor:
    """Mean over rows of the cross-entropy of scale * rows @ columns.T against column `offset + row`. rows (n, E),
    columns (m, E)."""
    logits = scale * rows @ columns.T
    if row_ids is not None and column_ids is not None:
        logits = logits.masked_fill(pairs_left_out(rows, offset, row_ids, column_ids), float("-inf"))
    return F.cross_entropy(logits, torch.arange(rows.shape[0], device=rows.device) + offset)


def sigmoid_reference(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    offset: int = 0,
    row_ids: Tensor | None = None,
    column_ids: Tensor | None = None,
) -> Tensor:
    """Sum over rows and columns of -log sigmoid(sign * (scale * rows @ columns.T + bias)), divided by the rows; the
    sign is 1 at column `offset + row`, else -1."""
    logits = scale * rows @ columns.T + bias
    here = torch.arange(rows.shape[0], device=rows.device)
    sign = torch.full_like(logits, -1.0)
    sign[here, here + offset] = 1.0
    losses = -F.logsigmoid(sign * logits)
    if row_ids is not None and column_ids is not None:
        losses = losses.masked_fill(pairs_left_out(rows, offset, row_ids, column_ids), 0.0)
    return losses.sum() / rows.shape[0]
