"""Softmax attention on the packed projection: short heads by one kernel a pass, all others by PyTorch's own."""

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_la_kernels.ops.linear_attention.attention import cast_for_autocast, nothing
from clip_la_kernels.runtime.autograd import wants_gradient
from clip_la_kernels.runtime.dispatch import runs_kernels
from clip_la_kernels.runtime.options import check_dtype

# Major compute capability.
HOPPER = 9
# Tokens up to which heads of this width are the kernels'. float32 operands take twice the room, and each of their
# products three.
MOST_TOKENS = {32: 256, 64: 256, 128: 128}
MOST_TOKENS_FLOAT32 = {32: 64, 64: 64}


def softmax_attention(qkv: Tensor, *, causal: bool = False, scale: float | None = None) -> Tensor:
    """o_i = sum_j softmax_j(scale q_i.k_j) v_j, each query against all keys, or those up to its own if causal.

    qkv: (B, N, 3, H, D), read as it lies; the gradient comes back as one packed tensor. scale: D^-1/2 by default.
    Returns (B, N, H, D) in qkv's dtype (under autocast in its). Kernels serve `serves_softmax`; they repeat to the bit
    and refuse a second derivative. Elsewhere scaled_dot_product_attention, with the backends that PyTorch is left.
    ValueError for a shape or dtype that does not fit.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv must be (B, N, 3, H, D); got {tuple(qkv.shape)}")
    check_dtype(qkv)
    if qkv.numel() == 0:
        return nothing((qkv,))
    (qkv,) = cast_for_autocast((qkv,), qkv.device.type)
    scale = qkv.shape[-1] ** -0.5 if scale is None else float(scale)
    with torch.autocast(qkv.device.type, enabled=False):
        if serves_softmax(qkv):
            from clip_la_kernels.ops.softmax_attention.library import KernelSoftmaxAttention

            return KernelSoftmaxAttention.apply(qkv, scale, bool(causal), wants_gradient(qkv))
        # Unbinding along the packed axis lets the backward pass write the packed gradient in one copy.
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).transpose(1, 2)


def serves_softmax(qkv: Tensor) -> bool:
    """Do the kernels take this (B, N, 3, H, D)? Not float64, not more than MOST_TOKENS, and of all GPUs Hopper's.

    Their tiles fill Hopper's shared memory; those of other GPUs are smaller or were never tried.
    """
    most = MOST_TOKENS_FLOAT32 if qkv.dtype == torch.float32 else MOST_TOKENS
    if qkv.shape[1] > most.get(qkv.shape[4], 0) or not runs_kernels(qkv):
        return False
    return not qkv.is_cuda or torch.cuda.get_device_properties(qkv.device).major == HOPPER
