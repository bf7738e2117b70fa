"""Launches of the fastmax kernels: numbers of a call, tiles, room for results."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip_la_kernels.ops.fastmax import backward_kernels as polynomial_backward
from clip_la_kernels.ops.fastmax import forward_kernels as polynomial
from clip_la_kernels.ops.linear_attention import configs
from clip_la_kernels.ops.linear_attention.plan import MAX_CALLS, TRITON_DTYPE, is_aligned, mappable, padded
from clip_la_kernels.runtime.dispatch import interpreting
from clip_la_kernels.runtime.launcher import Launcher

# Sequences from which on a pass of its own finds mean and deviation of every token: shorter ones meet each key so few
# times that finding them anew costs less than reading queries and keys once more.
KNOWN_FROM_TOKENS = 512
# The largest weight, y^2 + alpha^2, that alpha leaves: float16 holds 65,504.
LARGEST_WEIGHT = 2.0**14
# Of the binary logarithm of shift: the first rows of a causal head divide by few weights, and float16 ends at 2^16.
LARGEST_SHIFT = 12
# Tokens a program of `token_statistics`.
STATISTICS_ROWS = 64


class Numbers(NamedTuple):
    """Constants of one call, see `polynomial` and `polynomial_backward`."""

    unit: float
    alpha: float
    shift: float
    factor: float


def numbers(tokens: int, width: int, temperature: float) -> Numbers:
    """alpha and shift are powers of two; |x| is at most width / temperature, since standardised rows have norm
    sqrt(width)."""
    largest_y = width / temperature + 1
    alpha = 2.0 ** min(0, math.floor(math.log2(math.sqrt(LARGEST_WEIGHT) / largest_y)))
    # A row's weights sum to alpha^2 tokens at least.
    shift = 2.0 ** min(LARGEST_SHIFT, math.floor(math.log2(alpha * alpha * tokens)))
    return Numbers(alpha / temperature, alpha, shift, 2 * alpha / (temperature * shift))


class FastmaxPlan(NamedTuple):
    """Everything the launches of one call share; hashable, so that launchers are remembered by it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    causal: bool
    aligned: bool
    precision: str
    version: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, causal: bool, *others: Tensor) -> "FastmaxPlan":
        """q, k, v: (B, N, H, D), the same strides; others: what the launches read or write besides."""
        aligned, precision = is_aligned(q, k, v, *others), configs.precision(q.dtype)
        return cls(q.shape, q.stride(), q.dtype, q.device, causal, aligned, precision, configs.version())

    @property
    def heads(self) -> int:
        """Sequences times heads."""
        return self.shape[0] * self.shape[2]

    def has_tma(self, *strides: tuple[int, ...]) -> bool:
        """Can TMA copy the tiles of q, k, v, and of tensors of these strides?"""
        if not self.aligned or self.dtype == torch.float32:
            return False
        on_gpu = self.device.type == "cuda"
        fits = interpreting() or (on_gpu and configs.device_numbers(self.device.index)[0] >= configs.HOPPER)
        return fits and all(mappable(self.shape, s, self.dtype.itemsize) for s in (self.strides, *strides))


_launchers: dict[Any, Launcher] = {}


def _launch(
    call: FastmaxPlan, name: str, kernel: Any, tiles: Sequence[Tensor], own: Sequence[bool], rest: Sequence[Any],
    strides: tuple[tuple[int, ...], ...] = (), **flags: Any,
) -> None:  # fmt: skip
    """own: does a tile have the rows that the program owns, or the rows that stream through it; rest gets PARTS in the
    place of an Ellipsis."""
    rows, stream, warps, stages = configs.polynomial(name, padded(call.shape[3]), call.dtype, call.device)
    parts = -(-call.shape[1] // rows)
    key = (name, call, strides, tuple(flags.items()))
    launcher = _launchers.get(key)
    if launcher is None:
        tma = call.has_tma(*strides)
        width = padded(call.shape[3])
        everything = {
            "DT": TRITON_DTYPE[call.dtype], "D": call.shape[3], "DP": width, "BM": rows, "BN": stream,
            "CAUSAL": call.causal, "TMA": tma, "UP": interpreting(), "PREC": call.precision, **flags,
        }  # fmt: skip
        known = {k: v for k, v in everything.items() if k in kernel.arg_names}
        blocks = [(rows if mine else stream, width) for mine in own] if tma else None
        known |= {"num_warps": warps, "num_stages": stages}
        if len(_launchers) >= MAX_CALLS:
            _launchers.clear()
        launcher = _launchers[key] = Launcher(kernel, call.heads * parts, known, blocks, call.aligned)
    launcher(tiles, [parts if value is ... else value for value in rest])


def forward(q: Tensor, k: Tensor, v: Tensor, temperature: float, causal: bool, save: bool) -> tuple[Tensor, Tensor]:
    """(o, per-token numbers for the backward pass: float32 (B H, 5, N)). q, k, v: (B, N, H, D), the same strides."""
    call = FastmaxPlan.of(q, k, v, causal)
    tokens, heads, width = q.shape[1:]
    const = numbers(tokens, width, temperature)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    rows = torch.empty(call.heads, polynomial.PER_TOKEN, tokens, dtype=torch.float32, device=q.device)
    known = tokens >= KNOWN_FROM_TOKENS
    if known:
        parts = -(-tokens // STATISTICS_ROWS)
        polynomial.token_statistics[(call.heads * parts,)](
            q, k, rows, *q.stride()[:3], tokens, heads, parts, D=width, DP=padded(width), BM=STATISTICS_ROWS
        )  # fmt: skip
    rest = (rows, *q.stride()[:3], tokens, heads, ..., const.unit, const.alpha)
    _launch(
        call, "fastmax_forward", polynomial.fastmax_forward, (q, k, v, out, k), (True, False, False, True, True), rest,
        KNOWN=known, SAVE=save,
    )  # fmt: skip
    return out, rows


def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, rows: Tensor, grad: Tensor, grads: Sequence[Tensor],
    temperature: float, causal: bool, needs: tuple[bool, bool],
) -> None:  # fmt: skip
    """Writes dq, dk, dv. needs: dq; dk and dv (which take dq's launch too, for its delta)."""
    dq, dk, dv = grads
    call = FastmaxPlan.of(q, k, v, causal, grad)
    tokens, heads = q.shape[1:3]
    const = numbers(tokens, q.shape[3], temperature)
    delta = torch.empty(call.heads, tokens, dtype=torch.float32, device=q.device)
    shared = (*q.stride()[:3], *grad.stride()[:3], *dq.stride()[:3], tokens, heads, ..., *const)
    strides = (grad.stride(), dq.stride())
    _launch(
        call, "fastmax_query_grad", polynomial_backward.fastmax_query_grad, (q, k, v, out, grad, dq),
        (True, False, False, True, True, True), (rows, delta, *shared), strides,
    )  # fmt: skip
    if needs[1]:
        _launch(
            call, "fastmax_key_grad", polynomial_backward.fastmax_key_grad, (q, k, v, grad, dk, dv),
            (False, True, True, False, True, True), (rows, delta, *shared), strides,
        )  # fmt: skip
