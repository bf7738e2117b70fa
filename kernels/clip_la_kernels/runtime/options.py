"""What one attention call computes, checked once at the boundary so that no path has to check again."""

from typing import NamedTuple

import torch
from torch import Tensor

# Codes, not names, go to the kernels: a kernel's constexpr switch compares integers.
FEATURE_MAPS = {"l2": 0, "identity": 1, "relu": 2, "elu1": 3, "exp": 4}
DENOMINATORS = {"none": 0, "length": 1, "sum": 2}
L2, IDENTITY, RELU, ELU1, EXP = FEATURE_MAPS.values()
DEN_NONE, DEN_LENGTH, DEN_SUM = DENOMINATORS.values()

# A row whose norm is not above this is the zero vector: it maps to zero and gets a zero gradient (F.normalize would
# hand it 1e12).
NORM_FLOOR = 1e-12

# The least mean weight |sum_j w_ij| / n_i that a row is divided by. Unit vectors give weights of order one, and a
# bfloat16 product of them is wrong by 2^-9, so a smaller mean weight is noise; other maps have no scale of their own.
DEFAULT_EPS = {L2: 1e-3, IDENTITY: 1e-6, RELU: 1e-6, ELU1: 1e-6, EXP: 1e-6}

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Options(NamedTuple):
    """The constants of one call; `feature_map` and `denominator` are the codes above."""

    a: float
    b: float
    feature_map: int
    denominator: int
    causal: bool
    eps: float


def make_options(a: float, b: float, feature_map: str, denominator: str, causal: bool, eps: float | None) -> Options:
    """Turns the names of the public call into `Options`; raises ValueError for an unknown name or a bad eps."""
    for kind, name, codes in (("feature_map", feature_map, FEATURE_MAPS), ("denominator", denominator, DENOMINATORS)):
        if name not in codes:
            raise ValueError(f"{kind} must be one of {', '.join(codes)}; got {name!r}")
    code = FEATURE_MAPS[feature_map]
    eps = DEFAULT_EPS[code] if eps is None else float(eps)
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    return Options(float(a), float(b), code, DENOMINATORS[denominator], bool(causal), eps)


def check_dtype(x: Tensor) -> None:
    """Raises ValueError unless x holds float64, float32, bfloat16 or float16."""
    if x.dtype not in FLOAT_DTYPES:
        raise ValueError(f"attention wants float64, float32, bfloat16 or float16; got {x.dtype}")


def check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """q, k, v: (B, N, H, D), one shape, dtype and device; raises ValueError otherwise."""
    if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ValueError(f"q, k, v must share one shape (B, N, H, D); got {shapes}")
    check_dtype(q)
    if len({t.dtype for t in (q, k, v)}) > 1:
        raise ValueError(f"q, k, v must share one dtype; got {q.dtype}, {k.dtype}, {v.dtype}")
    if len({t.device for t in (q, k, v)}) > 1:
        raise ValueError(f"q, k, v must be on one device; got {q.device}, {k.device}, {v.device}")


def check_padding(mask: Tensor | None, cu_seqlens: Tensor | None, batch: int, tokens: int) -> None:
    """Raises ValueError unless mask is a bool (B, N) and cu_seqlens an int (S + 1,) over one packed row."""
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != (batch, tokens)):
        raise ValueError(
            f"key_padding_mask must be bool of shape {(batch, tokens)} (True = real token); "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    if cu_seqlens is None:
        return
    if mask is not None:
        raise ValueError("give key_padding_mask or cu_seqlens, not both")
    if batch != 1:
        raise ValueError(f"cu_seqlens wants the sequences packed along N with B = 1; got B = {batch}")
    if cu_seqlens.ndim != 1 or cu_seqlens.numel() < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_seqlens must be int32 or int64 of shape (S + 1,); got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
