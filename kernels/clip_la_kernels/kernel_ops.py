"""The kernels as `torch.library` operators (traceable, with shapes for fake tensors), and autograd around them.

define / impl / register_fake with an autograd.Function outside costs about half of what custom_op with
register_autograd does.
Imported only where Triton is.
"""

from typing import Any

import torch
from torch import Tensor

from clip_la_kernels.autograd import first_order_only
from clip_la_kernels.options import DEN_SUM, Options
from clip_la_kernels.triton_path import configs, launch

_OPTIONS = "float a, float b, int feature_map, int denominator, bool causal, float eps"
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? counts, Tensor? cu"
_library = torch.library.Library("clip_la_kernels", "DEF")
_library.define(f"linear_attention({_INPUTS}, {_OPTIONS}, bool save) -> (Tensor, Tensor, Tensor, Tensor)")
_library.define(
    f"linear_attention_backward({_INPUTS}, {_OPTIONS}, Tensor grad, Tensor state, Tensor aux, Tensor z,"
    " bool packed, bool need_q, bool need_kv) -> (Tensor, Tensor, Tensor)"
)


def _forward(q, k, v, mask, counts, cu, a, b, feature_map, denominator, causal, eps, save):  # type: ignore[no-untyped-def]
    opt = Options(a, b, feature_map, denominator, causal, eps)
    return launch.forward(launch.with_tma(launch.Inputs(*launch.uniform(q, k, v), mask, counts, cu, opt)), save)


def _backward(  # type: ignore[no-untyped-def]
    q, k, v, mask, counts, cu, a, b, feature_map, denominator, causal, eps, grad, state, aux, z, packed, need_q, need_kv
):
    opt = Options(a, b, feature_map, denominator, causal, eps)
    inputs = launch.with_tma(launch.Inputs(*launch.uniform(q, k, v), mask, counts, cu, opt))
    return launch.backward(inputs, grad, state, aux, z, packed, need_q, need_kv)


def _forward_fake(q, k, v, mask, counts, cu, a, b, feature_map, denominator, causal, eps, save):  # type: ignore[no-untyped-def]
    inputs = launch.Inputs(q, k, v, mask, counts, cu, Options(a, b, feature_map, denominator, causal, eps))
    out = q.new_empty(q.shape)
    nothing = [q.new_empty(0, dtype=torch.float32) for _ in range(3)]
    if not causal:
        plan = configs.plan(inputs.heads, q.shape[1], inputs.width, q.device)
        kept = plan.parts > 0 or save
        return out, *(launch.states(inputs, 1, q.dtype) if kept else nothing[:2]), nothing[2]
    if launch.is_short(inputs):
        return out, *nothing
    parts = configs.causal_parts(inputs.heads, q.shape[1], inputs.width, q.device)
    state, aux = launch.states(inputs, parts, torch.float32) if parts > 1 else nothing[:2]
    tokens = q.shape[0] * q.shape[1] * q.shape[2]
    return out, state, aux, q.new_empty(tokens, dtype=torch.float32) if denominator == DEN_SUM else nothing[2]


def _backward_fake(  # type: ignore[no-untyped-def]
    q, k, v, mask, counts, cu, a, b, feature_map, denominator, causal, eps, grad, state, aux, z, packed, need_q, need_kv
):
    batch, tokens, heads, width = q.shape
    if packed:
        return q.new_empty(batch, tokens, 3, heads, width), q.new_empty(0), q.new_empty(0)
    return tuple(q.new_empty(q.shape) for _ in range(3))


for _name, _real, _fake in (("", _forward, _forward_fake), ("_backward", _backward, _backward_fake)):
    _library.impl(f"linear_attention{_name}", _real, "CUDA")
    # The CPU only ever interprets the kernels, in tests.
    _library.impl(f"linear_attention{_name}", _real, "CPU")
    torch.library.register_fake(f"clip_la_kernels::linear_attention{_name}", _fake, lib=_library)


class KernelAttention(torch.autograd.Function):
    """Tensors: (qkv,) or (q, k, v). Saves them as they are, and per head the state."""

    @staticmethod
    def forward(ctx: Any, opt: Options, mask: Tensor | None, cu: Tensor | None, *tensors: Tensor) -> Tensor:
        counts = None
        if mask is not None:
            counts = mask.cumsum(1, dtype=torch.float32) if opt.causal else mask.sum(1, dtype=torch.float32)
            mask = mask.contiguous().view(torch.uint8)
        q, k, v = tensors[0].unbind(2) if len(tensors) == 1 else tensors
        save = any(ctx.needs_input_grad[3:])
        out, state, aux, z = torch.ops.clip_la_kernels.linear_attention(q, k, v, mask, counts, cu, *_fields(opt), save)
        ctx.save_for_backward(mask, counts, cu, state, aux, z, *tensors)
        ctx.opt = opt
        return out

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mask, counts, cu, state, aux, z, *tensors = ctx.saved_tensors
        packed = len(tensors) == 1
        q, k, v = tensors[0].unbind(2) if packed else tensors
        wanted = (True,) * 3 if packed else ctx.needs_input_grad[3:]
        grads = torch.ops.clip_la_kernels.linear_attention_backward(
            q, k, v, mask, counts, cu, *_fields(ctx.opt), grad, state, aux, z, packed, wanted[0], wanted[1] or wanted[2]
        )
        if packed:
            return None, None, None, grads[0]
        return None, None, None, *(g if w else None for g, w in zip(grads, wanted, strict=True))


def _fields(opt: Options) -> tuple[float, float, int, int, bool, float]:
    return opt.a, opt.b, opt.feature_map, opt.denominator, opt.causal, opt.eps
