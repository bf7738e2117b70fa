"""Causal kernels: a scan over chunks of BL tokens, the past in a running state, the chunk itself as a small quadratic tile.

A head may be cut in PARTS of SIZE tokens. Then the raw states of the parts (`key_state_part`, `grad_state_part`) are summed in
order by `scan_parts`, and each part starts its scan from the sum before (queries) or after (keys) it. States are unscaled here:
z_i = a n_i + b q^_i.ks_i with n_i the real keys up to i.
"""

import triton
import triton.language as tl

from clip_la_kernels.triton_path.bidirectional import store_state
from clip_la_kernels.triton_path.common import (
    kernel,
    DEN_LENGTH,
    DEN_SUM,
    THIN,
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
    thin,
)


@kernel
def scan_parts(PART, PAUX, PARTS, DP: tl.constexpr, ROWS: tl.constexpr, REVERSE: tl.constexpr):
    """In place: each part's state becomes the sum of the parts before it (after it if REVERSE), in order."""
    pid = tl.program_id(0)
    block = pid % (DP // ROWS)
    index = tl.cast(pid // (DP // ROWS), tl.int64)
    d = tl.arange(0, DP)
    cells = (block * ROWS + tl.arange(0, ROWS))[:, None] * DP + d[None, :]
    acc = tl.zeros([ROWS, DP], tl.float32)
    for step in range(0, PARTS):
        p = PARTS - 1 - step if REVERSE else step
        pointers = PART + (index * PARTS + p) * DP * DP + cells
        own = tl.load(pointers)
        tl.store(pointers, acc)
        acc += own
    if block == 0:
        e = tl.arange(0, 2 * DP)
        sums = tl.zeros([2 * DP], tl.float32)
        for step in range(0, PARTS):
            p = PARTS - 1 - step if REVERSE else step
            pointers = PAUX + (index * PARTS + p) * 2 * DP + e
            own = tl.load(pointers)
            tl.store(pointers, sums)
            sums += own


@triton.jit
def counts(CUM, n, hi, HAS_MASK: tl.constexpr):
    """Real keys up to each row."""
    if HAS_MASK:
        return tl.load(CUM + n, mask=n < hi, other=1.0)
    else:
        return (n + 1).to(tl.float32)


@triton.jit
def divisor(Z, CUM, n, hi, eps, DEN: tl.constexpr, HAS_MASK: tl.constexpr):
    """(1 / z, does the gradient of z flow) of rows n, from the stored raw z where DEN is the sum."""
    iz = tl.full([n.shape[0]], 1.0, tl.float32)
    alive = n < hi
    if DEN == DEN_LENGTH:
        iz = 1.0 / tl.maximum(counts(CUM, n, hi, HAS_MASK), 1.0)
    if DEN == DEN_SUM:
        z = tl.load(Z + n, mask=n < hi, other=1.0)
        z, alive = guarded(z, eps * tl.maximum(counts(CUM, n, hi, HAS_MASK), 1.0))
        iz = 1.0 / z
    return iz, alive


@triton.jit
def start_state(STATE, AUX, index, v0, DP: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr):
    """(S [DP, BV], ks [DP], vs [BV]) that a part starts from: zeros, or what `scan_parts` left."""
    d = tl.arange(0, DP)
    e = v0 + tl.arange(0, BV)
    S = tl.zeros([DP, BV], tl.float32)
    ks = tl.zeros([DP], tl.float32)
    vs = tl.zeros([BV], tl.float32)
    if HAS_STATE:
        index = tl.cast(index, tl.int64)
        S += tl.load(STATE + index * DP * DP + d[:, None] * DP + e[None, :])
        ks += tl.load(AUX + index * 2 * DP + d)
        vs += tl.load(AUX + index * 2 * DP + DP + e)
    return S, ks, vs


@kernel
def causal_forward(
    Q, K, V, O, Z, STATE, AUX, MASK, CUM, CU, sb, sn, sh, N, H, PARTS, SIZE, a, b, eps, D: tl.constexpr, DP: tl.constexpr,
    BV: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr,
    VARLEN: tl.constexpr, HAS_STATE: tl.constexpr, STAGES: tl.constexpr, UP: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """o (BV of its columns) of one part, and the raw z."""
    pid = tl.program_id(0)
    v0 = (pid % (DP // BV)) * BV
    seq, h, part = place(pid // (DP // BV), H, PARTS)
    start, tokens = span(seq, N, CU, VARLEN)
    base = row_base(seq, h, start, sb, sn, sh, VARLEN)
    out = row_base(seq, h, start, tl.cast(N, tl.int64) * H * D, H * D, D, VARLEN)
    # One z a row and head, in the order (sequence, head, token); packed sequences: (head, token).
    zbase = (tl.cast(h, tl.int64) * N + start) if VARLEN else (tl.cast(seq, tl.int64) * H + h) * N
    MASK += tl.cast(seq, tl.int64) * N
    CUM += tl.cast(seq, tl.int64) * N
    S, ks, vs = start_state(STATE, AUX, (seq * H + h) * PARTS + part, v0, DP, BV, HAS_STATE)
    d = tl.arange(0, DP)
    e = v0 + tl.arange(0, BV)
    rn = tl.arange(0, BL)
    dt = Q.dtype.element_ty
    hi = tl.minimum((part + 1) * SIZE, tokens)
    for n0 in tl.range(part * SIZE, hi, BL, num_stages=STAGES):
        n = n0 + rn
        q = load_tile(Q + base, n0, sn, rn, d, hi, D)
        real = n < hi
        if HAS_MASK:
            real = real & (tl.load(MASK + n, mask=real, other=0) != 0)
        k = load_tile(K + base, n0, sn, rn, d, hi, D)
        v = load_tile(V + base, n0, sn, rn, e, hi, D)
        if HAS_MASK:
            k = tl.where(real[:, None], k, 0.0).to(dt)
            v = tl.where(real[:, None], v, 0.0).to(dt)
        yq, rq = feature(q.to(tl.float32), n < hi, d, D, MAP)
        yk, rk = feature(k.to(tl.float32), real, d, D, MAP)
        qh = yq.to(dt)
        kh = yk.to(dt)
        seen = real[None, :] & (n[:, None] >= n[None, :])
        X = tl.where(seen, dot(qh, tl.trans(kh), tl.zeros([BL, BL], tl.float32), UP, PREC), 0.0)
        W = X * b
        if VSUM:
            W += tl.where(seen, a, 0.0)
        # The state is scaled by the tokens so far, so that float16 cannot overflow.
        o = dot(qh, (S * (1.0 / (n0 + 1))).to(dt), tl.zeros([BL, BV], tl.float32), UP, PREC) * (b * (n0 + 1))
        if VSUM:
            o += a * vs[None, :]
        o = dot(W.to(dt), v, o, UP, PREC)
        if DEN == DEN_LENGTH:
            o = o * (1.0 / tl.maximum(counts(CUM, n, hi, HAS_MASK), 1.0))[:, None]
        if DEN == DEN_SUM:
            count = counts(CUM, n, hi, HAS_MASK)
            z = a * count + b * (tl.sum(X, 1) + tl.sum(yq * ks[None, :], 1))
            if v0 == 0:
                tl.store(Z + zbase + n, z, mask=n < hi)
            z, alive = guarded(z, eps * tl.maximum(count, 1.0))
            o = o * (1.0 / z)[:, None]
        store_tile(O + out, o, n0, H * D, rn, e, hi, D)
        S = dot(tl.trans(kh), v, S, UP, PREC)
        if VSUM:
            vs += tl.sum(v.to(tl.float32), 0)
        if DEN == DEN_SUM:
            ks += tl.sum(yk, 0)


@kernel
def causal_query_grad(
    Q, K, V, DO, DQ, Z, DELTA, STATE, AUX, MASK, CUM, CU, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, PARTS, SIZE, a, b, eps,
    D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr,
    HAS_MASK: tl.constexpr, VARLEN: tl.constexpr, HAS_STATE: tl.constexpr, STAGES: tl.constexpr, UP: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """dq of one part, forward in time; stores delta_i = do_i.o_i / z_i, which the keys' sweep needs."""
    seq, h, part = place(tl.program_id(0), H, PARTS)
    start, tokens = span(seq, N, CU, VARLEN)
    base = row_base(seq, h, start, sb, sn, sh, VARLEN)
    dobase = row_base(seq, h, start, sdob, sdon, sdoh, VARLEN)
    dbase = row_base(seq, h, start, sdb, sdn, sdh, VARLEN)
    zbase = (tl.cast(h, tl.int64) * N + start) if VARLEN else (tl.cast(seq, tl.int64) * H + h) * N
    MASK += tl.cast(seq, tl.int64) * N
    CUM += tl.cast(seq, tl.int64) * N
    S, ks, vs = start_state(STATE, AUX, (seq * H + h) * PARTS + part, 0, DP, DP, HAS_STATE)
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    dt = Q.dtype.element_ty
    hi = tl.minimum((part + 1) * SIZE, tokens)
    for n0 in tl.range(part * SIZE, hi, BL, num_stages=STAGES):
        n = n0 + rn
        q = load_tile(Q + base, n0, sn, rn, d, hi, D)
        do = load_tile(DO + dobase, n0, sdon, rn, d, hi, D)
        k, v, real = load_keys(K + base, V + base, MASK, n0, sn, rn, d, hi, D, HAS_MASK)
        qf = q.to(tl.float32)
        yq, rq = feature(qf, n < hi, d, D, MAP)
        yk, rk = feature(k.to(tl.float32), real, d, D, MAP)
        kh = yk.to(dt)
        seen = real[None, :] & (n[:, None] >= n[None, :])
        iz, alive = divisor(Z + zbase, CUM, n, hi, eps, DEN, HAS_MASK)
        A = dot(do, tl.trans(v), tl.zeros([BL, BL], tl.float32), UP, PREC) * iz[:, None]
        A = tl.where(seen, A, 0.0)
        dq = dot(do, tl.trans((S * (1.0 / (n0 + 1))).to(dt)), tl.zeros([BL, DP], tl.float32), UP, PREC)
        dq = dq * (iz * (n0 + 1))[:, None]
        if DEN == DEN_SUM:
            X = dot(yq.to(dt), tl.trans(kh), tl.zeros([BL, BL], tl.float32), UP, PREC)
            total = b * (tl.sum(X * A, 1) + tl.sum(yq * dq, 1))
            if VSUM:
                total += a * (tl.sum(A, 1) + tl.sum(do.to(tl.float32) * vs[None, :], 1) * iz)
            delta = tl.where(alive, total * iz, 0.0)
            tl.store(DELTA + zbase + n, delta, mask=n < hi)
            A = tl.where(seen, A - delta[:, None], 0.0)
            dq -= delta[:, None] * ks[None, :]
        dq = dot(A.to(dt), kh, dq, UP, PREC) * b
        store_tile(DQ + dbase, feature_grad(dq, qf, yq, rq, MAP), n0, sdn, rn, d, hi, D)
        S = dot(tl.trans(kh), v, S, UP, PREC)
        if DEN == DEN_SUM:
            ks += tl.sum(yk, 0)
            if VSUM:
                vs += tl.sum(v.to(tl.float32), 0)


@kernel
def grad_state_part(
    Q, DO, Z, DELTA, STATE, AUX, CUM, CU, sb, sn, sh, sdob, sdon, sdoh, N, H, PARTS, SIZE, eps, D: tl.constexpr, DP: tl.constexpr,
    BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr, VARLEN: tl.constexpr,
    UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Raw state of the gradient of one part: dS = sum q^ g^T, -sum delta q^, sum g."""
    seq, h, part = place(tl.program_id(0), H, PARTS)
    start, tokens = span(seq, N, CU, VARLEN)
    base = row_base(seq, h, start, sb, sn, sh, VARLEN)
    dobase = row_base(seq, h, start, sdob, sdon, sdoh, VARLEN)
    zbase = (tl.cast(h, tl.int64) * N + start) if VARLEN else (tl.cast(seq, tl.int64) * H + h) * N
    CUM += tl.cast(seq, tl.int64) * N
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    dt = Q.dtype.element_ty
    dS = tl.zeros([DP, DP], tl.float32)
    Q1 = tl.zeros([DP, THIN], tl.float32)
    G1 = tl.zeros([DP, THIN], tl.float32)
    hi = tl.minimum((part + 1) * SIZE, tokens)
    for n0 in range(part * SIZE, hi, BL):
        n = n0 + rn
        q = load_tile(Q + base, n0, sn, rn, d, hi, D)
        do = load_tile(DO + dobase, n0, sdon, rn, d, hi, D)
        y, r = feature(q.to(tl.float32), n < hi, d, D, MAP)
        iz, alive = divisor(Z + zbase, CUM, n, hi, eps, DEN, HAS_MASK)
        dS = dot(tl.trans((y * iz[:, None]).to(dt)), do, dS, UP, PREC)
        if VSUM:
            G1 = dot(tl.trans(do), thin(tl.where(n < hi, iz, 0.0), dt), G1, UP, PREC)
        if DEN == DEN_SUM:
            delta = tl.load(DELTA + zbase + n, mask=n < hi, other=0.0)
            Q1 = dot(tl.trans(y.to(dt)), thin(-delta, dt), Q1, UP, PREC)
    store_state(STATE, AUX, (seq * H + h) * PARTS + part, dS, tl.sum(Q1, 1), tl.sum(G1, 1), DP)


@kernel
def causal_key_grad(
    Q, K, V, DO, DK, DV, Z, DELTA, STATE, AUX, MASK, CUM, CU, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, PARTS, SIZE, a, b,
    eps, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr,
    HAS_MASK: tl.constexpr, VARLEN: tl.constexpr, HAS_STATE: tl.constexpr, STAGES: tl.constexpr, UP: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """dk, dv of one part, backward in time. Transposed tiles are computed as such: no product of a transposed product."""
    seq, h, part = place(tl.program_id(0), H, PARTS)
    start, tokens = span(seq, N, CU, VARLEN)
    base = row_base(seq, h, start, sb, sn, sh, VARLEN)
    dobase = row_base(seq, h, start, sdob, sdon, sdoh, VARLEN)
    dbase = row_base(seq, h, start, sdb, sdn, sdh, VARLEN)
    zbase = (tl.cast(h, tl.int64) * N + start) if VARLEN else (tl.cast(seq, tl.int64) * H + h) * N
    MASK += tl.cast(seq, tl.int64) * N
    CUM += tl.cast(seq, tl.int64) * N
    dS, dks, dvs = start_state(STATE, AUX, (seq * H + h) * PARTS + part, 0, DP, DP, HAS_STATE)
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    dt = Q.dtype.element_ty
    lo = part * SIZE
    hi = tl.minimum(lo + SIZE, tokens)
    chunks = tl.cdiv(tl.maximum(hi - lo, 0), BL)
    for step in tl.range(0, chunks, num_stages=STAGES):
        n0 = lo + (chunks - 1 - step) * BL
        n = n0 + rn
        q = load_tile(Q + base, n0, sn, rn, d, hi, D)
        do = load_tile(DO + dobase, n0, sdon, rn, d, hi, D)
        k, v, real = load_keys(K + base, V + base, MASK, n0, sn, rn, d, hi, D, HAS_MASK)
        kf = k.to(tl.float32)
        yq, rq = feature(q.to(tl.float32), n < hi, d, D, MAP)
        yk, rk = feature(kf, real, d, D, MAP)
        qh = yq.to(dt)
        kh = yk.to(dt)
        seen = real[:, None] & (n[None, :] >= n[:, None]) & (n[None, :] < hi)
        iz, alive = divisor(Z + zbase, CUM, n, hi, eps, DEN, HAS_MASK)
        Wt = dot(kh, tl.trans(qh), tl.zeros([BL, BL], tl.float32), UP, PREC) * b
        if VSUM:
            Wt += a
        Wt = tl.where(seen, Wt * iz[None, :], 0.0)
        At = dot(v, tl.trans(do), tl.zeros([BL, BL], tl.float32), UP, PREC) * iz[None, :]
        if DEN == DEN_SUM:
            delta = tl.load(DELTA + zbase + n, mask=n < hi, other=0.0)
            At -= delta[None, :]
        At = tl.where(seen, At, 0.0)
        # The state grows with the rows after this chunk.
        later = tl.maximum(tokens - n0, 1)
        dSb = (dS * (1.0 / later)).to(dt)
        dv = dot(kh, dSb, tl.zeros([BL, DP], tl.float32), UP, PREC) * (b * later)
        if VSUM:
            dv += a * dvs[None, :]
        dv = dot(Wt.to(dt), do, dv, UP, PREC)
        dk = dot(v, tl.trans(dSb), tl.zeros([BL, DP], tl.float32), UP, PREC) * later
        if DEN == DEN_SUM:
            dk += dks[None, :]
        dk = feature_grad(dot(At.to(dt), qh, dk, UP, PREC) * b, kf, yk, rk, MAP)
        if HAS_MASK:
            dk = tl.where(real[:, None], dk, 0.0)
            dv = tl.where(real[:, None], dv, 0.0)
        store_tile(DK + dbase, dk, n0, sdn, rn, d, hi, D)
        store_tile(DV + dbase, dv, n0, sdn, rn, d, hi, D)
        yg = yq * iz[:, None]
        dS = dot(tl.trans(yg.to(dt)), do, dS, UP, PREC)
        if VSUM:
            dvs += tl.sum(do.to(tl.float32) * iz[:, None], 0)
        if DEN == DEN_SUM:
            dks -= tl.sum(yq * tl.load(DELTA + zbase + n, mask=n < hi, other=0.0)[:, None], 0)
