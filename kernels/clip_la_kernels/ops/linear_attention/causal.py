# ruff: noqa: E741, RUF059, SIM102, SIM108 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Causal kernels: a scan over chunks of BL tokens, the past in a running state, the chunk itself as a small quadratic
tile.

A head may be cut in SPLITS of SIZE tokens. Then `scan_splits` sums the raw states of the splits (`key_state_split`,
`grad_state_split`) in order, and each split starts its scan from the sum before (queries) or after (keys) it. States
are unscaled here and, as in `bidirectional`, transposed; z_i = a n_i + b q^_i.ks_i with n_i the real keys up to i. Raw
tiles are the left operands wherever the norm can scale the product's rows instead; only k^ (forward in time) or q^ / z
(backward) is formed.
"""

import triton
import triton.language as tl

from clip_la_kernels.runtime.common import (
    DEN_LENGTH,
    DEN_SUM,
    IDENTITY,
    L2,
    THIN,
    dot,
    feature,
    feature_grad,
    guarded,
    kernel,
    load_tile,
    place,
    row_norms,
    row_sums,
    rows_of,
    span,
    store_tile,
    take_over,
    thin,
)


@kernel
def scan_splits(
    SPLIT, SPLIT_AUX, SPLITS, DP: tl.constexpr, ROWS: tl.constexpr, REVERSE: tl.constexpr, PDL: tl.constexpr
):
    """In place: each split's state becomes the sum of the splits before it (after it if REVERSE), in order."""
    take_over(PDL)
    pid = tl.program_id(0)
    block = pid % (DP // ROWS)
    index = tl.cast(pid // (DP // ROWS), tl.int64)
    d = tl.arange(0, DP)
    cells = (block * ROWS + tl.arange(0, ROWS))[:, None] * DP + d[None, :]
    acc = tl.zeros([ROWS, DP], tl.float32)
    for step in range(0, SPLITS):
        p = SPLITS - 1 - step if REVERSE else step
        pointers = SPLIT + (index * SPLITS + p) * DP * DP + cells
        own = tl.load(pointers)
        tl.store(pointers, acc)
        acc += own
    if block == 0:
        e = tl.arange(0, 2 * DP)
        sums = tl.zeros([2 * DP], tl.float32)
        for step in range(0, SPLITS):
            p = SPLITS - 1 - step if REVERSE else step
            pointers = SPLIT_AUX + (index * SPLITS + p) * 2 * DP + e
            own = tl.load(pointers)
            tl.store(pointers, sums)
            sums += own


@triton.jit
def counts(CUM, n, hi, HAS_MASK: tl.constexpr):
    """Real keys up to each row."""
    if HAS_MASK:
        seen = tl.load(CUM + n, mask=n < hi, other=1.0)
    else:
        seen = (n + 1).to(tl.float32)
    return seen


@triton.jit
def divisor(Z, CUM, n, hi, eps, DEN: tl.constexpr, HAS_MASK: tl.constexpr):
    """(z, does its gradient flow) of rows n, from the stored raw z where DEN is the sum."""
    z = tl.full([n.shape[0]], 1.0, tl.float32)
    alive = n < hi
    if DEN == DEN_LENGTH:
        z = tl.maximum(counts(CUM, n, hi, HAS_MASK), 1.0)
    if DEN == DEN_SUM:
        z = tl.load(Z + n, mask=n < hi, other=1.0)
        z, alive = guarded(z, eps * tl.maximum(counts(CUM, n, hi, HAS_MASK), 1.0))
    return z, alive


@triton.jit
def operand(x, real, d, D: tl.constexpr, MAP: tl.constexpr, BY_MMA: tl.constexpr, PREC: tl.constexpr):
    """(y, r): phi(x) = r y per row, with y = x itself for L2."""
    y = x
    if MAP == L2:
        r = row_norms(x, BY_MMA, PREC)
    elif MAP == IDENTITY:
        r = tl.full([x.shape[0]], 1.0, tl.float32)
    else:
        yf, r = feature(x.to(tl.float32), real, d, D, MAP)
        y = yf.to(x.dtype)
    return y, r


@triton.jit
def mapped_grad(dy, x, y, r, MAP: tl.constexpr, BY_MMA: tl.constexpr, PREC: tl.constexpr):
    """Gradient by the raw tile x from the one by phi(x) = r y (L2, where y is x) or y."""
    xf = x.to(tl.float32)
    if MAP == L2:
        along = row_sums(xf * dy, BY_MMA, PREC) * r * r
        dx = (dy - xf * along[:, None]) * r[:, None]
    else:
        dx = feature_grad(dy, xf, y, r, MAP)
    return dx


@triton.jit
def down(S, steps, DT: tl.constexpr):
    """A running state as an operand. In float16 it is divided by the steps it summed, which `up` restores: 65504 is
    soon reached."""
    if tl.float16 == DT:
        S = S * (1.0 / steps)
    return S.to(DT)


@triton.jit
def up(x, steps, DT: tl.constexpr):
    if tl.float16 == DT:
        x = x * steps
    return x


@triton.jit
def start_state(STATE, AUX, index, v0, DP: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr):
    """(S transposed [BV, DP], ks [DP], vs [BV]) that a split starts from: zeros, or what `scan_splits` left."""
    d = tl.arange(0, DP)
    e = v0 + tl.arange(0, BV)
    St = tl.zeros([BV, DP], tl.float32)
    ks = tl.zeros([DP], tl.float32)
    vs = tl.zeros([BV], tl.float32)
    if HAS_STATE:
        index = tl.cast(index, tl.int64)
        St += tl.load(STATE + index * DP * DP + e[:, None] * DP + d[None, :])
        ks += tl.load(AUX + index * 2 * DP + d)
        vs += tl.load(AUX + index * 2 * DP + DP + e)
    return St, ks, vs


@triton.jit
def per_row(seq, h, start, N, H, VARLEN: tl.constexpr):
    """Offset of a head's row numbers (z, delta): in the order (sequence, head, token); packed sequences: (head,
    token)."""
    if VARLEN:
        offset = tl.cast(h, tl.int64) * N + start
    else:
        offset = (tl.cast(seq, tl.int64) * H + h) * N
    return offset


@triton.jit
def load_norms(NORM, n, hi, MAP: tl.constexpr):
    """1 / |q| and 1 / |k| of rows n as the forward pass stored them; 1 but for L2."""
    rq = tl.full([n.shape[0]], 1.0, tl.float32)
    rk = rq
    if MAP == L2:
        rq = tl.load(NORM + 2 * n, mask=n < hi, other=0.0)
        rk = tl.load(NORM + 2 * n + 1, mask=n < hi, other=0.0)
    return rq, rk


@kernel
def causal_forward(
    Q, K, V, O, Z, NORM, STATE, AUX, MASK, CUM, CU, sb, sn, sh, N, H, SPLITS, SIZE, RUN, a, b, eps, DT: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, BV: tl.constexpr, BL: tl.constexpr, MAP: tl.constexpr, DEN: tl.constexpr,
    VSUM: tl.constexpr, HAS_MASK: tl.constexpr, VARLEN: tl.constexpr, HAS_STATE: tl.constexpr, SAVE_STATE: tl.constexpr,
    SAVE_NORMS: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr, BY_MMA: tl.constexpr, UP: tl.constexpr,
    PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """o (BV of its columns) of RUN splits (1, or all of a head) one after the other, and the raw z.

    A step reads BL rows of q, k, v and writes as many of o: what the chunk's own keys give, by the BL x BL tile of
    weights, plus what all keys before it give, by the state S (BV x DP), ks and vs, which then takes the chunk in.

    Kept for the backward pass: the norms (SAVE_NORMS), and the state that each split starts from (SAVE_STATE).
    """
    take_over(PDL)
    pid = tl.program_id(0)
    v0 = (pid % (DP // BV)) * BV
    seq, h, group = place(pid // (DP // BV), H, SPLITS // RUN)
    start, tokens = span(seq, N, CU, VARLEN)
    at = (seq, h)
    Q = rows_of(Q, seq, h, start, sb, sn, sh, VARLEN, TMA)
    K = rows_of(K, seq, h, start, sb, sn, sh, VARLEN, TMA)
    V = rows_of(V, seq, h, start, sb, sn, sh, VARLEN, TMA)
    O = rows_of(O, seq, h, start, tl.cast(N, tl.int64) * H * D, H * D, D, VARLEN, TMA)
    Z += per_row(seq, h, start, N, H, VARLEN)
    NORM += 2 * per_row(seq, h, start, N, H, VARLEN)
    MASK += tl.cast(seq, tl.int64) * N
    CUM += tl.cast(seq, tl.int64) * N
    index = (seq * H + h) * SPLITS
    St, ks, vs0 = start_state(STATE, AUX, index + group * RUN, v0, DP, BV, HAS_STATE)
    V1 = tl.zeros([BV, THIN], tl.float32)
    ones = thin(tl.full([BL], 1.0, tl.float32), DT)
    d = tl.arange(0, DP)
    e = v0 + tl.arange(0, BV)
    rn = tl.arange(0, BL)
    # Rows that are not real are zero in k and v, so the triangle is all there is to mask.
    seen = rn[:, None] >= rn[None, :]
    for split in range(group * RUN, (group + 1) * RUN):
        hi = tl.minimum((split + 1) * SIZE, tokens)
        if SAVE_STATE:
            # What `start_state` reads; all blocks of columns have the same ks, and the first one stores it.
            begin = tl.cast(index + split, tl.int64)
            tl.store(STATE + begin * DP * DP + e[:, None] * DP + d[None, :], St)
            if v0 == 0:
                tl.store(AUX + begin * 2 * DP + d, ks)
            tl.store(AUX + begin * 2 * DP + DP + e, vs0 + tl.sum(V1, 1))
        for n0 in tl.range(split * SIZE, hi, BL, num_stages=STAGES):
            n = n0 + rn
            real = n < hi
            if HAS_MASK:
                real = real & (tl.load(MASK + n, mask=real, other=0) != 0)
            q = load_tile(Q, at, n0, sn, rn, d, hi, D, TMA, 0)
            k = load_tile(K, at, n0, sn, rn, d, hi, D, TMA, 0)
            v = load_tile(V, at, n0, sn, rn, e, hi, D, TMA, v0)
            if HAS_MASK:
                k = tl.where(real[:, None], k, 0.0).to(DT)
                v = tl.where(real[:, None], v, 0.0).to(DT)
            q, rq = operand(q, n < hi, d, D, MAP, BY_MMA, PREC)
            k, rk = operand(k, real, d, D, MAP, BY_MMA, PREC)
            if SAVE_NORMS:
                if v0 == 0:
                    tl.store(NORM + 2 * n, rq, mask=n < hi)
                    tl.store(NORM + 2 * n + 1, rk, mask=n < hi)
            # Both products with the raw q, before anything waits for either.
            X = dot(q, tl.trans(k), tl.zeros([BL, BL], tl.float32), UP, PREC)
            o = dot(q, tl.trans(down(St, n0 + 1.0, DT)), tl.zeros([BL, BV], tl.float32), UP, PREC)
            vk = v
            if MAP == L2:
                X = X * rk[None, :]
                # sum k^ v^T = sum k (r v)^T: the norm goes with v, and k stays as it was loaded.
                vk = (v.to(tl.float32) * rk[:, None]).to(DT)
            W = tl.where(seen, X * (b * rq)[:, None], 0.0)
            if DEN == DEN_SUM:
                count = counts(CUM, n, hi, HAS_MASK)
                # Sum of weights: the chunk's own, then those of the past by ks.
                z = a * count + tl.sum(W, 1) + b * rq * tl.sum(q.to(tl.float32) * ks[None, :], 1)
                ks += tl.sum(k.to(tl.float32) * rk[:, None], 0)
            if VSUM:
                W += tl.where(seen, a, 0.0)
            o = o * (b * up(rq, n0 + 1.0, DT))[:, None]
            if VSUM:
                o += a * (vs0 + tl.sum(V1, 1))[None, :]
            o = dot(W.to(DT), v, o, UP, PREC)
            if DEN == DEN_LENGTH:
                o = o * (1.0 / tl.maximum(counts(CUM, n, hi, HAS_MASK), 1.0))[:, None]
            if DEN == DEN_SUM:
                if v0 == 0:
                    tl.store(Z + n, z, mask=n < hi)
                z, alive = guarded(z, eps * tl.maximum(count, 1.0))
                o = o * (1.0 / z)[:, None]
            store_tile(O, at, o.to(DT), n0, H * D, rn, e, hi, D, TMA, v0)
            # From here on the chunk belongs to the past.
            St = dot(tl.trans(vk), k, St, UP, PREC)
            if VSUM:
                V1 = dot(tl.trans(v), ones, V1, UP, PREC)
