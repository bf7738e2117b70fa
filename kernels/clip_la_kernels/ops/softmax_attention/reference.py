"""The reference: softmax attention in plain PyTorch, with the whole matrix of weights, in any floating dtype."""

import torch
from torch import Tensor


def softmax_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """o_i = sum_j softmax_j(scale q_i.k_j) v_j over the keys that i may see (all; j <= i if causal).

    q, k, v, o: (B, N, H, D). scale: D^-1/2 by default.
    """
    logits = torch.einsum("bihd,bjhd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        unseen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(unseen, float("-inf"))
    return torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), v)
