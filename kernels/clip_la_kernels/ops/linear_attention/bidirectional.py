# ruff: noqa: E501, E741, RUF059, SIM108 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Bidirectional kernels, forward. Two phases: the keys' phase reads k and v once and keeps a head's state, D x D numbers whatever
the length; the queries' phase reads q once, applies the state and writes o. Nothing of size N x N exists.

State of a head: S = sum k^ v^T, ks = sum k^, vs = sum v; of its gradient: dS = sum q^ g^T, -sum delta q^, sum g.

States are kept transposed, [v, k]: the raw tile of v (or do) then is the transposed operand, which the tensor cores read from
shared memory as it was loaded. Stored states are scaled: S' = b c S, ks' = b c ks, vs' = a c vs, with c = 1 / n for "length"
and "sum" and 1 for "none", so that o = (q^ S' + vs') / zeta with zeta = a + q^.ks' ("sum") or 1. AUX holds ks' and vs' in
float32, S' has the inputs' dtype: it is rounded to that for the products anyway. With several splits a head the states are raw
and float32, and `combine` sums them in order.
"""

import triton
import triton.language as tl

from clip_la_kernels.runtime.common import (
    DEN_NONE,
    DEN_SUM,
    IDENTITY,
    L2,
    THIN,
    ask_for_rows,
    dot,
    feature,
    guarded,
    kernel,
    load_keys,
    load_tile,
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
def scale_of(b, tokens, COUNT, DEN: tl.constexpr, HAS_MASK: tl.constexpr):
    """c of the module's docstring: 1 over the real keys of sequence b (COUNT where there is a mask), at least one."""
    c = 1.0
    if DEN != DEN_NONE:
        if HAS_MASK:
            n = tl.load(COUNT + b)
        else:
            n = tokens.to(tl.float32)
        c = 1.0 / tl.maximum(n, 1.0)
    return c


@triton.jit
def load_state(STATE, AUX, index, DP: tl.constexpr):
    """(S' transposed, ks', vs')."""
    d = tl.arange(0, DP)
    index = tl.cast(index, tl.int64)
    St = tl.load(STATE + index * DP * DP + d[:, None] * DP + d[None, :])
    return St, tl.load(AUX + index * 2 * DP + d), tl.load(AUX + index * 2 * DP + DP + d)


@triton.jit
def store_state(STATE, AUX, index, St, ks, vs, DP: tl.constexpr):
    d = tl.arange(0, DP)
    index = tl.cast(index, tl.int64)
    tl.store(STATE + index * DP * DP + d[:, None] * DP + d[None, :], St.to(STATE.dtype.element_ty))
    tl.store(AUX + index * 2 * DP + d, ks)
    tl.store(AUX + index * 2 * DP + DP + d, vs)


@triton.jit
def key_state(
    K, V, at, MASK, lo, hi, sn, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr,
    SUMS: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr, TMA: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The keys' phase: S transposed, ks, vs over rows lo..hi. ks only with SUMS, vs only with VSUM.

    Reads each row of k and v once; keeps S (DP x DP float32, in the registers of the whole program) and the two vectors.
    """
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    St = tl.zeros([DP, DP], tl.float32)
    # sum v, as a thin product with ones: a sum over the rows in registers would exchange numbers between threads for each tile.
    V1 = tl.zeros([DP, THIN], tl.float32)
    ks = tl.zeros([DP], tl.float32)
    if SUMS:
        # sum k^, tile upon tile; over the tile's rows once, at the end.
        KS = tl.zeros([BL, DP], tl.float32)
    ones = thin(tl.full([BL], 1.0, tl.float32), DT)
    for step in range(lo, hi, BL):
        n0 = tile_from_end(step, lo, hi, BL)
        k, v, real = load_keys(K, V, at, MASK, n0, sn, rn, d, hi, D, HAS_MASK, TMA)
        # k^ has to be formed, unlike q^: its norm lies along the dimension that the product sums over.
        if MAP == L2:
            y = k.to(tl.float32) * row_norms(k, BY_MMA, PREC)[:, None]
        elif MAP == IDENTITY:
            y = k
        else:
            y, r = feature(k.to(tl.float32), real, d, D, MAP)
        # Rows that are not real are zeros in both operands and add nothing.
        St = dot(tl.trans(v), y.to(DT), St, UP, PREC)
        if VSUM:
            V1 = dot(tl.trans(v), ones, V1, UP, PREC)
        if SUMS:
            KS += y.to(tl.float32)
    if SUMS:
        ks = tl.sum(KS, 0)
    return St, ks, tl.sum(V1, 1)


@triton.jit
def outputs(
    Q, O, at, Sb, ks, vs, lo, hi, sn, son, a, eps, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr,
    DEN: tl.constexpr, VSUM: tl.constexpr, TMA: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The queries' phase: o of rows lo..hi from the scaled state Sb [k, v].

    Reads each row of q once, writes o once, keeps nothing between tiles. The raw q meets the tensor cores; its norm, one number a
    row, scales the product, so q^ is never formed or rounded.
    """
    d = tl.arange(0, DP)
    rn = tl.arange(0, BL)
    for n0 in range(lo, hi, BL):
        q = load_tile(Q, at, n0, sn, rn, d, hi, D, TMA)
        qf = q.to(tl.float32)
        x = q
        if MAP == L2:
            r = row_norms(q, BY_MMA, PREC)
        else:
            qf, r = feature(qf, n0 + rn < hi, d, D, MAP)
            if MAP != IDENTITY:
                x = qf.to(q.dtype)
        o = dot(x, Sb, tl.zeros([BL, DP], tl.float32), UP, PREC)
        if DEN == DEN_SUM:
            # zeta = z / n, the mean weight of the row: of order one whatever the length, so eps is a bound for it as it stands.
            zeta, alive = guarded(a + r * tl.sum(qf * ks[None, :], 1), eps)
            iz = 1.0 / zeta
            o = o * (r * iz)[:, None]
            if VSUM:
                o += iz[:, None] * vs[None, :]
        else:
            if MAP == L2:
                o = o * r[:, None]
            if VSUM:
                o += vs[None, :]
        store_tile(O, at, o.to(q.dtype), n0, son, rn, d, hi, D, TMA)


@kernel
def forward_fused(
    Q, K, V, O, STATE, AUX, MASK, COUNT, CU, KEYS, VALUES, sb, sn, sh, N, H, a, b, eps, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr, VARLEN: tl.constexpr,
    SAVE: tl.constexpr, TMA: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, AHEAD: tl.constexpr,
    FIRST: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """One program a head, where heads fill the GPU: keys and values once, then queries, the state in registers between. 4T bytes,
    the least there can be. KEYS and VALUES are K and V as pointers, for the prefetch."""
    seq, h, split = place(tl.program_id(0), H, 1)
    # The keys' phase comes first, so their rows are what to bring while the kernel before ends.
    ask_for_rows(KEYS, seq, h, sb, sn, sh, N, D, AHEAD, FIRST)
    ask_for_rows(VALUES, seq, h, sb, sn, sh, N, D, AHEAD, FIRST)
    take_over(PDL)
    start, tokens = span(seq, N, CU, VARLEN)
    at = (seq, h)
    Q = rows_of(Q, seq, h, start, sb, sn, sh, VARLEN, TMA)
    K = rows_of(K, seq, h, start, sb, sn, sh, VARLEN, TMA)
    V = rows_of(V, seq, h, start, sb, sn, sh, VARLEN, TMA)
    O = rows_of(O, seq, h, start, tl.cast(N, tl.int64) * H * D, H * D, D, VARLEN, TMA)
    MASK += tl.cast(seq, tl.int64) * N
    St, ks, vs = key_state(
        K, V, at, MASK, 0, tokens, sn, DT, D, DP, BL, MAP, DEN == DEN_SUM, VSUM, HAS_MASK, TMA, BY_MMA, UP, PREC
    )
    # Scaled once a head instead of once a row, in float32, before the one rounding of the state.
    c = scale_of(seq, tokens, COUNT, DEN, HAS_MASK)
    St = (St * (b * c)).to(DT)
    ks = ks * (b * c)
    vs = vs * (a * c)
    # The backward pass begins with this state: 2 D^2 bytes a head save it a pass over k and v.
    if SAVE:
        store_state(STATE, AUX, seq * H + h, St, ks, vs, DP)
    outputs(
        Q, O, at, tl.trans(St), ks, vs, 0, tokens, sn, H * D, a, eps, D, DP, BL, MAP, DEN, VSUM, TMA, BY_MMA, UP, PREC
    )


@kernel
def key_state_split(
    K, V, STATE, AUX, MASK, COUNT, CU, sb, sn, sh, N, H, SPLITS, SIZE, a, b, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr, SUMS: tl.constexpr, VSUM: tl.constexpr, HAS_MASK: tl.constexpr,
    VARLEN: tl.constexpr, RAW: tl.constexpr, PAST: tl.constexpr, TMA: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """State of one split (SIZE rows) of a head, where heads alone would leave SMs idle: the raw sums if RAW, which `combine` adds
    up, else scaled and final (one split).

    PAST: only what comes before another split is asked for, so the last split's sum may be zero.
    """
    take_over(PDL)
    seq, h, split = place(tl.program_id(0), H, SPLITS)
    start, tokens = span(seq, N, CU, VARLEN)
    K = rows_of(K, seq, h, start, sb, sn, sh, VARLEN, TMA)
    V = rows_of(V, seq, h, start, sb, sn, sh, VARLEN, TMA)
    MASK += tl.cast(seq, tl.int64) * N
    lo = split * SIZE
    hi = tl.minimum(lo + SIZE, tokens)
    if PAST:
        hi = tl.where(split == SPLITS - 1, lo, hi)
    St, ks, vs = key_state(
        K, V, (seq, h), MASK, lo, hi, sn, DT, D, DP, BL, MAP, SUMS, VSUM, HAS_MASK, TMA, BY_MMA, UP, PREC
    )
    if not RAW:
        c = scale_of(seq, tokens, COUNT, DEN, HAS_MASK)
        St = St * (b * c)
        ks = ks * (b * c)
        vs = vs * (a * c)
    store_state(STATE, AUX, (seq * H + h) * SPLITS + split, St, ks, vs, DP)


@kernel
def combine(
    SPLIT, SPLIT_AUX, STATE, AUX, COUNT, CU, N, H, SPLITS, a, b, DP: tl.constexpr, ROWS: tl.constexpr, DEN: tl.constexpr,
    HAS_MASK: tl.constexpr, VARLEN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Sums the SPLITS partial states of a head and scales them; a program does ROWS rows of the state.

    In order and without atomics, so that results repeat bit for bit.
    """
    take_over(PDL)
    pid = tl.program_id(0)
    block = pid % (DP // ROWS)
    index = tl.cast(pid // (DP // ROWS), tl.int64)
    seq = index // H
    start, tokens = span(seq, N, CU, VARLEN)
    c = scale_of(seq, tokens, COUNT, DEN, HAS_MASK)
    d = tl.arange(0, DP)
    cells = (block * ROWS + tl.arange(0, ROWS))[:, None] * DP + d[None, :]
    acc = tl.zeros([ROWS, DP], tl.float32)
    for p in range(0, SPLITS):
        acc += tl.load(SPLIT + (index * SPLITS + p) * DP * DP + cells)
    tl.store(STATE + index * DP * DP + cells, (acc * (b * c)).to(STATE.dtype.element_ty))
    # The vectors are little work: one of the head's programs does them besides.
    if block == 0:
        ks = tl.zeros([DP], tl.float32)
        vs = tl.zeros([DP], tl.float32)
        for p in range(0, SPLITS):
            ks += tl.load(SPLIT_AUX + (index * SPLITS + p) * 2 * DP + d)
            vs += tl.load(SPLIT_AUX + (index * SPLITS + p) * 2 * DP + DP + d)
        tl.store(AUX + index * 2 * DP + d, ks * (b * c))
        tl.store(AUX + index * 2 * DP + DP + d, vs * (a * c))


@kernel
def output_split(
    Q, O, STATE, AUX, CU, sb, sn, sh, N, H, SPLITS, SIZE, a, eps, D: tl.constexpr, DP: tl.constexpr, BL: tl.constexpr,
    MAP: tl.constexpr, DEN: tl.constexpr, VSUM: tl.constexpr, VARLEN: tl.constexpr, TMA: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr,
    PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """o of one split of a head, from the head's whole state, which all its splits read."""
    take_over(PDL)
    seq, h, split = place(tl.program_id(0), H, SPLITS)
    start, tokens = span(seq, N, CU, VARLEN)
    Q = rows_of(Q, seq, h, start, sb, sn, sh, VARLEN, TMA)
    O = rows_of(O, seq, h, start, tl.cast(N, tl.int64) * H * D, H * D, D, VARLEN, TMA)
    lo = split * SIZE
    hi = tl.minimum(lo + SIZE, tokens)
    St, ks, vs = load_state(STATE, AUX, seq * H + h, DP)
    outputs(
        Q,
        O,
        (seq, h),
        tl.trans(St),
        ks,
        vs,
        lo,
        hi,
        sn,
        H * D,
        a,
        eps,
        D,
        DP,
        BL,
        MAP,
        DEN,
        VSUM,
        TMA,
        BY_MMA,
        UP,
        PREC,
    )
