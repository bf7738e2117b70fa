# ruff: noqa: E741, RUF059 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Linear attention with weighted keys and rotated features, bidirectional: one program has a whole head.

With f = phi(x) (queries times `scale`), t = f rotated, p_j the weights of the keys (sum 1):

    S = sum_j p_j t_j v_j^T, m = sum_j p_j f_j;  z_i = f_i.m + eps;  o_i = t_i S / z_i

Keys are weighed alike, p_j = 1 / N, or (RALA) by p = softmax_j(f_j.qbar) with qbar the mean of the queries' f. Backward,
with u_i = do_i S^T / z_i and r_i = t_i.u_i (= o_i.do_i, without reading o):

    df_i = u_i rotated back - r_i m / z_i + dqbar / N;  dS = sum_i (t_i / z_i) do_i^T;  dm = -sum_i r_i f_i / z_i
    dp_j = t_j.g_j + f_j.dm with g_j = dS v_j;  dv_j = p_j dS^T t_j;  ds_j = p_j (dp_j - delta)
    df_j = p_j (g_j rotated back + dm) + ds_j qbar;  dqbar = sum_j ds_j f_j

delta = sum_j p_j dp_j = <dS, S> + m.dm = sum_i r_i eps / z_i: the outputs do not change with the scale of the weights,
but for eps. So the keys need no pass of their own for it.

Features are in two halves of HALF = D / 2 columns, as rotation pairs (i, i + HALF): no number then crosses threads. S is
kept transposed and in halves too, [v, half of k]: the raw tiles of v and do are the operands, D the long side of the
product. Rows come in tiles of BL; the last one has BR rows (0: there is no such), as many as hold what is left of N.
Every pass reads its rows anew: of most heads they lie in the caches.
"""

import triton
import triton.language as tl

from clip_la_kernels.runtime.common import (
    dot,
    feature,
    feature_grad,
    kernel,
    load_tile,
    narrowed,
    place,
    rows_of,
    store_tile,
    take_over,
)


@triton.jit
def halves(P, n0, sn, N, BL: tl.constexpr, HALF: tl.constexpr, MAP: tl.constexpr):
    """Rows n0 .. n0 + BL of x in float32, then phi of them, each in two halves; phi is 0 beyond N."""
    c = tl.arange(0, HALF)
    n = tl.arange(0, BL)
    x1 = load_tile(P, 0, n0, sn, n, c, N, HALF, False).to(tl.float32)
    x2 = load_tile(P + HALF, 0, n0, sn, n, c, N, HALF, False).to(tl.float32)
    f1, r = feature(x1, n0 + n < N, c, HALF, MAP)
    f2, r = feature(x2, n0 + n < N, c, HALF, MAP)
    return x1, x2, f1, f2


@triton.jit
def angles(TURN, n0, N, BL: tl.constexpr, HALF: tl.constexpr, ROTATE: tl.constexpr):
    """(cos, sin) of rows n0 .. n0 + BL; 0 (not read) without rotation. TURN: float32 (2, N, HALF)."""
    cos = 0.0
    sin = 0.0
    if ROTATE:
        c = tl.arange(0, HALF)
        n = tl.arange(0, BL)
        cos = load_tile(TURN, 0, n0, HALF, n, c, N, HALF, False)
        sin = load_tile(TURN + N * HALF, 0, n0, HALF, n, c, N, HALF, False)
    return cos, sin


@triton.jit
def turned(x1, x2, cos, sin, ROTATE: tl.constexpr):
    """The pairs (x1, x2) turned by the angle; by its negative if sin is negated."""
    y1 = x1
    y2 = x2
    if ROTATE:
        y1 = x1 * cos - x2 * sin
        y2 = x2 * cos + x1 * sin
    return y1, y2


@triton.jit
def add_features(q1, q2, Q, n0, sn, N, BL: tl.constexpr, HALF: tl.constexpr, MAP: tl.constexpr):
    """(q1, q2) plus the sum of phi over rows n0 .. n0 + BL."""
    x1, x2, f1, f2 = halves(Q, n0, sn, N, BL, HALF, MAP)
    return q1 + tl.sum(f1, 0), q2 + tl.sum(f2, 0)


@triton.jit
def add_keys(
    S1, S2, m1, m2, top, total, q1, q2, K, V, TURN, n0, sn, N, BL: tl.constexpr, DT: tl.constexpr, HALF: tl.constexpr,
    MAP: tl.constexpr, ROTATE: tl.constexpr, RALA: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The state with keys n0 .. n0 + BL: sums of e t v^T, e f, e, where e = exp(s - top), top the largest s so far."""
    n = tl.arange(0, BL)
    x1, x2, f1, f2 = halves(K, n0, sn, N, BL, HALF, MAP)
    v = load_tile(V, 0, n0, sn, n, tl.arange(0, 2 * HALF), N, 2 * HALF, False)
    if RALA:
        s = tl.sum(f1 * q1[None, :] + f2 * q2[None, :], 1)
        s = tl.where(n0 + n < N, s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 0))
        shrink = tl.exp(top - higher)
        e = tl.exp(s - higher)
        top = higher
        total = total * shrink + tl.sum(e, 0)
        m1 *= shrink
        m2 *= shrink
        S1 *= shrink
        S2 *= shrink
        f1 *= e[:, None]
        f2 *= e[:, None]
    m1 += tl.sum(f1, 0)
    m2 += tl.sum(f2, 0)
    cos, sin = angles(TURN, n0, N, BL, HALF, ROTATE)
    t1, t2 = turned(f1, f2, cos, sin, ROTATE)
    S1 = dot(tl.trans(v), narrowed(t1, DT), S1, UP, PREC)
    S2 = dot(tl.trans(v), narrowed(t2, DT), S2, UP, PREC)
    return S1, S2, m1, m2, top, total


@triton.jit
def write_outputs(
    Q, O, S1, S2, m1, m2, TURN, n0, sn, son, N, scale, eps, BL: tl.constexpr, DT: tl.constexpr, HALF: tl.constexpr,
    MAP: tl.constexpr, ROTATE: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """o of rows n0 .. n0 + BL."""
    x1, x2, f1, f2 = halves(Q, n0, sn, N, BL, HALF, MAP)
    f1 *= scale
    f2 *= scale
    z = tl.sum(f1 * m1[None, :] + f2 * m2[None, :], 1) + eps
    cos, sin = angles(TURN, n0, N, BL, HALF, ROTATE)
    t1, t2 = turned(f1, f2, cos, sin, ROTATE)
    o = dot(narrowed(t1, DT), tl.trans(S1), tl.zeros([BL, 2 * HALF], tl.float32), UP, PREC)
    o = dot(narrowed(t2, DT), tl.trans(S2), o, UP, PREC)
    store_tile(
        O, 0, narrowed(o / z[:, None], DT), n0, son, tl.arange(0, BL), tl.arange(0, 2 * HALF), N, 2 * HALF, False
    )


@kernel
def weighted_linear_forward(
    Q, K, V, O, STATE, SUMS, TURN, sb, sn, sh, N, H, scale, eps, BL: tl.constexpr, BR: tl.constexpr, DT: tl.constexpr,
    HALF: tl.constexpr, MAP: tl.constexpr, ROTATE: tl.constexpr, RALA: tl.constexpr, SAVE: tl.constexpr,
    UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """o of one head. If SAVE, STATE: DT (B H, 2, D, HALF), S transposed in halves; SUMS: float32 (B H, 2 D + 1), m,
    then (RALA) qbar and the logarithm of the sum of exp(s)."""
    take_over(PDL)
    D: tl.constexpr = 2 * HALF
    seq, h, split = place(tl.program_id(0), H, 1)
    Q = rows_of(Q, seq, h, 0, sb, sn, sh, False, False)
    K = rows_of(K, seq, h, 0, sb, sn, sh, False, False)
    V = rows_of(V, seq, h, 0, sb, sn, sh, False, False)
    O = rows_of(O, seq, h, 0, tl.cast(N, tl.int64) * H * D, H * D, D, False, False)
    full = N // BL * BL
    q1 = tl.zeros([HALF], tl.float32)
    q2 = tl.zeros([HALF], tl.float32)
    if RALA:
        for n0 in range(0, full, BL):
            q1, q2 = add_features(q1, q2, Q, n0, sn, N, BL, HALF, MAP)
        if BR > 0:
            q1, q2 = add_features(q1, q2, Q, full, sn, N, BR, HALF, MAP)
        q1 *= scale / N
        q2 *= scale / N
    S1 = tl.zeros([D, HALF], tl.float32)
    S2 = tl.zeros([D, HALF], tl.float32)
    m1 = tl.zeros([HALF], tl.float32)
    m2 = tl.zeros([HALF], tl.float32)
    top = float("-inf")
    total = 0.0
    for n0 in range(0, full, BL):
        S1, S2, m1, m2, top, total = add_keys(
            S1, S2, m1, m2, top, total, q1, q2, K, V, TURN, n0, sn, N, BL, DT, HALF, MAP, ROTATE, RALA, UP, PREC
        )  # fmt: skip
    if BR > 0:
        S1, S2, m1, m2, top, total = add_keys(
            S1, S2, m1, m2, top, total, q1, q2, K, V, TURN, full, sn, N, BR, DT, HALF, MAP, ROTATE, RALA, UP, PREC
        )  # fmt: skip
    if not RALA:
        total = N.to(tl.float32)
    inverse = 1.0 / total
    m1 *= inverse
    m2 *= inverse
    Sb1 = narrowed(S1 * inverse, DT)
    Sb2 = narrowed(S2 * inverse, DT)
    if SAVE:
        index = tl.cast(seq, tl.int64) * H + h
        c = tl.arange(0, HALF)
        cells = tl.arange(0, D)[:, None] * HALF + c[None, :]
        tl.store(STATE + index * (D * D) + cells, Sb1)
        tl.store(STATE + index * (D * D) + D * HALF + cells, Sb2)
        SUMS += index * (2 * D + 1)
        tl.store(SUMS + c, m1)
        tl.store(SUMS + HALF + c, m2)
        if RALA:
            tl.store(SUMS + D + c, q1)
            tl.store(SUMS + D + HALF + c, q2)
            tl.store(SUMS + 2 * D, top + tl.log(total))
    for n0 in range(0, full, BL):
        write_outputs(
            Q, O, Sb1, Sb2, m1, m2, TURN, n0, sn, H * D, N, scale, eps, BL, DT, HALF, MAP, ROTATE, UP, PREC
        )  # fmt: skip
    if BR > 0:
        write_outputs(
            Q, O, Sb1, Sb2, m1, m2, TURN, full, sn, H * D, N, scale, eps, BR, DT, HALF, MAP, ROTATE, UP, PREC
        )  # fmt: skip


@triton.jit
def query_side(
    Q, DO, S1, S2, m1, m2, TURN, n0, sn, sdon, N, scale, eps, BL: tl.constexpr, HALF: tl.constexpr, MAP: tl.constexpr,
    ROTATE: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Of rows n0 .. n0 + BL: x, f, t, u in halves, do, 1 / z, r, cos, sin. Rows beyond N are zeros, but for 1 / eps."""
    x1, x2, f1, f2 = halves(Q, n0, sn, N, BL, HALF, MAP)
    f1 *= scale
    f2 *= scale
    inverse = 1.0 / (tl.sum(f1 * m1[None, :] + f2 * m2[None, :], 1) + eps)
    cos, sin = angles(TURN, n0, N, BL, HALF, ROTATE)
    t1, t2 = turned(f1, f2, cos, sin, ROTATE)
    do = load_tile(DO, 0, n0, sdon, tl.arange(0, BL), tl.arange(0, 2 * HALF), N, 2 * HALF, False)
    u1 = dot(do, S1, tl.zeros([BL, HALF], tl.float32), UP, PREC) * inverse[:, None]
    u2 = dot(do, S2, tl.zeros([BL, HALF], tl.float32), UP, PREC) * inverse[:, None]
    r = tl.sum(t1 * u1 + t2 * u2, 1)
    return x1, x2, f1, f2, t1, t2, u1, u2, do, inverse, r, cos, sin


@triton.jit
def write_query_grad(
    DQ, x1, x2, f1, f2, u1, u2, m1, m2, q1, q2, inverse, r, cos, sin, n0, sdn, N, scale, DT: tl.constexpr,
    HALF: tl.constexpr, MAP: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    """dq of rows n0 ..; q1, q2: dqbar / N."""
    n = tl.arange(0, x1.shape[0])
    c = tl.arange(0, HALF)
    b1, b2 = turned(u1, u2, cos, -sin, ROTATE)
    dz = (r * inverse)[:, None]
    # phi' of elu1 is phi itself below 0, and f is phi times scale: so is what it multiplies.
    d1 = feature_grad(b1 - dz * m1[None, :] + q1[None, :], x1, f1 / scale, r, MAP) * scale
    d2 = feature_grad(b2 - dz * m2[None, :] + q2[None, :], x2, f2 / scale, r, MAP) * scale
    store_tile(DQ, 0, narrowed(d1, DT), n0, sdn, n, c, N, HALF, False)
    store_tile(DQ + HALF, 0, narrowed(d2, DT), n0, sdn, n, c, N, HALF, False)


@triton.jit
def add_queries(
    G1, G2, dm1, dm2, delta, Q, DO, DQ, S1, S2, m1, m2, TURN, n0, sn, sdon, sdn, N, scale, eps, BL: tl.constexpr,
    DT: tl.constexpr, HALF: tl.constexpr, MAP: tl.constexpr, ROTATE: tl.constexpr, RALA: tl.constexpr,
    UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """(dS transposed in halves, dm, delta) with rows n0 .. n0 + BL; writes their dq where nothing more adds to it."""
    x1, x2, f1, f2, t1, t2, u1, u2, do, inverse, r, cos, sin = query_side(
        Q, DO, S1, S2, m1, m2, TURN, n0, sn, sdon, N, scale, eps, BL, HALF, MAP, ROTATE, UP, PREC
    )  # fmt: skip
    dz = (r * inverse)[:, None]
    dm1 -= tl.sum(dz * f1, 0)
    dm2 -= tl.sum(dz * f2, 0)
    delta += tl.sum(r * inverse, 0) * eps
    G1 = dot(tl.trans(do), narrowed(t1 * inverse[:, None], DT), G1, UP, PREC)
    G2 = dot(tl.trans(do), narrowed(t2 * inverse[:, None], DT), G2, UP, PREC)
    if not RALA:
        zero = tl.zeros([HALF], tl.float32)
        write_query_grad(
            DQ, x1, x2, f1, f2, u1, u2, m1, m2, zero, zero, inverse, r, cos, sin, n0, sdn, N, scale, DT, HALF, MAP,
            ROTATE,
        )  # fmt: skip
    return G1, G2, dm1, dm2, delta


@triton.jit
def write_key_grads(
    c1, c2, rest, K, V, DK, DV, G1, G2, dm1, dm2, delta, q1, q2, lse, TURN, n0, sn, sdn, N, BL: tl.constexpr,
    DT: tl.constexpr, HALF: tl.constexpr, MAP: tl.constexpr, ROTATE: tl.constexpr, RALA: tl.constexpr,
    UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Writes dk and dv of rows n0 .. n0 + BL. Returns the sums of ds f in halves and of ds with these rows.

    G1, G2: dS transposed in halves, in DT.
    """
    n = tl.arange(0, BL)
    c = tl.arange(0, HALF)
    d = tl.arange(0, 2 * HALF)
    x1, x2, f1, f2 = halves(K, n0, sn, N, BL, HALF, MAP)
    cos, sin = angles(TURN, n0, N, BL, HALF, ROTATE)
    t1, t2 = turned(f1, f2, cos, sin, ROTATE)
    if RALA:
        p = tl.exp(tl.sum(f1 * q1[None, :] + f2 * q2[None, :], 1) - lse)
        p = tl.where(n0 + n < N, p, 0.0)
    else:
        p = tl.full([BL], 1.0, tl.float32) / N
    dv = dot(narrowed(t1, DT), tl.trans(G1), tl.zeros([BL, 2 * HALF], tl.float32), UP, PREC)
    dv = dot(narrowed(t2, DT), tl.trans(G2), dv, UP, PREC)
    store_tile(DV, 0, narrowed(dv * p[:, None], DT), n0, sdn, n, d, N, 2 * HALF, False)
    v = load_tile(V, 0, n0, sn, n, d, N, 2 * HALF, False)
    g1 = dot(v, G1, tl.zeros([BL, HALF], tl.float32), UP, PREC)
    g2 = dot(v, G2, tl.zeros([BL, HALF], tl.float32), UP, PREC)
    b1, b2 = turned(g1, g2, cos, -sin, ROTATE)
    b1 += dm1[None, :]
    b2 += dm2[None, :]
    d1 = p[:, None] * b1
    d2 = p[:, None] * b2
    if RALA:
        # t.g = f.(g rotated back): one sum for dp.
        ds = p * (tl.sum(f1 * b1 + f2 * b2, 1) - delta)
        c1 += tl.sum(ds[:, None] * f1, 0)
        c2 += tl.sum(ds[:, None] * f2, 0)
        rest += tl.sum(ds, 0)
        d1 += ds[:, None] * q1[None, :]
        d2 += ds[:, None] * q2[None, :]
    store_tile(DK, 0, narrowed(feature_grad(d1, x1, f1, p, MAP), DT), n0, sdn, n, c, N, HALF, False)
    store_tile(DK + HALF, 0, narrowed(feature_grad(d2, x2, f2, p, MAP), DT), n0, sdn, n, c, N, HALF, False)
    return c1, c2, rest


@triton.jit
def finish_queries(
    Q, DO, DQ, S1, S2, m1, m2, q1, q2, TURN, n0, sn, sdon, sdn, N, scale, eps, BL: tl.constexpr, DT: tl.constexpr,
    HALF: tl.constexpr, MAP: tl.constexpr, ROTATE: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Writes dq of rows n0 .. n0 + BL, once dqbar / N (q1, q2) is known."""
    x1, x2, f1, f2, t1, t2, u1, u2, do, inverse, r, cos, sin = query_side(
        Q, DO, S1, S2, m1, m2, TURN, n0, sn, sdon, N, scale, eps, BL, HALF, MAP, ROTATE, UP, PREC
    )  # fmt: skip
    write_query_grad(
        DQ, x1, x2, f1, f2, u1, u2, m1, m2, q1, q2, inverse, r, cos, sin, n0, sdn, N, scale, DT, HALF, MAP, ROTATE
    )


@kernel
def weighted_linear_backward(
    Q, K, V, DO, DQ, DK, DV, STATE, SUMS, TURN, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, scale, eps,
    BL: tl.constexpr, BR: tl.constexpr, DT: tl.constexpr, HALF: tl.constexpr, MAP: tl.constexpr, ROTATE: tl.constexpr,
    RALA: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dq, dk, dv of one head from what the forward pass saved. Queries, keys, then (RALA) queries again, as the mean
    query's gradient comes from the keys."""
    take_over(PDL)
    D: tl.constexpr = 2 * HALF
    seq, h, split = place(tl.program_id(0), H, 1)
    Q = rows_of(Q, seq, h, 0, sb, sn, sh, False, False)
    K = rows_of(K, seq, h, 0, sb, sn, sh, False, False)
    V = rows_of(V, seq, h, 0, sb, sn, sh, False, False)
    DO = rows_of(DO, seq, h, 0, sdob, sdon, sdoh, False, False)
    DQ = rows_of(DQ, seq, h, 0, sdb, sdn, sdh, False, False)
    DK = rows_of(DK, seq, h, 0, sdb, sdn, sdh, False, False)
    DV = rows_of(DV, seq, h, 0, sdb, sdn, sdh, False, False)
    index = tl.cast(seq, tl.int64) * H + h
    c = tl.arange(0, HALF)
    cells = tl.arange(0, D)[:, None] * HALF + c[None, :]
    STATE += index * (D * D)
    SUMS += index * (2 * D + 1)
    S1 = tl.load(STATE + cells)
    S2 = tl.load(STATE + D * HALF + cells)
    m1 = tl.load(SUMS + c)
    m2 = tl.load(SUMS + HALF + c)
    q1 = m1
    q2 = m2
    lse = 0.0
    if RALA:
        q1 = tl.load(SUMS + D + c)
        q2 = tl.load(SUMS + D + HALF + c)
        lse = tl.load(SUMS + 2 * D)
    full = N // BL * BL
    G1 = tl.zeros([D, HALF], tl.float32)
    G2 = tl.zeros([D, HALF], tl.float32)
    dm1 = tl.zeros([HALF], tl.float32)
    dm2 = tl.zeros([HALF], tl.float32)
    delta = 0.0
    for n0 in range(0, full, BL):
        G1, G2, dm1, dm2, delta = add_queries(
            G1, G2, dm1, dm2, delta, Q, DO, DQ, S1, S2, m1, m2, TURN, n0, sn, sdon, sdn, N, scale, eps, BL, DT, HALF,
            MAP, ROTATE, RALA, UP, PREC,
        )  # fmt: skip
    if BR > 0:
        G1, G2, dm1, dm2, delta = add_queries(
            G1, G2, dm1, dm2, delta, Q, DO, DQ, S1, S2, m1, m2, TURN, full, sn, sdon, sdn, N, scale, eps, BR, DT, HALF,
            MAP, ROTATE, RALA, UP, PREC,
        )  # fmt: skip
    Gb1 = narrowed(G1, DT)
    Gb2 = narrowed(G2, DT)
    c1 = tl.zeros([HALF], tl.float32)
    c2 = tl.zeros([HALF], tl.float32)
    rest = 0.0
    for n0 in range(0, full, BL):
        c1, c2, rest = write_key_grads(
            c1, c2, rest, K, V, DK, DV, Gb1, Gb2, dm1, dm2, delta, q1, q2, lse, TURN, n0, sn, sdn, N, BL, DT, HALF,
            MAP, ROTATE, RALA, UP, PREC,
        )  # fmt: skip
    if BR > 0:
        c1, c2, rest = write_key_grads(
            c1, c2, rest, K, V, DK, DV, Gb1, Gb2, dm1, dm2, delta, q1, q2, lse, TURN, full, sn, sdn, N, BR, DT, HALF,
            MAP, ROTATE, RALA, UP, PREC,
        )  # fmt: skip
    if RALA:
        # The products' rounding leaves ds a sum that is not quite 0, which all features, being positive, would share.
        c1 = (c1 - rest * m1) / N
        c2 = (c2 - rest * m2) / N
        for n0 in range(0, full, BL):
            finish_queries(
                Q, DO, DQ, S1, S2, m1, m2, c1, c2, TURN, n0, sn, sdon, sdn, N, scale, eps, BL, DT, HALF, MAP, ROTATE,
                UP, PREC,
            )  # fmt: skip
        if BR > 0:
            finish_queries(
                Q, DO, DQ, S1, S2, m1, m2, c1, c2, TURN, full, sn, sdon, sdn, N, scale, eps, BR, DT, HALF, MAP, ROTATE,
                UP, PREC,
            )  # fmt: skip
