# mypy: ignore-errors
"""A depthwise convolution of tokens (B, N, C) as they lie, channels last: a tap is a shift of the tokens.

Tokens behind the prefix are a grid of ROWS x COLS; a caption is one row. Tap (i, j) of KR x KC looks i - TOP rows down
and j - LEFT columns to the right; what lies outside of the grid is zero. A tile's neighbours come from the first-level
cache, so memory is read about once.
"""

import triton
import triton.language as tl

from clip_la_kernels.runtime.common import kernel


@triton.jit
def shifted(P, row, column, real, down, right, sn, c, PREFIX, ROWS, COLS, C):
    """Tokens (rows x channels) that lie so far down and to the right; zero where there is none."""
    row = row + down
    column = column + right
    there = real & (row >= 0) & (row < ROWS) & (column >= 0) & (column < COLS)
    place = (PREFIX + row * COLS + column).to(tl.int64)
    return tl.load(P + place[:, None] * sn + c[None, :], mask=there[:, None] & (c < C)[None, :], other=0.0)


@kernel
def depthwise_tokens(
    V, W, OUT, sb, sn, N, C, PREFIX, ROWS, COLS, SPLITS, KR: tl.constexpr, KC: tl.constexpr, TOP: tl.constexpr,
    LEFT: tl.constexpr, BACK: tl.constexpr, TB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """out_t = sum over taps of w_tap v_{t + tap}; BACK: v_{t - tap}, the gradient of v from that of out.

    V: channels contiguous, strides sb, sn; W: float32 (KR KC, C); OUT: (B, N, C), 0 in the prefix; SPLITS tiles.
    """
    sequence = (tl.program_id(0) // SPLITS).to(tl.int64)
    tile = tl.program_id(0) % SPLITS
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    V += sequence * sb
    OUT += sequence * N * C
    token = tile * TB + tl.arange(0, TB)
    row, column, real = token // COLS, token % COLS, token < ROWS * COLS
    total = tl.zeros([TB, CB], tl.float32)
    # Rows are a loop: unrolled, all loads of a tile are asked for at once, and registers spill.
    for i in range(KR):
        for j in tl.static_range(KC):
            down = TOP - i if BACK else i - TOP
            right = LEFT - j if BACK else j - LEFT
            x = shifted(V, row, column, real, down, right, sn, c, PREFIX, ROWS, COLS, C)
            w = tl.load(W + (i * KC + j) * C + c, mask=c < C, other=0.0)
            total += x.to(tl.float32) * w[None, :]
    place = (PREFIX + token).to(tl.int64) * C
    tl.store(
        OUT + place[:, None] + c[None, :],
        total.to(OUT.dtype.element_ty),
        mask=real[:, None] & (c < C)[None, :],
    )
    if tile == 0:
        for p in range(PREFIX):
            tl.store(OUT + p * C + c, tl.zeros([CB], OUT.dtype.element_ty), mask=c < C)


@kernel
def depthwise_weight_grad(
    V, DO, DW, sb, sn, sdob, sdon, B, C, PREFIX, ROWS, COLS, SPLITS, KR: tl.constexpr, KC: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, TB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Row program_id(1) of the kernel's gradient, summed over every SPLITS-th sequence; DW: float32 (SPLITS, KR KC, C).

    Sums stay apart by token until the end, so that a step of the loop waits for its loads alone.
    """
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    i = tl.program_id(1)
    split = tl.program_id(2)
    t = tl.arange(0, TB)
    sum0 = tl.zeros([TB, CB], tl.float32)
    sum1 = tl.zeros([TB, CB], tl.float32)
    sum2 = tl.zeros([TB, CB], tl.float32)
    sum3 = tl.zeros([TB, CB], tl.float32)
    sum4 = tl.zeros([TB, CB], tl.float32)
    down = i - TOP
    for sequence in range(split, B, SPLITS):
        X = V + tl.cast(sequence, tl.int64) * sb
        G = DO + tl.cast(sequence, tl.int64) * sdob
        for first in range(0, ROWS * COLS, TB):
            token = first + t
            row, column, real = token // COLS, token % COLS, token < ROWS * COLS
            g = shifted(G, row, column, real, 0, 0, sdon, c, PREFIX, ROWS, COLS, C).to(tl.float32)
            sum0 += g * shifted(X, row, column, real, down, -LEFT, sn, c, PREFIX, ROWS, COLS, C).to(tl.float32)
            if KC > 1:
                sum1 += g * shifted(X, row, column, real, down, 1 - LEFT, sn, c, PREFIX, ROWS, COLS, C).to(tl.float32)
            if KC > 2:
                sum2 += g * shifted(X, row, column, real, down, 2 - LEFT, sn, c, PREFIX, ROWS, COLS, C).to(tl.float32)
            if KC > 3:
                sum3 += g * shifted(X, row, column, real, down, 3 - LEFT, sn, c, PREFIX, ROWS, COLS, C).to(tl.float32)
            if KC > 4:
                sum4 += g * shifted(X, row, column, real, down, 4 - LEFT, sn, c, PREFIX, ROWS, COLS, C).to(tl.float32)
    OUT = DW + tl.cast((split * KR + i) * KC, tl.int64) * C + c
    tl.store(OUT, tl.sum(sum0, 0), mask=c < C)
    if KC > 1:
        tl.store(OUT + C, tl.sum(sum1, 0), mask=c < C)
    if KC > 2:
        tl.store(OUT + 2 * C, tl.sum(sum2, 0), mask=c < C)
    if KC > 3:
        tl.store(OUT + 3 * C, tl.sum(sum3, 0), mask=c < C)
    if KC > 4:
        tl.store(OUT + 4 * C, tl.sum(sum4, 0), mask=c < C)
