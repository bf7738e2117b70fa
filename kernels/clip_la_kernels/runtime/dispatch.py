"""Which path a call takes: CUDA with Triton -> kernels; anything else -> PyTorch. Never a silent change of result."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None
BACKENDS = ("auto", "torch", "triton")
_override = "auto"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces "torch" or "triton" (for tests and measurements) inside the block; "auto" is the rule above."""
    global _override
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")
    previous, _override = _override, name
    try:
        yield
    finally:
        _override = previous


def interpreting() -> bool:
    """Does Triton run its kernels in the interpreter, on the CPU?"""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


# The widest float32 head whose state and its pieces fit the shared memory of a SM.
FLOAT32_WIDTH = 64
# The widest head that `configs` has a tiling for.
WIDEST = 256


def takes_kernels(x: Tensor) -> bool:
    """Do the attention kernels serve heads (..., D)? Those too wide in float32 for a GPU are always PyTorch's."""
    if x.shape[-1] > WIDEST or (x.is_cuda and x.dtype == torch.float32 and x.shape[-1] > FLOAT32_WIDTH):
        return False
    return runs_kernels(x)


def runs_kernels(x: Tensor) -> bool:
    """Does Triton serve tensors like this? Never float64, and on a CPU only its interpreter, where asked for."""
    if _override == "torch" or x.dtype == torch.float64:
        return False
    if _override == "triton":
        if not HAS_TRITON or not (x.is_cuda or interpreting()):
            raise RuntimeError("the triton backend wants Triton and a CUDA tensor, or TRITON_INTERPRET=1")
        return True
    return HAS_TRITON and x.is_cuda and torch.version.hip is None
