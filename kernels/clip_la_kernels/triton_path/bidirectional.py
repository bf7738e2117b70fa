"""Bidirectional kernels. State of a head: S = sum k^ v^T, ks = sum k^, vs = sum v; of its gradient: dS = sum q^ g^T, -sum delta q^, sum g.

Stored states are scaled: S' = b c S, ks' = b c ks, vs' = a c vs, with c = 1 / n for "length" and "sum" and 1 for "none", so that
o = (q^ S' + vs') / zeta and zeta = a + q^.ks' ("sum") or 1. AUX holds ks' and vs' in float32, S' the inputs' dtype: it is
rounded to that for the products anyway. PARTS > 1: partial states in float32, summed in order by `combine`.
"""

import triton
import triton.language as tl

from clip_la_kernels.triton_path.common import (
    kernel,
    DEN_NONE,
    DEN_SUM,
    L2,
    THIN,
    dot,
    feature,
    feature_grad,
    guarded,
    inverse_norm,
    keys_seen,
    load_keys,
    load_tile,
    place,
    prefetch_rows,
    row_base,
    span,
    store_tile,
    thin,
)

PREFETCH_ROWS = tl.constexpr(128)


@triton.jit
def scale_of(b, tokens, COUNT, DEN: tl.constexpr, HAS_MASK: tl.constexpr):
    """c of the module's docstring."""
    c = 1.0
    if DEN != DEN_NONE:
        c = 1.0 / keys_seen(b, tokens, COUNT, HAS_MASK)
    return c


@triton.jit
def key_state(
    K, V, MASK, lo, hi, sn, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, SUMS: tl.constexpr,
    VSUM: tl.constexpr, HAS_MASK: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """S, ks, vs over rows lo..hi. ks only with SUMS, vs only with VSUM."""
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    dt = K.dtype.element_ty
    S = tl.zeros([DP, DP], tl.float32)
    K1 = tl.zeros([DP, THIN], tl.float32)
    V1 = tl.zeros([DP, THIN], tl.float32)
    ones = thin(tl.full([BL], 1.0, tl.float32), dt)
    for n0 in range(lo, hi, BL):
        k, v, real = load_keys(K, V, MASK, n0, sn, rn, d, hi, D, HAS_MASK)
        y, r = feature(k.to(tl.float32), real, d, D, MAP)
        y = y.to(dt)
        S = dot(tl.trans(y), v, S, UP, PREC)
        if VSUM:
            V1 = dot(tl.trans(v), ones, V1, UP, PREC)
        if SUMS:
            if MAP == L2:
                K1 = dot(tl.trans(k), thin(r, dt), K1, UP, PREC)
            else:
                K1 = dot(tl.trans(y), ones, K1, UP, PREC)
    return S, tl.sum(K1, 1), tl.sum(V1, 1)


@triton.jit
def outputs(
    Q, O, Sb, ks, vs, lo, hi, sn, son, a, eps, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr,
    DEN: tl.constexpr, VSUM: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """o of rows lo..hi from the scaled state; the raw q meets the matrix unit, its norm scales the product."""
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    for n0 in range(lo, hi, BL):
        q = load_tile(Q, n0, sn, rn, d, hi, D)
        qf = q.to(tl.float32)
        if MAP == L2:
            r = inverse_norm(qf)
            o = dot(q, Sb, tl.zeros([BL, DP], tl.float32), UP, PREC)
            w = r
        else:
            y, r = feature(qf, n0 + rn < hi, d, D, MAP)
            qf = y
            o = dot(y.to(q.dtype), Sb, tl.zeros([BL, DP], tl.float32), UP, PREC)
            w = tl.full([BL], 1.0, tl.float32)
        if DEN == DEN_SUM:
            zeta, alive = guarded(a + r * tl.sum(qf * ks[None, :], 1), eps)
            iz = 1.0 / zeta
            o = o * (w * iz)[:, None]
            if VSUM:
                o += iz[:, None] * vs[None, :]
        else:
            if MAP == L2:
                o = o * w[:, None]
            if VSUM:
                o += vs[None, :]
        store_tile(O, o, n0, son, rn, d, hi, D)


@triton.jit
def store_state(STATE, AUX, index, S, ks, vs, DP: tl.constexpr):
    d = tl.arange(0, DP)
    index = tl.cast(index, tl.int64)
    tl.store(STATE + index * DP * DP + d[:, None] * DP + d[None, :], S.to(STATE.dtype.element_ty))
    tl.store(AUX + index * 2 * DP + d, ks)
    tl.store(AUX + index * 2 * DP + DP + d, vs)


@kernel
def forward_fused(
    Q, K, V, O, STATE, AUX, MASK, COUNT, CU, sb, sn, sh, N, H, a, b, eps, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr,
    MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr, VARLEN: tl.constexpr, SAVE: tl.constexpr,
    PREFETCH: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """One program a head: keys and values once, then queries. 4T bytes."""
    seq, h, part = place(tl.program_id(0), H, 1)
    start, tokens = span(seq, N, CU, VARLEN)
    base = row_base(seq, h, start, sb, sn, sh, VARLEN)
    MASK += tl.cast(seq, tl.int64) * N
    if PREFETCH:
        prefetch_rows(Q + base, 0, tokens, sn, PREFETCH_ROWS)
    S, ks, vs = key_state(
        K + base, V + base, MASK, 0, tokens, sn, D, DP, BL, MAP, DEN == DEN_SUM, VSUM, HAS_MASK, UP, PREC
    )
    c = scale_of(seq, tokens, COUNT, DEN, HAS_MASK)
    Sb = (S * (b * c)).to(Q.dtype.element_ty)
    ks = ks * (b * c)
    vs = vs * (a * c)
    if SAVE:
        store_state(STATE, AUX, seq * H + h, Sb, ks, vs, DP)
    out = row_base(seq, h, start, tl.cast(N, tl.int64) * H * D, H * D, D, VARLEN)
    outputs(Q + base, O + out, Sb, ks, vs, 0, tokens, sn, H * D, a, eps, D, DP, BL, MAP, DEN, VSUM, UP, PREC)


@kernel
def key_state_part(
    K, V, STATE, AUX, MASK, COUNT, CU, sb, sn, sh, N, H, PARTS, SIZE, a, b, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr,
    MAP: tl.constexpr, DEN: tl.constexpr, SUMS: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr, VARLEN: tl.constexpr,
    RAW: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """State of one part (SIZE rows) of a head: the raw sums if RAW, else scaled and final (one part)."""
    seq, h, part = place(tl.program_id(0), H, PARTS)
    start, tokens = span(seq, N, CU, VARLEN)
    base = row_base(seq, h, start, sb, sn, sh, VARLEN)
    MASK += tl.cast(seq, tl.int64) * N
    lo = part * SIZE
    hi = tl.minimum(lo + SIZE, tokens)
    S, ks, vs = key_state(K + base, V + base, MASK, lo, hi, sn, D, DP, BL, MAP, SUMS, VSUM, HAS_MASK, UP, PREC)
    if not RAW:
        c = scale_of(seq, tokens, COUNT, DEN, HAS_MASK)
        S = S * (b * c)
        ks = ks * (b * c)
        vs = vs * (a * c)
    store_state(STATE, AUX, (seq * H + h) * PARTS + part, S, ks, vs, DP)


@kernel
def combine(
    PART, PAUX, STATE, AUX, COUNT, CU, N, H, PARTS, a, b, DP: tl.constexpr, ROWS: tl.constexpr, DEN: tl.constexpr,
    HAS_MASK: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """Sums the PARTS partial states of a head in order and scales them; a program does ROWS rows of S."""
    pid = tl.program_id(0)
    block = pid % (DP // ROWS)
    index = tl.cast(pid // (DP // ROWS), tl.int64)
    seq = index // H
    start, tokens = span(seq, N, CU, VARLEN)
    c = scale_of(seq, tokens, COUNT, DEN, HAS_MASK)
    d = tl.arange(0, DP)
    cells = (block * ROWS + tl.arange(0, ROWS))[:, None] * DP + d[None, :]
    acc = tl.zeros([ROWS, DP], tl.float32)
    for p in range(0, PARTS):
        acc += tl.load(PART + (index * PARTS + p) * DP * DP + cells)
    tl.store(STATE + index * DP * DP + cells, (acc * (b * c)).to(STATE.dtype.element_ty))
    if block == 0:
        ks = tl.zeros([DP], tl.float32)
        vs = tl.zeros([DP], tl.float32)
        for p in range(0, PARTS):
            ks += tl.load(PAUX + (index * PARTS + p) * 2 * DP + d)
            vs += tl.load(PAUX + (index * PARTS + p) * 2 * DP + DP + d)
        tl.store(AUX + index * 2 * DP + d, ks * (b * c))
        tl.store(AUX + index * 2 * DP + DP + d, vs * (a * c))


@kernel
def output_part(
    Q, O, STATE, AUX, CU, sb, sn, sh, N, H, PARTS, SIZE, a, eps, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr,
    MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr, VARLEN: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """o of one part of a head."""
    seq, h, part = place(tl.program_id(0), H, PARTS)
    start, tokens = span(seq, N, CU, VARLEN)
    base = row_base(seq, h, start, sb, sn, sh, VARLEN)
    out = row_base(seq, h, start, tl.cast(N, tl.int64) * H * D, H * D, D, VARLEN)
    lo = part * SIZE
    hi = tl.minimum(lo + SIZE, tokens)
    index = tl.cast(seq * H + h, tl.int64)
    d = tl.arange(0, DP)
    Sb = tl.load(STATE + index * DP * DP + d[:, None] * DP + d[None, :])
    ks = tl.load(AUX + index * 2 * DP + d)
    vs = tl.load(AUX + index * 2 * DP + DP + d)
    outputs(Q + base, O + out, Sb, ks, vs, lo, hi, sn, H * D, a, eps, D, DP, BL, MAP, DEN, VSUM, UP, PREC)


@triton.jit
def query_grads(
    Q, DO, DQ, St, ks, vs, lo, hi, sn, sdon, sdn, a, eps, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr,
    DEN: tl.constexpr, VSUM: tl.constexpr, NEED_Q: tl.constexpr, NEED_KV: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Writes dq of rows lo..hi; returns dS, -sum delta q^, sum g (raw). St is S' transposed.

    Only q is unpacked: do goes to the matrix unit as it is (g = do / zeta scales products, or the other operand), so each
    product has one rounded operand besides the inputs.
    """
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    dt = Q.dtype.element_ty
    dS = tl.zeros([DP, DP], tl.float32)
    G1 = tl.zeros([DP, THIN], tl.float32)
    Q1 = tl.zeros([DP, THIN], tl.float32)
    ones = thin(tl.full([BL], 1.0, tl.float32), dt)
    if DEN == DEN_SUM:
        v2 = thin(vs, dt)
    for n0 in range(lo, hi, BL):
        q = load_tile(Q, n0, sn, rn, d, hi, D)
        do = load_tile(DO, n0, sdon, rn, d, hi, D)
        qf = q.to(tl.float32)
        y, r = feature(qf, n0 + rn < hi, d, D, MAP)
        dq = dot(do, St, tl.zeros([BL, DP], tl.float32), UP, PREC)
        left = y
        if DEN == DEN_SUM:
            along = tl.sum(y * ks[None, :], 1)
            zeta, alive = guarded(a + along, eps)
            iz = 1.0 / zeta
            total = tl.sum(y * dq, 1)
            if VSUM:
                total += tl.sum(dot(do, v2, tl.zeros([BL, THIN], tl.float32), UP, PREC), 1)
            delta = tl.where(alive, total * iz * iz, 0.0)
            dq = dq * iz[:, None] - delta[:, None] * ks[None, :]
            left = y * iz[:, None]
            if NEED_KV:
                if MAP == L2:
                    Q1 = dot(tl.trans(q), thin(-delta * r, dt), Q1, UP, PREC)
                else:
                    Q1 = dot(tl.trans(y.to(dt)), thin(-delta, dt), Q1, UP, PREC)
                if VSUM:
                    G1 = dot(tl.trans(do), thin(iz, dt), G1, UP, PREC)
        else:
            if NEED_KV and VSUM:
                G1 = dot(tl.trans(do), ones, G1, UP, PREC)
        if NEED_Q:
            store_tile(DQ, feature_grad(dq, qf, y, r, MAP), n0, sdn, rn, d, hi, D)
        if NEED_KV:
            dS = dot(tl.trans(left.to(dt)), do, dS, UP, PREC)
    return dS, tl.sum(Q1, 1), tl.sum(G1, 1)


@triton.jit
def key_grads(
    K, V, DK, DV, MASK, dS, dSt, dks, dvs, lo, hi, sn, sdn, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr,
    DEN: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Writes dk, dv of rows lo..hi from the scaled gradient state (dS and its transpose)."""
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    dt = K.dtype.element_ty
    for n0 in range(lo, hi, BL):
        k, v, real = load_keys(K, V, MASK, n0, sn, rn, d, hi, D, HAS_MASK)
        kf = k.to(tl.float32)
        y, r = feature(kf, real, d, D, MAP)
        dk = dot(v, dSt, tl.zeros([BL, DP], tl.float32), UP, PREC)
        if DEN == DEN_SUM:
            dk += dks[None, :]
        if MAP == L2:
            dv = dot(k, dS, tl.zeros([BL, DP], tl.float32), UP, PREC) * r[:, None]
        else:
            dv = dot(y.to(dt), dS, tl.zeros([BL, DP], tl.float32), UP, PREC)
        if VSUM:
            dv += dvs[None, :]
        dk = feature_grad(dk, kf, y, r, MAP)
        if HAS_MASK:
            dk = tl.where(real[:, None], dk, 0.0)
            dv = tl.where(real[:, None], dv, 0.0)
        store_tile(DK, dk, n0, sdn, rn, d, hi, D)
        store_tile(DV, dv, n0, sdn, rn, d, hi, D)


@kernel
def backward_fused(
    Q, K, V, DO, DQ, DK, DV, STATE, AUX, MASK, COUNT, CU, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, a, b, eps,
    D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr,
    HAS_MASK: tl.constexpr, VARLEN: tl.constexpr, SAVED: tl.constexpr, NEED_Q: tl.constexpr, NEED_KV: tl.constexpr,
    PREFETCH: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """One program a head: queries with their gradients, then keys and values. 7T bytes with the state SAVED by the forward pass."""
    seq, h, part = place(tl.program_id(0), H, 1)
    start, tokens = span(seq, N, CU, VARLEN)
    base = row_base(seq, h, start, sb, sn, sh, VARLEN)
    dobase = row_base(seq, h, start, sdob, sdon, sdoh, VARLEN)
    dbase = row_base(seq, h, start, sdb, sdn, sdh, VARLEN)
    MASK += tl.cast(seq, tl.int64) * N
    index = tl.cast(seq * H + h, tl.int64)
    d = tl.arange(0, DP)
    dt = Q.dtype.element_ty
    c = scale_of(seq, tokens, COUNT, DEN, HAS_MASK)
    if PREFETCH and SAVED:
        prefetch_rows(K + base, 0, tokens, sn, PREFETCH_ROWS)
        prefetch_rows(V + base, 0, tokens, sn, PREFETCH_ROWS)
    if PREFETCH and not SAVED:
        prefetch_rows(Q + base, 0, tokens, sn, PREFETCH_ROWS)
        prefetch_rows(DO + dobase, 0, tokens, sdon, PREFETCH_ROWS)
    if SAVED:
        St = tl.load(STATE + index * DP * DP + d[None, :] * DP + d[:, None])
        ks = tl.load(AUX + index * 2 * DP + d)
        vs = tl.load(AUX + index * 2 * DP + DP + d)
    else:
        S, ks, vs = key_state(
            K + base,
            V + base,
            MASK,
            0,
            tokens,
            sn,
            D,
            DP,
            BL,
            MAP,
            DEN == DEN_SUM,
            VSUM and DEN == DEN_SUM,
            HAS_MASK,
            UP,
            PREC,
        )
        St = tl.trans((S * (b * c)).to(dt))
        ks = ks * (b * c)
        vs = vs * (a * c)
    dS, dks, dvs = query_grads(
        Q + base, DO + dobase, DQ + dbase, St, ks, vs, 0, tokens, sn, sdon, sdn, a, eps, D, DP, BL, MAP, DEN, VSUM, NEED_Q,
        NEED_KV, UP, PREC,
    )  # fmt: skip
    if NEED_KV:
        dSb = (dS * (b * c)).to(dt)
        key_grads(
            K + base, V + base, DK + dbase, DV + dbase, MASK, dSb, tl.trans(dSb), dks * (b * c), dvs * (a * c), 0, tokens, sn,
            sdn, D, DP, BL, MAP, DEN, VSUM, HAS_MASK, UP, PREC,
        )  # fmt: skip


@kernel
def query_grad_part(
    Q, DO, DQ, STATE, AUX, DSTATE, DAUX, COUNT, CU, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, PARTS, SIZE, a, b, eps,
    D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr,
    HAS_MASK: tl.constexpr, VARLEN: tl.constexpr, RAW: tl.constexpr, NEED_Q: tl.constexpr, NEED_KV: tl.constexpr,
    UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dq of one part of a head, and that part's state of the gradient: raw if RAW, else scaled and final (one part)."""
    seq, h, part = place(tl.program_id(0), H, PARTS)
    start, tokens = span(seq, N, CU, VARLEN)
    base = row_base(seq, h, start, sb, sn, sh, VARLEN)
    dobase = row_base(seq, h, start, sdob, sdon, sdoh, VARLEN)
    dbase = row_base(seq, h, start, sdb, sdn, sdh, VARLEN)
    lo = part * SIZE
    hi = tl.minimum(lo + SIZE, tokens)
    index = tl.cast(seq * H + h, tl.int64)
    d = tl.arange(0, DP)
    St = tl.load(STATE + index * DP * DP + d[None, :] * DP + d[:, None])
    ks = tl.load(AUX + index * 2 * DP + d)
    vs = tl.load(AUX + index * 2 * DP + DP + d)
    dS, dks, dvs = query_grads(
        Q + base, DO + dobase, DQ + dbase, St, ks, vs, lo, hi, sn, sdon, sdn, a, eps, D, DP, BL, MAP, DEN, VSUM, NEED_Q, NEED_KV,
        UP, PREC,
    )  # fmt: skip
    if NEED_KV:
        if not RAW:
            c = scale_of(seq, tokens, COUNT, DEN, HAS_MASK)
            dS = dS * (b * c)
            dks = dks * (b * c)
            dvs = dvs * (a * c)
        store_state(DSTATE, DAUX, index * PARTS + part, dS, dks, dvs, DP)


@kernel
def key_grad_part(
    K, V, DK, DV, MASK, DSTATE, DAUX, CU, sb, sn, sh, sdb, sdn, sdh, N, H, PARTS, SIZE, D: tl.constexpr, DP: tl.constexpr,
    BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr, VARLEN: tl.constexpr,
    UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dk, dv of one part of a head."""
    seq, h, part = place(tl.program_id(0), H, PARTS)
    start, tokens = span(seq, N, CU, VARLEN)
    base = row_base(seq, h, start, sb, sn, sh, VARLEN)
    dbase = row_base(seq, h, start, sdb, sdn, sdh, VARLEN)
    MASK += tl.cast(seq, tl.int64) * N
    lo = part * SIZE
    hi = tl.minimum(lo + SIZE, tokens)
    index = tl.cast(seq * H + h, tl.int64)
    d = tl.arange(0, DP)
    dS = tl.load(DSTATE + index * DP * DP + d[:, None] * DP + d[None, :])
    dSt = tl.load(DSTATE + index * DP * DP + d[None, :] * DP + d[:, None])
    dks = tl.load(DAUX + index * 2 * DP + d)
    dvs = tl.load(DAUX + index * 2 * DP + DP + d)
    key_grads(
        K + base, V + base, DK + dbase, DV + dbase, MASK, dS, dSt, dks, dvs, lo, hi, sn, sdn, D, DP, BL, MAP, DEN, VSUM, HAS_MASK,
        UP, PREC,
    )  # fmt: skip
