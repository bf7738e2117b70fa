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


def product_dtype(x: Tensor) -> torch.dtype:
    """Dtype of the operands of matrix products; off a GPU also that of everything else, float32 at least."""
    return x.dtype if x.is_cuda else torch.promote_types(x.dtype, torch.float32)


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


def forward(q: Tensor, k: Tensor, v: Tensor, opt: Options, mask: Tensor | None) -> tuple[Tensor, Saved]:
    """o in the working dtype (float64 for float64, else float32) and what `backward` needs. q, k, v: (B, H, N, D);
    mask: bool (B, N) or None."""
    work, product = torch.promote_types(q.dtype, torch.float32), product_dtype(q)
    # 0 and 1, (B, 1, N, 1); empty without a mask.
    real = torch.empty(0, dtype=work, device=q.device)
    if mask is not None:
        real = mask[:, None, :, None].to(work)
        k, v = (t.masked_fill(~mask[:, None, :, None], 0.0) for t in (k, v))
    q, k, v = q.to(work), k.to(work), v.to(work)
    qf, q_aux = phi(q, opt.feature_map)
    kf, k_aux = phi(k, opt.feature_map)
    if mask is not None and opt.feature_map in (ELU1, EXP):
        # phi(0) is not 0 there.
        kf = kf * real
    # Keys seen by each row, at least 1: broadcastable to (B, H, N, 1).
    if mask is not None:
        count = (real.cumsum(2) if opt.causal else real.sum(2, keepdim=True)).clamp_(min=1)
    elif opt.causal:
        count = torch.arange(1, q.shape[2] + 1, dtype=work, device=q.device).view(1, 1, -1, 1)
    else:
        count = torch.full((1, 1, 1, 1), q.shape[2], dtype=work, device=q.device)
    total: Tensor | None
    if opt.causal:
        out, total = _Chunks(q.shape[2]).sums(qf, kf, v, opt, real, product)
    else:
        # Numerator and, where it divides, sum of the weights: every key is seen.
        out, total = _mm(qf, _mm(kf.transpose(-1, -2), v, product) * opt.b, product), None
        if opt.a:
            out = out.add_(v.sum(2, keepdim=True), alpha=opt.a)
        if opt.denominator == DEN_SUM:
            total = (qf @ kf.sum(2).unsqueeze(-1)) * opt.b
            total = total + opt.a * (real.sum(2, keepdim=True) if real.numel() else count)
    z, alive = count, torch.empty(0)
    if total is not None:
        # The divisor is held away from zero, and where it is held no gradient flows through it.
        floor = opt.eps * count
        alive = total.abs() > floor
        z = torch.where(alive, total, torch.where(total < 0, -floor, floor))
    out = out if opt.denominator == DEN_NONE else out / z
    return out, Saved(qf, kf, v, q, k, q_aux, k_aux, z, alive, real)


def backward(saved: Saved, grad: Tensor, opt: Options, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv in the working dtype. grad: (B, H, N, D) in it; dtype: of the operands of products."""
    g = grad if opt.denominator == DEN_NONE else grad / saved.z
    if opt.causal:
        dq, dk, dv = _Chunks(g.shape[2]).gradients(saved, g, opt, dtype)
    else:
        dq, dk, dv = _full_backward(saved, g, opt, dtype)
    dq = phi_backward(dq, saved.q_raw, saved.q, saved.q_aux, opt.feature_map)
    dk = phi_backward(dk, saved.k_raw, saved.k, saved.k_aux, opt.feature_map)
    if saved.real.numel():
        # Not a product: what stands at a padded position may have made these infinite.
        dk, dv = (t.masked_fill(saved.real == 0, 0.0) for t in (dk, dv))
    return dq, dk, dv


def _full_backward(saved: Saved, g: Tensor, opt: Options, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk by the mapped q and k, and dv, every key seen; g = do / z."""
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


class _Chunks:
    """Causal heads of so many tokens in chunks of `size`: one, up to CAUSAL_TILE tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.size = tokens if tokens <= CAUSAL_TILE else CAUSAL_CHUNK

    def split(self, x: Tensor) -> Tensor:
        """(B, H, N, D) -> (B, H, chunks, size, D), zero rows added at the end."""
        count = -(-self.tokens // self.size)
        if count * self.size != self.tokens:
            x = torch.nn.functional.pad(x, (0, 0, 0, count * self.size - self.tokens))
        return x.reshape(*x.shape[:2], count, self.size, x.shape[3])

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `split`."""
        return x.reshape(*x.shape[:2], -1, x.shape[4])[:, :, : self.tokens]

    def before(self, x: Tensor) -> Tensor:
        """Sum over the chunks before each, along dimension 2."""
        return x.cumsum(2) - x

    def after(self, x: Tensor) -> Tensor:
        """Sum over the chunks after each, along dimension 2."""
        return x.sum(2, keepdim=True) - x.cumsum(2)

    def seen(self, real: Tensor, v: Tensor) -> Tensor:
        """0/1 (B or 1, 1, chunks or 1, size, size): within a chunk, may row i see key j? real: as `Saved` has it."""
        lower = torch.ones(self.size, self.size, dtype=v.dtype, device=v.device).tril_()
        return lower * self.split(real).transpose(-1, -2) if real.numel() else lower

    def sums(
        self, q: Tensor, k: Tensor, v: Tensor, opt: Options, real: Tensor, product: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """Numerator and, where it divides, sum of the weights, over the keys j <= i of each row i."""
        qc, kc, vc = self.split(q), self.split(k), self.split(v)
        # Within a chunk the weights are formed; what lies before it comes as a state.
        weights = (_mm(qc, kc.transpose(-1, -2), product) * opt.b + opt.a) * self.seen(real, v)
        out = _mm(weights, vc, product)
        total = weights.sum(-1, keepdim=True)
        if self.size < self.tokens:
            state = self.before(_mm(kc.transpose(-1, -2), vc, product))
            out = out + _mm(qc, state * opt.b, product) + opt.a * self.before(vc.sum(3, keepdim=True))
            past = (
                self.before(self.split(real).sum(3, keepdim=True))
                if real.numel()
                else self.size * torch.arange(qc.shape[2], device=q.device).view(-1, 1, 1)
            )
            total = total + opt.b * qc @ self.before(kc.sum(3, keepdim=True)).transpose(-1, -2) + opt.a * past
        return self.join(out), self.join(total) if opt.denominator == DEN_SUM else None

    def gradients(self, saved: Saved, g: Tensor, opt: Options, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk by the mapped q and k, and dv; g = do / z.

        Within a chunk the weights are formed once more; dq gets its past from the state before the chunk, dk and dv get
        their future from the state of the gradient after it.
        """
        q, k, v, gc = (self.split(t) for t in (saved.q, saved.k, saved.v, g))
        seen = self.seen(saved.real, saved.v)
        weights = (_mm(q, k.transpose(-1, -2), dtype) * opt.b + opt.a) * seen
        dweights = _mm(gc, v.transpose(-1, -2), dtype) * seen
        state = self.before(_mm(k.transpose(-1, -2), v, dtype)) * opt.b
        dq_past = _mm(gc, state.transpose(-1, -2), dtype)
        dks = None
        if opt.denominator == DEN_SUM:
            past = opt.a * (gc @ self.before(v.sum(3, keepdim=True)).transpose(-1, -2)) + torch.einsum(
                "...d,...d->...", q, dq_past
            ).unsqueeze(-1)
            delta = self.split(self.join((weights * dweights).sum(-1, keepdim=True) + past) / saved.z * saved.alive)
            dweights = dweights - delta * seen
            dq_past = dq_past - opt.b * delta * self.before(k.sum(3, keepdim=True))
            dks = -opt.b * self.after((delta * q).sum(3, keepdim=True))
        dstate = self.after(_mm(q.transpose(-1, -2), gc, dtype)) * opt.b
        dq = opt.b * _mm(dweights, k, dtype) + dq_past
        dk = opt.b * _mm(dweights.transpose(-1, -2), q, dtype) + _mm(v, dstate.transpose(-1, -2), dtype)
        dv = (
            _mm(weights.transpose(-1, -2), gc, dtype)
            + _mm(k, dstate, dtype)
            + opt.a * self.after(gc.sum(3, keepdim=True))
        )
        if dks is not None:
            dk = dk + dks
        return self.join(dq), self.join(dk), self.join(dv)
