"""The reference: weighted linear attention in plain PyTorch with the whole matrix of weights, in any floating dtype."""

import torch
from torch import Tensor


def weighted_linear_reference(
    q: Tensor, k: Tensor, v: Tensor, *, feature_map: str, rala: bool, scale: float, eps: float,
    turn: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """o_i = sum_j p_j x^_ij v_j / (sum_j p_j x_ij + eps) over all keys, x_ij = scale phi(q_i).phi(k_j).

    p: 1 / N, or if `rala` softmax over the keys of scale phi(k_j) . mean_i phi(q_i) (arXiv 2411.07635). x^ is x of
    features rotated in pairs (i, i + D / 2) by the token's angles, where `turn` (2, N, D / 2) has their cosines and
    sines. q, k, v, o: (B, N, H, D); phi: "elu1" or "relu".
    """
    fq, fk = (x.relu() if feature_map == "relu" else torch.where(x > 0, x + 1, x.clamp(max=0).exp()) for x in (q, k))
    scores = torch.einsum("bhd,bjhd->bhj", fq.mean(1), fk) * scale
    p = (scores if rala else scores * 0).softmax(-1)
    plain = torch.einsum("bihd,bjhd->bhij", fq, fk) * scale * p.unsqueeze(2)
    weights = plain
    if turn is not None:
        cos, sin = turn.to(q.dtype).unsqueeze(2)
        # A pair as a complex number: its turn is a product.
        tq, tk = (torch.complex(*f.chunk(2, -1)) * torch.complex(cos, sin) for f in (fq, fk))
        weights = torch.einsum("bihd,bjhd->bhij", tq, tk.conj()).real * scale * p.unsqueeze(2)
    return torch.einsum("bhij,bjhd->bihd", weights / (plain.sum(-1, keepdim=True) + eps), v)
