# ruff: noqa: E741 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Softmax attention of heads whose gradients do not fit one program's registers: a program has a block of a head.

Names and formulas as in `whole`. The forward pass keeps the logarithm of each row's sum, so that a block of weights can
be formed by itself. Backward, one kernel gathers dq of a block of queries and finds delta_i = o_i.do_i, one gathers dk
and dv of a block of keys: seven products a pair of blocks instead of five, but no sum leaves the registers before it is
whole.

Blocks have BM rows, the last one BR (0: there is no such), as many as hold what is left of N.
"""

import triton
import triton.language as tl

from clip_la_kernels.ops.softmax_attention.whole import logits
from clip_la_kernels.runtime.common import dot, kernel, load_tile, place, rows_of, store_tile, take_over


@triton.jit
def add_keys(
    o, top, total, q, K, V, m0, n0, sn, N, scale, BN: tl.constexpr, CAUSAL: tl.constexpr, WHOLE: tl.constexpr,
    DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """(o, top, total) with the keys n0 .. n0 + BN: sums of exp2(s - top) v and exp2(s - top), top the largest s."""
    d = tl.arange(0, DP)
    n = tl.arange(0, BN)
    k = load_tile(K, 0, n0, sn, n, d, N, D, False)
    v = load_tile(V, 0, n0, sn, n, d, N, D, False)
    s = logits(q, k, m0, n0, N, scale, CAUSAL, WHOLE, UP, PREC)
    higher = tl.maximum(top, tl.max(s, 1))
    shrink = tl.exp2(top - higher)
    p = tl.exp2(s - higher[:, None])
    o = dot(p.to(DT), v, o * shrink[:, None], UP, PREC)
    return o, higher, total * shrink + tl.sum(p, 1)


@triton.jit
def forward_block(
    Q, K, V, O, LSE, m0, sn, son, N, scale, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
    CAUSAL: tl.constexpr, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """o and the binary logarithm of the sums of the queries m0 .. m0 + BM."""
    d = tl.arange(0, DP)
    m = tl.arange(0, BM)
    q = load_tile(Q, 0, m0, sn, m, d, N, D, False)
    o = tl.zeros([BM, DP], tl.float32)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    full = N // BN * BN
    if CAUSAL:
        full = tl.minimum(full, m0 + BM)
    for n0 in tl.range(0, full, BN, num_stages=STAGES):
        o, top, total = add_keys(
            o, top, total, q, K, V, m0, n0, sn, N, scale, BN, CAUSAL, True, DT, D, DP, UP, PREC
        )  # fmt: skip
    # Under a causal mask the last keys are seen by the last queries alone.
    if BR > 0 and (not CAUSAL or BM == BR):
        o, top, total = add_keys(
            o, top, total, q, K, V, m0, N // BN * BN, sn, N, scale, BR, CAUSAL, False, DT, D, DP, UP, PREC
        )  # fmt: skip
    store_tile(O, 0, (o / total[:, None]).to(DT), m0, son, m, d, N, D, False)
    tl.store(LSE + m0 + m, top + tl.log2(total), mask=m0 + m < N)


@kernel
def softmax_forward_blocks(
    Q, K, V, O, LSE, sb, sn, sh, N, H, SPLITS, scale, BM: tl.constexpr, BR: tl.constexpr, CAUSAL: tl.constexpr,
    DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """o of a block of queries of one head; LSE: float32 (B H, N)."""
    take_over(PDL)
    split = tl.program_id(0) % SPLITS
    seq, h, _ = place(tl.program_id(0) // SPLITS, H, 1)
    Q = rows_of(Q, seq, h, 0, sb, sn, sh, False, False)
    K = rows_of(K, seq, h, 0, sb, sn, sh, False, False)
    V = rows_of(V, seq, h, 0, sb, sn, sh, False, False)
    O = rows_of(O, seq, h, 0, tl.cast(N, tl.int64) * H * D, H * D, D, False, False)
    LSE += (tl.cast(seq, tl.int64) * H + h) * N
    m0 = split * BM
    if m0 + BM <= N:
        forward_block(Q, K, V, O, LSE, m0, sn, H * D, N, scale, BM, BM, BR, CAUSAL, DT, D, DP, UP, PREC, STAGES)
    elif BR > 0:
        forward_block(Q, K, V, O, LSE, m0, sn, H * D, N, scale, BR, BM, BR, CAUSAL, DT, D, DP, UP, PREC, STAGES)


@triton.jit
def add_query_grad(
    dq, q, do, lse, delta, K, V, m0, n0, sn, N, scale, BN: tl.constexpr, CAUSAL: tl.constexpr, WHOLE: tl.constexpr,
    DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dq / factor with the keys n0 .. n0 + BN."""
    d = tl.arange(0, DP)
    n = tl.arange(0, BN)
    k = load_tile(K, 0, n0, sn, n, d, N, D, False)
    v = load_tile(V, 0, n0, sn, n, d, N, D, False)
    p = tl.exp2(logits(q, k, m0, n0, N, scale, CAUSAL, WHOLE, UP, PREC) - lse[:, None])
    dp = dot(do, tl.trans(v), tl.zeros([q.shape[0], BN], tl.float32), UP, PREC)
    return dot((p * (dp - delta[:, None])).to(DT), k, dq, UP, PREC)


@triton.jit
def query_grad_block(
    Q, K, V, O, DO, DQ, LSE, DELTA, m0, sn, son, sdon, sdn, N, scale, factor, BM: tl.constexpr, BN: tl.constexpr,
    BR: tl.constexpr, CAUSAL: tl.constexpr, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, UP: tl.constexpr,
    PREC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dq and delta of the queries m0 .. m0 + BM."""
    d = tl.arange(0, DP)
    m = tl.arange(0, BM)
    q = load_tile(Q, 0, m0, sn, m, d, N, D, False)
    do = load_tile(DO, 0, m0, sdon, m, d, N, D, False)
    o = load_tile(O, 0, m0, son, m, d, N, D, False)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(DELTA + m0 + m, delta, mask=m0 + m < N)
    lse = tl.load(LSE + m0 + m, mask=m0 + m < N, other=0.0)
    dq = tl.zeros([BM, DP], tl.float32)
    full = N // BN * BN
    seen = full
    if CAUSAL:
        seen = tl.minimum(full, m0 + BM)
    for n0 in tl.range(0, seen, BN, num_stages=STAGES):
        dq = add_query_grad(dq, q, do, lse, delta, K, V, m0, n0, sn, N, scale, BN, CAUSAL, True, DT, D, DP, UP, PREC)
    if BR > 0 and (not CAUSAL or BM == BR):
        dq = add_query_grad(dq, q, do, lse, delta, K, V, m0, full, sn, N, scale, BR, CAUSAL, False, DT, D, DP, UP, PREC)
    store_tile(DQ, 0, (dq * factor).to(DT), m0, sdn, m, d, N, D, False)


@kernel
def softmax_query_grad(
    Q, K, V, O, DO, DQ, LSE, DELTA, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, SPLITS, scale, factor,
    BM: tl.constexpr, BR: tl.constexpr, CAUSAL: tl.constexpr, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries of one head, and their delta for the keys; LSE, DELTA: float32 (B H, N)."""
    take_over(PDL)
    split = tl.program_id(0) % SPLITS
    seq, h, _ = place(tl.program_id(0) // SPLITS, H, 1)
    Q = rows_of(Q, seq, h, 0, sb, sn, sh, False, False)
    K = rows_of(K, seq, h, 0, sb, sn, sh, False, False)
    V = rows_of(V, seq, h, 0, sb, sn, sh, False, False)
    O = rows_of(O, seq, h, 0, tl.cast(N, tl.int64) * H * D, H * D, D, False, False)
    DO = rows_of(DO, seq, h, 0, sdob, sdon, sdoh, False, False)
    DQ = rows_of(DQ, seq, h, 0, sdb, sdn, sdh, False, False)
    LSE += (tl.cast(seq, tl.int64) * H + h) * N
    DELTA += (tl.cast(seq, tl.int64) * H + h) * N
    m0 = split * BM
    if m0 + BM <= N:
        query_grad_block(
            Q, K, V, O, DO, DQ, LSE, DELTA, m0, sn, H * D, sdon, sdn, N, scale, factor, BM, BM,
            BR, CAUSAL, DT, D, DP, UP, PREC, STAGES,
        )  # fmt: skip
    elif BR > 0:
        query_grad_block(
            Q, K, V, O, DO, DQ, LSE, DELTA, m0, sn, H * D, sdon, sdn, N, scale, factor, BR, BM,
            BR, CAUSAL, DT, D, DP, UP, PREC, STAGES,
        )  # fmt: skip


@triton.jit
def add_key_grad(
    dk, dv, k, v, Q, DO, LSE, DELTA, n0, m0, sn, sdon, N, scale, BN: tl.constexpr, CAUSAL: tl.constexpr,
    DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """(dk / factor, dv) of the keys n0 .. with the queries m0 .. m0 + BN.

    Queries beyond N are zeros in q and do, their weights 1: they add nothing. Keys beyond N gather what nobody stores.
    """
    d = tl.arange(0, DP)
    m = tl.arange(0, BN)
    q = load_tile(Q, 0, m0, sn, m, d, N, D, False)
    do = load_tile(DO, 0, m0, sdon, m, d, N, D, False)
    lse = tl.load(LSE + m0 + m, mask=m0 + m < N, other=0.0)
    delta = tl.load(DELTA + m0 + m, mask=m0 + m < N, other=0.0)
    p = tl.exp2(logits(q, k, m0, n0, N, scale, CAUSAL, True, UP, PREC) - lse[:, None])
    dp = dot(do, tl.trans(v), tl.zeros([BN, k.shape[0]], tl.float32), UP, PREC)
    dv = dot(tl.trans(p.to(DT)), do, dv, UP, PREC)
    return dot(tl.trans((p * (dp - delta[:, None])).to(DT)), q, dk, UP, PREC), dv


@triton.jit
def key_grad_block(
    Q, K, V, DO, DK, DV, LSE, DELTA, n0, sn, sdon, sdn, N, scale, factor, BM: tl.constexpr, BN: tl.constexpr,
    BR: tl.constexpr, CAUSAL: tl.constexpr, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, UP: tl.constexpr,
    PREC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dk and dv of the keys n0 .. n0 + BM."""
    d = tl.arange(0, DP)
    n = tl.arange(0, BM)
    k = load_tile(K, 0, n0, sn, n, d, N, D, False)
    v = load_tile(V, 0, n0, sn, n, d, N, D, False)
    dk = tl.zeros([BM, DP], tl.float32)
    dv = tl.zeros([BM, DP], tl.float32)
    full = N // BN * BN
    first = 0
    if CAUSAL:
        # Earlier queries see none of these keys.
        first = n0
    for m0 in tl.range(first, full, BN, num_stages=STAGES):
        dk, dv = add_key_grad(
            dk, dv, k, v, Q, DO, LSE, DELTA, n0, m0, sn, sdon, N, scale, BN, CAUSAL, DT, D, DP, UP, PREC
        )
    if BR > 0:
        dk, dv = add_key_grad(
            dk, dv, k, v, Q, DO, LSE, DELTA, n0, full, sn, sdon, N, scale, BR, CAUSAL, DT, D, DP, UP, PREC
        )
    store_tile(DK, 0, (dk * factor).to(DT), n0, sdn, n, d, N, D, False)
    store_tile(DV, 0, dv.to(DT), n0, sdn, n, d, N, D, False)


@kernel
def softmax_key_grad(
    Q, K, V, DO, DK, DV, LSE, DELTA, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, SPLITS, scale, factor,
    BM: tl.constexpr, BR: tl.constexpr, CAUSAL: tl.constexpr, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys of one head."""
    take_over(PDL)
    split = tl.program_id(0) % SPLITS
    seq, h, _ = place(tl.program_id(0) // SPLITS, H, 1)
    Q = rows_of(Q, seq, h, 0, sb, sn, sh, False, False)
    K = rows_of(K, seq, h, 0, sb, sn, sh, False, False)
    V = rows_of(V, seq, h, 0, sb, sn, sh, False, False)
    DK = rows_of(DK, seq, h, 0, sdb, sdn, sdh, False, False)
    DV = rows_of(DV, seq, h, 0, sdb, sdn, sdh, False, False)
    DO = rows_of(DO, seq, h, 0, sdob, sdon, sdoh, False, False)
    LSE += (tl.cast(seq, tl.int64) * H + h) * N
    DELTA += (tl.cast(seq, tl.int64) * H + h) * N
    n0 = split * BM
    if n0 + BM <= N:
        key_grad_block(
            Q, K, V, DO, DK, DV, LSE, DELTA, n0, sn, sdon, sdn, N, scale, factor, BM,
            BM, BR, CAUSAL, DT, D, DP, UP, PREC, STAGES,
        )  # fmt: skip
    elif BR > 0:
        key_grad_block(
            Q, K, V, DO, DK, DV, LSE, DELTA, n0, sn, sdon, sdn, N, scale, factor, BR,
            BM, BR, CAUSAL, DT, D, DP, UP, PREC, STAGES,
        )  # fmt: skip
