"""What lies between the products of a block of logits, in PyTorch: on any device, in any dtype, float64 included."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Ids = tuple[Tensor, Tensor] | None


class TorchBlock(NamedTuple):
    """Some rows of the logits scale * cosines. The methods may overwrite the cosines: call one, once.

    cosines: (r, m), float32 or float64; scale: scalar; first: the column of row 0's own pair; ids: of the r rows and
    the m columns, or None.
    """

    cosines: Tensor
    scale: Tensor
    first: int
    ids: Ids

    def own_and_left_out(self) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Indices of the own pairs; True (r, m) where a column has the row's id and is not its own, None without
        ids."""
        here = torch.arange(self.cosines.shape[0], device=self.cosines.device)
        own = (here, here + self.first)
        if self.ids is None:
            return own, None
        left_out = self.ids[0][:, None] == self.ids[1][None, :]
        left_out[own] = False
        return own, left_out

    def logsumexp(self) -> tuple[Tensor, Tensor, Tensor]:
        """(log-sum-exps of rows (r,) and of columns (m,), logits of the own pairs (r,))."""
        own, left_out = self.own_and_left_out()
        logits = self.scale.to(self.cosines.dtype) * self.cosines
        if left_out is not None:
            logits.masked_fill_(left_out, float("-inf"))
        return logits.logsumexp(1), logits.logsumexp(0), logits[own]

    def logsumexp_grad(
        self, lse: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype
    ) -> Tensor:
        """The gradient of the logits in `dtype`.

        lse: log-sum-exps of the block's rows and of the columns over all rows; weights: the gradients of the three
        results of `logsumexp`.
        """
        own, left_out = self.own_and_left_out()
        logits = self.cosines.mul_(self.scale.to(self.cosines.dtype))
        # The softmax of a row and of a column, each times the weight of its log-sum-exp.
        grad = (logits - lse[0][:, None]).exp_().mul_(weights[0][:, None])
        grad += logits.sub_(lse[1]).exp_().mul_(weights[1])
        if left_out is not None:
            # A column left out in all rows has -inf, and NaN above.
            grad.masked_fill_(left_out, 0.0)
        grad[own] += weights[2]
        return grad.to(dtype)

    def sigmoid(self, bias: Tensor, share: float, dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(sum of the block's losses, that of the bias's gradients, the gradient of the logits in `dtype`, None for
        dtype None), each times `share`."""
        own, left_out = self.own_and_left_out()
        # Of -sign * logit: the loss is its softplus, whose derivative is its sigmoid.
        wrong = self.cosines.mul_(self.scale.to(self.cosines.dtype)).add_(bias.to(self.cosines.dtype))
        wrong[own] *= -1
        if left_out is not None:
            wrong.masked_fill_(left_out, float("-inf"))
        loss = F.softplus(wrong).sum() * share
        if dtype is None:
            return loss, torch.zeros_like(loss), None
        grad = wrong.sigmoid_().mul_(share)
        grad[own] *= -1
        return loss, grad.sum(), grad.to(dtype)
