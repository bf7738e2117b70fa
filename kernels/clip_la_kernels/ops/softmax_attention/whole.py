# ruff: noqa: E741, RUF059 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Softmax attention of short heads: one program has a whole head, read once and written once.

With s_ij = scale q_i.k_j and p_i = softmax(s_i): o_i = sum_j p_ij v_j. Backward, from q, k, v and do alone:
dp_ij = do_i.v_j, delta_i = sum_j p_ij dp_ij (= o_i.do_i), ds_ij = p_ij (dp_ij - delta_i); dq_i = scale sum_j ds_ij k_j,
dk_j = scale sum_i ds_ij q_i, dv_j = sum_i p_ij do_i. A row of weights is never cut, so its sum and delta need not be
kept by the forward pass, and every sum has one order.

The tokens are BA + BB: 65 of them take tiles of 64 and 16 rows, 1.5 times as many weights as there are, where one tile
of 128 would take 3.9 times as many. BB = 0: one tile has them all.
"""

import triton
import triton.language as tl

from clip_la_kernels.runtime.common import dot, kernel, load_tile, place, rows_of, store_tile, take_over


@triton.jit
def logits(q, k, m0, n0, N, scale, CAUSAL: tl.constexpr, WHOLE: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr):
    """scale q k^T, float32, -inf where query m0 + i does not see key n0 + j. WHOLE: are all these keys below N?"""
    s = dot(q, tl.trans(k), tl.zeros([q.shape[0], k.shape[0]], tl.float32), UP, PREC) * scale
    keys = n0 + tl.arange(0, k.shape[0])
    if not WHOLE:
        s = tl.where((keys < N)[None, :], s, float("-inf"))
    if CAUSAL:
        s = tl.where(keys[None, :] <= (m0 + tl.arange(0, q.shape[0]))[:, None], s, float("-inf"))
    return s


@triton.jit
def forward_rows(
    Q, O, ka, va, kb, vb, m0, sn, son, N, scale, BM: tl.constexpr, BB: tl.constexpr, CAUSAL: tl.constexpr,
    DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """o of the queries m0 .. m0 + BM against all keys. Each sees a key, so no row's largest logit is -inf."""
    d = tl.arange(0, DP)
    m = tl.arange(0, BM)
    q = load_tile(Q, 0, m0, sn, m, d, N, D, False)
    sa = logits(q, ka, m0, 0, N, scale, CAUSAL, BB > 0, UP, PREC)
    top = tl.max(sa, 1)
    if BB > 0:
        sb = logits(q, kb, m0, ka.shape[0], N, scale, CAUSAL, False, UP, PREC)
        top = tl.maximum(top, tl.max(sb, 1))
    pa = tl.exp2(sa - top[:, None])
    total = tl.sum(pa, 1)
    o = dot(pa.to(DT), va, tl.zeros([BM, DP], tl.float32), UP, PREC)
    if BB > 0:
        pb = tl.exp2(sb - top[:, None])
        total += tl.sum(pb, 1)
        o = dot(pb.to(DT), vb, o, UP, PREC)
    store_tile(O, 0, (o / total[:, None]).to(DT), m0, son, m, d, N, D, False)


@kernel
def softmax_forward(
    Q, K, V, O, sb, sn, sh, N, H, scale, BA: tl.constexpr, BB: tl.constexpr, CAUSAL: tl.constexpr, DT: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """o of one head. scale: includes log2(e), for exp2."""
    take_over(PDL)
    seq, h, split = place(tl.program_id(0), H, 1)
    Q = rows_of(Q, seq, h, 0, sb, sn, sh, False, False)
    K = rows_of(K, seq, h, 0, sb, sn, sh, False, False)
    V = rows_of(V, seq, h, 0, sb, sn, sh, False, False)
    O = rows_of(O, seq, h, 0, tl.cast(N, tl.int64) * H * D, H * D, D, False, False)
    d = tl.arange(0, DP)
    na = tl.arange(0, BA)
    ka = load_tile(K, 0, 0, sn, na, d, N, D, False)
    va = load_tile(V, 0, 0, sn, na, d, N, D, False)
    kb = ka
    vb = va
    if BB > 0:
        nb = tl.arange(0, BB if BB > 0 else 1)
        kb = load_tile(K, 0, BA, sn, nb, d, N, D, False)
        vb = load_tile(V, 0, BA, sn, nb, d, N, D, False)
    forward_rows(Q, O, ka, va, kb, vb, 0, sn, H * D, N, scale, BA, BB, CAUSAL, DT, D, DP, UP, PREC)
    if BB > 0:
        forward_rows(Q, O, ka, va, kb, vb, BA, sn, H * D, N, scale, BB, BB, CAUSAL, DT, D, DP, UP, PREC)


@triton.jit
def backward_rows(
    Q, DO, DQ, ka, va, kb, vb, m0, sn, sdon, sdn, N, scale, factor, BM: tl.constexpr, BB: tl.constexpr,
    CAUSAL: tl.constexpr, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, UP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Writes dq of the queries m0 .. m0 + BM. Returns q, do, and p, ds against both tiles of keys, in DT.

    Rows beyond N are zeros in q and do: their ds is 0, and their p meets do = 0.
    """
    d = tl.arange(0, DP)
    m = tl.arange(0, BM)
    q = load_tile(Q, 0, m0, sn, m, d, N, D, False)
    do = load_tile(DO, 0, m0, sdon, m, d, N, D, False)
    pa = logits(q, ka, m0, 0, N, scale, CAUSAL, BB > 0, UP, PREC)
    dpa = dot(do, tl.trans(va), tl.zeros([BM, ka.shape[0]], tl.float32), UP, PREC)
    top = tl.max(pa, 1)
    if BB > 0:
        pb = logits(q, kb, m0, ka.shape[0], N, scale, CAUSAL, False, UP, PREC)
        dpb = dot(do, tl.trans(vb), tl.zeros([BM, BB], tl.float32), UP, PREC)
        top = tl.maximum(top, tl.max(pb, 1))
    pa = tl.exp2(pa - top[:, None])
    total = tl.sum(pa, 1)
    delta = tl.sum(pa * dpa, 1)
    if BB > 0:
        pb = tl.exp2(pb - top[:, None])
        total += tl.sum(pb, 1)
        delta += tl.sum(pb * dpb, 1)
    inverse = 1.0 / total
    delta *= inverse
    pa *= inverse[:, None]
    dsa = (pa * (dpa - delta[:, None])).to(DT)
    pa = pa.to(DT)
    dq = dot(dsa, ka, tl.zeros([BM, DP], tl.float32), UP, PREC)
    ph = pa
    dsb = dsa
    if BB > 0:
        pb *= inverse[:, None]
        dsb = (pb * (dpb - delta[:, None])).to(DT)
        ph = pb.to(DT)
        dq = dot(dsb, kb, dq, UP, PREC)
    store_tile(DQ, 0, (dq * factor).to(DT), m0, sdn, m, d, N, D, False)
    return q, do, pa, dsa, ph, dsb


@kernel
def softmax_backward(
    Q, K, V, DO, DQ, DK, DV, sb, sn, sh, sdob, sdon, sdoh, sdb, sdn, sdh, N, H, scale, factor, BA: tl.constexpr,
    BB: tl.constexpr, CAUSAL: tl.constexpr, DT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, UP: tl.constexpr,
    PDL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """dq, dk, dv of one head. scale: factor log2(e), for exp2."""
    take_over(PDL)
    seq, h, split = place(tl.program_id(0), H, 1)
    Q = rows_of(Q, seq, h, 0, sb, sn, sh, False, False)
    K = rows_of(K, seq, h, 0, sb, sn, sh, False, False)
    V = rows_of(V, seq, h, 0, sb, sn, sh, False, False)
    DO = rows_of(DO, seq, h, 0, sdob, sdon, sdoh, False, False)
    DQ = rows_of(DQ, seq, h, 0, sdb, sdn, sdh, False, False)
    DK = rows_of(DK, seq, h, 0, sdb, sdn, sdh, False, False)
    DV = rows_of(DV, seq, h, 0, sdb, sdn, sdh, False, False)
    d = tl.arange(0, DP)
    na = tl.arange(0, BA)
    ka = load_tile(K, 0, 0, sn, na, d, N, D, False)
    va = load_tile(V, 0, 0, sn, na, d, N, D, False)
    kb = ka
    vb = va
    if BB > 0:
        nb = tl.arange(0, BB if BB > 0 else 1)
        kb = load_tile(K, 0, BA, sn, nb, d, N, D, False)
        vb = load_tile(V, 0, BA, sn, nb, d, N, D, False)
        # The few queries first: the weights that they leave for the keys are small, where sums begun for the keys would
        # lie in registers all along (243 a thread instead of 130).
        qr, dor, par, dsar, pbr, dsbr = backward_rows(
            Q, DO, DQ, ka, va, kb, vb, BA, sn, sdon, sdn, N, scale, factor, BB, BB, CAUSAL, DT, D, DP, UP, PREC
        )
    q, do, pa, dsa, pb, dsb = backward_rows(
        Q, DO, DQ, ka, va, kb, vb, 0, sn, sdon, sdn, N, scale, factor, BA, BB, CAUSAL, DT, D, DP, UP, PREC
    )
    # dv is written before dk begins, which saves the registers of one of them.
    dva = dot(tl.trans(pa), do, tl.zeros([BA, DP], tl.float32), UP, PREC)
    if BB > 0:
        dvb = dot(tl.trans(pb), do, tl.zeros([BB, DP], tl.float32), UP, PREC)
        dvb = dot(tl.trans(pbr), dor, dvb, UP, PREC)
        dva = dot(tl.trans(par), dor, dva, UP, PREC)
        store_tile(DV, 0, dvb.to(DT), BA, sdn, nb, d, N, D, False)
    store_tile(DV, 0, dva.to(DT), 0, sdn, na, d, N, D, False)
    dka = dot(tl.trans(dsa), q, tl.zeros([BA, DP], tl.float32), UP, PREC)
    if BB > 0:
        dkb = dot(tl.trans(dsb), q, tl.zeros([BB, DP], tl.float32), UP, PREC)
        dkb = dot(tl.trans(dsbr), qr, dkb, UP, PREC)
        dka = dot(tl.trans(dsar), qr, dka, UP, PREC)
        store_tile(DK, 0, (dkb * factor).to(DT), BA, sdn, nb, d, N, D, False)
    store_tile(DK, 0, (dka * factor).to(DT), 0, sdn, na, d, N, D, False)
