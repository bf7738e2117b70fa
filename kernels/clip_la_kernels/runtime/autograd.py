"""What the autograd functions share."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def wants_gradient(*tensors: Tensor) -> bool:
    """Will a backward pass come? Asked before `apply`: inside it gradients are off, and needs_input_grad ignores
    torch.no_grad."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def first_order_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that refuses create_graph=True.

    `once_differentiable` looks at the incoming gradient only: a penalty on the first derivative would silently lose its
    dependence on the inputs.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "attention and losses here have no second derivative; call autograd without create_graph"
            )
        return backward(ctx, *grads)

    return checked
