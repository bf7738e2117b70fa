"""Linear attention divided by the sum of its weights, keys weighted by the mean query, on the packed projection."""

import torch
from torch import Tensor

from clip_la_kernels.runtime.autograd import wants_gradient
from clip_la_kernels.runtime.dispatch import runs_kernels
from clip_la_kernels.runtime.options import FEATURE_MAPS

MAPS = ("elu1", "relu")
WIDTHS = (32, 64)


def weighted_linear_attention(
    qkv: Tensor,
    *,
    feature_map: str = "elu1",
    rala: bool = True,
    scale: float | None = None,
    eps: float = 1e-6,
    turn: Tensor | None = None,
) -> Tensor:
    """o_i = sum_j p_j x^_ij v_j / (sum_j p_j x_ij + eps), each query against all keys, by kernels alone.

    x_ij = scale phi(q_i).phi(k_j); p_j = 1 / N or, if `rala`, the softmax over the keys of scale phi(k_j) . mean_i
    phi(q_i) (RALA, arXiv 2411.07635); x^ the same of features rotated in pairs (i, i + D / 2), x where `turn` is None.

    Args:
        qkv: (B, N, 3, H, D), D of WIDTHS, bfloat16, float16 or float32, read as it lies; its gradient comes back as
            one packed tensor. Sums are taken in float32.
        feature_map: phi, of MAPS.
        rala: are keys weighted by the mean query?
        scale: D^-1/2 by default.
        eps: added to the mean weight that a row is divided by.
        turn: float32 (2, N, D / 2), cosines and sines of the tokens' angles, without a gradient.

    Returns (B, N, H, D) in qkv's dtype. Raises ValueError for what `serves_weighted` refuses and for a `turn` that does
    not fit, RuntimeError for a second derivative.
    """
    if not serves_weighted(qkv, feature_map):
        raise ValueError(
            f"kernels of weighted linear attention want (B, N, 3, H, {' or '.join(map(str, WIDTHS))}) on a GPU and one"
            f" of {', '.join(MAPS)}; got {tuple(qkv.shape)}, {qkv.dtype}, on {qkv.device.type}, {feature_map!r}"
        )
    tokens, width = qkv.shape[1], qkv.shape[4]
    if turn is not None:
        like = (2, tokens, width // 2), torch.float32, qkv.device
        if (turn.shape, turn.dtype, turn.device) != like:
            got = f"{turn.dtype} {tuple(turn.shape)} on {turn.device}"
            raise ValueError(f"turn must be float32 {like[0]} on {qkv.device}; got {got}")
        turn = turn.detach().contiguous()
    from clip_la_kernels.ops.weighted_linear.launch import Numbers
    from clip_la_kernels.ops.weighted_linear.library import KernelWeightedLinear

    options = Numbers(FEATURE_MAPS[feature_map], bool(rala), width**-0.5 if scale is None else float(scale), float(eps))
    return KernelWeightedLinear.apply(qkv, turn, options, wants_gradient(qkv))


def serves_weighted(qkv: Tensor, feature_map: str) -> bool:
    """Do the kernels take this (B, N, 3, H, D) under this map? Not float64, not an empty tensor."""
    fits = qkv.ndim == 5 and qkv.shape[2] == 3 and qkv.shape[4] in WIDTHS and qkv.numel() > 0
    return fits and feature_map in MAPS and runs_kernels(qkv)
