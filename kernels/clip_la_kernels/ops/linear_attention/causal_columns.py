# ruff: noqa: RUF059 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Gradients of wide causal heads without denominator, a block of columns a program; conventions as in `causal`,
but the state of the block is kept untransposed, [y, w]: that takes a tenth of a step's instructions away here.

All three have the form of the forward pass, out_i = sum_j (x_i.y_j) w_j over the past or, backward in time, the
future: (x, y, w) = (do, v, k^) for dq^, (k, q^, do) for dv, (v, do, q^) for dk^. So a program keeps the state of its
own columns only, few enough registers for one group of warps, and whole heads fill the GPU without an extra pass for
the states of splits. The gradient of a norm wants a sum over all columns, which the programs of one launch leave by
blocks and the next launch adds up: q^.dq^ by those of dq^, whose columns those of dk^ then project; k^.dk^ by those of
dv, since it equals v.dv less its constant part.
"""

import triton.language as tl

from clip_la_kernels.ops.linear_attention.causal import down, load_norms, per_row, up
from clip_la_kernels.runtime.common import L2, THIN, dot, kernel, load_tile, place, rows_of, store_tile, take_over, thin

# Roles of a launch: as the host passes them, and as kernels see them.
QUERIES, VALUES, KEYS = range(3)
DQ = tl.constexpr(QUERIES)
DV = tl.constexpr(VALUES)
DK = tl.constexpr(KEYS)


@kernel
def causal_columns(
    X, Y, W, M, OUT, DQUERY, NORM, TURN, xb, xn, xh, yb, yn, yh, wb, wn, wh, mb, mn, mh, ob, on, oh, N, H, a, b,
    DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BV: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr,
    VSUM: tl.constexpr, ROLE: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr, UP: tl.constexpr,
    PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """ROLE DQ: X, Y, W, M = do, v, k, q; DV: k, q, do, v; DK: v, do, q, k. DQUERY has the strides of OUT.

    TURN holds q^.dq^ and k^.dk^ of each row by blocks.
    """
    take_over(PDL)
    pid = tl.program_id(0)
    blocks: tl.constexpr = DP // BV
    block = pid % blocks
    v0 = block * BV
    seq, h, split = place(pid // blocks, H, 1)
    at = (seq, h)
    X = rows_of(X, seq, h, 0, xb, xn, xh, False, TMA)
    Y = rows_of(Y, seq, h, 0, yb, yn, yh, False, TMA)
    W = rows_of(W, seq, h, 0, wb, wn, wh, False, TMA)
    M = rows_of(M, seq, h, 0, mb, mn, mh, False, TMA)
    OUT = rows_of(OUT, seq, h, 0, ob, on, oh, False, TMA)
    DQUERY = rows_of(DQUERY, seq, h, 0, ob, on, oh, False, TMA)
    NORM += 2 * per_row(seq, h, 0, N, H, False)
    TURN += 2 * blocks * per_row(seq, h, 0, N, H, False)
    S = tl.zeros([DP, BV], tl.float32)
    W1 = tl.zeros([BV, THIN], tl.float32)
    ones = thin(tl.full([BL], 1.0, tl.float32), DT)
    d = tl.arange(0, DP)
    e = v0 + tl.arange(0, BV)
    rn = tl.arange(0, BL)
    # Rows beyond the end are zero in every tile, so the triangle is all there is to mask.
    seen = rn[:, None] >= rn[None, :]
    if ROLE != DQ:
        seen = rn[None, :] >= rn[:, None]
    triangle = tl.where(seen, 1.0, 0.0).to(DT)
    chunks = tl.cdiv(N, BL)
    for step in tl.range(0, chunks, num_stages=STAGES):
        n0 = step * BL
        summed = n0 + 1.0
        if ROLE != DQ:
            n0 = (chunks - 1 - step) * BL
            summed = tl.maximum(N - n0, 1).to(tl.float32)
        n = n0 + rn
        x = load_tile(X, at, n0, xn, rn, d, N, D, TMA, 0)
        y = load_tile(Y, at, n0, yn, rn, d, N, D, TMA, 0)
        w = load_tile(W, at, n0, wn, rn, e, N, D, TMA, v0)
        # r of w's rows, s of the output's.
        s, r = load_norms(NORM, n, N, MAP)
        if ROLE != DQ:
            r, s = load_norms(NORM, n, N, MAP)
        # The chunk's own rows by a tile of products, what comes before (or after) it by the state.
        A = dot(x, tl.trans(y), tl.zeros([BL, BL], tl.float32), UP, PREC)
        o = up(dot(x, down(S, summed, DT), tl.zeros([BL, BV], tl.float32), UP, PREC), summed, DT)
        wr = w
        if MAP == L2:
            wr = (w.to(tl.float32) * r[:, None]).to(DT)
        o = dot(tl.where(seen, A, 0.0).to(DT), wr, o, UP, PREC) * (b * s)[:, None]
        if MAP == L2:
            mf = load_tile(M, at, n0, mn, rn, e, N, D, TMA, v0).to(tl.float32)
            if ROLE == DQ:
                tl.store(TURN + n * 2 * blocks + block, tl.sum(mf * o, 1), mask=n < N)
            if ROLE == DV:
                tl.store(TURN + n * 2 * blocks + blocks + block, tl.sum(mf * o, 1), mask=n < N)
            if ROLE == DK:
                # The last launch: all columns' shares of both sums lie ready, and dq lacks its own.
                turn_q = tl.zeros([BL], tl.float32)
                turn_k = tl.zeros([BL], tl.float32)
                for other in tl.static_range(blocks):
                    turn_q += tl.load(TURN + n * 2 * blocks + other, mask=n < N, other=0.0)
                    turn_k += tl.load(TURN + n * 2 * blocks + blocks + other, mask=n < N, other=0.0)
                o -= mf * (s * s * turn_k)[:, None]
                dq = load_tile(DQUERY, at, n0, on, rn, e, N, D, TMA, v0).to(tl.float32)
                dq -= w.to(tl.float32) * (r * r * turn_q)[:, None]
                store_tile(DQUERY, at, dq.to(DT), n0, on, rn, e, N, D, TMA, v0)
        if ROLE == DV and VSUM:
            o += a * (dot(triangle, w, tl.zeros([BL, BV], tl.float32), UP, PREC) + tl.sum(W1, 1)[None, :])
            W1 = dot(tl.trans(w), ones, W1, UP, PREC)
        store_tile(OUT, at, o.to(DT), n0, on, rn, e, N, D, TMA, v0)
        S = dot(tl.trans(y), wr, S, UP, PREC)
