# ruff: noqa: E741, RUF059 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Linear attention with weighted keys and rotated features, bidirectional: one program has a whole head.

With f = phi(x), t = f rotated, p_j the weights of the keys (sum 1), c the scale:

    S = sum_j p_j t_j v_j^T, m = sum_j p_j f_j;  w_i = c / (c f_i.m + eps);  o_i = w_i t_i S

Keys are weighed alike, p_j = 1 / N, or (RALA) by p = softmax_j(f_j.b), b = c mean_i f_i of the queries. Backward, with
u_i = w_i do_i S^T and r_i = t_i.u_i (= o_i.do_i, without reading o):

    df_i = u_i rotated back - r_i w_i m + c db / N;  dS = sum_i w_i t_i do_i^T;  dm = -sum_i r_i w_i f_i
    g_j = dS v_j rotated back + dm;  dp_j = f_j.g_j;  ds_j = p_j (dp_j - delta);  dv_j = p_j dS^T t_j
    df_j = p_j g_j + ds_j b;  db = sum_j ds_j f_j = sum_j p_j dp_j f_j - delta m

delta = sum_j p_j dp_j is found by a pass of its own, from the dp that meet it. As the outputs hardly change with the
scale of all weights it is almost 0, but with few keys of nearly all the weight dp - delta is the rounding of dp alone:
dk was wrong by 1 % in float16, 20 times as much as in plain PyTorch.

Features are in two halves of HALF = D / 2 columns, as rotation pairs (i, i + HALF): no number crosses threads for it. S
is kept transposed and in halves too, [v, half of k]: the raw tiles of v and do are operands as loaded, and D the long
side of the product. Sums over rows stay apart by the row of a tile until a pass ends. Every pass reads its rows anew:
of most heads they lie in the caches. Loops do not hoist (disable_licm): what every tile needs again, addresses above
all, would lie in registers through all passes.
"""

import triton
import triton.language as tl

from clip_la_kernels.runtime.common import (
    ELU1,
    dot,
    feature,
    kernel,
    load_tile,
    narrowed,
    place,
    rows_of,
    store_tile,
    take_over,
)


@triton.jit
def features(P, n0, sn, N, BL: tl.constexpr, HALF: tl.constexpr, MAP: tl.constexpr):
    """phi of rows n0 .. n0 + BL in float32, in two halves; 0 beyond N."""
    c = tl.arange(0, HALF)
    n = tl.arange(0, BL)
    f1, r = feature(load_tile(P, 0, n0, sn, n, c, N, HALF, False).to(tl.float32), n0 + n < N, c, HALF, MAP)
    f2, r = feature(load_tile(P + HALF, 0, n0, sn, n, c, N, HALF, False).to(tl.float32), n0 + n < N, c, HALF, MAP)
    return f1, f2


@triton.jit
def map_grad(df, f, MAP: tl.constexpr):
    """Gradient by x from that by f = phi(x), without x: phi' of elu1 is the lesser of f and 1."""
    if MAP == ELU1:  # noqa: SIM108 (decided when compiled)
        dx = df * tl.minimum(f, 1.0)
    else:
        dx = tl.where(f > 0, df, 0.0)
    return dx


@triton.jit
def turned(x1, x2, TURN, n0, N, BACK: tl.constexpr, ROTATE: tl.constexpr):
    """The pairs (x1, x2) of rows n0 .. turned by their angles, or BACK. TURN: float32 (2, N, HALF), cos and sin."""
    y1 = x1
    y2 = x2
    if ROTATE:
        HALF: tl.constexpr = x1.shape[1]
        n = tl.arange(0, x1.shape[0])
        c = tl.arange(0, HALF)
        cos = load_tile(TURN, 0, n0, HALF, n, c, N, HALF, False)
        sin = load_tile(TURN + N * HALF, 0, n0, HALF, n, c, N, HALF, False)
        if BACK:
            sin = -sin
        y1 = x1 * cos - x2 * sin
        y2 = x2 * cos + x1 * sin
    return y1, y2


@kernel
def weighted_linear_forward(
    Q, K, V, O, STATE, SUMS, TURN, sb, sn, sh, N, H, scale, eps, BL: tl.constexpr, DT: tl.constexpr, HALF: tl.constexpr,
    MAP: tl.constexpr, ROTATE: tl.constexpr, RALA: tl.constexpr, SAVE: tl.constexpr, UP: tl.constexpr,
    PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """o of one head. If SAVE, STATE: DT (B H, 2, D, HALF), S transposed in halves; SUMS: float32 (B H, 2 D + 1), m,
    then (RALA) b and the logarithm of the sum of exp(f_j.b)."""
    take_over(PDL)
    D: tl.constexpr = 2 * HALF
    seq, h, split = place(tl.program_id(0), H, 1)
    Q = rows_of(Q, seq, h, 0, sb, sn, sh, False, False)
    K = rows_of(K, seq, h, 0, sb, sn, sh, False, False)
    V = rows_of(V, seq, h, 0, sb, sn, sh, False, False)
    O = rows_of(O, seq, h, 0, tl.cast(N, tl.int64) * H * D, H * D, D, False, False)
    n = tl.arange(0, BL)
    c = tl.arange(0, HALF)
    d = tl.arange(0, D)
    b1 = tl.zeros([HALF], tl.float32)
    b2 = tl.zeros([HALF], tl.float32)
    if RALA:
        B1 = tl.zeros([BL, HALF], tl.float32)
        B2 = tl.zeros([BL, HALF], tl.float32)
        for n0 in tl.range(0, N, BL, disable_licm=True):
            f1, f2 = features(Q, n0, sn, N, BL, HALF, MAP)
            B1 += f1
            B2 += f2
        b1 = tl.sum(B1, 0) * (scale / N)
        b2 = tl.sum(B2, 0) * (scale / N)
    S1 = tl.zeros([D, HALF], tl.float32)
    S2 = tl.zeros([D, HALF], tl.float32)
    M1 = tl.zeros([BL, HALF], tl.float32)
    M2 = tl.zeros([BL, HALF], tl.float32)
    # Weights are exp(s - top) until the largest s of all keys, and their sum, are known.
    top = float("-inf")
    total = N.to(tl.float32)
    if RALA:
        total = 0.0
    for n0 in tl.range(0, N, BL, disable_licm=True):
        f1, f2 = features(K, n0, sn, N, BL, HALF, MAP)
        if RALA:
            s = tl.sum(f1 * b1[None, :] + f2 * b2[None, :], 1)
            s = tl.where(n0 + n < N, s, float("-inf"))
            higher = tl.maximum(top, tl.max(s, 0))
            shrink = tl.exp(top - higher)
            e = tl.exp(s - higher)
            top = higher
            total = total * shrink + tl.sum(e, 0)
            M1 *= shrink
            M2 *= shrink
            S1 *= shrink
            S2 *= shrink
            f1 *= e[:, None]
            f2 *= e[:, None]
        M1 += f1
        M2 += f2
        t1, t2 = turned(f1, f2, TURN, n0, N, False, ROTATE)
        v = load_tile(V, 0, n0, sn, n, d, N, D, False)
        S1 = dot(tl.trans(v), narrowed(t1, DT), S1, UP, PREC)
        S2 = dot(tl.trans(v), narrowed(t2, DT), S2, UP, PREC)
    inverse = 1.0 / total
    m1 = tl.sum(M1, 0) * inverse
    m2 = tl.sum(M2, 0) * inverse
    S1 = narrowed(S1 * inverse, DT)
    S2 = narrowed(S2 * inverse, DT)
    if SAVE:
        index = tl.cast(seq, tl.int64) * H + h
        STATE += index * (D * D)
        SUMS += index * (2 * D + 1)
        tl.store(STATE + d[:, None] * HALF + c[None, :], S1)
        tl.store(STATE + D * HALF + d[:, None] * HALF + c[None, :], S2)
        tl.store(SUMS + c, m1)
        tl.store(SUMS + HALF + c, m2)
        if RALA:
            tl.store(SUMS + D + c, b1)
            tl.store(SUMS + D + HALF + c, b2)
            tl.store(SUMS + 2 * D, top + tl.log(total))
    for n0 in tl.range(0, N, BL, disable_licm=True):
        f1, f2 = features(Q, n0, sn, N, BL, HALF, MAP)
        w = scale / (scale * tl.sum(f1 * m1[None, :] + f2 * m2[None, :], 1) + eps)
        t1, t2 = turned(f1, f2, TURN, n0, N, False, ROTATE)
        o = dot(narrowed(t1, DT), tl.trans(S1), tl.zeros([BL, D], tl.float32), UP, PREC)
        o = dot(narrowed(t2, DT), tl.trans(S2), o, UP, PREC)
        store_tile(O, 0, narrowed(o * w[:, None], DT), n0, H * D, n, d, N, D, False)


@triton.jit
def query_side(
    f1, f2, do, S1, S2, w, TURN, n0, N, HALF: tl.constexpr, ROTATE: tl.constexpr, UP: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """u rotated back, in halves, and r w, of rows n0 ... Rows beyond N are zeros."""
    zero = tl.zeros([f1.shape[0], HALF], tl.float32)
    u1 = dot(do, S1, zero, UP, PREC) * w[:, None]
    u2 = dot(do, S2, zero, UP, PREC) * w[:, None]
    u1, u2 = turned(u1, u2, TURN, n0, N, True, ROTATE)
    # t.u is f.(u rotated back).
    return u1, u2, tl.sum(f1 * u1 + f2 * u2, 1) * w


@triton.jit
def key_side(
    K, V, G1, G2, dm1, dm2, TURN, n0, sn, N, BL: tl.constexpr, HALF: tl.constexpr, MAP: tl.constexpr,
    ROTATE: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """f and g of rows n0 .. n0 + BL in halves."""
    f1, f2 = features(K, n0, sn, N, BL, HALF, MAP)
    v = load_tile(V, 0, n0, sn, tl.arange(0, BL), tl.arange(0, 2 * HALF), N, 2 * HALF, False)
    g1 = dot(v, G1, tl.zeros([BL, HALF], tl.float32), UP, PREC)
    g2 = dot(v, G2, tl.zeros([BL, HALF], tl.float32), UP, PREC)
    g1, g2 = turned(g1, g2, TURN, n0, N, True, ROTATE)
    return f1, f2, g1 + dm1[None, :], g2 + dm2[None, :]


@triton.jit
def key_weights(f1, f2, b1, b2, lse, n0, N):
    """p of rows n0 ..; 0 beyond N."""
    p = tl.exp(tl.sum(f1 * b1[None, :] + f2 * b2[None, :], 1) - lse)
    return tl.where(n0 + tl.arange(0, f1.shape[0]) < N, p, 0.0)


@triton.jit
def write_halves(DX, d1, d2, f1, f2, n0, sdn, N, DT: tl.constexpr, MAP: tl.constexpr):
    """Gradient by rows n0 .. of x from that by f = phi(x), in halves."""
    HALF: tl.constexpr = f1.shape[1]
    n = tl.arange(0, f1.shape[0])
    c = tl.arange(0, HALF)
    store_tile(DX, 0, narrowed(map_grad(d1, f1, MAP), DT), n0, sdn, n, c, N, HALF, False)
    store_tile(DX + HALF, 0, narrowed(map_grad(d2, f2, MAP), DT), n0, sdn, n, c, N, HALF, False)


@kernel
def weighted_linear_backward(
    Q, K, V, DO, DQ, DK, DV, STATE, SUMS, TURN, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, scale, eps,
    BL: tl.constexpr, DT: tl.constexpr, HALF: tl.constexpr, MAP: tl.constexpr, ROTATE: tl.constexpr,
    RALA: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dq, dk, dv of one head from what the forward pass saved. Passes over queries, keys, and for RALA keys and queries
    again, as the gradient of their mean comes from the keys."""
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
    n = tl.arange(0, BL)
    c = tl.arange(0, HALF)
    d = tl.arange(0, D)
    index = tl.cast(seq, tl.int64) * H + h
    STATE += index * (D * D)
    SUMS += index * (2 * D + 1)
    S1 = tl.load(STATE + d[:, None] * HALF + c[None, :])
    S2 = tl.load(STATE + D * HALF + d[:, None] * HALF + c[None, :])
    m1 = tl.load(SUMS + c)
    m2 = tl.load(SUMS + HALF + c)
    G1 = tl.zeros([D, HALF], tl.float32)
    G2 = tl.zeros([D, HALF], tl.float32)
    M1 = tl.zeros([BL, HALF], tl.float32)
    M2 = tl.zeros([BL, HALF], tl.float32)
    for n0 in tl.range(0, N, BL, disable_licm=True):
        f1, f2 = features(Q, n0, sn, N, BL, HALF, MAP)
        w = scale / (scale * tl.sum(f1 * m1[None, :] + f2 * m2[None, :], 1) + eps)
        do = load_tile(DO, 0, n0, sdon, n, d, N, D, False)
        t1, t2 = turned(f1, f2, TURN, n0, N, False, ROTATE)
        G1 = dot(tl.trans(do), narrowed(t1 * w[:, None], DT), G1, UP, PREC)
        G2 = dot(tl.trans(do), narrowed(t2 * w[:, None], DT), G2, UP, PREC)
        u1, u2, rw = query_side(f1, f2, do, S1, S2, w, TURN, n0, N, HALF, ROTATE, UP, PREC)
        M1 -= rw[:, None] * f1
        M2 -= rw[:, None] * f2
        if not RALA:
            # Nothing more adds to it.
            d1 = u1 - rw[:, None] * m1[None, :]
            d2 = u2 - rw[:, None] * m2[None, :]
            write_halves(DQ, d1, d2, f1, f2, n0, sdn, N, DT, MAP)
    dm1 = tl.sum(M1, 0)
    dm2 = tl.sum(M2, 0)
    G1 = narrowed(G1, DT)
    G2 = narrowed(G2, DT)
    if RALA:
        b1 = tl.load(SUMS + D + c)
        b2 = tl.load(SUMS + D + HALF + c)
        lse = tl.load(SUMS + 2 * D)
        B1 = tl.zeros([BL, HALF], tl.float32)
        B2 = tl.zeros([BL, HALF], tl.float32)
        R = tl.zeros([BL], tl.float32)
        for n0 in tl.range(0, N, BL, disable_licm=True):
            f1, f2, g1, g2 = key_side(K, V, G1, G2, dm1, dm2, TURN, n0, sn, N, BL, HALF, MAP, ROTATE, UP, PREC)
            pdp = key_weights(f1, f2, b1, b2, lse, n0, N) * tl.sum(f1 * g1 + f2 * g2, 1)
            B1 += pdp[:, None] * f1
            B2 += pdp[:, None] * f2
            R += pdp
        delta = tl.sum(R, 0)
        B1 = tl.sum(B1, 0)
        B2 = tl.sum(B2, 0)
    for n0 in tl.range(0, N, BL, disable_licm=True):
        f1, f2, g1, g2 = key_side(K, V, G1, G2, dm1, dm2, TURN, n0, sn, N, BL, HALF, MAP, ROTATE, UP, PREC)
        p = tl.full([BL], 1.0, tl.float32) / N
        if RALA:
            p = key_weights(f1, f2, b1, b2, lse, n0, N)
            ds = p * (tl.sum(f1 * g1 + f2 * g2, 1) - delta)
            d1 = p[:, None] * g1 + ds[:, None] * b1[None, :]
            d2 = p[:, None] * g2 + ds[:, None] * b2[None, :]
        else:
            d1 = p[:, None] * g1
            d2 = p[:, None] * g2
        write_halves(DK, d1, d2, f1, f2, n0, sdn, N, DT, MAP)
        t1, t2 = turned(f1, f2, TURN, n0, N, False, ROTATE)
        dv = dot(narrowed(t1, DT), tl.trans(G1), tl.zeros([BL, D], tl.float32), UP, PREC)
        dv = dot(narrowed(t2, DT), tl.trans(G2), dv, UP, PREC)
        store_tile(DV, 0, narrowed(dv * p[:, None], DT), n0, sdn, n, d, N, D, False)
    if RALA:
        # Loaded again, not kept in registers through the passes over the keys.
        S1 = tl.load(STATE + d[:, None] * HALF + c[None, :])
        S2 = tl.load(STATE + D * HALF + d[:, None] * HALF + c[None, :])
        m1 = tl.load(SUMS + c)
        m2 = tl.load(SUMS + HALF + c)
        a1 = (B1 - delta * m1) * (scale / N)
        a2 = (B2 - delta * m2) * (scale / N)
        for n0 in tl.range(0, N, BL, disable_licm=True):
            f1, f2 = features(Q, n0, sn, N, BL, HALF, MAP)
            w = scale / (scale * tl.sum(f1 * m1[None, :] + f2 * m2[None, :], 1) + eps)
            do = load_tile(DO, 0, n0, sdon, n, d, N, D, False)
            u1, u2, rw = query_side(f1, f2, do, S1, S2, w, TURN, n0, N, HALF, ROTATE, UP, PREC)
            d1 = u1 - rw[:, None] * m1[None, :] + a1[None, :]
            d2 = u2 - rw[:, None] * m2[None, :] + a2[None, :]
            write_halves(DQ, d1, d2, f1, f2, n0, sdn, N, DT, MAP)
