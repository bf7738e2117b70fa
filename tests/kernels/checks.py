"""What the kernel tests share: where they run, how far they may be off, and poisoned memory."""

import contextlib
import itertools
from collections.abc import Iterator

import torch
from clip_la_kernels import use_backend
from clip_la_kernels.ops.linear_attention import configs
from clip_la_kernels.ops.linear_attention.reference import linear_attention_reference

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"

# Relative error (norm of the difference over norm of the reference, float64) that each dtype may have.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

# Small tiles, so that a few dozen tokens make several; the interpreter's time goes with the number of tiles.
KERNELS = (
    "forward_fused", "backward_fused", "key_state_split", "output_split", "query_grad_split", "key_grad_split",
    "causal_forward",
    "causal_query_grad", "grad_state_split", "causal_key_grad", "causal_columns", "polynomial",
)  # fmt: skip
SMALL = {name: configs.Config(16, 4, 1) for name in KERNELS}


@contextlib.contextmanager
def kernels(**plan: int) -> Iterator[None]:
    """The Triton path; without a GPU with small tiles. plan: see `configs.forced`."""
    with use_backend("triton"), configs.forced({} if GPU else SMALL, **plan):
        yield


def ways(dtype: torch.dtype) -> tuple[dict[str, int], ...]:
    """Plans with which tensors of this dtype are read by pointers and by TMA, which small ones go without
    unless told otherwise (float32 always does)."""
    return ({},) if dtype == torch.float32 else ({}, {"tma_bytes": 0})


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty and its relatives hand out NaN, so that a cell nobody writes is seen."""
    names = ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"))
    originals = [getattr(owner, name) for owner, name in names]

    def filled(original):
        def call(*args, **kwargs):
            out = original(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return call

    for (owner, name), original in zip(names, originals, strict=True):
        setattr(owner, name, filled(original))
    try:
        yield
    finally:
        for (owner, name), original in zip(names, originals, strict=True):
            setattr(owner, name, original)


def relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over norm of the reference, in float64; a zero reference wants a zero."""
    ours, reference = ours.detach().double().cpu(), reference.detach().double().cpu()
    if not bool((reference != 0).any()):
        return float(ours.norm())
    return float((ours - reference).norm() / reference.norm().clamp(min=1e-30))


def case(batch, tokens, heads, width, dtype=torch.float32, seed=0):
    """(qkv, grad) of random numbers in `dtype` on the device under test."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, tokens, 3, heads, width, generator=generator) * 0.8
    grad = torch.randn(batch, tokens, heads, width, generator=generator)
    return qkv.to(DEVICE, dtype), grad.to(DEVICE, dtype)


def reference(qkv, grad, **options):
    """(o, dqkv) of the reference in float64."""
    exact = qkv.detach().double().requires_grad_()
    out = linear_attention_reference(*exact.unbind(2), **options)
    return out.detach(), torch.autograd.grad(out, exact, grad.double())[0]


def ours(call, qkv, grad):
    """(o, dqkv) of a call on the packed projection."""
    leaf = qkv.detach().clone().requires_grad_()
    out = call(leaf)
    return out.detach(), torch.autograd.grad(out, leaf, grad)[0]


def product(**axes):
    """pytest.param lists of every combination."""
    return list(itertools.product(*axes.values()))
