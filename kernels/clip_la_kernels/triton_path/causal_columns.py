# ruff: noqa: RUF059 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""dk and dv of wide causal heads without denominator, a block of columns a program; conventions as in `causal`.

Both have the form of the forward pass, backward in time: out_j = sum_{i >= j} (x_j.y_i) w_i, with (x, y, w) =
(k, q^, do) for dv and (v, do, q^) for dk^. So a program keeps the state of its own columns only, few enough registers
for one group of warps, and whole heads fill the GPU without an extra pass for the states of parts. What dk lacks, the
sum k^.dk^ over all columns for the gradient of the norm, equals v.dv less its constant part, and dv's programs leave it
by blocks.
"""

import triton.language as tl

from clip_la_kernels.triton_path.causal import down, load_norms, per_row, up
from clip_la_kernels.triton_path.common import (
    L2,
    THIN,
    dot,
    kernel,
    load_tile,
    place,
    row_sums,
    rows_of,
    store_tile,
    thin,
)


@kernel
def causal_columns(
    X, Y, W, M, OUT, NORM, TURN, xb, xn, xh, yb, yn, yh, wb, wn, wh, ob, on, oh, N, H, a, b, DT: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, BV: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, VSUM: tl.constexpr,
    KEYS: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """dk if KEYS (X, Y, W, M = v, do, q, k), else dv (k, q, do, v); M has the strides of X."""
    pid = tl.program_id(0)
    block = pid % (DP // BV)
    v0 = block * BV
    seq, h, part = place(pid // (DP // BV), H, 1)
    at = (seq, h)
    X = rows_of(X, seq, h, 0, xb, xn, xh, False, TMA)
    M = rows_of(M, seq, h, 0, xb, xn, xh, False, TMA)
    Y = rows_of(Y, seq, h, 0, yb, yn, yh, False, TMA)
    W = rows_of(W, seq, h, 0, wb, wn, wh, False, TMA)
    OUT = rows_of(OUT, seq, h, 0, ob, on, oh, False, TMA)
    NORM += 2 * per_row(seq, h, 0, N, H, False)
    TURN += (DP // BV) * per_row(seq, h, 0, N, H, False)
    St = tl.zeros([BV, DP], tl.float32)
    W1 = tl.zeros([BV, THIN], tl.float32)
    ones = thin(tl.full([BL], 1.0, tl.float32), DT)
    d = tl.arange(0, DP)
    e = v0 + tl.arange(0, BV)
    rn = tl.arange(0, BL)
    # Rows beyond the end are zero in every tile, so the triangle is all there is to mask.
    seen = rn[None, :] >= rn[:, None]
    triangle = tl.where(seen, 1.0, 0.0).to(DT)
    chunks = tl.cdiv(N, BL)
    for step in tl.range(0, chunks, num_stages=STAGES):
        n0 = (chunks - 1 - step) * BL
        n = n0 + rn
        x = load_tile(X, at, n0, xn, rn, d, N, D, TMA, 0)
        y = load_tile(Y, at, n0, yn, rn, d, N, D, TMA, 0)
        w = load_tile(W, at, n0, wn, rn, e, N, D, TMA, v0)
        rq, rk = load_norms(NORM, n, N, MAP)
        later = tl.maximum(N - n0, 1).to(tl.float32)
        A = dot(x, tl.trans(y), tl.zeros([BL, BL], tl.float32), UP, PREC)
        o = up(dot(x, tl.trans(down(St, later, DT)), tl.zeros([BL, BV], tl.float32), UP, PREC), later, DT)
        wq = w
        if MAP == L2:
            A = A * rq[None, :]
            wq = (w.to(tl.float32) * rq[:, None]).to(DT)
        o = dot(tl.where(seen, A, 0.0).to(DT), w, o, UP, PREC)
        if KEYS:
            o = o * b
            if MAP == L2:
                m = load_tile(M, at, n0, xn, rn, e, N, D, TMA, v0)
                turn = tl.zeros([BL], tl.float32)
                for other in tl.static_range(DP // BV):
                    turn += tl.load(TURN + n * (DP // BV) + other, mask=n < N, other=0.0)
                o = (o - m.to(tl.float32) * (rk * turn)[:, None]) * rk[:, None]
        else:
            o = o * (b * rk)[:, None]
            if MAP == L2:
                m = load_tile(M, at, n0, xn, rn, e, N, D, TMA, v0)
                turn = row_sums(m.to(tl.float32) * o, BY_MMA, PREC)
                tl.store(TURN + n * (DP // BV) + block, turn, mask=n < N)
            if VSUM:
                past = dot(triangle, w, tl.zeros([BL, BV], tl.float32), UP, PREC) + tl.sum(W1, 1)[None, :]
                o += a * past
                W1 = dot(tl.trans(w), ones, W1, UP, PREC)
        store_tile(OUT, at, o.to(DT), n0, on, rn, e, N, D, TMA, v0)
        St = dot(tl.trans(wq), y, St, UP, PREC)
