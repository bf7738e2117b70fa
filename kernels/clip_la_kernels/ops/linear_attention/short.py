# ruff: noqa: E501, E741, RUF059 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Causal heads of at most one tile (a caption's 77 tokens): everything of a head is loaded once, 4T forward and 7T backward."""

import triton.language as tl

from clip_la_kernels.ops.linear_attention.causal import counts
from clip_la_kernels.runtime.common import (
    DEN_LENGTH,
    DEN_SUM,
    dot,
    feature,
    feature_grad,
    guarded,
    kernel,
    load_keys,
    load_tile,
    narrowed,
    place,
    rows_of,
    span,
    store_tile,
    take_over,
)


@kernel
def short_forward(
    Q, K, V, O, MASK, CUM, CU, sb, sn, sh, N, H, a, b, eps, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr,
    DEN: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr, VARLEN: tl.constexpr, TMA: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """o of one causal head of at most BL tokens: one tile of weights, no state."""
    take_over(PDL)
    seq, h, split = place(tl.program_id(0), H, 1)
    start, hi = span(seq, N, CU, VARLEN)
    at = (seq, h)
    Q = rows_of(Q, seq, h, start, sb, sn, sh, VARLEN, TMA)
    K = rows_of(K, seq, h, start, sb, sn, sh, VARLEN, TMA)
    V = rows_of(V, seq, h, start, sb, sn, sh, VARLEN, TMA)
    O = rows_of(O, seq, h, start, tl.cast(N, tl.int64) * H * D, H * D, D, VARLEN, TMA)
    MASK += tl.cast(seq, tl.int64) * N
    CUM += tl.cast(seq, tl.int64) * N
    d = tl.arange(0, DP)
    n = tl.arange(0, BL)
    q = load_tile(Q, at, 0, sn, n, d, hi, D, TMA)
    k, v, real = load_keys(K, V, at, MASK, 0, sn, n, d, hi, D, HAS_MASK, TMA)
    yq, rq = feature(q.to(tl.float32), n < hi, d, D, MAP)
    yk, rk = feature(k.to(tl.float32), real, d, D, MAP)
    X = dot(yq.to(DT), tl.trans(yk.to(DT)), tl.zeros([BL, BL], tl.float32), UP, PREC)
    seen = real[None, :] & (n[:, None] >= n[None, :])
    W = tl.where(seen, X * b + a, 0.0)
    o = dot(W.to(DT), v, tl.zeros([BL, DP], tl.float32), UP, PREC)
    count = tl.maximum(counts(CUM, n, hi, HAS_MASK), 1.0)
    if DEN == DEN_LENGTH:
        o = o * (1.0 / count)[:, None]
    if DEN == DEN_SUM:
        z, alive = guarded(tl.sum(W, 1), eps * count)
        o = o * (1.0 / z)[:, None]
    store_tile(O, at, o.to(DT), 0, H * D, n, d, hi, D, TMA)


@kernel
def short_backward(
    Q, K, V, DO, DQ, DK, DV, MASK, CUM, CU, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, a, b, eps, DT: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr,
    VARLEN: tl.constexpr, TMA: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dq, dk, dv of one causal head of at most BL tokens, from q, k, v, do alone: nothing is saved for it.

    Tiles needed transposed are computed as such: a product of a transposed product goes wrong in some releases of Triton.
    """
    take_over(PDL)
    seq, h, split = place(tl.program_id(0), H, 1)
    start, hi = span(seq, N, CU, VARLEN)
    at = (seq, h)
    Q = rows_of(Q, seq, h, start, sb, sn, sh, VARLEN, TMA)
    K = rows_of(K, seq, h, start, sb, sn, sh, VARLEN, TMA)
    V = rows_of(V, seq, h, start, sb, sn, sh, VARLEN, TMA)
    DO = rows_of(DO, seq, h, start, sdob, sdon, sdoh, VARLEN, TMA)
    DQ = rows_of(DQ, seq, h, start, sdb, sdn, sdh, VARLEN, TMA)
    DK = rows_of(DK, seq, h, start, sdb, sdn, sdh, VARLEN, TMA)
    DV = rows_of(DV, seq, h, start, sdb, sdn, sdh, VARLEN, TMA)
    MASK += tl.cast(seq, tl.int64) * N
    CUM += tl.cast(seq, tl.int64) * N
    d = tl.arange(0, DP)
    n = tl.arange(0, BL)
    q = load_tile(Q, at, 0, sn, n, d, hi, D, TMA)
    do = load_tile(DO, at, 0, sdon, n, d, hi, D, TMA)
    k, v, real = load_keys(K, V, at, MASK, 0, sn, n, d, hi, D, HAS_MASK, TMA)
    qf = q.to(tl.float32)
    kf = k.to(tl.float32)
    yq, rq = feature(qf, n < hi, d, D, MAP)
    yk, rk = feature(kf, real, d, D, MAP)
    qh = yq.to(DT)
    kh = yk.to(DT)
    zero = tl.zeros([BL, BL], tl.float32)
    seen = real[None, :] & (n[:, None] >= n[None, :]) & (n[:, None] < hi)
    # `seen` transposed: rows are keys.
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
    dq = dot(narrowed(A, DT), kh, tl.zeros([BL, DP], tl.float32), UP, PREC) * b
    store_tile(DQ, at, feature_grad(dq, qf, yq, rq, MAP).to(DT), 0, sdn, n, d, hi, D, TMA)
    Wt = tl.where(later, (dot(kh, tl.trans(qh), zero, UP, PREC) * b + a) * iz[None, :], 0.0)
    dv = dot(narrowed(Wt, DT), do, tl.zeros([BL, DP], tl.float32), UP, PREC)
    At = tl.where(later, dot(v, tl.trans(do), zero, UP, PREC) * iz[None, :] - delta[None, :], 0.0)
    dk = dot(narrowed(At, DT), qh, tl.zeros([BL, DP], tl.float32), UP, PREC) * b
    dk = feature_grad(dk, kf, yk, rk, MAP)
    if HAS_MASK:
        dk = tl.where(real[:, None], dk, 0.0)
        dv = tl.where(real[:, None], dv, 0.0)
    store_tile(DK, at, dk.to(DT), 0, sdn, n, d, hi, D, TMA)
    store_tile(DV, at, dv.to(DT), 0, sdn, n, d, hi, D, TMA)
