# ruff: noqa: E501, RUF059 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Bidirectional kernels of the backward pass; states, names and scales as in `bidirectional`, formulas in kernels/README.md.

Two phases, the forward pass's the other way round: the queries' phase reads q and do once, writes dq and keeps the state of the
gradient (dS, dks, dvs); the keys' phase reads k and v once and writes dk and dv from it. o and z are not read: both follow from q
and the state that the forward pass saved.

What reads queries starts with the last tile of the last head: right after the forward pass those are still in the L2
cache.
"""

import triton
import triton.language as tl

from clip_la_kernels.ops.linear_attention.bidirectional import load_state, scale_of, store_state
from clip_la_kernels.runtime.common import (
    DEN_SUM,
    IDENTITY,
    L2,
    THIN,
    ask_for_rows,
    dot,
    feature,
    feature_grad,
    guarded,
    kernel,
    load_keys,
    load_tile,
    narrowed,
    place,
    row_norms,
    rows_of,
    span,
    store_tile,
    take_over,
    thin,
    tile_from_end,
)


@triton.jit
def query_grads(
    Q, DO, DQ, at, St, ks, vs, lo, hi, sn, sdon, sdn, a, eps, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr, NEED_Q: tl.constexpr, NEED_KV: tl.constexpr,
    TMA: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The queries' phase: writes dq of rows lo..hi; returns dS transposed, -sum delta q^, sum g (raw). St is S' transposed.

    Reads q and do once, keeps S' and dS in registers: two DP x DP tiles, which is what limits the rows of a tile and the programs of
    an SM.

    do goes to the tensor cores as it is (g = do / zeta scales products, or the other operand), so each product has one rounded
    operand besides the inputs. Vectors that change from tile to tile are summed in registers: as thin operands of the matrix
    unit they came out wrong (Triton 3.6, Hopper), while the constant ones do not.
    """
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    dSt = tl.zeros([DP, DP], tl.float32)
    G1 = tl.zeros([DP, THIN], tl.float32)
    ones = thin(tl.full([BL], 1.0, tl.float32), DT)
    if DEN == DEN_SUM:
        QS = tl.zeros([BL, DP], tl.float32)
        GS = tl.zeros([BL, DP], tl.float32)
    for step in range(lo, hi, BL):
        n0 = tile_from_end(step, lo, hi, BL)
        q = load_tile(Q, at, n0, sn, rn, d, hi, D, TMA)
        do = load_tile(DO, at, n0, sdon, rn, d, hi, D, TMA)
        # zeta times the gradient by q^, before what the denominator adds.
        dy = dot(do, St, tl.zeros([BL, DP], tl.float32), UP, PREC)
        x = q.to(tl.float32)
        # y = phi(x) = r x for L2, and never formed there.
        if MAP == L2:
            y = x
            r = row_norms(q, BY_MMA, PREC)
        else:
            y, r = feature(x, n0 + rn < hi, d, D, MAP)
        iz = tl.full([BL], 1.0, tl.float32)
        delta = tl.zeros([BL], tl.float32)
        along = tl.zeros([BL], tl.float32)
        # q^.dq^: for the gradient of the norm, and since o.do = (q^.dq^ + vs.do) / zeta also for delta, without reading o.
        turn = r * tl.sum(y * dy, 1)
        if DEN == DEN_SUM:
            # z once more: a row of q, which is here anyway, costs less than a number a row from memory.
            along = r * tl.sum(y * ks[None, :], 1)
            zeta, alive = guarded(a + along, eps)
            iz = 1.0 / zeta
            total = turn
            if VSUM:
                total += tl.sum(do.to(tl.float32) * vs[None, :], 1)
            # Where z was held away from zero it is a constant.
            delta = tl.where(alive, total * iz * iz, 0.0)
        if NEED_Q:
            if MAP == L2:
                # r (dx^ - x^ (x^.dx^)) with dx^ = iz dy - delta ks and x^ = r x.
                dx = dy * (iz * r)[:, None] - x * ((turn * iz - delta * along) * r * r)[:, None]
                if DEN == DEN_SUM:
                    dx -= (delta * r)[:, None] * ks[None, :]
            else:
                dx = dy * iz[:, None]
                if DEN == DEN_SUM:
                    dx -= delta[:, None] * ks[None, :]
                dx = feature_grad(dx, x, y, r, MAP)
            store_tile(DQ, at, dx.to(DT), n0, sdn, rn, d, hi, D, TMA)
        if NEED_KV:
            # 1 / zeta and the norm go with q's side, so that do stays as it was loaded.
            yg = q
            if MAP != IDENTITY or DEN == DEN_SUM:
                yg = narrowed(y * (r * iz)[:, None], DT)
            dSt = dot(tl.trans(do), yg, dSt, UP, PREC)
            if DEN == DEN_SUM:
                QS -= y * (delta * r)[:, None]
                if VSUM:
                    GS += do.to(tl.float32) * iz[:, None]
            else:
                if VSUM:
                    G1 = dot(tl.trans(do), ones, G1, UP, PREC)
    dks = tl.zeros([DP], tl.float32)
    dvs = tl.sum(G1, 1)
    if DEN == DEN_SUM:
        dks = tl.sum(QS, 0)
        dvs = tl.sum(GS, 0)
    return dSt, dks, dvs


@triton.jit
def key_grads(
    K, V, DK, DV, at, MASK, dSt, dks, dvs, lo, hi, sn, sdn, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr,
    MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr, TMA: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """The keys' phase: writes dk, dv of rows lo..hi from the scaled gradient state dSt [v, k].

    Reads k and v once, keeps nothing between tiles. dk^ = v dS^T + dks, dv = k^ dS + dvs.
    """
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    dS = tl.trans(dSt)
    for n0 in range(lo, hi, BL):
        k, v, real = load_keys(K, V, at, MASK, n0, sn, rn, d, hi, D, HAS_MASK, TMA)
        dk = dot(v, dSt, tl.zeros([BL, DP], tl.float32), UP, PREC)
        if DEN == DEN_SUM:
            dk += dks[None, :]
        x = k.to(tl.float32)
        if MAP == L2:
            r = row_norms(k, BY_MMA, PREC)
            # The raw k is the operand, its norm scales the rows; then the gradient through the norm, r (dk^ - k^ (k^.dk^)).
            dv = dot(k, dS, tl.zeros([BL, DP], tl.float32), UP, PREC) * r[:, None]
            dk = dk * r[:, None] - x * (tl.sum(x * dk, 1) * r * r * r)[:, None]
        else:
            y, r = feature(x, real, d, D, MAP)
            yk = k
            if MAP != IDENTITY:
                yk = y.to(DT)
            dv = dot(yk, dS, tl.zeros([BL, DP], tl.float32), UP, PREC)
            dk = feature_grad(dk, x, y, r, MAP)
        if VSUM:
            dv += dvs[None, :]
        if HAS_MASK:
            # dks and dvs reach padded rows too, whose keys weigh nothing.
            dk = tl.where(real[:, None], dk, 0.0)
            dv = tl.where(real[:, None], dv, 0.0)
        store_tile(DK, at, dk.to(DT), n0, sdn, rn, d, hi, D, TMA)
        store_tile(DV, at, dv.to(DT), n0, sdn, rn, d, hi, D, TMA)


@kernel
def backward_fused(
    Q, K, V, DO, DQ, DK, DV, STATE, AUX, MASK, COUNT, CU, QUERIES, GRADS, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, a, b, eps,
    DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr,
    VSUM: tl.constexpr, HAS_MASK: tl.constexpr, VARLEN: tl.constexpr, NEED_Q: tl.constexpr, NEED_KV: tl.constexpr,
    TMA: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, AHEAD: tl.constexpr,
    FIRST: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """One program a head: queries with their gradients, then keys and values; the state of the gradient stays in registers between.
    7T bytes, the least there can be, and the saved state. QUERIES and GRADS are Q and DO as pointers, for the prefetch."""
    seq, h, split = place(tl.num_programs(0) - 1 - tl.program_id(0), H, 1)
    ask_for_rows(QUERIES, seq, h, sb, sn, sh, N, D, AHEAD, FIRST)
    ask_for_rows(GRADS, seq, h, sdob, sdon, sdoh, N, D, AHEAD, FIRST)
    take_over(PDL)
    start, tokens = span(seq, N, CU, VARLEN)
    at = (seq, h)
    Q = rows_of(Q, seq, h, start, sb, sn, sh, VARLEN, TMA)
    K = rows_of(K, seq, h, start, sb, sn, sh, VARLEN, TMA)
    V = rows_of(V, seq, h, start, sb, sn, sh, VARLEN, TMA)
    DO = rows_of(DO, seq, h, start, sdob, sdon, sdoh, VARLEN, TMA)
    DQ = rows_of(DQ, seq, h, start, sdb, sdn, sdh, VARLEN, TMA)
    DK = rows_of(DK, seq, h, start, sdb, sdn, sdh, VARLEN, TMA)
    DV = rows_of(DV, seq, h, start, sdb, sdn, sdh, VARLEN, TMA)
    MASK += tl.cast(seq, tl.int64) * N
    St, ks, vs = load_state(STATE, AUX, seq * H + h, DP)
    dSt, dks, dvs = query_grads(
        Q,
        DO,
        DQ,
        at,
        St,
        ks,
        vs,
        0,
        tokens,
        sn,
        sdon,
        sdn,
        a,
        eps,
        DT,
        D,
        DP,
        BL,
        MAP,
        DEN,
        VSUM,
        NEED_Q,
        NEED_KV,
        TMA,
        BY_MMA,
        UP,
        PREC,
    )
    if NEED_KV:
        c = scale_of(seq, tokens, COUNT, DEN, HAS_MASK)
        key_grads(
            K, V, DK, DV, at, MASK, (dSt * (b * c)).to(DT), dks * (b * c), dvs * (a * c), 0, tokens, sn, sdn, DT, D, DP, BL, MAP,
            DEN, VSUM, HAS_MASK, TMA, BY_MMA, UP, PREC,
        )  # fmt: skip


@kernel
def query_grad_split(
    Q, DO, DQ, STATE, AUX, DSTATE, DAUX, COUNT, CU, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, SPLITS, SIZE, a, b, eps,
    DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr,
    VSUM: tl.constexpr, HAS_MASK: tl.constexpr, VARLEN: tl.constexpr, RAW: tl.constexpr, NEED_Q: tl.constexpr,
    NEED_KV: tl.constexpr, TMA: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dq of one split of a head, and that split's state of the gradient: raw if RAW, else scaled and final (one split)."""
    take_over(PDL)
    seq, h, split = place(tl.num_programs(0) - 1 - tl.program_id(0), H, SPLITS)
    start, tokens = span(seq, N, CU, VARLEN)
    Q = rows_of(Q, seq, h, start, sb, sn, sh, VARLEN, TMA)
    DO = rows_of(DO, seq, h, start, sdob, sdon, sdoh, VARLEN, TMA)
    DQ = rows_of(DQ, seq, h, start, sdb, sdn, sdh, VARLEN, TMA)
    lo = split * SIZE
    hi = tl.minimum(lo + SIZE, tokens)
    St, ks, vs = load_state(STATE, AUX, seq * H + h, DP)
    dSt, dks, dvs = query_grads(
        Q, DO, DQ, (seq, h), St, ks, vs, lo, hi, sn, sdon, sdn, a, eps, DT, D, DP, BL, MAP, DEN, VSUM, NEED_Q, NEED_KV, TMA, BY_MMA, UP,
        PREC,
    )  # fmt: skip
    if NEED_KV:
        if not RAW:
            c = scale_of(seq, tokens, COUNT, DEN, HAS_MASK)
            dSt = dSt * (b * c)
            dks = dks * (b * c)
            dvs = dvs * (a * c)
        store_state(DSTATE, DAUX, (seq * H + h) * SPLITS + split, dSt, dks, dvs, DP)


@kernel
def key_grad_split(
    K, V, DK, DV, MASK, DSTATE, DAUX, CU, sb, sn, sh, sdb, sdn, sdh, N, H, SPLITS, SIZE, DT: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr,
    VARLEN: tl.constexpr, TMA: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dk, dv of one split of a head."""
    take_over(PDL)
    seq, h, split = place(tl.program_id(0), H, SPLITS)
    start, tokens = span(seq, N, CU, VARLEN)
    K = rows_of(K, seq, h, start, sb, sn, sh, VARLEN, TMA)
    V = rows_of(V, seq, h, start, sb, sn, sh, VARLEN, TMA)
    DK = rows_of(DK, seq, h, start, sdb, sdn, sdh, VARLEN, TMA)
    DV = rows_of(DV, seq, h, start, sdb, sdn, sdh, VARLEN, TMA)
    MASK += tl.cast(seq, tl.int64) * N
    lo = split * SIZE
    hi = tl.minimum(lo + SIZE, tokens)
    dSt, dks, dvs = load_state(DSTATE, DAUX, seq * H + h, DP)
    key_grads(
        K,
        V,
        DK,
        DV,
        (seq, h),
        MASK,
        dSt,
        dks,
        dvs,
        lo,
        hi,
        sn,
        sdn,
        DT,
        D,
        DP,
        BL,
        MAP,
        DEN,
        VSUM,
        HAS_MASK,
        TMA,
        BY_MMA,
        UP,
        PREC,
    )
