"""Launches of the softmax kernels: how a head's tokens are cut into tiles, warps, room for results."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip_la_kernels.ops.linear_attention import configs
from clip_la_kernels.ops.linear_attention.plan import MAX_CALLS, TRITON_DTYPE, is_aligned, padded
from clip_la_kernels.ops.softmax_attention.blocks import softmax_forward_blocks, softmax_key_grad, softmax_query_grad
from clip_la_kernels.ops.softmax_attention.whole import softmax_backward, softmax_forward
from clip_la_kernels.runtime.dispatch import interpreting
from clip_la_kernels.runtime.launcher import Launcher

LOG2_E = math.log2(math.e)
# Tokens up to which a program has a whole head of this width: more would not fit the registers of a backward pass.
WHOLE_TOKENS = {32: 128, 64: 160, 128: 128}
# Rows of the larger of two tiles at least, and of a block: what the tensor cores take at a time is never cut.
LEAST_FIRST = 64
# Rows of the smaller one at least.
LEAST_REST = 16


class Tiling(NamedTuple):
    """Tiles of first and rest (0: none) tokens, or blocks of first with rest over; stages: depth of the loops' software
    pipeline; registers: most that a thread may take (0: no limit)."""

    first: int
    rest: int
    warps: int
    stages: int
    registers: int


def tiling(kernel: str, tokens: int, width: int, dtype: torch.dtype) -> Tiling:
    """How `kernel` takes heads of so many tokens: whole, in one or two tiles, or (see `in_blocks`) in blocks.

    Two tiles, powers of two, where they form fewer weights than one tile would and spill no registers: from 64 rows on,
    not in float32. `configs.forced` may set the first tile or the blocks (rows), warps, stages and registers.
    """
    asked = configs.overrides.configs.get(kernel)
    blocks = in_blocks(tokens, width)
    first = asked.rows if asked else LEAST_FIRST if blocks else max(16, 1 << (tokens.bit_length() - 1))
    left = tokens % first if blocks else max(0, tokens - first)
    rest = max(LEAST_REST, padded(left)) if left else 0
    if not blocks and (rest >= first or first < LEAST_FIRST or dtype == torch.float32):
        first, rest = padded(tokens), 0
    if asked:
        return Tiling(first, rest, asked.warps, asked.stages, asked.registers)
    # A group of four warps and 64 rows is what Hopper's tensor cores work on; smaller tiles are a warp's for 16 rows.
    warps = min(8, first // 16 * (2 if width * dtype.itemsize > 128 else 1))
    return Tiling(first, rest, warps, 2 if blocks else 1, 0)


# By all that decides how a pass is computed.
_launchers: dict[Any, Launcher] = {}


def in_blocks(tokens: int, width: int) -> bool:
    """Does a head take several programs, and its forward pass leave the sums of its rows?"""
    return tokens > WHOLE_TOKENS[width]


def forward(qkv: Tensor, scale: float, causal: bool) -> list[Tensor]:
    """[o (B, N, H, D), contiguous; if `in_blocks`, float32 (B H, N): binary logarithms of the sums of rows].

    qkv: (B, N, 3, H, D).
    """
    if qkv.stride(4) != 1:
        qkv = qkv.contiguous()
    q, k, v = qkv.unbind(2)
    batch, tokens, heads, width = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not in_blocks(tokens, width):
        rest: tuple[Any, ...] = (*q.stride()[:3], tokens, heads, scale * LOG2_E)
        _launch("softmax_forward", softmax_forward, (q, k, v, out), rest, causal, out)
        return [out]
    sums = torch.empty(batch * heads, tokens, dtype=torch.float32, device=q.device)
    rest = (sums, *q.stride()[:3], tokens, heads, ..., scale * LOG2_E)
    _launch("softmax_forward_blocks", softmax_forward_blocks, (q, k, v, out), rest, causal, out)
    return [out, sums]


def backward(qkv: Tensor, saved: Sequence[Tensor], grad: Tensor, scale: float, causal: bool) -> Tensor:
    """The packed gradient (B, N, 3, H, D), contiguous. saved: what `forward` returned if `in_blocks`; grad: (B, N, H,
    D)."""
    if qkv.stride(4) != 1:
        qkv = qkv.contiguous()
    if grad.stride(3) != 1:
        grad = grad.contiguous()
    q, k, v = qkv.unbind(2)
    tokens, heads, width = q.shape[1:]
    whole = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    dq, dk, dv = whole.unbind(2)
    strides = (*q.stride()[:3], *grad.stride()[:3], *dq.stride()[:3])
    factors = (scale * LOG2_E, scale)
    if not in_blocks(tokens, width):
        tensors = (q, k, v, grad, dq, dk, dv)
        _launch("softmax_backward", softmax_backward, tensors, (*strides, tokens, heads, *factors), causal, grad)
        return whole
    out, sums = saved
    rest = (sums, torch.empty_like(sums), *strides, tokens, heads, ..., *factors)
    _launch("softmax_query_grad", softmax_query_grad, (q, k, v, out, grad, dq), rest, causal, grad)
    _launch("softmax_key_grad", softmax_key_grad, (q, k, v, grad, dk, dv), rest, causal, grad)
    return whole


def _launch(
    name: str, kernel: Any, tensors: Sequence[Tensor], rest: Sequence[Any], causal: bool, other: Tensor
) -> None:
    """Launches one kernel of a pass; its launcher is remembered.

    tensors: q, k, v, then what else is read or written. other: the one of them whose strides may differ from call to
    call. rest: an Ellipsis stands for the number of blocks of a head.
    """
    q = tensors[0]
    batch, tokens, heads, width = q.shape
    aligned, precision = is_aligned(*tensors), configs.precision(q.dtype)
    strides = (q.stride(), other.stride())
    key = (name, q.shape, strides, q.dtype, q.device, causal, aligned, precision, configs.overrides.version)
    cut = tiling(name, tokens, width, q.dtype)
    splits = -(-tokens // cut.first) if ... in rest else 1
    launcher = _launchers.get(key)
    if launcher is None:
        programs = batch * heads * splits
        on_gpu = q.device.type == "cuda"
        major, sms = configs.device_numbers(q.device.index if on_gpu else None)
        # As in KernelPlan.flags: few programs placed early would pile up where room comes free first.
        early = on_gpu and major >= configs.HOPPER and programs > sms
        flags = {
            "BA": cut.first, "BB": cut.rest, "BM": cut.first, "BR": cut.rest, "STAGES": cut.stages, "CAUSAL": causal,
            "DT": TRITON_DTYPE[q.dtype], "D": width, "DP": padded(width), "UP": interpreting(), "PDL": early,
            "PREC": precision,
        }  # fmt: skip
        flags = {flag: value for flag, value in flags.items() if flag in kernel.arg_names}
        flags |= {"num_warps": cut.warps, "num_stages": cut.stages}
        flags |= {"launch_pdl": True} if early else {}
        flags |= {"maxnreg": cut.registers} if cut.registers else {}
        if len(_launchers) >= MAX_CALLS:
            _launchers.clear()
        launcher = _launchers[key] = Launcher(kernel, programs, flags, None, aligned)
    launcher(tensors, [splits if value is ... else value for value in rest])
