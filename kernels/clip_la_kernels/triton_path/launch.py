"""Launches: allocates outputs, picks structure and configuration, calls the kernels. Everything here is on real
tensors."""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from clip_la_kernels.dispatch import interpreting
from clip_la_kernels.options import DEN_SUM, Options
from clip_la_kernels.triton_path import bidirectional, bidirectional_backward, causal, causal_backward, configs, short

TRITON_DTYPE = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
# The copy engine wants addresses and strides in multiples of this.
TMA_BYTES = 16


class Inputs(NamedTuple):
    """One call: q, k, v of equal strides with unit stride along D; mask uint8 (B, N), counts float32, cu_seqlens or
    None."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    counts: Tensor | None
    cu: Tensor | None
    opt: Options
    tma: bool = False

    @property
    def sequences(self) -> int:
        return self.q.shape[0] if self.cu is None else self.cu.shape[0] - 1

    @property
    def heads(self) -> int:
        return self.sequences * self.q.shape[2]

    @property
    def width(self) -> int:
        return padded(self.q.shape[3])


def tensor_map(x: Inputs, tensor: Tensor, rows: int, columns: int | None = None) -> Any:
    """(B, N, H, D) as what the kernels load tiles from: a descriptor over (B, H, N, D) for the copy engine, or the
    tensor."""
    if not x.tma:
        return tensor
    batch, tokens, heads, width = tensor.shape
    sb, sn, sh, sd = tensor.stride()
    block = [1, 1, rows, columns or x.width]
    return TensorDescriptor(tensor, [batch, heads, tokens, width], [sb, sh, sn, sd], block)


def padded(width: int) -> int:
    """Head width padded to what tl.dot takes."""
    return max(16, 1 << (width - 1).bit_length())


def uniform(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same values with one set of strides and unit stride along D; copies only what does not have it."""
    if q.stride() == k.stride() == v.stride() and q.stride(3) == 1:
        return q, k, v
    return q.contiguous(), k.contiguous(), v.contiguous()


def _mappable(tensor: Tensor) -> bool:
    size = tensor.element_size()
    return (
        tensor.data_ptr() % TMA_BYTES == 0
        and tensor.shape[3] * size % TMA_BYTES == 0
        and all(stride > 0 and stride * size % TMA_BYTES == 0 for stride in tensor.stride()[:3])
        and tensor.numel() * size >= configs.tma_least_bytes()
    )


def with_tma(x: Inputs) -> Inputs:
    """The same call, through the copy engine where the hardware and the layout allow it: one dense rectangle a head."""
    major, _ = configs.device_numbers(x.q.device.index if x.q.is_cuda else None)
    fits = x.q.is_cuda and major >= 9 and x.mask is None and x.cu is None and x.q.dtype != torch.float32
    return x._replace(tma=fits and all(_mappable(t) for t in (x.q, x.k, x.v)))


def _flags(x: Inputs, kernel: str, **more: Any) -> dict[str, Any]:
    """Compile-time arguments and launch options of one kernel."""
    rows, warps, stages, registers = configs.config(
        kernel, x.q.device, x.width, x.opt.denominator == DEN_SUM, x.q.dtype, x.q.shape[1]
    )
    limit = {"maxnreg": registers} if registers else {}
    return {
        "DT": TRITON_DTYPE[x.q.dtype], "TMA": x.tma, "D": x.q.shape[3], "DP": x.width, "BL": rows,
        "MAP": x.opt.feature_map, "DEN": x.opt.denominator,
        "VSUM": x.opt.a != 0, "HAS_MASK": x.mask is not None, "VARLEN": x.cu is not None, "UP": interpreting(),
        "PREC": configs.precision(x.q.dtype), "num_warps": warps, "num_stages": stages, **limit, **more,
    }  # fmt: skip


def _tiles(x: Inputs, flags: dict[str, Any], *tensors: Tensor) -> tuple[Any, ...]:
    """The tensors of a launch that are read and written by tiles."""
    return tuple(tensor_map(x, t, flags["BL"]) for t in tensors)


def _without(flags: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if key not in names}


def states(x: Inputs, parts: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Room for S and for (ks, vs) of each part of each head."""
    state = torch.empty(x.heads, parts, x.width, x.width, dtype=dtype, device=x.q.device)
    return state, torch.empty(x.heads, parts, 2, x.width, dtype=torch.float32, device=x.q.device)


def _nothing(x: Inputs) -> Tensor:
    """An empty tensor of its own: an operator's outputs may not alias."""
    return torch.empty(0, dtype=torch.float32, device=x.q.device)


def _pointers(x: Inputs, dummy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """mask, counts, cu_seqlens, or something that is never read in their place."""
    return tuple(dummy if t is None else t for t in (x.mask, x.counts, x.cu))  # type: ignore[return-value]


def _combine(x: Inputs, part: Tensor, part_aux: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Scaled state from partial ones."""
    state, aux = states(x, 1, x.q.dtype)
    _, counts, cu = _pointers(x, aux)
    rows = configs.COMBINE_ROWS
    bidirectional.combine[(x.heads * (x.width // rows),)](
        part, part_aux, state, aux, counts, cu, x.q.shape[1], x.q.shape[2], parts, x.opt.a, x.opt.b, DP=x.width,
        ROWS=rows,
        DEN=x.opt.denominator, HAS_MASK=x.mask is not None, VARLEN=x.cu is not None, num_warps=4,
    )  # fmt: skip
    return state, aux


def _key_states(x: Inputs, parts: int, size: int, raw: bool) -> tuple[Tensor, Tensor]:
    """States of keys and values, by part; raw sums in float32, or scaled (one part)."""
    state, aux = states(x, parts, torch.float32 if raw else x.q.dtype)
    mask, counts, cu = _pointers(x, aux)
    flags = _flags(x, "key_state_part", RAW=raw, PAST=x.opt.causal, SUMS=x.opt.denominator == DEN_SUM)
    bidirectional.key_state_part[(x.heads * parts,)](
        *_tiles(x, flags, x.k, x.v), state, aux, mask, counts, cu, *x.q.stride()[:3], x.q.shape[1], x.q.shape[2],
        parts, size, x.opt.a, x.opt.b,
        **flags,
    )  # fmt: skip
    return state, aux


def forward(x: Inputs, save: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(o, state, aux, z): o (B, N, H, D) contiguous; the rest is what `backward` needs (empty where it needs none)."""
    if x.opt.causal:
        return _causal_forward(x, save)
    tokens, heads = x.q.shape[1], x.q.shape[2]
    plan = configs.plan(x.heads, tokens, x.width, x.q.device)
    out = torch.empty(x.q.shape, dtype=x.q.dtype, device=x.q.device)
    z = _nothing(x)
    opt = x.opt
    if plan.parts == 0:
        state, aux = states(x, 1, x.q.dtype) if save else (_nothing(x), _nothing(x))
        mask, counts, cu = _pointers(x, z)
        flags = _flags(x, "forward_fused", SAVE=save)
        bidirectional.forward_fused[(x.heads,)](
            *_tiles(x, flags, x.q, x.k, x.v, out), state, aux, mask, counts, cu, *x.q.stride()[:3], tokens, heads,
            opt.a, opt.b, opt.eps,
            **flags,
        )  # fmt: skip
        return out, state, aux, z
    state, aux = _key_states(x, plan.parts, plan.size, plan.parts > 1)
    if plan.parts > 1:
        state, aux = _combine(x, state, aux, plan.parts)
    flags = _without(_flags(x, "output_part"), "HAS_MASK", "DT")
    bidirectional.output_part[(x.heads * plan.parts,)](
        *_tiles(x, flags, x.q, out), state, aux, _pointers(x, aux)[2], *x.q.stride()[:3], tokens, heads, plan.parts,
        plan.size, opt.a, opt.eps,
        **flags,
    )  # fmt: skip
    return out, state, aux, z


def _grads(x: Inputs, packed: bool) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Room for the gradients: one packed tensor and its three views, or three tensors (the first of the pair is then
    empty)."""
    batch, tokens, heads, width = x.q.shape
    if packed:
        whole = torch.empty(batch, tokens, 3, heads, width, dtype=x.q.dtype, device=x.q.device)
        return whole, whole.unbind(2)  # type: ignore[return-value]
    parts = tuple(torch.empty(x.q.shape, dtype=x.q.dtype, device=x.q.device) for _ in range(3))
    return x.q.new_empty(0), parts  # type: ignore[return-value]


def backward(
    x: Inputs, grad: Tensor, state: Tensor, aux: Tensor, z: Tensor, packed: bool, need_q: bool, need_kv: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dqkv, empty, empty) if packed, else (dq, dk, dv); what is not needed is left unwritten."""
    if grad.stride(3) != 1 or (x.tma and not _mappable(grad)):
        grad = grad.contiguous()
    whole, grads = _grads(x, packed)
    if x.opt.causal:
        _causal_backward(x, grad, state, aux, z, grads, need_q, need_kv)
    else:
        _bidirectional_backward(x, grad, state, aux, grads, need_q, need_kv)
    return (whole, x.q.new_empty(0), x.q.new_empty(0)) if packed else grads


def _bidirectional_backward(
    x: Inputs,
    grad: Tensor,
    state: Tensor,
    aux: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    need_q: bool,
    need_kv: bool,
) -> None:
    tokens, heads = x.q.shape[1], x.q.shape[2]
    plan = configs.plan(x.heads, tokens, x.width, x.q.device)
    dq, dk, dv = grads
    opt = x.opt
    needs = {"NEED_Q": need_q, "NEED_KV": need_kv}
    strides = (*x.q.stride()[:3], *grad.stride()[:3], *dq.stride()[:3])
    mask, counts, cu = _pointers(x, aux)
    if plan.parts == 0:
        flags = _flags(x, "backward_fused", **needs)
        bidirectional_backward.backward_fused[(x.heads,)](
            *_tiles(x, flags, x.q, x.k, x.v, grad, dq, dk, dv), state, aux, mask, counts, cu, *strides, tokens, heads,
            opt.a, opt.b, opt.eps,
            **flags,
        )  # fmt: skip
        return
    raw = plan.parts > 1
    dstate, daux = states(x, plan.parts, torch.float32 if raw else x.q.dtype)
    flags = _flags(x, "query_grad_part", RAW=raw, **needs)
    bidirectional_backward.query_grad_part[(x.heads * plan.parts,)](
        *_tiles(x, flags, x.q, grad, dq), state, aux, dstate, daux, counts, cu, *strides, tokens, heads, plan.parts,
        plan.size, opt.a, opt.b, opt.eps,
        **flags,
    )  # fmt: skip
    if not need_kv:
        return
    if raw:
        dstate, daux = _combine(x, dstate, daux, plan.parts)
    flags = _flags(x, "key_grad_part")
    bidirectional_backward.key_grad_part[(x.heads * plan.parts,)](
        *_tiles(x, flags, x.k, x.v, dk, dv), mask, dstate, daux, cu, *x.q.stride()[:3], *dq.stride()[:3], tokens,
        heads, plan.parts, plan.size,
        **flags,
    )  # fmt: skip


def is_short(x: Inputs) -> bool:
    """Does a causal head fit one tile?"""
    return x.q.shape[1] <= configs.short_tokens() and x.width <= 128


def _short_flags(x: Inputs, kernel: str) -> dict[str, Any]:
    rows = padded(x.q.shape[1])
    warps = 8 if rows * x.width > 64 * 64 else 4
    return {**_flags(x, kernel), "BL": rows, "num_warps": warps, "num_stages": 1}


def _causal_forward(x: Inputs, save: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens, heads = x.q.shape[1], x.q.shape[2]
    out = torch.empty(x.q.shape, dtype=x.q.dtype, device=x.q.device)
    state, aux, z = _nothing(x), _nothing(x), _nothing(x)
    mask, counts, cu = _pointers(x, z)
    opt = x.opt
    if is_short(x):
        flags = _short_flags(x, "short_forward")
        short.short_forward[(x.heads,)](
            *_tiles(x, flags, x.q, x.k, x.v, out), mask, counts, cu, *x.q.stride()[:3], tokens, heads, opt.a, opt.b,
            opt.eps,
            **flags,
        )  # fmt: skip
        return out, state, aux, z
    parts = configs.causal_parts(x.heads, tokens, x.width, x.q.device)
    size = configs.part_size(tokens, parts)
    if parts > 1:
        state, aux = _key_states(x, parts, size, True)
        _scan(x, state, aux, parts, False)
    if opt.denominator == DEN_SUM:
        z = torch.empty(heads * x.q.shape[0] * tokens, dtype=torch.float32, device=x.q.device)
    columns = configs.column_block(x.width, x.q.device)
    flags = _flags(x, "causal_forward", BV=columns, HAS_STATE=parts > 1)
    causal.causal_forward[(x.heads * parts * (x.width // columns),)](
        *_tiles(x, flags, x.q, x.k), *(tensor_map(x, t, flags["BL"], columns) for t in (x.v, out)), z,
        state, aux, mask, counts, cu, *x.q.stride()[:3], tokens, heads, parts, size, opt.a, opt.b, opt.eps,
        STAGES=flags["num_stages"], **flags,
    )  # fmt: skip
    return out, state, aux, z


def _scan(x: Inputs, state: Tensor, aux: Tensor, parts: int, reverse: bool) -> None:
    rows = configs.COMBINE_ROWS
    causal.scan_parts[(x.heads * (x.width // rows),)](
        state, aux, parts, DP=x.width, ROWS=rows, REVERSE=reverse, num_warps=4
    )


def _causal_backward(
    x: Inputs,
    grad: Tensor,
    state: Tensor,
    aux: Tensor,
    z: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    need_q: bool,
    need_kv: bool,
) -> None:
    tokens, heads = x.q.shape[1], x.q.shape[2]
    dq, dk, dv = grads
    opt = x.opt
    mask, counts, cu = _pointers(x, z)
    strides = (*x.q.stride()[:3], *grad.stride()[:3], *dq.stride()[:3])
    if is_short(x):
        flags = _short_flags(x, "short_backward")
        short.short_backward[(x.heads,)](
            *_tiles(x, flags, x.q, x.k, x.v, grad, dq, dk, dv), mask, counts, cu, *strides, tokens, heads, opt.a,
            opt.b, opt.eps,
            **flags,
        )  # fmt: skip
        return
    parts = configs.causal_parts(x.heads, tokens, x.width, x.q.device)
    size = configs.part_size(tokens, parts)
    delta = torch.empty_like(z)
    if need_q or opt.denominator == DEN_SUM:
        flags = _flags(x, "causal_query_grad", HAS_STATE=parts > 1)
        causal.causal_query_grad[(x.heads * parts,)](
            *_tiles(x, flags, x.q, x.k, x.v, grad, dq), z, delta, state, aux, mask, counts, cu, *strides, tokens,
            heads, parts, size, opt.a, opt.b,
            opt.eps, STAGES=flags["num_stages"], **flags,
        )  # fmt: skip
    if not need_kv:
        return
    dstate, daux = delta, delta
    if parts > 1:
        dstate, daux = states(x, parts, torch.float32)
        flags = _flags(x, "grad_state_part")
        causal_backward.grad_state_part[(x.heads * parts,)](
            *_tiles(x, flags, x.q, grad), z, delta, dstate, daux, counts, cu, *strides[:6], tokens, heads, parts,
            size, opt.eps,
            **flags,
        )  # fmt: skip
        _scan(x, dstate, daux, parts, True)
    flags = _flags(x, "causal_key_grad", HAS_STATE=parts > 1)
    causal_backward.causal_key_grad[(x.heads * parts,)](
        *_tiles(x, flags, x.q, x.k, x.v, grad, dk, dv), z, delta, dstate, daux, mask, counts, cu, *strides, tokens,
        heads, parts, size, opt.a, opt.b,
        opt.eps, STAGES=flags["num_stages"], **flags,
    )  # fmt: skip
