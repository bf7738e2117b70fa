"""The depthwise convolution as `torch.library` operators, and autograd around them. Imported only where Triton is."""

from typing import Any

import torch
from torch import Tensor

from clip_la_kernels.ops.depthwise import launch
from clip_la_kernels.ops.linear_attention.library import library, on_device_of, register, unobserved
from clip_la_kernels.runtime.autograd import first_order_only

_GRID = "int prefix, int rows, int columns, bool causal"
library.define(f"depthwise(Tensor v, Tensor weight, {_GRID}) -> Tensor")
library.define(f"depthwise_backward(Tensor v, Tensor weight, Tensor grad, {_GRID}) -> Tensor[]")


class DepthwiseOperators:
    """v: (B, N, C), channels contiguous; weight: (C, 1, KR, KC)."""

    @staticmethod
    def forward(v: Tensor, weight: Tensor, *grid: Any) -> Tensor:
        with on_device_of(v):
            return launch.convolve(v, weight, launch.Grid(*grid), back=False)

    @staticmethod
    def backward(v: Tensor, weight: Tensor, grad: Tensor, *grid: Any) -> list[Tensor]:
        if grad.stride(-1) != 1:
            grad = grad.contiguous()
        place = launch.Grid(*grid)
        with on_device_of(v):
            return [
                launch.convolve(grad, weight, place, back=True),
                launch.weight_grad(v, grad, weight, place),
            ]

    @staticmethod
    def fake_forward(v: Tensor, weight: Tensor, *grid: Any) -> Tensor:
        return v.new_empty(v.shape)

    @staticmethod
    def fake_backward(v: Tensor, weight: Tensor, grad: Tensor, *grid: Any) -> list[Tensor]:
        return [v.new_empty(v.shape), weight.new_empty(weight.shape)]


register("depthwise", DepthwiseOperators)


class KernelDepthwise(torch.autograd.Function):
    """v (B, N, C), weight (C, 1, KR, KC) -> (B, N, C). save: will a backward pass come?"""

    @staticmethod
    def forward(ctx: Any, v: Tensor, weight: Tensor, grid: launch.Grid, save: bool) -> Tensor:
        run: Any = DepthwiseOperators.forward if unobserved(v, weight) else torch.ops.clip_la_kernels.depthwise
        if save:
            ctx.save_for_backward(v, weight)
        ctx.grid = grid
        return run(v, weight, *grid)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, weight = ctx.saved_tensors
        plain = unobserved(grad, v, weight)
        run: Any = DepthwiseOperators.backward if plain else torch.ops.clip_la_kernels.depthwise_backward
        v_grad, weight_grad = run(v, weight, grad, *ctx.grid)
        return v_grad, weight_grad, None, None
