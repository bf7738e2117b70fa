"""Launches of the softmax kernels: how a head's tokens are cut into tiles, warps, room for results."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip_la_kernels.ops.linear_attention import configs
from clip_la_kernels.ops.linear_attention.plan import MAX_CALLS, TRITON_DTYPE, is_aligned, padded
from clip_la_kernels.ops.softmax_attention.kernels import softmax_backward, softmax_forward
from clip_la_kernels.runtime.dispatch import interpreting
from clip_la_kernels.runtime.launcher import Launcher

LOG2_E = math.log2(math.e)
# Rows of the larger of two tiles at least: what the matrix unit takes at a time is never cut.
LEAST_FIRST = 64


class Tiling(NamedTuple):
    """Tiles of first and rest (0: none) tokens; registers: most that a thread may take (0: no limit)."""

    first: int
    rest: int
    warps: int
    registers: int


def tiling(kernel: str, tokens: int, width: int, dtype: torch.dtype) -> Tiling:
    """How `kernel` takes heads of so many tokens.

    Two powers of two that hold them where that makes fewer weights than one does and no register is spilled: from 64
    on, not in float32. `configs.forced` may set the first tile (rows), warps and registers.
    """
    asked = configs.forced_config(kernel)
    first = asked.rows if asked else max(16, 1 << (tokens.bit_length() - 1))
    rest = padded(tokens - first) if tokens > first else 0
    if rest >= first or first < LEAST_FIRST or dtype == torch.float32:
        first, rest = padded(tokens), 0
    if asked:
        return Tiling(first, rest, asked.warps, asked.registers)
    # A group of four warps and 64 rows is what Hopper's matrix unit works on; smaller tiles are a warp's for 16 rows.
    warps = min(8, first // 16 * (2 if width * dtype.itemsize > 128 else 1))
    return Tiling(first, rest, warps, 0)


class SoftmaxPlan(NamedTuple):
    """What decides how a pass is computed; launchers are kept by it. strides: of each tensor that it reads."""

    kernel: str
    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    device: torch.device
    causal: bool
    aligned: bool
    precision: str
    version: int


_launchers: dict[SoftmaxPlan, Launcher] = {}


def forward(qkv: Tensor, scale: float, causal: bool) -> Tensor:
    """o (B, N, H, D), contiguous. qkv: (B, N, 3, H, D)."""
    if qkv.stride(4) != 1:
        qkv = qkv.contiguous()
    q, k, v = qkv.unbind(2)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    rest = (*q.stride()[:3], q.shape[1], q.shape[2], scale * LOG2_E)
    _launch("softmax_forward", softmax_forward, (q, k, v, out), rest, causal)
    return out


def backward(qkv: Tensor, grad: Tensor, scale: float, causal: bool) -> Tensor:
    """The packed gradient (B, N, 3, H, D), contiguous. grad: (B, N, H, D)."""
    if qkv.stride(4) != 1:
        qkv = qkv.contiguous()
    if grad.stride(3) != 1:
        grad = grad.contiguous()
    q, k, v = qkv.unbind(2)
    whole = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    dq, dk, dv = whole.unbind(2)
    strides = (*q.stride()[:3], *grad.stride()[:3], *dq.stride()[:3])
    rest = (*strides, q.shape[1], q.shape[2], scale * LOG2_E, scale)
    _launch("softmax_backward", softmax_backward, (q, k, v, grad, dq, dk, dv), rest, causal)
    return whole


def _launch(name: str, kernel: Any, tensors: Sequence[Tensor], rest: Sequence[Any], causal: bool) -> None:
    """A program a head. tensors: q, k, v, then what else is read or written."""
    q, other = tensors[0], tensors[3]
    batch, tokens, heads, width = q.shape
    precision = configs.precision(q.dtype)
    plan = SoftmaxPlan(
        name, q.shape, (q.stride(), other.stride()), q.dtype, q.device, causal, is_aligned(*tensors), precision,
        configs.version(),
    )  # fmt: skip
    launcher = _launchers.get(plan)
    if launcher is None:
        cut = tiling(name, tokens, width, q.dtype)
        on_gpu = q.device.type == "cuda"
        major, multiprocessors = configs.device_numbers(q.device.index if on_gpu else None)
        # As in KernelPlan.flags: few programs placed early would pile up where room comes free first.
        early = on_gpu and major >= configs.HOPPER and batch * heads > multiprocessors
        flags = {
            "BA": cut.first, "BB": cut.rest, "CAUSAL": causal, "DT": TRITON_DTYPE[q.dtype],
            "D": width, "DP": padded(width), "UP": interpreting(), "EARLY": early, "PREC": precision,
            "num_warps": cut.warps, "num_stages": 1,
        }  # fmt: skip
        flags |= {"launch_pdl": True} if early else {}
        flags |= {"maxnreg": cut.registers} if cut.registers else {}
        if len(_launchers) >= MAX_CALLS:
            _launchers.clear()
        launcher = _launchers[plan] = Launcher(kernel, batch * heads, flags, None, plan.aligned)
    launcher(tensors, rest)
