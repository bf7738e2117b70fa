"""Weighted linear attention as `torch.library` operators, and autograd around them. Imported only where Triton is."""

from typing import Any

import torch
from torch import Tensor

from clip_la_kernels.ops.linear_attention.library import library, on_device_of, register, unobserved
from clip_la_kernels.ops.weighted_linear import launch
from clip_la_kernels.runtime.autograd import first_order_only

_OPTIONS = "int feature_map, bool rala, float scale, float eps"
library.define(f"weighted_linear(Tensor qkv, Tensor? turn, {_OPTIONS}, bool save) -> Tensor[]")
library.define(f"weighted_linear_backward(Tensor qkv, Tensor? turn, Tensor[] saved, Tensor grad, {_OPTIONS}) -> Tensor")


class WeightedLinearOperators:
    """qkv: (B, N, 3, H, D); the options come one by one, as an operator has no tuples."""

    @staticmethod
    def forward(qkv, turn, feature_map, rala, scale, eps, save):  # type: ignore[no-untyped-def]
        with on_device_of(qkv):
            return launch.forward(qkv, turn, launch.Numbers(feature_map, rala, scale, eps), save)

    @staticmethod
    def backward(qkv, turn, saved, grad, feature_map, rala, scale, eps):  # type: ignore[no-untyped-def]
        with on_device_of(qkv):
            return launch.backward(qkv, turn, saved, grad, launch.Numbers(feature_map, rala, scale, eps))

    @staticmethod
    def fake_forward(qkv, turn, feature_map, rala, scale, eps, save):  # type: ignore[no-untyped-def]
        batch, tokens, _, heads, width = qkv.shape
        out = qkv.new_empty(batch, tokens, heads, width)
        if not save:
            return [out]
        state, sums = launch.saved_shapes(batch, heads, width)
        return [out, qkv.new_empty(state), qkv.new_empty(sums, dtype=torch.float32)]

    @staticmethod
    def fake_backward(qkv, turn, saved, grad, feature_map, rala, scale, eps):  # type: ignore[no-untyped-def]
        return qkv.new_empty(qkv.shape)


register("weighted_linear", WeightedLinearOperators)


class KernelWeightedLinear(torch.autograd.Function):
    """qkv (B, N, 3, H, D) -> (B, N, H, D). save: will a backward pass come? Saves qkv and per head the state, D x D
    numbers, and its sums."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, turn: Tensor | None, options: launch.Numbers, save: bool) -> Tensor:
        run: Any = WeightedLinearOperators.forward if unobserved(qkv) else torch.ops.clip_la_kernels.weighted_linear
        out, *saved = run(qkv, turn, *options, save)
        if save:
            ctx.save_for_backward(qkv, turn, *saved)
        ctx.options = options
        return out

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, turn, *saved = ctx.saved_tensors
        plain = unobserved(grad, qkv)
        run: Any = WeightedLinearOperators.backward if plain else torch.ops.clip_la_kernels.weighted_linear_backward
        return run(qkv, turn, saved, grad, *ctx.options), None, None, None
