"""A tower's pass as one node of autograd, recorded or not: where its gradients lie, and how autograd gets them.

Gradients of a tower lie side by side in one tensor. With several processes under DDP a tower averages that tensor over
them by one all-reduce (`tower_reduction`), and DDP ignores its weights. A pass that cannot be recorded then runs kernel
by kernel inside the same node of autograd: other processes, which may replay theirs, wait for the same all-reduce.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clip_la.train.tower_reduction import GradientMean

# Where gradients begin in their tensor: at multiples of this, as tensors of their own do, so that kernels are as fast.
ALIGNMENT_BYTES = 512

Encode = Callable[..., Tensor]


class Bound(nn.Module):
    """A function with the tower whose weights it uses, so that functional_call can lend it others."""

    def __init__(self, tower: nn.Module, encode: Encode) -> None:
        super().__init__()
        # In a tuple: a module, such as the tower itself, would be listed as a second holder of the weights, and
        # functional_call would leave the lent ones behind in it.
        self.tower, self._encode = tower, (encode,)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._encode[0](*inputs)


class TowerState:
    """What all passes of a tower have in common: weights, where gradients lie, the memory of recordings.

    Args:
        tower: its weights are of one dtype, on one device.
        mean: averages gradients over the processes; None where there is one, or another way to do it.

    Attributes:
        weights: those that train.
        aliases: leaves of their own on the same storage, by name: DDP's hooks on the weights' own leaves belong to
            another stream.
        flat_grad: what every backward pass writes: the gradients of all weights, one after another.
        weight_grads: the gradient of each weight there.
        replays: passes so far. Each may overwrite the activations of the one before, as all lie in one memory.
        unrecorded: output of the running pass, with its activations, if that is an UnrecordedPass.
    """

    def __init__(self, tower: nn.Module, mean: GradientMean | None = None) -> None:
        named = {name: weight for name, weight in tower.named_parameters() if weight.requires_grad}
        self.weights = list(named.values())
        self.mean = mean
        self.aliases: dict[str, Tensor] = {
            f"tower.{name}": nn.Parameter(weight.detach()) for name, weight in named.items()
        }
        self._places: list[tuple[torch.Size, tuple[int, ...], int]] = []
        size = 0
        for weight in self.weights:
            # empty_like has the strides that autograd wants of a gradient; others it would copy.
            self._places.append((weight.shape, torch.empty_like(weight, device="meta").stride(), size))
            step = ALIGNMENT_BYTES // weight.element_size()
            size += -(-weight.numel() // step) * step
        like = self.weights[0] if self.weights else torch.empty(0)
        self.flat_grad = torch.zeros(size, dtype=like.dtype, device=like.device)
        self.weight_grads = self.views(self.flat_grad)
        self.replays = 0
        self.unrecorded: Tensor | None = None

    @cached_property
    def pool(self) -> Any:
        """The memory of all recordings."""
        return torch.cuda.graph_pool_handle()

    def views(self, flat: Tensor) -> list[Tensor]:
        """Each weight's gradient in a tensor like `flat_grad`."""
        return [flat.as_strided(*place) for place in self._places]

    def save_earlier_grads(self) -> None:
        """Copies gradients of earlier backward passes that are still there, to be added to, out of `flat_grad`.

        Autograd takes what a node returns as `.grad` itself: whatever writes `flat_grad` next would overwrite them.
        """
        own = {grad.data_ptr() for grad in self.weight_grads}
        for weight in self.weights:
            if weight.grad is not None and weight.grad.data_ptr() in own:
                weight.grad = weight.grad.clone()

    def work_out(self, output: Tensor, output_grad: Tensor) -> None:
        """Writes the weights' gradients from a pass over the aliases, and gives up what that has kept."""
        # A weight that the function does not touch has no gradient; its place keeps its zeros.
        grads = torch.autograd.grad(output, tuple(self.aliases.values()), output_grad, allow_unused=True)
        used = [(own, grad) for own, grad in zip(self.weight_grads, grads, strict=True) if grad is not None]
        torch._foreach_copy_([own for own, _ in used], [grad for _, grad in used])

    def handed_over(self, flat: Tensor) -> list[Tensor]:
        """What a node's backward pass returns for the weights: their places in `flat`, of the mean over processes."""
        own = flat is self.flat_grad
        # New tensors: autograd copies one that somebody else holds.
        grads = [grad.detach() for grad in self.weight_grads] if own else self.views(flat)
        if self.mean is not None:
            self.mean.start(flat, self.weights, [grad.data_ptr() for grad in grads])
        return grads


class Pass(Protocol):
    """Both directions of a tower's function for one shape: a recording, or an UnrecordedPass in its place."""

    shared: TowerState

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The output, which the tower's next pass may overwrite."""

    def backward(self, output_grad: Tensor) -> Tensor:
        """All gradients (flat_grad) for the last forward pass; the tower's next backward pass overwrites them."""


class UnrecordedPass:
    """In the place of a recording, a pass that runs kernel by kernel and leaves its gradients where replays do.

    Args:
        bound: the function and its tower.
        kind: type of the device, whose autocast is that of now.
        shared: of the tower.
    """

    def __init__(self, bound: Bound, kind: str, shared: TowerState) -> None:
        self._bound, self.shared = bound, shared
        # The backward pass of parts runs their forward pass again, and autograd calls it outside of autocast.
        self._autocast = uncached_autocast(kind)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The output; its activations stay until the tower's next pass."""
        self.shared.unrecorded = None
        with torch.enable_grad(), self._autocast:
            output: Tensor = torch.func.functional_call(self._bound, self.shared.aliases, tuple(inputs))
        self.shared.unrecorded = output
        self.shared.replays += 1
        return output.detach()

    def backward(self, output_grad: Tensor) -> Tensor:
        """As of a recording."""
        output, self.shared.unrecorded = self.shared.unrecorded, None
        assert output is not None
        self.shared.work_out(output, output_grad)
        self.shared.replays += 1
        return self.shared.flat_grad


def uncached_autocast(kind: str) -> torch.autocast:
    """Autocast as it is now, but for its cache, which would keep a cast weight from one pass for the next."""
    return torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False)


class PassNode(torch.autograd.Function):
    """One pass as one node of autograd, which gives the gradients of all the tower's weights at once."""

    @staticmethod
    def forward(ctx: Any, recording: Pass, num_inputs: int, *tensors: Tensor) -> Tensor:
        ctx.recording, ctx.num_inputs = recording, num_inputs
        # A copy: the next replay must not change features that somebody keeps.
        output = recording.forward(tensors[:num_inputs]).clone()
        ctx.replays = recording.shared.replays
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.recording.shared.replays != ctx.replays:
            raise RuntimeError(
                "another pass of this tower came between this forward pass and its backward pass, and has overwritten "
                "its activations: one pass at a time, or cuda_graphs=False"
            )
        ctx.recording.shared.save_earlier_grads()
        flat = ctx.recording.backward(output_grad)
        return (None, None, *(None,) * ctx.num_inputs, *ctx.recording.shared.handed_over(flat))


class PartsNode(torch.autograd.Function):
    """Part after part; the backward pass replays each part's forward pass again, so that one part's activations are all
    that there is: the two passes of GradCache (arXiv 2101.06983)."""

    @staticmethod
    def forward(ctx: Any, parts: list[tuple[Pass, tuple[Tensor, ...]]], *weights: Tensor) -> Tensor:
        outputs = [recording.forward(inputs).clone() for recording, inputs in parts]
        ctx.parts, ctx.rows, ctx.shared = parts, [len(output) for output in outputs], parts[0][0].shared
        # The backward pass begins with a forward pass of its own.
        ctx.shared.unrecorded = None
        return torch.cat(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_grad: Tensor) -> tuple[Tensor | None, ...]:
        total: Tensor | None = None
        for (recording, inputs), grad in zip(ctx.parts, output_grad.split(ctx.rows), strict=True):
            recording.forward(inputs)
            flat = recording.backward(grad)
            total = flat.clone() if total is None else total.add_(flat)
        assert total is not None
        return (None, *ctx.shared.handed_over(total))
