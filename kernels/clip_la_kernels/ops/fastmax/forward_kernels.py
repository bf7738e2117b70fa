# ruff: noqa: E741, RUF059 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Fastmax of degree 2: a quadratic pass over tiles as in flash attention, without maximum or exponential.

With y = alpha (x + 1) the weight 1 + x + x^2 / 2 is (y^2 + alpha^2) / (2 alpha^2), and the constant goes with the
division by the row sum. alpha is a power of two: a key beyond N (zeros) then weighs exactly 2 alpha^2.

Of the two standardised operands of x only the one that stays in a program is formed. The other streams through raw:
q^_i.k^_j = r_j (q^_i.k_j - m_j sum_d q^_id) with r = 1 / deviation and m = mean, where the last term undoes what
rounding leaves of the zero mean of q^. The gradients need no mean: sum_j ds_ij k^_j and sum_j ds_ij r_j k_j differ by
a multiple of the vector of ones, which the backward pass of the standardisation removes.

ROWS, float32, per head: z, then r and m r of the queries, then of the keys, N each.
"""

import triton
import triton.language as tl

from clip_la_kernels.ops.linear_attention.reference import STANDARDISE_EPS
from clip_la_kernels.runtime.common import dot, kernel, load_tile, place, rows_of, store_tile

EPS = tl.constexpr(STANDARDISE_EPS)
# Places in ROWS.
Z = tl.constexpr(0)
QUERIES = tl.constexpr(1)
KEYS = tl.constexpr(3)
PER_TOKEN = 5


@triton.jit
def centred(x, d, D: tl.constexpr):
    """(x - mean, 1 / deviation, mean / deviation) of the rows of a tile, float32; columns beyond D stay zero."""
    xf = x.to(tl.float32)
    mean = tl.sum(xf, 1) / D
    xf = xf - mean[:, None]
    if d.shape[0] != D:
        xf = tl.where((d < D)[None, :], xf, 0.0)
    r = tl.rsqrt(tl.sum(xf * xf, 1) / D + EPS)
    return xf, r, mean * r


@triton.jit
def rounded(xf, r, DT: tl.constexpr):
    """The standardised tile in DT, and the sums of its rows, which rounding has moved away from zero."""
    y = (xf * r[:, None]).to(DT)
    return y, tl.sum(y.to(tl.float32), 1)


@triton.jit
def standardise_grad(dy, x, d, factor, D: tl.constexpr):
    """Gradient by the raw tile x from `dy`, the gradient by the standardised one divided by factor; any multiple of
    the vector of ones in dy drops out."""
    xf, r, unused = centred(x, d, D)
    dy = dy - (tl.sum(dy, 1) / D)[:, None]
    along = tl.sum(xf * dy, 1) * r * r / D
    return (dy - xf * along[:, None]) * (r * factor)[:, None]


@triton.jit
def head_rows(ROWS, seq, h, H, N, PLACES: tl.constexpr):
    """Where the per-token numbers of a head begin."""
    return ROWS + (tl.cast(seq, tl.int64) * H + h) * N * PLACES


@triton.jit
def statistics_of(ROWS, n, N, PLACE: tl.constexpr):
    """(r, m r) of tokens n; zeros beyond N."""
    base = tl.cast(N, tl.int64)
    r = tl.load(ROWS + base * PLACE + n, mask=n < N, other=0.0)
    return r, tl.load(ROWS + base * (PLACE + 1) + n, mask=n < N, other=0.0)


@triton.jit
def store_statistics(ROWS, r, mr, n, N, PLACE: tl.constexpr):
    base = tl.cast(N, tl.int64)
    tl.store(ROWS + base * PLACE + n, r, mask=n < N)
    tl.store(ROWS + base * (PLACE + 1) + n, mr, mask=n < N)


@kernel
def token_statistics(
    Q, K, ROWS, sb, sn, sh, N, H, SPLITS, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """r and m r of queries and keys, for sequences so long that every program would find them anew too often."""
    seq, h, split = place(tl.program_id(0), H, SPLITS)
    ROWS = head_rows(ROWS, seq, h, H, N, 5)
    d = tl.arange(0, DP)
    rn = tl.arange(0, BM)
    n0 = split * BM
    q = load_tile(rows_of(Q, seq, h, 0, sb, sn, sh, False, False), (seq, h), n0, sn, rn, d, N, D, False)
    k = load_tile(rows_of(K, seq, h, 0, sb, sn, sh, False, False), (seq, h), n0, sn, rn, d, N, D, False)
    unused, r, mr = centred(q, d, D)
    store_statistics(ROWS, r, mr, n0 + rn, N, QUERIES)
    unused, r, mr = centred(k, d, D)
    store_statistics(ROWS, r, mr, n0 + rn, N, KEYS)


@triton.jit
def forward_tile(
    acc, z, qh, sq, K, V, ROWS, at, q0, n0, sn, N, unit, alpha, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, MASKED: tl.constexpr, KNOWN: tl.constexpr, TMA: tl.constexpr, UP: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """Adds the keys n0 .. n0 + BN. MASKED: only those up to each query."""
    d = tl.arange(0, DP)
    rn = tl.arange(0, BN)
    k = load_tile(K, at, n0, sn, rn, d, N, D, TMA)
    v = load_tile(V, at, n0, sn, rn, d, N, D, TMA)
    if KNOWN:
        r, mr = statistics_of(ROWS, n0 + rn, N, KEYS)
    else:
        unused, r, mr = centred(k, d, D)
    y = dot(qh, tl.trans(k), tl.zeros([BM, BN], tl.float32), UP, PREC)
    y = y * (r * unit)[None, :] + (alpha - sq[:, None] * (mr * unit)[None, :])
    w = y * y + alpha * alpha
    if MASKED:
        w = tl.where((n0 + rn)[None, :] <= (q0 + tl.arange(0, BM))[:, None], w, 0.0)
    return dot(w.to(v.dtype), v, acc, UP, PREC), z + tl.sum(w, 1)


@kernel
def fastmax_forward(
    Q, K, V, O, OWN, ROWS, sb, sn, sh, N, H, SPLITS, unit, alpha, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr, KNOWN: tl.constexpr, SAVE: tl.constexpr,
    TMA: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """o of BM queries of one head; with SAVE also what the backward pass needs of them. unit: alpha / temperature.

    OWN: K in tiles of BM rows.
    """
    seq, h, split = place(tl.program_id(0), H, SPLITS)
    if CAUSAL:
        # The longest first.
        split = SPLITS - 1 - split
    at = (seq, h)
    Q = rows_of(Q, seq, h, 0, sb, sn, sh, False, TMA)
    K = rows_of(K, seq, h, 0, sb, sn, sh, False, TMA)
    V = rows_of(V, seq, h, 0, sb, sn, sh, False, TMA)
    O = rows_of(O, seq, h, 0, tl.cast(N, tl.int64) * H * D, H * D, D, False, TMA)
    ROWS = head_rows(ROWS, seq, h, H, N, 5)
    q0 = split * BM
    d = tl.arange(0, DP)
    rm = tl.arange(0, BM)
    q = load_tile(Q, at, q0, sn, rm, d, N, D, TMA)
    qf, rq, mrq = centred(q, d, D)
    qh, sq = rounded(qf, rq, DT)
    if SAVE and not KNOWN:
        store_statistics(ROWS, rq, mrq, q0 + rm, N, QUERIES)
        OWN = rows_of(OWN, seq, h, 0, sb, sn, sh, False, TMA)
        own = load_tile(OWN, at, q0, sn, rm, d, N, D, TMA)
        unused, rk, mrk = centred(own, d, D)
        store_statistics(ROWS, rk, mrk, q0 + rm, N, KEYS)
    acc = tl.zeros([BM, DP], tl.float32)
    z = tl.zeros([BM], tl.float32)
    full = tl.cdiv(N, BN) * BN
    if CAUSAL:
        full = q0 // BN * BN
    for n0 in range(0, full, BN):
        acc, z = forward_tile(
            acc, z, qh, sq, K, V, ROWS, at, q0, n0, sn, N, unit, alpha, D, DP, BM, BN, False, KNOWN, TMA, UP, PREC
        )
    if CAUSAL:
        for n0 in tl.range(full, tl.minimum(q0 + BM, N), BN, num_stages=1):
            acc, z = forward_tile(
                acc, z, qh, sq, K, V, ROWS, at, q0, n0, sn, N, unit, alpha, D, DP, BM, BN, True, KNOWN, TMA, UP, PREC
            )
    else:
        # Keys beyond N are zeros, which weigh 2 alpha^2 each and add nothing else.
        z -= (full - N).to(tl.float32) * (2.0 * alpha * alpha)
    store_tile(O, at, (acc / z[:, None]).to(DT), q0, H * D, rm, d, N, D, TMA)
    if SAVE:
        tl.store(ROWS + q0 + rm, z, mask=q0 + rm < N)
