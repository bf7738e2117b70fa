"""The reference: every function here forms the whole matrix of weights in plain PyTorch. Slow, clear, differentiable,
any floating dtype.

Kernels and fast paths are tested against these. Layout (B, N, H, D) throughout, as the public functions.
Formulas: arXiv 2604.10064 Eq. 7 (affine, no denominator), arXiv 2510.21956 (affine, normalised), arXiv 2402.07901
(fastmax).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_la_kernels.runtime.options import DEN_LENGTH, DEN_SUM, ELU1, EXP, L2, NORM_FLOOR, RELU, make_options

STANDARDISE_EPS = 1e-6


def feature(x: Tensor, code: int) -> Tensor:
    """phi(x) over the last dimension; L2 sends a row of norm <= NORM_FLOOR to zero, with a zero gradient."""
    if code == L2:
        squares = x.square().sum(-1, keepdim=True)
        alive = squares > NORM_FLOOR**2
        return torch.where(alive, x * torch.where(alive, squares, 1.0).rsqrt(), 0.0)
    if code == RELU:
        return x.relu()
    if code == ELU1:
        # F.elu(x) + 1 is exactly 0 in bfloat16 for x <= -8; this form keeps exp(x). The gradient at 0 is 1.
        return torch.where(x >= 0, x + 1, x.clamp(max=0).exp())
    return x.exp() if code == EXP else x


def allowed_keys(
    shape: torch.Size, causal: bool, mask: Tensor | None, cu_seqlens: Tensor | None, device: torch.device
) -> Tensor:
    """Bool (B, N, N): may query i see key j? Causality, the padding mask and sequence borders together."""
    batch, tokens = shape[0], shape[1]
    seen = torch.ones(batch, tokens, tokens, dtype=torch.bool, device=device)
    if causal:
        seen = seen.tril()
    if mask is not None:
        seen = seen & mask[:, None, :]
    if cu_seqlens is not None:
        sequence = torch.bucketize(torch.arange(tokens, device=device), cu_seqlens[1:].to(device), right=True)
        seen = seen & (sequence[:, None] == sequence[None, :])
    return seen


def linear_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    a: float = 1.0,
    b: float = 1.0,
    feature_map: str = "l2",
    denominator: str = "none",
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """o_i = sum_j (a + b phi(q_i).phi(k_j)) v_j / z_i over the keys that i may see. q, k, v, o: (B, N, H, D).

    z_i: 1 ("none"), the number n_i of those keys ("length"), or the sum of their weights ("sum"), whose magnitude is
    held at eps * n_i or above, its sign kept (zero counts as positive); a row so held gets no gradient through z_i. n_i
    counts at least 1.
    """
    opt = make_options(a, b, feature_map, denominator, causal, eps)
    seen = allowed_keys(q.shape, causal, key_padding_mask, cu_seqlens, q.device)[:, None]
    if key_padding_mask is not None:
        # What stands at a padded position must not matter, NaN included.
        k, v = (t.masked_fill(~key_padding_mask[:, :, None, None], 0.0) for t in (k, v))
    weights = opt.a + opt.b * torch.einsum("bihd,bjhd->bhij", feature(q, opt.feature_map), feature(k, opt.feature_map))
    weights = weights.masked_fill(~seen, 0.0)
    out = torch.einsum("bhij,bjhd->bhid", weights, v)
    count = seen.sum(-1, keepdim=True).clamp(min=1).to(q.dtype)
    if opt.denominator == DEN_LENGTH:
        out = out / count
    if opt.denominator == DEN_SUM:
        out = out / guard(weights.sum(-1, keepdim=True), opt.eps * count)
    return out.transpose(1, 2)


def guard(z: Tensor, floor: Tensor) -> Tensor:
    """z where |z| > floor, else floor with z's sign (zero counts as positive) and no gradient."""
    return torch.where(z.abs() > floor, z, torch.where(z < 0, -floor, floor))


def fastmax_reference(
    q: Tensor, k: Tensor, v: Tensor, *, p: int = 2, temperature: float = 1.0, causal: bool = False
) -> Tensor:
    """Weights 1 + x (p = 1) or 1 + x + x^2 / 2 (p = 2) of x = q^_i.k^_j / temperature, divided by their row sum.

    q^, k^: zero mean and unit (population) deviation over the last dimension, STANDARDISE_EPS added to the variance.
    q, k, v, o: (B, N, H, D). For p = 1 the row sum is guarded as in `linear_attention_reference` with eps = 1e-6.
    """
    q, k = (F.layer_norm(t, t.shape[-1:], eps=STANDARDISE_EPS) for t in (q, k))
    x = torch.einsum("bihd,bjhd->bhij", q, k) / temperature
    weights = 1 + x if p == 1 else 1 + x + x.square() / 2
    seen = allowed_keys(q.shape, causal, None, None, q.device)[:, None]
    weights = weights.masked_fill(~seen, 0.0)
    total = weights.sum(-1, keepdim=True)
    if p == 1:
        total = guard(total, 1e-6 * seen.sum(-1, keepdim=True).to(q.dtype))
    return torch.einsum("bhij,bjhd->bihd", weights / total, v)
