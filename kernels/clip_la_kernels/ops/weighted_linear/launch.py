"""Launches of the kernels of weighted linear attention: tiles, warps, room for results."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip_la_kernels.ops.linear_attention import configs
from clip_la_kernels.ops.linear_attention.plan import MAX_CALLS, TRITON_DTYPE, is_aligned, padded
from clip_la_kernels.ops.weighted_linear.kernels import weighted_linear_backward, weighted_linear_forward
from clip_la_kernels.runtime.dispatch import interpreting
from clip_la_kernels.runtime.launcher import Launcher

# Rows of a tile at most: what a group of four warps multiplies at a time on Hopper. Eight warps need more instructions
# a row, smaller tiles too, as the state then lies in registers as an operand.
ROWS = 64


class Numbers(NamedTuple):
    """The options of one call: code of the feature map, keys weighted by the mean query, factor of phi(q), what is
    added to the mean weight."""

    feature_map: int
    rala: bool
    scale: float
    eps: float


# By all that decides how a pass is computed.
_launchers: dict[Any, Launcher] = {}


def saved_shapes(batch: int, heads: int, width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of what the forward pass leaves: the states, in the inputs' dtype, and float32 sums (see kernels)."""
    return (batch * heads, 2, width, width // 2), (batch * heads, 2 * width + 1)


def forward(qkv: Tensor, turn: Tensor | None, options: Numbers, save: bool) -> list[Tensor]:
    """[o (B, N, H, D), contiguous; if `save`, the states and the sums].

    qkv: (B, N, 3, H, D); turn: float32 (2, N, D / 2), cosines and sines of the tokens' angles, contiguous, or None.
    """
    if qkv.stride(4) != 1:
        qkv = qkv.contiguous()
    q, k, v = qkv.unbind(2)
    batch, tokens, heads, width = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    state, sums = out, out
    if save:
        shapes = saved_shapes(batch, heads, width)
        state = torch.empty(shapes[0], dtype=q.dtype, device=q.device)
        sums = torch.empty(shapes[1], dtype=torch.float32, device=q.device)
    # Something that is never read or written in place of what is absent.
    others = (state, sums, out if turn is None else turn)
    rest = (*q.stride()[:3], tokens, heads, options.scale, options.eps)
    flags = {"SAVE": save, "ROTATE": turn is not None}
    _launch("weighted_linear_forward", weighted_linear_forward, (q, k, v, out), others, rest, options, flags)
    return [out, state, sums] if save else [out]


def backward(qkv: Tensor, turn: Tensor | None, saved: Sequence[Tensor], grad: Tensor, options: Numbers) -> Tensor:
    """The packed gradient (B, N, 3, H, D), contiguous. saved: states and sums of `forward`; grad: (B, N, H, D)."""
    if qkv.stride(4) != 1:
        qkv = qkv.contiguous()
    if grad.stride(3) != 1:
        grad = grad.contiguous()
    q, k, v = qkv.unbind(2)
    tokens, heads = q.shape[1:3]
    whole = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    dq, dk, dv = whole.unbind(2)
    others = (*saved, grad if turn is None else turn)
    strides = (*q.stride()[:3], *grad.stride()[:3], *dq.stride()[:3])
    rest = (*strides, tokens, heads, options.scale, options.eps)
    flags = {"ROTATE": turn is not None}
    tensors = (q, k, v, grad, dq, dk, dv)
    _launch("weighted_linear_backward", weighted_linear_backward, tensors, others, rest, options, flags)
    return whole


def _launch(
    name: str, kernel: Any, tensors: Sequence[Tensor], others: Sequence[Tensor], rest: Sequence[Any], options: Numbers,
    flags: dict[str, Any],
) -> None:  # fmt: skip
    """Launches one kernel, a program a head; its launcher is remembered.

    tensors: (B, N, H, D) each, q first, and fourth the one whose strides may differ from call to call. `configs.forced`
    may set rows, warps, stages and registers.
    """
    q = tensors[0]
    batch, tokens, heads, width = q.shape
    aligned, precision = is_aligned(*tensors, *others), configs.precision(q.dtype)
    strides, kinds = (q.stride(), tensors[3].stride()), (options.feature_map, options.rala, *flags.values())
    key = (name, q.shape, strides, q.dtype, q.device, kinds, aligned, precision, configs.overrides.version)
    launcher = _launchers.get(key)
    if launcher is None:
        rows, warps, stages, registers = configs.overrides.configs.get(name) or configs.Config(
            min(ROWS, padded(tokens)), 4, 1
        )
        on_gpu = q.device.type == "cuda"
        major, sms = configs.device_numbers(q.device.index if on_gpu else None)
        # As in KernelPlan.flags: few programs placed early would pile up where room comes free first.
        early = on_gpu and major >= configs.HOPPER and batch * heads > sms
        flags |= {
            "BL": rows, "DT": TRITON_DTYPE[q.dtype],
            "HALF": width // 2, "MAP": options.feature_map, "RALA": options.rala, "UP": interpreting(), "PDL": early,
            "PREC": precision, "num_warps": warps, "num_stages": stages,
        }  # fmt: skip
        flags |= {"launch_pdl": True} if early else {}
        flags |= {"maxnreg": registers} if registers else {}
        if len(_launchers) >= MAX_CALLS:
            _launchers.clear()
        launcher = _launchers[key] = Launcher(kernel, batch * heads, flags, None, aligned)
    launcher([*tensors, *others], rest)
