# ruff: noqa: RUF059, SIM102 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Causal kernels of the backward pass: dq forward in time, then the state of the gradient, dk and dv backward in time;
conventions as in `causal`."""

import triton
import triton.language as tl

from clip_la_kernels.ops.linear_attention.bidirectional import store_state
from clip_la_kernels.ops.linear_attention.causal import divisor, down, load_norms, mapped_grad, per_row, start_state, up
from clip_la_kernels.runtime.common import (
    DEN_NONE,
    DEN_SUM,
    IDENTITY,
    L2,
    THIN,
    dot,
    feature,
    kernel,
    load_keys,
    load_tile,
    narrowed,
    place,
    rows_of,
    span,
    store_tile,
    take_over,
    thin,
)


@kernel
def causal_query_grad(
    Q, K, V, DO, DQ, Z, DELTA, NORM, STATE, AUX, MASK, CUM, CU, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H,
    SPLITS, SIZE, a, b, eps,
    DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr,
    VSUM: tl.constexpr, HAS_MASK: tl.constexpr, VARLEN: tl.constexpr, HAS_STATE: tl.constexpr, TMA: tl.constexpr,
    STAGES: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dq of one split, forward in time; stores delta_i z_i = do_i.o_i (0 where z is held), which the keys' sweep
    needs.

    A step reads BL rows of q, k, v, do and writes dq: from the chunk's own keys by the tile A_ij = do_i.v_j / z_i, from
    the past by the state S, ks and vs, which is the forward pass's, taken in once more.
    """
    take_over(PDL)
    seq, h, split = place(tl.program_id(0), H, SPLITS)
    start, tokens = span(seq, N, CU, VARLEN)
    at = (seq, h)
    Q = rows_of(Q, seq, h, start, sb, sn, sh, VARLEN, TMA)
    K = rows_of(K, seq, h, start, sb, sn, sh, VARLEN, TMA)
    V = rows_of(V, seq, h, start, sb, sn, sh, VARLEN, TMA)
    DO = rows_of(DO, seq, h, start, sdob, sdon, sdoh, VARLEN, TMA)
    DQ = rows_of(DQ, seq, h, start, sdb, sdn, sdh, VARLEN, TMA)
    Z += per_row(seq, h, start, N, H, VARLEN)
    DELTA += per_row(seq, h, start, N, H, VARLEN)
    NORM += 2 * per_row(seq, h, start, N, H, VARLEN)
    MASK += tl.cast(seq, tl.int64) * N
    CUM += tl.cast(seq, tl.int64) * N
    St, ks, vs0 = start_state(STATE, AUX, (seq * H + h) * SPLITS + split, 0, DP, DP, HAS_STATE)
    V1 = tl.zeros([DP, THIN], tl.float32)
    ones = thin(tl.full([BL], 1.0, tl.float32), DT)
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    seen = rn[:, None] >= rn[None, :]
    hi = tl.minimum((split + 1) * SIZE, tokens)
    for n0 in tl.range(split * SIZE, hi, BL, num_stages=STAGES):
        n = n0 + rn
        q = load_tile(Q, at, n0, sn, rn, d, hi, D, TMA, 0)
        do = load_tile(DO, at, n0, sdon, rn, d, hi, D, TMA, 0)
        k, v, real = load_keys(K, V, at, MASK, n0, sn, rn, d, hi, D, HAS_MASK, TMA)
        rq, rk = load_norms(NORM, n, hi, MAP)
        x = q.to(tl.float32)
        if MAP == L2:
            kh = (k.to(tl.float32) * rk[:, None]).to(DT)
        elif MAP == IDENTITY:
            kh = k
        else:
            kh = feature(k.to(tl.float32), real, d, D, MAP)[0].to(DT)
            x = feature(x, n < hi, d, D, MAP)[0]
        if DEN != DEN_NONE:
            z, alive = divisor(Z, CUM, n, hi, eps, DEN, HAS_MASK)
            iz = 1.0 / z
        # The gradient by the chunk's weights, and dq^ as the past gives it.
        A = dot(do, tl.trans(v), tl.zeros([BL, BL], tl.float32), UP, PREC)
        dq = dot(do, down(St, n0 + 1.0, DT), tl.zeros([BL, DP], tl.float32), UP, PREC)
        dq = up(dq, n0 + 1.0, DT)
        if DEN != DEN_NONE:
            A = A * iz[:, None]
            dq = dq * iz[:, None]
        A = tl.where(seen, A, 0.0)
        if DEN == DEN_SUM:
            X = dot(x.to(DT), tl.trans(kh), tl.zeros([BL, BL], tl.float32), UP, PREC)
            total = b * rq * (tl.sum(X * A, 1) + tl.sum(x * dq, 1))
            if VSUM:
                vs = vs0 + tl.sum(V1, 1)
                total += a * (tl.sum(A, 1) + tl.sum(do.to(tl.float32) * vs[None, :], 1) * iz)
            # Where z was held away from zero it is a constant.
            total = tl.where(alive, total, 0.0)
            tl.store(DELTA + n, total, mask=n < hi)
            delta = total * iz
            A = tl.where(seen, A - delta[:, None], 0.0)
            dq -= delta[:, None] * ks[None, :]
            ks += tl.sum(kh.to(tl.float32), 0)
        dq = dot(narrowed(A, DT), kh, dq, UP, PREC) * b
        store_tile(DQ, at, mapped_grad(dq, q, x, rq, MAP, BY_MMA, PREC).to(DT), n0, sdn, rn, d, hi, D, TMA, 0)
        St = dot(tl.trans(v), kh, St, UP, PREC)
        if DEN == DEN_SUM:
            if VSUM:
                V1 = dot(tl.trans(v), ones, V1, UP, PREC)


@triton.jit
def divided(
    q, Z, NORM, CUM, n, hi, d, eps, D: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, HAS_MASK: tl.constexpr
):
    """(phi(q) / z in float32, 1 / z, 1 / |k|); what is 1 stays as it is."""
    rq, rk = load_norms(NORM, n, hi, MAP)
    y = q
    scale = rq
    iz = tl.full([n.shape[0]], 1.0, tl.float32)
    if MAP != L2:
        y = feature(q.to(tl.float32), n < hi, d, D, MAP)[0]
    if DEN != DEN_NONE:
        z, alive = divisor(Z, CUM, n, hi, eps, DEN, HAS_MASK)
        iz = 1.0 / z
        scale = scale * iz
    if MAP == L2 or DEN != DEN_NONE:
        y = y.to(tl.float32) * scale[:, None]
    return y, iz, rk


@kernel
def grad_state_split(
    Q, DO, Z, DELTA, NORM, STATE, AUX, CUM, CU, sb, sn, sh, sdob, sdon, sdoh, N, H, SPLITS, SIZE, eps, DT: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr,
    HAS_MASK: tl.constexpr,
    VARLEN: tl.constexpr, TMA: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Raw state of the gradient of one split: dS = sum q^ g^T (transposed), -sum delta q^, sum g.

    Reads the split's q and do once and writes D x D numbers; `scan_splits` then sums them from the last split to the
    first, so that every split of `causal_key_grad` can start at once.
    """
    take_over(PDL)
    seq, h, split = place(tl.program_id(0), H, SPLITS)
    start, tokens = span(seq, N, CU, VARLEN)
    at = (seq, h)
    Q = rows_of(Q, seq, h, start, sb, sn, sh, VARLEN, TMA)
    DO = rows_of(DO, seq, h, start, sdob, sdon, sdoh, VARLEN, TMA)
    Z += per_row(seq, h, start, N, H, VARLEN)
    DELTA += per_row(seq, h, start, N, H, VARLEN)
    NORM += 2 * per_row(seq, h, start, N, H, VARLEN)
    CUM += tl.cast(seq, tl.int64) * N
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    dSt = tl.zeros([DP, DP], tl.float32)
    G1 = tl.zeros([DP, THIN], tl.float32)
    ones = thin(tl.full([BL], 1.0, tl.float32), DT)
    dks = tl.zeros([DP], tl.float32)
    dvs = tl.zeros([DP], tl.float32)
    hi = tl.minimum((split + 1) * SIZE, tokens)
    # Nobody starts from the first split's sum: no keys come before it.
    hi = tl.where(split == 0, 0, hi)
    for n0 in range(split * SIZE, hi, BL):
        n = n0 + rn
        q = load_tile(Q, at, n0, sn, rn, d, hi, D, TMA, 0)
        do = load_tile(DO, at, n0, sdon, rn, d, hi, D, TMA, 0)
        yg, iz, rk = divided(q, Z, NORM, CUM, n, hi, d, eps, D, MAP, DEN, HAS_MASK)
        dSt = dot(tl.trans(do), narrowed(yg, DT), dSt, UP, PREC)
        if VSUM:
            if DEN == DEN_NONE:
                G1 = dot(tl.trans(do), ones, G1, UP, PREC)
            else:
                dvs += tl.sum(do.to(tl.float32) * iz[:, None], 0)
        if DEN == DEN_SUM:
            dz = tl.load(DELTA + n, mask=n < hi, other=0.0)
            dks -= tl.sum(yg * dz[:, None], 0)
    store_state(STATE, AUX, (seq * H + h) * SPLITS + split, dSt, dks, dvs + tl.sum(G1, 1), DP)


@kernel
def causal_key_grad(
    Q, K, V, DO, DK, DV, Z, DELTA, NORM, STATE, AUX, MASK, CUM, CU, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H,
    SPLITS, SIZE, a, b,
    eps, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr,
    VSUM: tl.constexpr, HAS_MASK: tl.constexpr, VARLEN: tl.constexpr, HAS_STATE: tl.constexpr, TMA: tl.constexpr,
    STAGES: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dk, dv of one split, backward in time. Transposed tiles are computed as such: no product of a transposed
    product.

    A step reads BL rows of q, k, v, do and writes dk and dv: from the chunk's own queries by the tiles W^T and A^T,
    from all later queries by the state of the gradient dS, dks and dvs, which then takes the chunk's queries in.

    q' = q^ / z is the one tile formed: W_ji / z_i = b k^_j.q'_i + a / z_i, and dk^_j = b sum_i (v_j.do_i - delta_i
    z_i) q'_i.
    """
    take_over(PDL)
    seq, h, split = place(tl.program_id(0), H, SPLITS)
    start, tokens = span(seq, N, CU, VARLEN)
    at = (seq, h)
    Q = rows_of(Q, seq, h, start, sb, sn, sh, VARLEN, TMA)
    K = rows_of(K, seq, h, start, sb, sn, sh, VARLEN, TMA)
    V = rows_of(V, seq, h, start, sb, sn, sh, VARLEN, TMA)
    DO = rows_of(DO, seq, h, start, sdob, sdon, sdoh, VARLEN, TMA)
    DK = rows_of(DK, seq, h, start, sdb, sdn, sdh, VARLEN, TMA)
    DV = rows_of(DV, seq, h, start, sdb, sdn, sdh, VARLEN, TMA)
    Z += per_row(seq, h, start, N, H, VARLEN)
    DELTA += per_row(seq, h, start, N, H, VARLEN)
    NORM += 2 * per_row(seq, h, start, N, H, VARLEN)
    MASK += tl.cast(seq, tl.int64) * N
    CUM += tl.cast(seq, tl.int64) * N
    dSt, dks, dvs = start_state(STATE, AUX, (seq * H + h) * SPLITS + split, 0, DP, DP, HAS_STATE)
    G1 = tl.zeros([DP, THIN], tl.float32)
    ones = thin(tl.full([BL], 1.0, tl.float32), DT)
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    # Rows that are not real are zero in every tile, so the triangle is all there is to mask.
    seen = rn[None, :] >= rn[:, None]
    lo = split * SIZE
    hi = tl.minimum(lo + SIZE, tokens)
    chunks = tl.cdiv(tl.maximum(hi - lo, 0), BL)
    for step in tl.range(0, chunks, num_stages=STAGES):
        n0 = lo + (chunks - 1 - step) * BL
        n = n0 + rn
        q = load_tile(Q, at, n0, sn, rn, d, hi, D, TMA, 0)
        do = load_tile(DO, at, n0, sdon, rn, d, hi, D, TMA, 0)
        k, v, real = load_keys(K, V, at, MASK, n0, sn, rn, d, hi, D, HAS_MASK, TMA)
        yg, iz, rk = divided(q, Z, NORM, CUM, n, hi, d, eps, D, MAP, DEN, HAS_MASK)
        qg = narrowed(yg, DT)
        # The state grows with the rows after this chunk.
        later = tl.maximum(tokens - n0, 1).to(tl.float32)
        dSb = down(dSt, later, DT)
        kh = k
        yk = k.to(tl.float32)
        if MAP != L2:
            yk = feature(yk, real, d, D, MAP)[0]
            kh = yk.to(DT)
        Wt = dot(kh, tl.trans(qg), tl.zeros([BL, BL], tl.float32), UP, PREC) * (b * rk)[:, None]
        dv = dot(kh, tl.trans(dSb), tl.zeros([BL, DP], tl.float32), UP, PREC) * up(b * rk, later, DT)[:, None]
        if VSUM:
            Wt += a * iz[None, :]
            dv += a * (dvs + tl.sum(G1, 1))[None, :]
        # dv first, to its end: its tiles are done with before dk needs room.
        dv = dot(tl.where(seen, Wt, 0.0).to(DT), do, dv, UP, PREC)
        if HAS_MASK:
            dv = tl.where(real[:, None], dv, 0.0)
        store_tile(DV, at, dv.to(DT), n0, sdn, rn, d, hi, D, TMA, 0)
        At = dot(v, tl.trans(do), tl.zeros([BL, BL], tl.float32), UP, PREC)
        dk = up(dot(v, dSb, tl.zeros([BL, DP], tl.float32), UP, PREC), later, DT)
        if DEN == DEN_SUM:
            dz = tl.load(DELTA + n, mask=n < hi, other=0.0)
            At -= dz[None, :]
            dk += dks[None, :]
            dks -= tl.sum(yg * dz[:, None], 0)
        dk = dot(tl.where(seen, At, 0.0).to(DT), qg, dk, UP, PREC) * b
        dk = mapped_grad(dk, k, yk, rk, MAP, BY_MMA, PREC)
        if HAS_MASK:
            dk = tl.where(real[:, None], dk, 0.0)
        store_tile(DK, at, dk.to(DT), n0, sdn, rn, d, hi, D, TMA, 0)
        # From here on the chunk belongs to what comes later than the next one, which lies before it.
        dSt = dot(tl.trans(do), qg, dSt, UP, PREC)
        if VSUM:
            if DEN == DEN_NONE:
                G1 = dot(tl.trans(do), ones, G1, UP, PREC)
            else:
                dvs += tl.sum(do.to(tl.float32) * iz[:, None], 0)
