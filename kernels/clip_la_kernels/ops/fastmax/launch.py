"""Launches of the fastmax kernels: numbers of a call, tiles, room for results."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip_la_kernels.ops.fastmax import backward_kernels, forward_kernels
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
    """Constants of one call, see `forward_kernels` and `backward_kernels`."""

    unit: float
    alpha: float
    shift: float
    factor: float

    @classmethod
    def of(cls, tokens: int, width: int, temperature: float) -> "Numbers":
        """alpha and shift are powers of two; |x| is at most width / temperature, since standardised rows have norm
        sqrt(width)."""
        largest_y = width / temperature + 1
        alpha = 2.0 ** min(0, math.floor(math.log2(math.sqrt(LARGEST_WEIGHT) / largest_y)))
        # A row's weights sum to alpha^2 tokens at least.
        shift = 2.0 ** min(LARGEST_SHIFT, math.floor(math.log2(alpha * alpha * tokens)))
        return cls(alpha / temperature, alpha, shift, 2 * alpha / (temperature * shift))


_launchers: dict[Any, Launcher] = {}


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
        return cls(q.shape, q.stride(), q.dtype, q.device, causal, aligned, precision, configs.overrides.version)

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

    def launch(
        self, name: str, kernel: Any, tiles: Sequence[Tensor], own: Sequence[bool], rest: Sequence[Any],
        strides: tuple[tuple[int, ...], ...] = (), **flags: Any,
    ) -> None:  # fmt: skip
        """Launches `kernel` on this call's heads.

        own: does a tile have the rows that the program owns, or those that stream through it? rest: an Ellipsis stands
        for SPLITS.
        """
        rows, stream, warps, stages = configs.polynomial(name, padded(self.shape[3]), self.dtype, self.device)
        splits = -(-self.shape[1] // rows)
        key = (name, self, strides, tuple(flags.items()))
        launcher = _launchers.get(key)
        if launcher is None:
            tma = self.has_tma(*strides)
            width = padded(self.shape[3])
            everything = {
                "DT": TRITON_DTYPE[self.dtype], "D": self.shape[3], "DP": width, "BM": rows, "BN": stream,
                "CAUSAL": self.causal, "TMA": tma, "UP": interpreting(), "PREC": self.precision, **flags,
            }  # fmt: skip
            known = {k: v for k, v in everything.items() if k in kernel.arg_names}
            blocks = [(rows if mine else stream, width) for mine in own] if tma else None
            known |= {"num_warps": warps, "num_stages": stages}
            if len(_launchers) >= MAX_CALLS:
                _launchers.clear()
            launcher = _launchers[key] = Launcher(kernel, self.heads * splits, known, blocks, self.aligned)
        launcher(tiles, [splits if value is ... else value for value in rest])


def forward(qkv: Tensor, temperature: float, causal: bool, save: bool) -> list[Tensor]:
    """[o (B, N, H, D), numbers of each token for the backward pass: float32 (B H, 5, N)]. qkv: (B, N, 3, H, D)."""
    q, k, v = (qkv if qkv.stride(4) == 1 else qkv.contiguous()).unbind(2)
    call = FastmaxPlan.of(q, k, v, causal)
    tokens, heads, width = q.shape[1:]
    const = Numbers.of(tokens, width, temperature)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    rows = torch.empty(call.heads, forward_kernels.PER_TOKEN, tokens, dtype=torch.float32, device=q.device)
    known = tokens >= KNOWN_FROM_TOKENS
    if known:
        splits = -(-tokens // STATISTICS_ROWS)
        forward_kernels.token_statistics[(call.heads * splits,)](
            q, k, rows, *q.stride()[:3], tokens, heads, splits, D=width, DP=padded(width), BM=STATISTICS_ROWS
        )
    rest = (rows, *q.stride()[:3], tokens, heads, ..., const.unit, const.alpha)
    kernel, own = forward_kernels.fastmax_forward, (True, False, False, True, True)
    call.launch("fastmax_forward", kernel, (q, k, v, out, k), own, rest, KNOWN=known, SAVE=save)
    return [out, rows]


def backward(qkv: Tensor, out: Tensor, rows: Tensor, grad: Tensor, temperature: float, causal: bool) -> Tensor:
    """The packed gradient (B, N, 3, H, D), contiguous. out, rows: as `forward` returns them; grad: (B, N, H, D)."""
    q, k, v = (qkv if qkv.stride(4) == 1 else qkv.contiguous()).unbind(2)
    if grad.stride(3) != 1:
        grad = grad.contiguous()
    whole = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    dq, dk, dv = whole.unbind(2)
    call = FastmaxPlan.of(q, k, v, causal, grad)
    tokens, heads = q.shape[1:3]
    const = Numbers.of(tokens, q.shape[3], temperature)
    delta = torch.empty(call.heads, tokens, dtype=torch.float32, device=q.device)
    rest = (rows, delta, *q.stride()[:3], *grad.stride()[:3], *dq.stride()[:3], tokens, heads, ..., *const)
    strides = (grad.stride(), dq.stride())
    # The queries' launch first: it leaves the delta that the keys' reads.
    kernel, own = backward_kernels.fastmax_query_grad, (True, False, False, True, True, True)
    call.launch("fastmax_query_grad", kernel, (q, k, v, out, grad, dq), own, rest, strides)
    kernel, own = backward_kernels.fastmax_key_grad, (False, True, True, False, True, True)
    call.launch("fastmax_key_grad", kernel, (q, k, v, grad, dk, dv), own, rest, strides)
    return whole
