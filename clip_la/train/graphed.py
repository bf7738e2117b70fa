"""Forward and backward passes of a tower as CUDA graphs: the host asks for a whole pass at once.

A step of ViT-B/16 at batch 256 keeps an H100 busy for about 95 ms, but its host needs about 160 ms to ask for it kernel
by kernel when blocks are compiled one by one. Compiled whole, a tower takes a minute to compile. Blocks recorded into
a graph have both: the short start and no host time. PyTorch's own `make_graphed_callables` records modules whose shape
never changes; here each shape of a batch has a recording of its own, and all recordings of a tower share their memory,
since a step replays one of them.
"""

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Passes before the recording: the first compiles, and libraries set themselves up on the next.
WARM_UP_PASSES = 2
# Shapes that are recorded; a run that meets more of them works the others out kernel by kernel.
MAX_RECORDINGS = 24

Encode = Callable[..., Tensor]


class _Bound(nn.Module):
    """A function with the tower whose weights it uses, so that functional_call can lend it others."""

    def __init__(self, tower: nn.Module, encode: Encode) -> None:
        super().__init__()
        self.tower, self._encode = tower, encode

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._encode(*inputs)


class _Recording:
    """One shape's two graphs and the tensors that they read and write, which stay where they are.

    Attributes:
        inputs: what the forward graph reads.
        output, output_grad: what it writes, and what the backward graph reads.
        weight_grads: what the backward graph writes; the same tensors for all recordings of a tower.
    """

    def __init__(self, inputs: tuple[Tensor, ...], weight_grads: list[Tensor]) -> None:
        self.inputs, self.weight_grads = inputs, weight_grads
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self.output: Tensor
        self.output_grad: Tensor


class _Replay(torch.autograd.Function):
    """The recorded passes as one node of autograd."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording, num_inputs: int, *tensors: Tensor) -> Tensor:
        ctx.recording, ctx.num_inputs, ctx.weights = recording, num_inputs, tensors[num_inputs:]
        for fixed, given in zip(recording.inputs, tensors[:num_inputs], strict=True):
            fixed.copy_(given)
        recording.forward.replay()
        # A copy: the next replay must not change features that somebody keeps.
        return recording.output.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, output_grad: Tensor) -> tuple[Tensor | None, ...]:
        recording: _Recording = ctx.recording
        # Autograd takes the tensors returned here as `.grad` themselves. A gradient from an earlier backward pass
        # that is still there, to be added to, would be overwritten by the replay.
        aliased = any(
            weight.grad is not None and weight.grad.data_ptr() == own.data_ptr()
            for weight, own in zip(ctx.weights, recording.weight_grads, strict=True)
        )
        if aliased:
            for weight in ctx.weights:
                weight.grad = None if weight.grad is None else weight.grad.clone()
        recording.output_grad.copy_(output_grad)
        recording.backward.replay()
        return (None, None, *(None,) * ctx.num_inputs, *(grad.detach() for grad in recording.weight_grads))


class GraphedTower:
    """Runs functions of a tower by CUDA graphs, recorded when a shape is met first.

    Args:
        tower: its weights must stay where they are; optimisers and load_state_dict change them in place.
    """

    def __init__(self, tower: nn.Module) -> None:
        self._tower = tower
        self._recordings: dict[Hashable, _Recording] = {}
        self._failed = False
        self._set_up = False

    def __call__(self, key: Hashable, encode: Encode, *inputs: Tensor) -> Tensor:
        """encode(*inputs), differentiable in the tower's weights alone.

        Args:
            key: tells apart functions that differ for inputs of the same shape.
            encode: fixed work on the device: nothing that waits for it, no random numbers.
        """
        kind = inputs[0].device.type
        full_key = (key, torch.is_autocast_enabled(kind), *((x.shape, x.dtype) for x in inputs))
        recording = self._recordings.get(full_key)
        if recording is None:
            if self._failed or len(self._recordings) == MAX_RECORDINGS:
                return encode(*inputs)
            try:
                recording = self._recordings[full_key] = self._record(encode, inputs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._failed = True
                first_line = str(error).split("\n", 1)[0]
                warnings.warn(
                    f"no CUDA graph of this tower, its kernels are asked for one by one: {first_line}", stacklevel=2
                )
                return encode(*inputs)
        result: Tensor = _Replay.apply(recording, len(inputs), *inputs, *self._weights)
        return result

    def _prepare(self) -> None:
        """What all recordings share: where their gradients lie, their memory and their stream."""
        named = {name: weight for name, weight in self._tower.named_parameters() if weight.requires_grad}
        self._weights = list(named.values())
        # Leaves of their own on the same storage: DDP's hooks on the weights' own leaves belong to another stream.
        self._aliases = {f"tower.{name}": nn.Parameter(weight.detach()) for name, weight in named.items()}
        self._weight_grads = [torch.zeros_like(weight) for weight in self._weights]
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._set_up = True

    def _record(self, encode: Encode, inputs: tuple[Tensor, ...]) -> _Recording:
        if not self._set_up:
            self._prepare()
        recording = _Recording(tuple(x.detach().clone() for x in inputs), self._weight_grads)
        bound, weights = _Bound(self._tower, encode), tuple(self._aliases.values())

        def forward() -> Tensor:
            result: Tensor = torch.func.functional_call(bound, self._aliases, recording.inputs)
            return result

        def backward(output: Tensor, output_grad: Tensor) -> None:
            # A weight that the function does not touch has no gradient; its place keeps its zeros.
            grads = torch.autograd.grad(output, weights, output_grad, allow_unused=True)
            used = [(own, grad) for own, grad in zip(self._weight_grads, grads, strict=True) if grad is not None]
            torch._foreach_copy_([own for own, _ in used], [grad for _, grad in used])

        kind = inputs[0].device.type
        # Autocast's cache would keep a cast weight from one pass for the next.
        with torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False):
            torch.cuda.synchronize()
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP_PASSES):
                    output = forward()
                    recording.output_grad = torch.zeros_like(output)
                    backward(output, recording.output_grad)
                    del output
            torch.cuda.synchronize()
            # Other threads (the loader's, NCCL's) may call CUDA meanwhile.
            options: Any = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(recording.forward, **options):
                output = forward()
            with torch.cuda.graph(recording.backward, **options):
                backward(output, recording.output_grad)
        recording.output = output.detach()
        return recording
