# ruff: noqa: E741, RUF059 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Fastmax of degree 2, backward; names as in `forward_kernels`.

With g_i = do_i / z_i and delta_i = g_i.o_i: dv_j = sum_i w_ij g_i, ds_ij = y_ij (g_i.v_j - delta_i), and dq^_i, dk^_j
are 2 alpha / temperature times sum_j ds_ij k^_j, sum_i ds_ij q^_i. 1 / z comes with the power of two `shift`, about N,
so that weights keep their bits in float16. One kernel over blocks of queries, one over blocks of keys: no atomics, one
order of sums.
"""

import triton
import triton.language as tl

from clip_la_kernels.ops.fastmax.forward_kernels import (
    KEYS,
    QUERIES,
    centred,
    head_rows,
    rounded,
    standardise_grad,
    statistics_of,
)
from clip_la_kernels.runtime.common import dot, kernel, load_tile, place, rows_of, store_tile


@triton.jit
def query_grad_tile(
    acc, qh, sq, do, iz, delta, K, V, ROWS, at, q0, n0, sn, N, unit, alpha, DT: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr, UP: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """Adds sum_j ds_ij r_j k_j of the keys n0 .. n0 + BN. Keys beyond N are zeros and add nothing."""
    d = tl.arange(0, DP)
    rn = tl.arange(0, BN)
    k = load_tile(K, at, n0, sn, rn, d, N, D, TMA)
    v = load_tile(V, at, n0, sn, rn, d, N, D, TMA)
    r, mr = statistics_of(ROWS, n0 + rn, N, KEYS)
    # y r rather than y: the r of the gradient's sum comes with the multiply-adds of y.
    yr = dot(qh, tl.trans(k), tl.zeros([BM, BN], tl.float32), UP, PREC)
    yr = yr * (r * r * unit)[None, :] + ((alpha * r)[None, :] - sq[:, None] * (mr * r * unit)[None, :])
    ds = dot(do, tl.trans(v), tl.zeros([BM, BN], tl.float32), UP, PREC)
    ds = yr * (ds * iz[:, None] - delta[:, None])
    if MASKED:
        ds = tl.where((n0 + rn)[None, :] <= (q0 + tl.arange(0, BM))[:, None], ds, 0.0)
    return dot(ds.to(DT), k, acc, UP, PREC)


@kernel
def fastmax_query_grad(
    Q, K, V, O, DO, DQ, ROWS, DELTA, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, SPLITS, unit, alpha, shift,
    factor, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, TMA: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dq of BM queries of one head, and their delta for the keys. factor: what turns the sum into dq^."""
    seq, h, split = place(tl.program_id(0), H, SPLITS)
    if CAUSAL:
        split = SPLITS - 1 - split
    at = (seq, h)
    Q = rows_of(Q, seq, h, 0, sb, sn, sh, False, TMA)
    K = rows_of(K, seq, h, 0, sb, sn, sh, False, TMA)
    V = rows_of(V, seq, h, 0, sb, sn, sh, False, TMA)
    O = rows_of(O, seq, h, 0, tl.cast(N, tl.int64) * H * D, H * D, D, False, TMA)
    DO = rows_of(DO, seq, h, 0, sdob, sdon, sdoh, False, TMA)
    DQ = rows_of(DQ, seq, h, 0, sdb, sdn, sdh, False, TMA)
    ROWS = head_rows(ROWS, seq, h, H, N, 5)
    DELTA = head_rows(DELTA, seq, h, H, N, 1)
    q0 = split * BM
    d = tl.arange(0, DP)
    rm = tl.arange(0, BM)
    n = q0 + rm
    do = load_tile(DO, at, q0, sdon, rm, d, N, D, TMA)
    o = load_tile(O, at, q0, H * D, rm, d, N, D, TMA)
    iz = shift / tl.load(ROWS + n, mask=n < N, other=1.0)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1) * iz
    tl.store(DELTA + n, delta, mask=n < N)
    q = load_tile(Q, at, q0, sn, rm, d, N, D, TMA)
    qf, rq, mrq = centred(q, d, D)
    qh, sq = rounded(qf, rq, DT)
    acc = tl.zeros([BM, DP], tl.float32)
    full = tl.cdiv(N, BN) * BN
    if CAUSAL:
        full = q0 // BN * BN
    for n0 in range(0, full, BN):
        acc = query_grad_tile(
            acc, qh, sq, do, iz, delta, K, V, ROWS, at, q0, n0, sn, N, unit, alpha, DT, D, DP, BM, BN, False, TMA, UP,
            PREC,
        )  # fmt: skip
    if CAUSAL:
        for n0 in tl.range(full, tl.minimum(q0 + BM, N), BN, num_stages=1):
            acc = query_grad_tile(
                acc, qh, sq, do, iz, delta, K, V, ROWS, at, q0, n0, sn, N, unit, alpha, DT, D, DP, BM, BN, True, TMA,
                UP, PREC,
            )  # fmt: skip
    # Loaded again: kept through the loop it would cost registers.
    q = load_tile(Q, at, q0, sn, rm, d, N, D, TMA)
    store_tile(DQ, at, standardise_grad(acc, q, d, factor, D).to(DT), q0, sdn, rm, d, N, D, TMA)


@triton.jit
def key_grad_tile(
    dk, dv, kh, sk, v, Q, DO, ROWS, DELTA, at, k0, n0, sn, sdon, N, unit, alpha, shift, DT: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr,
    UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Adds the queries n0 .. n0 + BN to the gradients of BM keys. Transposed tiles are computed as such."""
    d = tl.arange(0, DP)
    rn = tl.arange(0, BN)
    n = n0 + rn
    q = load_tile(Q, at, n0, sn, rn, d, N, D, TMA)
    do = load_tile(DO, at, n0, sdon, rn, d, N, D, TMA)
    r, mr = statistics_of(ROWS, n, N, QUERIES)
    delta = tl.load(DELTA + n, mask=n < N, other=0.0)
    iz = tl.where(n < N, shift / tl.load(ROWS + n, mask=n < N, other=1.0), 0.0)
    y = dot(kh, tl.trans(q), tl.zeros([BM, BN], tl.float32), UP, PREC)
    y = y * (r * unit)[None, :] + (alpha - sk[:, None] * (mr * unit)[None, :])
    w = (y * y + alpha * alpha) * iz[None, :]
    if MASKED:
        later = n[None, :] >= (k0 + tl.arange(0, BM))[:, None]
        w = tl.where(later, w, 0.0)
    dv = dot(w.to(DT), do, dv, UP, PREC)
    ds = dot(v, tl.trans(do), tl.zeros([BM, BN], tl.float32), UP, PREC)
    ds = y * (ds * (iz * r)[None, :] - (delta * r)[None, :])
    if MASKED:
        ds = tl.where(later, ds, 0.0)
    return dot(ds.to(DT), q, dk, UP, PREC), dv


@kernel
def fastmax_key_grad(
    Q, K, V, DO, DK, DV, ROWS, DELTA, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, SPLITS, unit, alpha, shift,
    factor, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, TMA: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dk and dv of BM keys of one head."""
    seq, h, split = place(tl.program_id(0), H, SPLITS)
    at = (seq, h)
    Q = rows_of(Q, seq, h, 0, sb, sn, sh, False, TMA)
    K = rows_of(K, seq, h, 0, sb, sn, sh, False, TMA)
    V = rows_of(V, seq, h, 0, sb, sn, sh, False, TMA)
    DO = rows_of(DO, seq, h, 0, sdob, sdon, sdoh, False, TMA)
    DK = rows_of(DK, seq, h, 0, sdb, sdn, sdh, False, TMA)
    DV = rows_of(DV, seq, h, 0, sdb, sdn, sdh, False, TMA)
    ROWS = head_rows(ROWS, seq, h, H, N, 5)
    DELTA = head_rows(DELTA, seq, h, H, N, 1)
    k0 = split * BM
    d = tl.arange(0, DP)
    rm = tl.arange(0, BM)
    k = load_tile(K, at, k0, sn, rm, d, N, D, TMA)
    v = load_tile(V, at, k0, sn, rm, d, N, D, TMA)
    kf, rk, mrk = centred(k, d, D)
    kh, sk = rounded(kf, rk, DT)
    dk = tl.zeros([BM, DP], tl.float32)
    dv = tl.zeros([BM, DP], tl.float32)
    full = 0
    if CAUSAL:
        # Queries from here on see every key of the block.
        full = tl.minimum(tl.cdiv(k0 + BM, BN) * BN, tl.cdiv(N, BN) * BN)
        for n0 in tl.range(k0 // BN * BN, full, BN, num_stages=1):
            dk, dv = key_grad_tile(
                dk, dv, kh, sk, v, Q, DO, ROWS, DELTA, at, k0, n0, sn, sdon, N, unit, alpha, shift, DT, D, DP, BM, BN,
                True, TMA, UP, PREC,
            )  # fmt: skip
    for n0 in range(full, N, BN):
        dk, dv = key_grad_tile(
            dk, dv, kh, sk, v, Q, DO, ROWS, DELTA, at, k0, n0, sn, sdon, N, unit, alpha, shift, DT, D, DP, BM, BN,
            False, TMA, UP, PREC,
        )  # fmt: skip
    store_tile(DV, at, (dv / shift).to(DT), k0, sdn, rm, d, N, D, TMA)
    k = load_tile(K, at, k0, sn, rm, d, N, D, TMA)
    store_tile(DK, at, standardise_grad(dk, k, d, factor, D).to(DT), k0, sdn, rm, d, N, D, TMA)
