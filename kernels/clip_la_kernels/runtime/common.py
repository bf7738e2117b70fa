# ruff: noqa: SIM109 (what Triton compiles is not quite Python)
# mypy: ignore-errors
"""Pieces shared by all kernels. Names: BL rows a tile, DP the head width padded to a power of two, rn and d their
indices.

Everything is summed in float32. Rows beyond a sequence and padded keys are loaded as zeros, whatever memory holds
there.
"""

import inspect

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from clip_la_kernels.runtime import options

L2 = tl.constexpr(options.L2)
IDENTITY = tl.constexpr(options.IDENTITY)
RELU = tl.constexpr(options.RELU)
ELU1 = tl.constexpr(options.ELU1)
EXP = tl.constexpr(options.EXP)
DEN_NONE = tl.constexpr(options.DEN_NONE)
DEN_LENGTH = tl.constexpr(options.DEN_LENGTH)
DEN_SUM = tl.constexpr(options.DEN_SUM)
SQUARE_FLOOR = tl.constexpr(options.NORM_FLOOR**2)
FLOAT16_LARGEST = tl.constexpr(65504.0)
# Columns of the thin tiles that sum rows by a matrix product: the least that tl.dot takes.
THIN = tl.constexpr(16)


def kernel(function):  # type: ignore[no-untyped-def]
    """triton.jit for what the host launches: sizes are plain numbers, so that neither 1 nor a multiple of 16 compiles
    anew."""
    sizes = ("N", "H", "SPLITS", "SIZE", "RUN")
    return triton.jit(function, do_not_specialize=[s for s in sizes if s in inspect.signature(function).parameters])


@triton.jit
def take_over(PDL: tl.constexpr):
    """What every kernel that `KernelPlan.launch` launches does before it reads or writes a value.

    PDL (programmatic dependent launch): its programs may be placed while the kernel before still ends; here they wait
    for its results, then let those of the next kernel be placed as room comes free.
    """
    if PDL:
        # All of the kernel before, its writes included: nothing may be read or overwritten earlier.
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def ask_for_rows(P, seq, h, sb, sn, sh, N, D: tl.constexpr, AHEAD: tl.constexpr, FIRST: tl.constexpr):
    """In the first FIRST programs: has the last AHEAD rows of a head brought to the L2 cache; does not wait.

    P: the tensor. Before `take_over`, so that memory, idle while the kernel before ends, brings what `tile_from_end`
    starts with. A hint that reads no value: that kernel may still be writing those rows.
    """
    if AHEAD > 0:  # noqa: SIM102 (decided when compiled, the inner one when run)
        if tl.program_id(0) < FIRST:
            rows = tl.maximum(N - 1 - tl.arange(0, AHEAD), 0).to(tl.int64)
            addresses = (rows_of(P, seq, h, 0, sb, sn, sh, False, False) + rows * sn).to(tl.int64)
            size = tl.full([AHEAD], D * (P.dtype.element_ty.primitive_bitwidth // 8), tl.int32)
            prefetch: tl.constexpr = "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;"
            tl.inline_asm_elementwise(prefetch, "=r,l,r", [addresses, size], tl.int32, False, 1)


@triton.jit
def tile_from_end(step, lo, hi, BL: tl.constexpr):
    """First row of the tile that comes at `step` of a loop over rows lo..hi by BL, if the last tile comes first.

    The last tile of an image tower often holds one row (a class token beside a square of patches): coming first, it is
    worked on while the others load.
    """
    return lo + (hi - 1 - lo) // BL * BL - (step - lo)


@triton.jit
def narrowed(x, DT: tl.constexpr):
    """float32 -> an operand of type DT; in float16 held within its range, as a masked 0 times infinity would be NaN."""
    if tl.float16 == DT:
        x = tl.minimum(tl.maximum(x, -FLOAT16_LARGEST), FLOAT16_LARGEST)
    return x.to(DT)


@triton.jit
def dot(x, y, acc, UP: tl.constexpr, PREC: tl.constexpr):
    """acc + x @ y. UP: the interpreter multiplies the raw bits of bfloat16 operands, so there they become float32."""
    if UP:
        x = x.to(tl.float32)
        y = y.to(tl.float32)
    return tl.dot(x, y, acc, input_precision=PREC)


@triton.jit
def load_tile(P, at, n0, stride, rn, d, hi, D: tl.constexpr, TMA: tl.constexpr, column=0):
    """Rows n0 + rn below hi of width D, zeros elsewhere: [BL, DP].

    P: a tensor descriptor over (sequence, head, token, width) if TMA (`at` is then (sequence, head)), else a pointer to
    the first row. The row base is 64-bit: N * stride may pass 2^31. d: the columns, from `column` on.
    """
    if TMA:
        x = P.load([at[0], at[1], tl.cast(n0, tl.int32), column]).reshape(rn.shape[0], d.shape[0])
    else:
        offset = tl.cast(n0, tl.int64) * stride
        mask = (n0 + rn < hi)[:, None]
        if d.shape[0] != D:
            mask = mask & (d < D)[None, :]
        x = tl.load(P + offset + (rn[:, None] * stride + d[None, :]), mask=mask, other=0.0)
    return x


@triton.jit
def store_tile(P, at, x, n0, stride, rn, d, hi, D: tl.constexpr, TMA: tl.constexpr, column=0):
    """The inverse of `load_tile`: nothing is written beyond hi or D."""
    if TMA:
        P.store([at[0], at[1], tl.cast(n0, tl.int32), column], x.reshape(1, 1, rn.shape[0], d.shape[0]))
    else:
        offset = tl.cast(n0, tl.int64) * stride
        mask = (n0 + rn < hi)[:, None]
        if d.shape[0] != D:
            mask = mask & (d < D)[None, :]
        tl.store(P + offset + (rn[:, None] * stride + d[None, :]), x.to(P.dtype.element_ty), mask=mask)


@triton.jit
def load_keys(K, V, at, MASK, n0, stride, rn, d, hi, D: tl.constexpr, HAS_MASK: tl.constexpr, TMA: tl.constexpr):
    """Key and value tiles with padded rows zeroed, and which rows are real."""
    real = n0 + rn < hi
    if TMA:
        k = load_tile(K, at, n0, stride, rn, d, hi, D, TMA)
        v = load_tile(V, at, n0, stride, rn, d, hi, D, TMA)
    else:
        if HAS_MASK:
            real = real & (tl.load(MASK + n0 + rn, mask=real, other=0) != 0)
        offset = tl.cast(n0, tl.int64) * stride
        mask = real[:, None]
        if d.shape[0] != D:
            mask = mask & (d < D)[None, :]
        cells = rn[:, None] * stride + d[None, :]
        k = tl.load(K + offset + cells, mask=mask, other=0.0)
        v = tl.load(V + offset + cells, mask=mask, other=0.0)
    return k, v, real


@triton.jit
def rows_of(P, seq, h, start, sb, sn, sh, VARLEN: tl.constexpr, TMA: tl.constexpr):
    """What `load_tile` takes for one head: the descriptor itself if TMA, else a pointer to the head's first row.

    start: the first row of a packed sequence, where VARLEN. Offsets are 64-bit, as a tensor may hold more than 2^31
    numbers.
    """
    rows = P
    if not TMA:
        base = tl.cast(h, tl.int64) * sh
        if VARLEN:
            base += tl.cast(start, tl.int64) * sn
        else:
            base += tl.cast(seq, tl.int64) * sb
        rows = P + base
    return rows


@triton.jit
def feature(xf, real, d, D: tl.constexpr, MAP: tl.constexpr):
    """(phi(x), 1 / norm) of a float32 tile; the norm is 1 but for L2. Rows not real and columns beyond D map to 0."""
    r = tl.full([xf.shape[0]], 1.0, tl.float32)
    y = xf
    if MAP == L2:
        squares = tl.sum(xf * xf, 1)
        # A zero row has no direction: it maps to zero, as in `reference.feature`.
        r = tl.where(squares > SQUARE_FLOOR, tl.rsqrt(squares), 0.0)
        y = xf * r[:, None]
    if MAP == RELU:
        y = tl.maximum(xf, 0.0)
    if MAP == ELU1:
        y = tl.where(xf >= 0, xf + 1.0, tl.exp(tl.minimum(xf, 0.0)))
    if MAP == EXP:
        y = tl.exp(xf)
    if MAP == ELU1 or MAP == EXP:
        # phi(0) is not 0 there.
        mask = real[:, None]
        if d.shape[0] != D:
            mask = mask & (d < D)[None, :]
        y = tl.where(mask, y, 0.0)
    return y, r


@triton.jit
def feature_grad(dy, xf, y, r, MAP: tl.constexpr):
    """Gradient by x from the gradient by phi(x)."""
    dx = dy
    if MAP == L2:
        dx = (dy - y * tl.sum(y * dy, 1)[:, None]) * r[:, None]
    if MAP == RELU:
        dx = tl.where(xf > 0, dy, 0.0)
    if MAP == ELU1:
        dx = tl.where(xf >= 0, dy, dy * y)
    if MAP == EXP:
        dx = dy * y
    return dx


@triton.jit
def thin(x, DT: tl.constexpr):
    """[BL] float32 -> [BL, THIN] whose columns sum to x: its rounding to DT, then the rest. Keeps a product with it
    at full precision."""
    col = tl.arange(0, THIN)[None, :]
    high = x.to(DT)
    low = (x - high.to(tl.float32)).to(DT)
    tile = tl.where(col == 0, high.to(tl.float32)[:, None], tl.where(col == 1, low.to(tl.float32)[:, None], 0.0))
    return tile.to(DT)


@triton.jit
def row_sums(x, BY_MMA: tl.constexpr, PREC: tl.constexpr):
    """Sums of the rows of a tile [BL, DP], float32.

    BY_MMA: the tensor cores add up the entries, rounded to bfloat16, whose errors average out over the width. In
    registers such sums cost more than all else that a tile needs; but with several groups of warps a tile, bringing it
    into the operand's layout costs more still.
    """
    if BY_MMA:
        ones = thin(tl.full([x.shape[1]], 1.0, tl.float32), tl.bfloat16)
        sums = tl.sum(dot(x.to(tl.bfloat16), ones, tl.zeros([x.shape[0], THIN], tl.float32), False, PREC), 1)
    else:
        sums = tl.sum(x.to(tl.float32), 1)
    return sums


@triton.jit
def row_norms(x, BY_MMA: tl.constexpr, PREC: tl.constexpr):
    """1 / |x| per row of a raw tile, 0 for a zero row."""
    if BY_MMA:
        squares = row_sums(x * x, BY_MMA, PREC)
    else:
        xf = x.to(tl.float32)
        squares = tl.sum(xf * xf, 1)
    return tl.where(squares > SQUARE_FLOOR, tl.rsqrt(squares), 0.0)


@triton.jit
def guarded(z, floor):
    """(divisor, does its gradient flow): z, held at floor or above in magnitude with its sign kept."""
    alive = tl.abs(z) > floor
    return tl.where(alive, z, tl.where(z < 0, -floor, floor)), alive


@triton.jit
def place(pid, H, P):
    """Program -> (sequence, head, split); heads run fastest, so that neighbours touch neighbouring memory."""
    h = pid % H
    rest = pid // H
    return rest // P, h, rest % P


@triton.jit
def span(b, N, CU, VARLEN: tl.constexpr):
    """(start of the sequence along N, its tokens)."""
    start = 0
    tokens = N
    if VARLEN:
        # Held within the row: nothing outside it is touched, whatever the borders are.
        start = tl.minimum(tl.maximum(tl.load(CU + b).to(tl.int32), 0), N)
        tokens = tl.maximum(tl.minimum(tl.load(CU + b + 1).to(tl.int32), N) - start, 0)
    return start, tokens
