"""The kernels as `torch.library` operators (traceable, with shapes for fake tensors), and autograd around them.

define / impl / register_fake with an autograd.Function outside costs about half of what custom_op with
register_autograd does; where nothing traces or intercepts operators, even that is passed by. Imported only where
Triton is.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from clip_la_kernels.ops.linear_attention import launch
from clip_la_kernels.ops.linear_attention.plan import KernelPlan
from clip_la_kernels.runtime.autograd import first_order_only
from clip_la_kernels.runtime.options import Options

_HERE = nullcontext()
PLAIN_TYPES = (Tensor, torch.nn.Parameter)

_OPTIONS = "float a, float b, int feature_map, int denominator, bool causal, float eps"
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? counts, Tensor? cu"
library = torch.library.Library("clip_la_kernels", "DEF")
library.define(f"linear_attention({_INPUTS}, {_OPTIONS}, bool save) -> Tensor[]")
library.define(
    f"linear_attention_backward({_INPUTS}, {_OPTIONS}, Tensor grad, Tensor[] saved, bool packed, bool need_q,"
    " bool need_kv) -> Tensor[]"
)


def unobserved(*tensors: Tensor) -> bool:
    """Do these plain tensors meet nothing that traces or intercepts operators: torch.compile, torch.jit.trace, fake
    tensors, dispatch modes? A profiler then sees the autograd function and the kernels, not the operators."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or torch.jit.is_tracing():
        return False
    return all(type(t) in PLAIN_TYPES for t in tensors)


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(x.device)


def register(name: str, operators: Any) -> None:
    """Gives the defined operators `name` and `name`_backward their functions: the static methods forward and backward
    of `operators` on tensors, fake_forward and fake_backward for the shapes of the results."""
    for suffix in ("", "_backward"):
        method = suffix.strip("_") or "forward"
        # The CPU only ever interprets the kernels, in tests.
        for key in ("CUDA", "CPU"):
            library.impl(name + suffix, getattr(operators, method), key)
        torch.library.register_fake(
            f"clip_la_kernels::{name}{suffix}", getattr(operators, f"fake_{method}"), lib=library
        )


class LinearAttentionOperators:
    """q, k, v: (B, N, H, D). The options come one by one, as an operator has no tuples."""

    @staticmethod
    def forward(q, k, v, mask, counts, cu, a, b, feature_map, denominator, causal, eps, save):  # type: ignore[no-untyped-def]
        opt = Options(a, b, feature_map, denominator, causal, eps)
        with on_device_of(q):
            return launch.forward(q, k, v, (mask, counts, cu), opt, save)

    @staticmethod
    def backward(  # type: ignore[no-untyped-def]
        q, k, v, mask, counts, cu, a, b, feature_map, denominator, causal, eps, grad, saved, packed, need_q, need_kv
    ):
        opt = Options(a, b, feature_map, denominator, causal, eps)
        with on_device_of(q):
            return launch.backward(q, k, v, (mask, counts, cu), opt, grad, saved, packed, (need_q, need_kv))

    @staticmethod
    def fake_forward(q, k, v, mask, counts, cu, a, b, feature_map, denominator, causal, eps, save):  # type: ignore[no-untyped-def]
        plan = KernelPlan.of_fakes(q, mask, cu, Options(a, b, feature_map, denominator, causal, eps))
        return [q.new_empty(q.shape), *(q.new_empty(shape, dtype=dtype) for shape, dtype in plan.saved(save))]

    @staticmethod
    def fake_backward(  # type: ignore[no-untyped-def]
        q, k, v, mask, counts, cu, a, b, feature_map, denominator, causal, eps, grad, saved, packed, need_q, need_kv
    ):
        batch, tokens, heads, width = q.shape
        return [q.new_empty(batch, tokens, 3, heads, width)] if packed else [q.new_empty(q.shape) for _ in range(3)]


register("linear_attention", LinearAttentionOperators)


class KernelAttention(torch.autograd.Function):
    """Tensors: (qkv,) or (q, k, v). Saves them as they are, and per head the state. save: will a backward pass come?"""

    @staticmethod
    def forward(ctx: Any, opt: Options, save: bool, mask: Tensor | None, cu: Tensor | None, *tensors: Tensor) -> Tensor:
        counts = None
        if mask is not None:
            counts = mask.cumsum(1, dtype=torch.float32) if opt.causal else mask.sum(1, dtype=torch.float32)
            mask = mask.contiguous().view(torch.uint8)
        if cu is not None:
            # Launchers are remembered by the shape, not by the dtype; the kernels read it as one dense row.
            cu = cu.to(torch.int32).contiguous()
        q, k, v = tensors[0].unbind(2) if len(tensors) == 1 else tensors
        operators, plain = LinearAttentionOperators, unobserved(*tensors)
        run: Any = operators.forward if plain else torch.ops.clip_la_kernels.linear_attention
        out, *saved = run(q, k, v, mask, counts, cu, *opt, save)
        ctx.save_for_backward(mask, counts, cu, *tensors, *saved)
        ctx.opt, ctx.inputs = opt, len(tensors)
        return out

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mask, counts, cu, *rest = ctx.saved_tensors
        tensors, saved = rest[: ctx.inputs], rest[ctx.inputs :]
        packed = len(tensors) == 1
        q, k, v = tensors[0].unbind(2) if packed else tensors
        wanted = (True,) * 3 if packed else ctx.needs_input_grad[4:]
        operators, plain = LinearAttentionOperators, unobserved(grad, *tensors)
        run: Any = operators.backward if plain else torch.ops.clip_la_kernels.linear_attention_backward
        grads = run(q, k, v, mask, counts, cu, *ctx.opt, grad, saved, packed, wanted[0], wanted[1] or wanted[2])
        if packed:
            return None, None, None, None, grads[0]
        return None, None, None, None, *(g if w else None for g, w in zip(grads, wanted, strict=True))
