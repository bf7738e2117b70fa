"""The fast PyTorch path: linear in N, for the CPU and for whatever has no Triton. Layout (B, H, N, D), one sequence a
row.

Low precision is computed in float32 on a CPU (its bfloat16 products are slower and worse); on a GPU the products take
the inputs' dtype, and sums and denominators are float32. float64 stays float64. Formulas of the backward pass:
kernels/README.md.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from clip_la_kernels.runtime.options import DEN_NONE, DEN_SUM, ELU1, EXP, L2, NORM_FLOOR, RELU, Options

# Causal: up to this many tokens one quadratic tile, beyond it chunks of CAUSAL_CHUNK with a running state between them.
CAUSAL_TILE = 128
CAUSAL_CHUNK = 64


def working_dtype(x: Tensor) -> torch.dtype:
    """Accumulation dtype: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def product_dtype(x: Tensor) -> torch.dtype:
    """Dtype of the operands of matrix products."""
    return x.dtype if x.is_cuda else working_dtype(x)


def phi(x: Tensor, code: int) -> tuple[Tensor, Tensor]:
    """phi(x) and what its derivative needs: 1 / norm (..., 1) for L2, phi itself for the others."""
    if code == L2:
        squares = torch.einsum("...d,...d->...", x, x).unsqueeze_(-1)
        rnorm = squares.rsqrt().masked_fill_(squares <= NORM_FLOOR**2, 0.0)
        return x * rnorm, rnorm
    if code == RELU:
        y = x.relu()
    elif code == ELU1:
        y = torch.where(x >= 0, x + 1, x.clamp(max=0).exp())
    else:
        y = x.exp() if code == EXP else x
    return y, y


def phi_backward(grad: Tensor, x: Tensor, y: Tensor, rnorm: Tensor, code: int) -> Tensor:
    """d phi(x): `grad` by phi -> gradient by x."""
    if code == L2:
        along = torch.einsum("...d,...d->...", y, grad).unsqueeze_(-1)
        return torch.addcmul(grad, y, along, value=-1).mul_(rnorm)
    if code == RELU:
        return grad * (x > 0)
    if code == ELU1:
        return torch.where(x >= 0, grad, grad * y)
    return grad * y if code == EXP else grad


class Saved(NamedTuple):
    """What the forward pass hands to the backward pass: mapped and raw inputs in the working dtype, and the divisor."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_raw: Tensor
    k_raw: Tensor
    q_aux: Tensor
    k_aux: Tensor
    z: Tensor
    alive: Tensor
    real: Tensor


def _mm(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """x @ y with operands in `dtype`, result in x's dtype."""
    return x @ y if x.dtype == dtype else (x.to(dtype) @ y.to(dtype)).to(x.dtype)


def _divisor(opt: Options, count: Tensor, total: Tensor | None) -> tuple[Tensor, Tensor]:
    """z and where its gradient flows. count: keys seen by each row; total: sum of weights, only for DEN_SUM."""
    if opt.denominator != DEN_SUM or total is None:
        return count, torch.empty(0)
    floor = opt.eps * count
    alive = total.abs() > floor
    return torch.where(alive, total, torch.where(total < 0, -floor, floor)), alive


def _counts(opt: Options, real: Tensor, tokens: int) -> Tensor:
    """Keys seen by each row, at least 1: broadcastable to (B, H, N, 1). `real` is empty or (B, 1, N, 1) of 0 and 1."""
    if real.numel():
        count = real.cumsum(2) if opt.causal else real.sum(2, keepdim=True)
        return count.clamp_(min=1)
    if opt.causal:
        return torch.arange(1, tokens + 1, dtype=real.dtype, device=real.device).view(1, 1, tokens, 1)
    return torch.full((1, 1, 1, 1), tokens, dtype=real.dtype, device=real.device)


def forward(q: Tensor, k: Tensor, v: Tensor, opt: Options, mask: Tensor | None) -> tuple[Tensor, Saved]:
    """o in the working dtype and what `backward` needs. q, k, v: (B, H, N, D); mask: bool (B, N) or None."""
    work = working_dtype(q)
    product = product_dtype(q)
    real = torch.empty(0, dtype=work, device=q.device)
    if mask is not None:
        real = mask[:, None, :, None].to(work)
        k, v = (t.masked_fill(~mask[:, None, :, None], 0.0) for t in (k, v))
    q, k, v = q.to(work), k.to(work), v.to(work)
    qf, q_aux = phi(q, opt.feature_map)
    kf, k_aux = phi(k, opt.feature_map)
    if mask is not None and opt.feature_map in (ELU1, EXP):
        kf = kf * real
    count = _counts(opt, real, q.shape[2])
    sums = (_causal_sums if opt.causal else _full_sums)(qf, kf, v, opt, real, count, product)
    z, alive = _divisor(opt, count, sums[1])
    out = sums[0] if opt.denominator == DEN_NONE else sums[0] / z
    return out, Saved(qf, kf, v, q, k, q_aux, k_aux, z, alive, real)


def _full_sums(
    q: Tensor, k: Tensor, v: Tensor, opt: Options, real: Tensor, count: Tensor, product: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Numerator and sum of weights, every key seen."""
    out = _mm(q, _mm(k.transpose(-1, -2), v, product) * opt.b, product)
    if opt.a:
        out = out.add_(v.sum(2, keepdim=True), alpha=opt.a)
    if opt.denominator != DEN_SUM:
        return out, None
    total = (q @ k.sum(2).unsqueeze(-1)) * opt.b
    seen = real.sum(2, keepdim=True) if real.numel() else count
    return out, total + opt.a * seen


def backward(saved: Saved, grad: Tensor, opt: Options, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv in the working dtype. grad: (B, H, N, D) in it; dtype: of the operands of products."""
    g = grad if opt.denominator == DEN_NONE else grad / saved.z
    sweep = _causal_backward if opt.causal else _full_backward
    dq, dk, dv = sweep(saved, g, opt, dtype)
    dq = phi_backward(dq, saved.q_raw, saved.q, saved.q_aux, opt.feature_map)
    dk = phi_backward(dk, saved.k_raw, saved.k, saved.k_aux, opt.feature_map)
    if saved.real.numel():
        # Not a product: what stands at a padded position may have made these infinite.
        dk, dv = (t.masked_fill(saved.real == 0, 0.0) for t in (dk, dv))
    return dq, dk, dv


def _full_backward(saved: Saved, g: Tensor, opt: Options, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = saved.q, saved.k, saved.v
    state = _mm(k.transpose(-1, -2), v, dtype) * opt.b
    dq = _mm(g, state.transpose(-1, -2), dtype)
    dstate = _mm(q.transpose(-1, -2), g, dtype) * opt.b
    dk = _mm(v, dstate.transpose(-1, -2), dtype)
    dv = _mm(k, dstate, dtype)
    if opt.a:
        dv = dv.add_(g.sum(2, keepdim=True), alpha=opt.a)
    if opt.denominator == DEN_SUM:
        ones = g @ v.sum(2).unsqueeze(-1) * opt.a
        delta = (ones + torch.einsum("...d,...d->...", q, dq).unsqueeze(-1)) / saved.z * saved.alive
        dq = dq.addcmul_(delta, k.sum(2, keepdim=True), value=-opt.b)
        dk = dk.sub_(delta.transpose(-1, -2) @ q, alpha=opt.b)
    return dq, dk, dv


def _chunks(tokens: int) -> int:
    return tokens if tokens <= CAUSAL_TILE else CAUSAL_CHUNK


def _split(x: Tensor, size: int) -> Tensor:
    """(B, H, N, D) -> (B, H, chunks, size, D), zero rows added at the end."""
    tokens = x.shape[2]
    count = -(-tokens // size)
    if count * size != tokens:
        x = torch.nn.functional.pad(x, (0, 0, 0, count * size - tokens))
    return x.reshape(*x.shape[:2], count, size, x.shape[3])


def _join(x: Tensor, tokens: int) -> Tensor:
    return x.reshape(*x.shape[:2], -1, x.shape[4])[:, :, :tokens]


def _before(x: Tensor) -> Tensor:
    """Sum over the chunks before each, along dimension 2."""
    return x.cumsum(2) - x


def _after(x: Tensor) -> Tensor:
    """Sum over the chunks after each, along dimension 2."""
    return x.sum(2, keepdim=True) - x.cumsum(2)


def _seen(saved_real: Tensor, v: Tensor, tokens: int, size: int) -> Tensor:
    """0/1 (B or 1, 1, chunks or 1, size, size): within a chunk, may row i see key j."""
    lower = torch.ones(size, size, dtype=v.dtype, device=v.device).tril_()
    return lower * _split(saved_real, size).transpose(-1, -2) if saved_real.numel() else lower


def _causal_sums(
    q: Tensor, k: Tensor, v: Tensor, opt: Options, real: Tensor, count: Tensor, product: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Numerator and sum of weights, keys j <= i."""
    tokens = q.shape[2]
    size = _chunks(tokens)
    qc, kc, vc = _split(q, size), _split(k, size), _split(v, size)
    weights = (_mm(qc, kc.transpose(-1, -2), product) * opt.b + opt.a) * _seen(real, v, tokens, size)
    out = _mm(weights, vc, product)
    total = weights.sum(-1, keepdim=True)
    if size < tokens:
        state = _before(_mm(kc.transpose(-1, -2), vc, product))
        out = out + _mm(qc, state * opt.b, product) + opt.a * _before(vc.sum(3, keepdim=True))
        past = (
            _before(_split(real, size).sum(3, keepdim=True))
            if real.numel()
            else size * torch.arange(qc.shape[2], device=q.device).view(-1, 1, 1)
        )
        total = total + opt.b * qc @ _before(kc.sum(3, keepdim=True)).transpose(-1, -2) + opt.a * past
    return _join(out, tokens), _join(total, tokens) if opt.denominator == DEN_SUM else None


def _causal_backward(saved: Saved, g: Tensor, opt: Options, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    tokens = g.shape[2]
    size = _chunks(tokens)
    q, k, v, gc = (_split(t, size) for t in (saved.q, saved.k, saved.v, g))
    seen = _seen(saved.real, saved.v, tokens, size)
    weights = (_mm(q, k.transpose(-1, -2), dtype) * opt.b + opt.a) * seen
    dweights = _mm(gc, v.transpose(-1, -2), dtype) * seen
    state = _before(_mm(k.transpose(-1, -2), v, dtype)) * opt.b
    dq_past = _mm(gc, state.transpose(-1, -2), dtype)
    dks = None
    if opt.denominator == DEN_SUM:
        past = opt.a * (gc @ _before(v.sum(3, keepdim=True)).transpose(-1, -2)) + torch.einsum(
            "...d,...d->...", q, dq_past
        ).unsqueeze(-1)
        delta = _split(_join((weights * dweights).sum(-1, keepdim=True) + past, tokens) / saved.z * saved.alive, size)
        dweights = dweights - delta * seen
        dq_past = dq_past - opt.b * delta * _before(k.sum(3, keepdim=True))
        dks = -opt.b * _after((delta * q).sum(3, keepdim=True))
    dstate = _after(_mm(q.transpose(-1, -2), gc, dtype)) * opt.b
    dq = opt.b * _mm(dweights, k, dtype) + dq_past
    dk = opt.b * _mm(dweights.transpose(-1, -2), q, dtype) + _mm(v, dstate.transpose(-1, -2), dtype)
    dv = _mm(weights.transpose(-1, -2), gc, dtype) + _mm(k, dstate, dtype) + opt.a * _after(gc.sum(3, keepdim=True))
    if dks is not None:
        dk = dk + dks
    return _join(dq, tokens), _join(dk, tokens), _join(dv, tokens)
