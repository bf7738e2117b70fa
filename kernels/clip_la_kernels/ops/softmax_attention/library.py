"""Softmax attention as `torch.library` operators, and autograd around them. Imported only where Triton is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clip_la_kernels.ops.linear_attention.library import library, on_device_of, register, unobserved
from clip_la_kernels.ops.softmax_attention import launch
from clip_la_kernels.runtime.autograd import first_order_only

library.define("softmax_attention(Tensor qkv, float scale, bool causal) -> Tensor[]")
library.define(
    "softmax_attention_backward(Tensor qkv, Tensor[] saved, Tensor grad, float scale, bool causal) -> Tensor"
)


class SoftmaxOperators:
    """qkv: (B, N, 3, H, D); saved: what `forward` returns if the head is computed in blocks, else nothing."""

    @staticmethod
    def forward(qkv: Tensor, scale: float, causal: bool) -> list[Tensor]:
        with on_device_of(qkv):
            return launch.forward(qkv, scale, causal)

    @staticmethod
    def backward(qkv: Tensor, saved: Sequence[Tensor], grad: Tensor, scale: float, causal: bool) -> Tensor:
        with on_device_of(qkv):
            return launch.backward(qkv, saved, grad, scale, causal)

    @staticmethod
    def fake_forward(qkv: Tensor, scale: float, causal: bool) -> list[Tensor]:
        batch, tokens, _, heads, width = qkv.shape
        out = qkv.new_empty(batch, tokens, heads, width)
        sums = [qkv.new_empty(batch * heads, tokens, dtype=torch.float32)] if launch.in_blocks(tokens, width) else []
        return [out, *sums]

    @staticmethod
    def fake_backward(qkv: Tensor, saved: Sequence[Tensor], grad: Tensor, scale: float, causal: bool) -> Tensor:
        return qkv.new_empty(qkv.shape)


register("softmax_attention", SoftmaxOperators)


class KernelSoftmaxAttention(torch.autograd.Function):
    """qkv (B, N, 3, H, D) -> (B, N, H, D). save: will a backward pass come? Saves qkv; of heads in blocks also o and a
    float32 a row."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: float, causal: bool, save: bool) -> Tensor:
        run: Any = SoftmaxOperators.forward if unobserved(qkv) else torch.ops.clip_la_kernels.softmax_attention
        out, *sums = run(qkv, scale, causal)
        if save:
            ctx.save_for_backward(qkv, *((out, *sums) if sums else ()))
        ctx.scale, ctx.causal = scale, causal
        return out

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, *saved = ctx.saved_tensors
        plain = unobserved(grad, qkv)
        run: Any = SoftmaxOperators.backward if plain else torch.ops.clip_la_kernels.softmax_attention_backward
        return run(qkv, saved, grad, ctx.scale, ctx.causal), None, None, None
