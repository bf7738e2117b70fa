"""Fastmax of degree 2 as `torch.library` operators, and autograd around them. Imported only where Triton is."""

from typing import Any

import torch
from torch import Tensor

from clip_la_kernels.ops.fastmax import launch as fastmax_launch
from clip_la_kernels.ops.fastmax.forward_kernels import PER_TOKEN
from clip_la_kernels.ops.linear_attention.launch import packed_room
from clip_la_kernels.ops.linear_attention.library import library, on_device_of
from clip_la_kernels.runtime.autograd import first_order_only

library.define("fastmax(Tensor qkv, float temperature, bool causal, bool save) -> Tensor[]")
library.define(
    "fastmax_backward(Tensor qkv, Tensor out, Tensor rows, Tensor grad, float temperature, bool causal) -> Tensor"
)


def _forward(qkv: Tensor, temperature: float, causal: bool, save: bool) -> list[Tensor]:
    with on_device_of(qkv):
        q, k, v = (qkv if qkv.stride(4) == 1 else qkv.contiguous()).unbind(2)
        return list(fastmax_launch.forward(q, k, v, temperature, causal, save))


def _backward(qkv: Tensor, out: Tensor, rows: Tensor, grad: Tensor, temperature: float, causal: bool) -> Tensor:
    with on_device_of(qkv):
        q, k, v = (qkv if qkv.stride(4) == 1 else qkv.contiguous()).unbind(2)
        whole, grads = packed_room(q.shape, q.dtype, q.device)
        if grad.stride(3) != 1:
            grad = grad.contiguous()
        fastmax_launch.backward(q, k, v, out, rows, grad, grads, temperature, causal, (True, True))
        return whole


def _forward_fake(qkv: Tensor, temperature: float, causal: bool, save: bool) -> list[Tensor]:
    batch, tokens, _, heads, width = qkv.shape
    rows = qkv.new_empty(batch * heads, PER_TOKEN, tokens, dtype=torch.float32)
    return [qkv.new_empty(batch, tokens, heads, width), rows]


def _backward_fake(qkv: Tensor, out: Tensor, rows: Tensor, grad: Tensor, temperature: float, causal: bool) -> Tensor:
    return qkv.new_empty(qkv.shape)


for _name, _real, _fake in (("fastmax", _forward, _forward_fake), ("fastmax_backward", _backward, _backward_fake)):
    for _key in ("CUDA", "CPU"):
        library.impl(_name, _real, _key)
    torch.library.register_fake(f"clip_la_kernels::{_name}", _fake, lib=library)


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
