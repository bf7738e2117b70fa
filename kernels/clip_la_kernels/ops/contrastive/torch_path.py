"""What lies between the products of a block of logits, in PyTorch: on any device, in any dtype, float64 included.

All take the block's cosines (r, m), the scalar `scale`, `first`, the column of row 0's own pair, and `ids` of rows and
columns or None; they may overwrite the cosines.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

Ids = tuple[Tensor, Tensor] | None


def own_and_left_out(cosines: Tensor, first: int, ids: Ids) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Indices of the own pairs; True (r, m) where a column has the row's id and is not its own, None without ids."""
    here = torch.arange(cosines.shape[0], device=cosines.device)
    own = (here, here + first)
    if ids is None:
        return own, None
    left_out = ids[0][:, None] == ids[1][None, :]
    left_out[own] = False
    return own, left_out


def logsumexp(cosines: Tensor, scale: Tensor, first: int, ids: Ids) -> tuple[Tensor, Tensor, Tensor]:
    """(log-sum-exps of rows (r,) and of columns (m,), logits of the own pairs (r,))."""
    own, left_out = own_and_left_out(cosines, first, ids)
    logits = scale.to(cosines.dtype) * cosines
    if left_out is not None:
        logits.masked_fill_(left_out, float("-inf"))
    return logits.logsumexp(1), logits.logsumexp(0), logits[own]


def logsumexp_grad(
    cosines: Tensor,
    scale: Tensor,
    first: int,
    ids: Ids,
    lse: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of the logits in `dtype`.

    lse: log-sum-exps of the block's rows and of the columns over all rows; weights: the gradients of the three results
    of `logsumexp`.
    """
    own, left_out = own_and_left_out(cosines, first, ids)
    logits = cosines.mul_(scale.to(cosines.dtype))
    # The softmax of a row and of a column, each times the weight of its log-sum-exp.
    grad = (logits - lse[0][:, None]).exp_().mul_(weights[0][:, None])
    grad += logits.sub_(lse[1]).exp_().mul_(weights[1])
    if left_out is not None:
        # A column left out in all rows has -inf, and NaN above.
        grad.masked_fill_(left_out, 0.0)
    grad[own] += weights[2]
    return grad.to(dtype)


def sigmoid(
    cosines: Tensor,
    scale: Tensor,
    bias: Tensor,
    first: int,
    ids: Ids,
    share: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(sum of the block's losses, that of the bias's gradients, the gradient of the logits in `dtype`, None for dtype
    None), each times `share`."""
    own, left_out = own_and_left_out(cosines, first, ids)
    # Of -sign * logit: the loss is its softplus, whose derivative is its sigmoid.
    wrong = cosines.mul_(scale.to(cosines.dtype)).add_(bias.to(cosines.dtype))
    wrong[own] *= -1
    if left_out is not None:
        wrong.masked_fill_(left_out, float("-inf"))
    loss = F.softplus(wrong).sum() * share
    if dtype is None:
        return loss, torch.zeros_like(loss), None
    grad = wrong.sigmoid_().mul_(share)
    grad[own] *= -1
    return loss, grad.sum(), grad.to(dtype)
