"""Fastmax, arXiv 2402.07901: polynomial weights on standardised q and k, divided by their row sum."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clip_la_kernels.ops.linear_attention.attention import cast_for_autocast, linear_attention_split, nothing
from clip_la_kernels.ops.linear_attention.reference import STANDARDISE_EPS
from clip_la_kernels.runtime.autograd import wants_gradient
from clip_la_kernels.runtime.dispatch import takes_kernels
from clip_la_kernels.runtime.options import check_dtype

# Rows of the weight matrix that exist at one time on the PyTorch path.
ROW_BLOCK = 512
# Wider heads spill the kernels' registers.
KERNEL_WIDTH = 128


def fastmax(qkv: Tensor, *, p: int = 2, temperature: float = 1.0, causal: bool = False) -> Tensor:
    """Weights 1 + x (p = 1) or 1 + x + x^2 / 2 (p = 2), x = q^_i.k^_j / temperature. qkv: (B, N, 3, H, D) -> (B, N, H,
    D).

    q^, k^: zero mean, unit deviation over the D features of a token. p = 1 is linear attention, guarded like it; p = 2
    is quadratic in N (its state of D^2 / 2 features pays only beyond a few thousand tokens), its weights are at least
    1/2. ValueError for another p, a temperature that is not positive, or a shape that does not fit.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv must be (B, N, 3, H, D); got {tuple(qkv.shape)}")
    check_dtype(qkv)
    if p not in (1, 2):
        raise ValueError(f"fastmax has p = 1 and p = 2; got p = {p}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if qkv.numel() == 0:
        return nothing((qkv,))
    (qkv,) = cast_for_autocast((qkv,), qkv.device.type)
    with torch.autocast(qkv.device.type, enabled=False):
        if p == 2 and qkv.shape[4] <= KERNEL_WIDTH and takes_kernels(qkv):
            from clip_la_kernels.ops.fastmax.library import KernelFastmax

            return KernelFastmax.apply(qkv, float(temperature), bool(causal), wants_gradient(qkv))
        q, k, v = qkv.unbind(2)
        q, k = (torch.nn.functional.layer_norm(t, t.shape[-1:], eps=STANDARDISE_EPS) for t in (q, k))
        if p == 1:
            return linear_attention_split(
                q, k, v, b=1 / temperature, feature_map="identity", denominator="sum", causal=causal
            )
        return _polynomial(q, k, v, temperature, causal)


def _polynomial(q: Tensor, k: Tensor, v: Tensor, temperature: float, causal: bool) -> Tensor:
    """p = 2 in plain PyTorch, float32 (or float64) inside, ROW_BLOCK rows of weights at a time in both directions."""

    def outputs(q: Tensor, k: Tensor, v: Tensor, start: int | None) -> Tensor:
        """Of the query rows q, the first of which is number `start` if causal."""
        weights = 0.5 * (q @ k.transpose(-1, -2) + 1).square() + 0.5
        if start is not None:
            weights = weights.tril(start)
        return weights @ v / weights.sum(-1, keepdim=True)

    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    qs, ks, vs = (t.transpose(1, 2).to(work) for t in (q / temperature, k, v))
    parts = []
    for start in range(0, q.shape[1], ROW_BLOCK):
        rows = qs[:, :, start : start + ROW_BLOCK]
        stop = start + rows.shape[2] if causal else q.shape[1]
        # The backward pass forms a block's weights again, or all of them would be held.
        first = start if causal else None
        parts.append(checkpoint(outputs, rows, ks[:, :, :stop], vs[:, :, :stop], first, use_reentrant=False))
    return torch.cat(parts, dim=2).transpose(1, 2).to(q.dtype)
