"""Causal heads of at most one tile (a caption's 77 tokens): everything of a head is loaded once, 4T forward and 7T backward."""

import triton
import triton.language as tl

from clip_la_kernels.triton_path.causal import counts
from clip_la_kernels.triton_path.common import (
    kernel,
    DEN_LENGTH,
    DEN_SUM,
    dot,
    feature,
    feature_grad,
    guarded,
    load_keys,
    load_tile,
    place,
    row_base,
    span,
    store_tile,
)


@kernel
def short_forward(
    Q, K, V, O, MASK, CUM, CU, sb, sn, sh, N, H, a, b, eps, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr,
    DEN: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr, VARLEN: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """o of one causal head of at most BL tokens."""
    seq, h, part = place(tl.program_id(0), H, 1)
    start, hi = span(seq, N, CU, VARLEN)
    base = row_base(seq, h, start, sb, sn, sh, VARLEN)
    out = row_base(seq, h, start, tl.cast(N, tl.int64) * H * D, H * D, D, VARLEN)
    MASK += tl.cast(seq, tl.int64) * N
    CUM += tl.cast(seq, tl.int64) * N
    d = tl.arange(0, DP)
    n = tl.arange(0, BL)
    dt = Q.dtype.element_ty
    q = load_tile(Q + base, 0, sn, n, d, hi, D)
    k, v, real = load_keys(K + base, V + base, MASK, 0, sn, n, d, hi, D, HAS_MASK)
    yq, rq = feature(q.to(tl.float32), n < hi, d, D, MAP)
    yk, rk = feature(k.to(tl.float32), real, d, D, MAP)
    X = dot(yq.to(dt), tl.trans(yk.to(dt)), tl.zeros([BL, BL], tl.float32), UP, PREC)
    seen = real[None, :] & (n[:, None] >= n[None, :])
    W = tl.where(seen, X * b + a, 0.0)
    o = dot(W.to(dt), v, tl.zeros([BL, DP], tl.float32), UP, PREC)
    count = tl.maximum(counts(CUM, n, hi, HAS_MASK), 1.0)
    if DEN == DEN_LENGTH:
        o = o * (1.0 / count)[:, None]
    if DEN == DEN_SUM:
        z, alive = guarded(tl.sum(W, 1), eps * count)
        o = o * (1.0 / z)[:, None]
    store_tile(O + out, o, 0, H * D, n, d, hi, D)


@kernel
def short_backward(
    Q, K, V, DO, DQ, DK, DV, MASK, CUM, CU, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, a, b, eps, D: tl.constexpr,
    DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr,
    VARLEN: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dq, dk, dv of one causal head of at most BL tokens. Tiles needed transposed are computed as such."""
    seq, h, part = place(tl.program_id(0), H, 1)
    start, hi = span(seq, N, CU, VARLEN)
    base = row_base(seq, h, start, sb, sn, sh, VARLEN)
    dobase = row_base(seq, h, start, sdob, sdon, sdoh, VARLEN)
    dbase = row_base(seq, h, start, sdb, sdn, sdh, VARLEN)
    MASK += tl.cast(seq, tl.int64) * N
    CUM += tl.cast(seq, tl.int64) * N
    d = tl.arange(0, DP)
    n = tl.arange(0, BL)
    dt = Q.dtype.element_ty
    q = load_tile(Q + base, 0, sn, n, d, hi, D)
    do = load_tile(DO + dobase, 0, sdon, n, d, hi, D)
    k, v, real = load_keys(K + base, V + base, MASK, 0, sn, n, d, hi, D, HAS_MASK)
    qf = q.to(tl.float32)
    kf = k.to(tl.float32)
    yq, rq = feature(qf, n < hi, d, D, MAP)
    yk, rk = feature(kf, real, d, D, MAP)
    qh = yq.to(dt)
    kh = yk.to(dt)
    zero = tl.zeros([BL, BL], tl.float32)
    seen = real[None, :] & (n[:, None] >= n[None, :]) & (n[:, None] < hi)
    later = real[:, None] & (n[None, :] >= n[:, None]) & (n[None, :] < hi)
    iz = tl.full([BL], 1.0, tl.float32)
    delta = tl.zeros([BL], tl.float32)
    A = tl.where(seen, dot(do, tl.trans(v), zero, UP, PREC), 0.0)
    if DEN != 0:
        count = tl.maximum(counts(CUM, n, hi, HAS_MASK), 1.0)
        iz = 1.0 / count
    if DEN == DEN_SUM:
        W = tl.where(seen, dot(qh, tl.trans(kh), zero, UP, PREC) * b + a, 0.0)
        z, alive = guarded(tl.sum(W, 1), eps * count)
        iz = 1.0 / z
        delta = tl.where(alive, tl.sum(W * A, 1) * iz * iz, 0.0)
    A = tl.where(seen, A * iz[:, None] - delta[:, None], 0.0)
    dq = dot(A.to(dt), kh, tl.zeros([BL, DP], tl.float32), UP, PREC) * b
    store_tile(DQ + dbase, feature_grad(dq, qf, yq, rq, MAP), 0, sdn, n, d, hi, D)
    Wt = tl.where(later, (dot(kh, tl.trans(qh), zero, UP, PREC) * b + a) * iz[None, :], 0.0)
    dv = dot(Wt.to(dt), do, tl.zeros([BL, DP], tl.float32), UP, PREC)
    At = tl.where(later, dot(v, tl.trans(do), zero, UP, PREC) * iz[None, :] - delta[None, :], 0.0)
    dk = dot(At.to(dt), qh, tl.zeros([BL, DP], tl.float32), UP, PREC) * b
    dk = feature_grad(dk, kf, yk, rk, MAP)
    if HAS_MASK:
        dk = tl.where(real[:, None], dk, 0.0)
        dv = tl.where(real[:, None], dv, 0.0)
    store_tile(DK + dbase, dk, 0, sdn, n, d, hi, D)
    store_tile(DV + dbase, dv, 0, sdn, n, d, hi, D)
