"""Compiled code is told shapes and strides of what an operator returns before it runs: what it is told must hold."""

import pytest
import torch
from clip_la_kernels import (
    depthwise_convolution,
    fastmax,
    linear_attention,
    linear_attention_split,
    softmax_attention,
    weighted_linear_attention,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.kernels.checks import DEVICE, kernels

B, N, H, D = 2, 19, 3, 32


def packed():
    return torch.randn(B, N, 3, H, D, device=DEVICE).requires_grad_()


def split():
    return [torch.randn(B, H, N, D, device=DEVICE).transpose(1, 2).requires_grad_() for _ in range(3)]


def tokens():
    """As v lies in the packed projection: not contiguous."""
    return packed().flatten(3)[:, :, 2]


CALLS = {
    "linear": lambda: linear_attention(packed()),
    "linear, sum": lambda: linear_attention(packed(), denominator="sum"),
    "linear, causal": lambda: linear_attention(packed(), causal=True),
    "linear, split": lambda: linear_attention_split(*split()),
    "softmax": lambda: softmax_attention(packed()),
    "softmax, causal": lambda: softmax_attention(packed(), causal=True),
    "weighted": lambda: weighted_linear_attention(packed()),
    "depthwise, grid": lambda: depthwise_convolution(
        tokens(), torch.randn(H * D, 1, 3, 3, device=DEVICE).requires_grad_(), grid=(3, 6), prefix=1
    ),
    "depthwise, causal": lambda: depthwise_convolution(
        tokens(), torch.randn(H * D, 1, 1, 5, device=DEVICE).requires_grad_(), grid=None
    ),
    "fastmax": lambda: fastmax(packed(), p=2),
}


class Compared(TorchDispatchMode):
    """Runs each of our operators on fake tensors too, and compares what both return."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func.namespace == "clip_la_kernels":
            self.names.append(func._opname)
            with FakeTensorMode() as mode:
                fake = func(*tree_map_only(torch.Tensor, mode.from_tensor, args), **(kwargs or {}))
            real, told = tree_leaves(found), tree_leaves(fake)
            assert len(real) == len(told)
            for one, other in zip(real, told, strict=True):
                assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype), func
        return found


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_results_lie_as_they_are_told(call) -> None:
    with kernels(), Compared() as seen:
        out = call()
        # A gradient that lies otherwise than the result.
        out.backward(torch.randn(*reversed(out.shape), device=DEVICE).permute(*reversed(range(out.ndim))))
    assert any(name.endswith("backward") for name in seen.names)
    assert len(seen.names) >= 2
