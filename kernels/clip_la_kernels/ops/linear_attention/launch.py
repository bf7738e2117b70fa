"""The two passes on real tensors: makes room for results, picks the structure, launches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clip_la_kernels.ops.linear_attention.bidirectional_launch import BidirectionalPass
from clip_la_kernels.ops.linear_attention.causal_launch import CausalPass
from clip_la_kernels.ops.linear_attention.plan import KernelPlan
from clip_la_kernels.runtime.options import Options

Masks = tuple[Tensor | None, Tensor | None, Tensor | None]


def uniform(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same values with one set of strides and unit stride along D; copies only what does not have it."""
    if q.stride() == k.stride() == v.stride() and q.stride(3) == 1:
        return q, k, v
    return q.contiguous(), k.contiguous(), v.contiguous()


def forward(q: Tensor, k: Tensor, v: Tensor, masks: Masks, opt: Options, save: bool) -> list[Tensor]:
    """[o (B, N, H, D) contiguous, then what `KernelPlan.saved` lists]. masks: uint8 (B, N), counts float32, cu_seqlens,
    or None each."""
    q, k, v = uniform(q, k, v)
    call = KernelPlan.of(q, k, v, *masks, opt)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    saved = call.empty(call.saved(save))
    # Something that is never read in place of what is absent.
    mask, counts, cu = (out if t is None else t for t in masks)
    (CausalPass if opt.causal else BidirectionalPass)(call, (mask, counts, cu)).forward((q, k, v), out, saved, save)
    return [out, *saved]


def backward(
    q: Tensor, k: Tensor, v: Tensor, masks: Masks, opt: Options, grad: Tensor, saved: Sequence[Tensor], packed: bool,
    needs: tuple[bool, bool],
) -> list[Tensor]:  # fmt: skip
    """[dqkv] if packed, else [dq, dk, dv]; what is not needed (needs: dq, dk and dv) is left unwritten."""
    q, k, v = uniform(q, k, v)
    call = KernelPlan.of(q, k, v, *masks, opt)
    if not call.readable(grad):
        grad = grad.contiguous()
    shape = call.signature.shape
    results: list[Tensor]
    if packed:
        batch, tokens, heads, width = shape
        results = [torch.empty(batch, tokens, 3, heads, width, dtype=call.dtype, device=call.device)]
        dq, dk, dv = results[0].unbind(2)
    else:
        results = [torch.empty(shape, dtype=call.dtype, device=call.device) for _ in range(3)]
        dq, dk, dv = results
    mask, counts, cu = (grad if t is None else t for t in masks)
    run = (CausalPass if opt.causal else BidirectionalPass)(call, (mask, counts, cu))
    run.backward((q, k, v), grad, saved, (dq, dk, dv), needs)
    return results
