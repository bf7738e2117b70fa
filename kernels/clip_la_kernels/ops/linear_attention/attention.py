"""Linear attention: the public calls, autocast, dispatch and autograd around the two paths."""

import itertools
from typing import Any

import torch
from torch import Tensor

from clip_la_kernels.ops.linear_attention import torch_path
from clip_la_kernels.runtime.autograd import first_order_only, wants_gradient
from clip_la_kernels.runtime.dispatch import takes_kernels
from clip_la_kernels.runtime.options import Options, check_dtype, check_padding, check_tensors, make_options


def linear_attention(
    qkv: Tensor,
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
    """o_i = sum_j (a + b phi(q_i).phi(k_j)) v_j / z_i in time and memory linear in N. qkv: (B, N, 3, H, D) -> (B, N, H,
    D).

    feature_map: "l2" (unit vectors), "identity", "relu", "elu1" (elu + 1) or "exp". denominator: "none" (z = 1, Eq. 7
    of arXiv 2604.10064), "length" (keys seen) or "sum" (sum of weights, arXiv 2510.21956; held away from 0 by `eps`
    times the number of keys, see `reference.py`). With a positive elementwise map the usual choice is a=0, b=1.
    key_padding_mask: bool (B, N), True = real token; padded keys weigh nothing and get zero gradients, whatever they
    hold.
    cu_seqlens: int (S + 1,), borders of S sequences packed along N, with B = 1, rising from 0 to N. On a GPU nobody
    looks at them first, which would wait for it; borders beyond N count as N. The gradient comes back as one packed
    tensor. Second derivatives are refused. ValueError for what does not fit.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv must be (B, N, 3, H, D); got {tuple(qkv.shape)}")
    check_dtype(qkv)
    check_padding(key_padding_mask, cu_seqlens, qkv.shape[0], qkv.shape[1])
    opt = make_options(a, b, feature_map, denominator, causal, eps)
    return _call((qkv,), opt, key_padding_mask, cu_seqlens)


def linear_attention_split(
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
    """`linear_attention` on separate q, k, v, each (B, N, H, D) of any strides -> (B, N, H, D). A frozen one costs no
    gradient."""
    check_tensors(q, k, v)
    check_padding(key_padding_mask, cu_seqlens, q.shape[0], q.shape[1])
    opt = make_options(a, b, feature_map, denominator, causal, eps)
    return _call((q, k, v), opt, key_padding_mask, cu_seqlens)


def cast_for_autocast(tensors: tuple[Tensor, ...], kind: str) -> tuple[Tensor, ...]:
    """Under autocast on devices of this kind, the inputs in its dtype, as those of a matrix product are (float64
    stays)."""
    if not torch.is_autocast_enabled(kind) or tensors[0].dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) for t in tensors)


def nothing(tensors: tuple[Tensor, ...]) -> Tensor:
    """The result of a call without sequences or without tokens, from which an empty gradient comes back."""
    return tensors[0].sum(2) if len(tensors) == 1 else tensors[0] + tensors[1] + tensors[2]


def _call(tensors: tuple[Tensor, ...], opt: Options, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """Checked arguments -> o, by the path that serves them. tensors: (qkv,) or (q, k, v)."""
    kind = tensors[0].device.type
    if tensors[0].numel() == 0:
        return nothing(tensors)
    if torch.is_autocast_enabled(kind):
        tensors = cast_for_autocast(tensors, kind)
        with torch.autocast(kind, enabled=False):
            return _call(tensors, opt, mask, cu_seqlens)
    if takes_kernels(tensors[0]):
        from clip_la_kernels.ops.linear_attention.library import KernelAttention

        return KernelAttention.apply(opt, wants_gradient(*tensors), mask, cu_seqlens, *tensors)
    if cu_seqlens is None:
        return TorchAttention.apply(opt, mask, *tensors)
    # Packed sequences: one call a sequence.
    borders = cu_seqlens.tolist()
    if borders[0] != 0 or borders[-1] != tensors[0].shape[1] or sorted(borders) != borders:
        raise ValueError(
            f"cu_seqlens must rise from 0 to N = {tensors[0].shape[1]}; got {borders[:8]}"
            f"{'...' if len(borders) > 8 else ''}"
        )
    spans = [(start, stop) for start, stop in itertools.pairwise(borders) if stop > start]
    parts = [TorchAttention.apply(opt, None, *(t[:, start:stop] for t in tensors)) for start, stop in spans]
    return torch.cat(parts, dim=1)


class TorchAttention(torch.autograd.Function):
    """The PyTorch path with the backward formula of kernels/README.md. Tensors: (qkv,) or (q, k, v)."""

    @staticmethod
    def forward(ctx: Any, opt: Options, mask: Tensor | None, *tensors: Tensor) -> Tensor:
        if len(tensors) == 1:
            q, k, v = tensors[0].permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        else:
            q, k, v = (t.transpose(1, 2) for t in tensors)
        out, saved = torch_path.forward(q, k, v, opt, mask)
        ctx.save_for_backward(*saved)
        ctx.opt, ctx.packed, ctx.dtype, ctx.product = opt, len(tensors) == 1, q.dtype, torch_path.product_dtype(q)
        return out.transpose(1, 2).to(q.dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = torch_path.Saved(*ctx.saved_tensors)
        with torch.autocast(grad.device.type, enabled=False):
            grads = torch_path.backward(saved, grad.transpose(1, 2).to(saved.v.dtype), ctx.opt, ctx.product)
        if ctx.packed:
            return None, None, torch.stack(grads).permute(1, 3, 0, 2, 4).to(ctx.dtype)
        wanted = ctx.needs_input_grad[2:]
        return None, None, *(g.transpose(1, 2).to(ctx.dtype) if w else None for g, w in zip(grads, wanted, strict=True))
