"""Forward and backward passes of a tower as CUDA graphs: the host asks for a whole pass at once.

A step of ViT-B/16 at batch 256 keeps an H100 busy for about 95 ms, but its host needs about 160 ms to ask for it kernel
by kernel when blocks are compiled one by one. Compiled whole, a tower takes a minute to compile. Blocks recorded into
a graph have both: the short start and no host time. PyTorch's own `make_graphed_callables` records modules whose shape
never changes; here each shape of a batch has a recording of its own, and all recordings of a tower share their memory,
since a step replays one of them.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from clip_la.models.blocks import keeping_nothing

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


@lru_cache
def _recording_stream(device: int) -> torch.cuda.Stream:
    """One a GPU for the whole process: cuBLAS keeps some 70 MiB of room for each stream that it has ever worked in."""
    return torch.cuda.Stream(device)


class _Shared:
    """What all recordings of a tower have in common: weights, where gradients lie, memory, stream.

    Attributes:
        weights: those that train.
        aliases: leaves of their own on the same storage, by name: DDP's hooks on the weights' own leaves belong to
            another stream.
        weight_grads: what every backward graph writes.
        replays: passes so far. Each may overwrite the activations of the one before, as all lie in one memory.
    """

    def __init__(self, tower: nn.Module) -> None:
        named = {name: weight for name, weight in tower.named_parameters() if weight.requires_grad}
        self.weights = list(named.values())
        self.aliases: dict[str, Tensor] = {
            f"tower.{name}": nn.Parameter(weight.detach()) for name, weight in named.items()
        }
        self.weight_grads = [torch.zeros_like(weight) for weight in self.weights]
        self.stream = _recording_stream(torch.cuda.current_device())
        self.pool = torch.cuda.graph_pool_handle()
        self.replays = 0


class _Recording:
    """One shape's two graphs and the tensors that they read and write, which stay where they are.

    Attributes:
        inputs: what the forward graph reads.
        output, output_grad: what it writes, and what the backward graph reads.
        shared: what all recordings of the tower have in common.
    """

    def __init__(self, inputs: tuple[Tensor, ...], shared: _Shared) -> None:
        self.inputs, self.shared = inputs, shared
        self.forward_graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self.output: Tensor
        self.output_grad: Tensor

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The output, which the next forward pass overwrites."""
        for fixed, given in zip(self.inputs, inputs, strict=True):
            fixed.copy_(given)
        self.forward_graph.replay()
        self.shared.replays += 1
        return self.output

    def backward(self, output_grad: Tensor) -> list[Tensor]:
        """The gradients of the weights for the last forward pass; the tower's next backward pass overwrites them."""
        self.output_grad.copy_(output_grad)
        self.backward_graph.replay()
        self.shared.replays += 1
        return self.shared.weight_grads


class _Replay(torch.autograd.Function):
    """The recorded passes as one node of autograd."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording, num_inputs: int, *tensors: Tensor) -> Tensor:
        ctx.recording, ctx.num_inputs, ctx.weights = recording, num_inputs, tensors[num_inputs:]
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
        # Autograd takes the tensors returned here as `.grad` themselves. A gradient from an earlier backward pass
        # that is still there, to be added to, would be overwritten by the replay.
        own = {grad.data_ptr() for grad in ctx.recording.shared.weight_grads}
        for weight in ctx.weights:
            if weight.grad is not None and weight.grad.data_ptr() in own:
                weight.grad = weight.grad.clone()
        grads = ctx.recording.backward(output_grad)
        return (None, None, *(None,) * ctx.num_inputs, *(grad.detach() for grad in grads))


class _ReplayParts(torch.autograd.Function):
    """Part after part; the backward pass replays each part's forward pass again, so that one part's activations are all
    that there is: the two passes of GradCache (arXiv 2101.06983)."""

    @staticmethod
    def forward(ctx: Any, parts: list[tuple[_Recording, tuple[Tensor, ...]]], *weights: Tensor) -> Tensor:
        ctx.parts = parts
        return torch.cat([recording.forward(inputs).clone() for recording, inputs in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_grad: Tensor) -> tuple[Tensor | None, ...]:
        sums: list[Tensor] = []
        grads = output_grad.split([len(recording.output) for recording, _ in ctx.parts])
        for (recording, inputs), grad in zip(ctx.parts, grads, strict=True):
            recording.forward(inputs)
            own = recording.backward(grad)
            if sums:
                torch._foreach_add_(sums, own)
            else:
                sums = [grad.clone() for grad in own]
        return (None, *sums)


@dataclass(frozen=True)
class Part:
    """A function of a tower and what it is called with.

    Attributes:
        key: tells apart functions that differ for inputs of the same shape.
        encode: fixed work on the device: nothing that waits for it, no random numbers.
        inputs: tensors on the device, not differentiated.
    """

    key: Hashable
    encode: Encode
    inputs: tuple[Tensor, ...]


class GraphedTower:
    """Runs functions of a tower by CUDA graphs, recorded when a shape is met first.

    Args:
        tower: its weights must stay where they are; optimisers and load_state_dict change them in place. Which of them
            train must not change either; where none does, the forward pass alone is recorded.
    """

    def __init__(self, tower: nn.Module) -> None:
        self._tower = tower
        self._recordings: dict[Hashable, _Recording] = {}
        self._shared: _Shared | None = None
        self._failed = False

    def release(self) -> None:
        """Gives back the memory of all recordings; shapes that are met again are recorded anew.

        Otherwise it would be held until Python next looks for cycles: a process that trains run after run runs out.
        """
        self._recordings.clear()
        self._shared = None

    def __call__(self, part: Part) -> Tensor:
        """The part's features, differentiable in the tower's weights alone."""
        recording = self._recording(part)
        if recording is None:
            return part.encode(*part.inputs)
        result: Tensor = _Replay.apply(recording, len(part.inputs), *part.inputs, *recording.shared.weights)
        return result

    def in_parts(self, parts: Sequence[Part]) -> Tensor:
        """All parts' features, one after another; memory holds the activations of one part."""
        recordings = [(recording, part.inputs) for part in parts if (recording := self._recording(part)) is not None]
        if len(recordings) < len(parts):
            return torch.cat([recomputed(part) for part in parts])
        result: Tensor = _ReplayParts.apply(recordings, *recordings[0][0].shared.weights)
        return result

    def _recording(self, part: Part) -> _Recording | None:
        """The recording of a part's shape, made if there is none yet; None where there can be none, or outside of
        training."""
        if not torch.is_grad_enabled():
            return None
        kind = part.inputs[0].device.type
        key = (part.key, torch.is_autocast_enabled(kind), *((x.shape, x.dtype) for x in part.inputs))
        recording = self._recordings.get(key)
        if recording is None and not self._failed and len(self._recordings) < MAX_RECORDINGS:
            try:
                recording = self._recordings[key] = self._record(part.encode, part.inputs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._failed = True
                reason = str(error).split("\n", 1)[0]
                warnings.warn(f"no CUDA graph of a tower, its kernels are asked for one by one: {reason}", stacklevel=2)
        return recording

    def _record(self, encode: Encode, inputs: tuple[Tensor, ...]) -> _Recording:
        if self._shared is None:
            self._shared = _Shared(self._tower)
        shared = self._shared
        recording = _Recording(tuple(x.detach().clone() for x in inputs), shared)
        bound, weights = _Bound(self._tower, encode), tuple(shared.aliases.values())

        def forward() -> Tensor:
            result: Tensor = torch.func.functional_call(bound, shared.aliases, recording.inputs)
            return result

        def backward(output: Tensor, output_grad: Tensor) -> None:
            # A frozen tower, as in locked-image tuning, has no backward pass.
            if not weights:
                return
            # A weight that the function does not touch has no gradient; its place keeps its zeros.
            grads = torch.autograd.grad(output, weights, output_grad, allow_unused=True)
            used = [(own, grad) for own, grad in zip(shared.weight_grads, grads, strict=True) if grad is not None]
            torch._foreach_copy_([own for own, _ in used], [grad for _, grad in used])

        kind = inputs[0].device.type
        # Autocast's cache would keep a cast weight from one pass for the next.
        with torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False):
            torch.cuda.synchronize()
            with torch.cuda.stream(shared.stream):
                for _ in range(WARM_UP_PASSES):
                    output = forward()
                    recording.output_grad = torch.zeros_like(output)
                    backward(output, recording.output_grad)
                    del output
            torch.cuda.synchronize()
            # Other threads (the loader's, NCCL's) may call CUDA meanwhile.
            options: Any = {"pool": shared.pool, "stream": shared.stream, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(recording.forward_graph, **options):
                output = forward()
            if weights:
                with torch.cuda.graph(recording.backward_graph, **options):
                    backward(output, recording.output_grad)
        recording.output = output.detach()
        return recording


def recomputed(part: Part) -> Tensor:
    """A part's features, of which nothing stays behind for the backward pass but what they are computed from."""
    result: Tensor = checkpoint(
        part.encode,
        *part.inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (keeping_nothing(), nullcontext()),
    )
    return result
