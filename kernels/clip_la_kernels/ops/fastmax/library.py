"""Fastmax of degree 2 as `torch.library` operators, and autograd around them. Imported only where Triton is."""

from typing import Any

import torch
from torch import Tensor

from clip_la_kernels.ops.fastmax import launch
from clip_la_kernels.ops.fastmax.forward_kernels import PER_TOKEN
from clip_la_kernels.ops.linear_attention.library import library, on_device_of, register
from clip_la_kernels.runtime.autograd import first_order_only

library.define("fastmax(Tensor qkv, float temperature, bool causal, bool save) -> Tensor[]")
library.define(
    "fastmax_backward(Tensor qkv, Tensor out, Tensor rows, Tensor grad, float temperature, bool causal) -> Tensor"
)


class FastmaxOperators:
    """qkv: (B, N, 3, H, D); out (B, N, H, D) and rows (B H, 5, N) float32 as `forward` returns them."""

    @staticmethod
    def forward(qkv: Tensor, temperature: float, causal: bool, save: bool) -> list[Tensor]:
        with on_device_of(qkv):
            return launch.forward(qkv, temperature, causal, save)

    @staticmethod
    def backward(qkv: Tensor, out: Tensor, rows: Tensor, grad: Tensor, temperature: float, causal: bool) -> Tensor:
        with on_device_of(qkv):
            return launch.backward(qkv, out, rows, grad, temperature, causal)

    @staticmethod
    def fake_forward(qkv: Tensor, temperature: float, causal: bool, save: bool) -> list[Tensor]:
        batch, tokens, _, heads, width = qkv.shape
        rows = qkv.new_empty(batch * heads, PER_TOKEN, tokens, dtype=torch.float32)
        return [qkv.new_empty(batch, tokens, heads, width), rows]

    @staticmethod
    def fake_backward(qkv: Tensor, out: Tensor, rows: Tensor, grad: Tensor, temperature: float, causal: bool) -> Tensor:
        return qkv.new_empty(qkv.shape)


register("fastmax", FastmaxOperators)


class KernelFastmax(torch.autograd.Function):
    """qkv (B, N, 3, H, D) -> (B, N, H, D). Saves qkv, o and five numbers a token and head.

    save: will a backward pass come?
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, temperature: float, causal: bool, save: bool) -> Tensor:
        out, rows = torch.ops.clip_la_kernels.fastmax(qkv, temperature, causal, save)
        ctx.save_for_backward(qkv, out, rows)
        ctx.temperature, ctx.causal = temperature, causal
        return out

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = (*ctx.saved_tensors, grad)
        return torch.ops.clip_la_kernels.fastmax_backward(*saved, ctx.temperature, ctx.causal), None, None, None
