"""Forward and backward passes of a tower as CUDA graphs: the host asks for a whole pass at once.

A step of ViT-B/16 at batch 256 keeps an H100 busy for about 95 ms, but its host needs about 160 ms to ask for it kernel
by kernel when blocks are compiled one by one. Compiled whole, a tower takes a minute to compile. Blocks recorded into
a graph have both: the short start and no host time. PyTorch's own `make_graphed_callables` records modules whose shape
never changes; here each shape of a batch has a recording of its own, and all recordings of a tower share their memory,
since a step replays one of them.

Gradients of a tower lie side by side in one tensor. With several processes under DDP a tower averages that tensor over
them by one all-reduce (`tower_reduction`), and DDP ignores its weights. A pass that cannot be recorded then runs kernel
by kernel inside the same node of autograd: other processes, which may replay theirs, wait for the same all-reduce.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from clip_la.models.blocks import keeping_nothing
from clip_la.train.tower_reduction import GradientMean

# Passes before the recording: the first compiles, and libraries set themselves up on the next.
WARM_UP_PASSES = 2
# Shapes that are recorded; a run that meets more of them works the others out kernel by kernel.
MAX_RECORDINGS = 24
# Where gradients begin in their tensor: at multiples of this, as tensors of their own do, so that kernels are as fast.
ALIGNMENT_BYTES = 512

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
    """What all passes of a tower have in common: weights, where gradients lie, memory, stream.

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
        unrecorded: output of the running pass, with its activations, if that is an _Unrecorded.
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
    def stream(self) -> torch.cuda.Stream:
        """Where passes are recorded."""
        return _recording_stream(torch.cuda.current_device())

    @cached_property
    def pool(self) -> Any:
        """The memory of all recordings."""
        return torch.cuda.graph_pool_handle()

    def views(self, flat: Tensor) -> list[Tensor]:
        """Each weight's gradient in a tensor like `flat_grad`."""
        return [flat.as_strided(*place) for place in self._places]

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

    def backward(self, output_grad: Tensor) -> Tensor:
        """All gradients (flat_grad) for the last forward pass; the tower's next backward pass overwrites them."""
        self.output_grad.copy_(output_grad)
        self.backward_graph.replay()
        self.shared.replays += 1
        return self.shared.flat_grad


class _Unrecorded:
    """In the place of a _Recording, a pass that runs kernel by kernel and leaves its gradients where replays do."""

    def __init__(self, tower: nn.Module, part: "Part", shared: _Shared) -> None:
        self._bound, self.shared = _Bound(tower, part.encode), shared
        # The backward pass of parts runs their forward pass again, and autograd calls it outside of autocast.
        self._autocast = _uncached_autocast(part.inputs[0].device.type)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The output; its activations stay until the tower's next pass."""
        self.shared.unrecorded = None
        with torch.enable_grad(), self._autocast:
            output: Tensor = torch.func.functional_call(self._bound, self.shared.aliases, tuple(inputs))
        self.shared.unrecorded = output
        self.shared.replays += 1
        return output.detach()

    def backward(self, output_grad: Tensor) -> Tensor:
        """As _Recording.backward."""
        output, self.shared.unrecorded = self.shared.unrecorded, None
        assert output is not None
        self.shared.work_out(output, output_grad)
        self.shared.replays += 1
        return self.shared.flat_grad


def _uncached_autocast(kind: str) -> torch.autocast:
    """Autocast as it is now, but for its cache, which would keep a cast weight from one pass for the next."""
    return torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False)


class _Replay(torch.autograd.Function):
    """The recorded passes as one node of autograd."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording | _Unrecorded, num_inputs: int, *tensors: Tensor) -> Tensor:
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
        flat = ctx.recording.backward(output_grad)
        return (None, None, *(None,) * ctx.num_inputs, *ctx.recording.shared.handed_over(flat))


class _ReplayParts(torch.autograd.Function):
    """Part after part; the backward pass replays each part's forward pass again, so that one part's activations are all
    that there is: the two passes of GradCache (arXiv 2101.06983)."""

    @staticmethod
    def forward(ctx: Any, parts: list[tuple[_Recording | _Unrecorded, tuple[Tensor, ...]]], *weights: Tensor) -> Tensor:
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

    Attributes:
        device_type: where passes can be recorded: graphs are CUDA's.
    """

    device_type: ClassVar[str] = "cuda"

    def __init__(self, tower: nn.Module) -> None:
        self._tower = tower
        self._recordings: dict[Hashable, _Recording] = {}
        self._shared: _Shared | None = None
        self._mean: GradientMean | None = None
        self._failed = False

    def trained_weights(self) -> dict[str, nn.Parameter]:
        """Weights whose gradients recordings give, by their names in the tower; none on another device."""
        named = self._tower.named_parameters()
        return {name: p for name, p in named if p.requires_grad and p.device.type == self.device_type}

    def average_gradients(self, dtype: torch.dtype | None) -> None:
        """From now on gradients are means over all processes, sent in a dtype (None: their own), of every pass alike.

        All processes ask for it before they train, and then run equally many passes in the same order.
        """
        self.release()
        self._mean = GradientMean(dtype)

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

    def _recording(self, part: Part) -> _Recording | _Unrecorded | None:
        """The recording of a part's shape, made if there is none yet; None outside of training.

        Where there can be none: None as well, or what stands in for it where gradients are averaged here.
        """
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
        if recording is None and self._mean is not None:
            return _Unrecorded(self._tower, part, self._common())
        return recording

    def _common(self) -> _Shared:
        if self._shared is None:
            self._shared = _Shared(self._tower, self._mean)
        return self._shared

    def _record(self, encode: Encode, inputs: tuple[Tensor, ...]) -> _Recording:
        shared = self._common()
        recording = _Recording(tuple(x.detach().clone() for x in inputs), shared)
        bound = _Bound(self._tower, encode)

        def forward() -> Tensor:
            result: Tensor = torch.func.functional_call(bound, shared.aliases, recording.inputs)
            return result

        with _uncached_autocast(inputs[0].device.type):
            torch.cuda.synchronize()
            with torch.cuda.stream(shared.stream):
                for _ in range(WARM_UP_PASSES):
                    output = forward()
                    recording.output_grad = torch.zeros_like(output)
                    # A frozen tower, as in locked-image tuning, has no backward pass.
                    if shared.weights:
                        shared.work_out(output, recording.output_grad)
                    del output
            torch.cuda.synchronize()
            # Other threads (the loader's, NCCL's) may call CUDA meanwhile.
            options: Any = {"pool": shared.pool, "stream": shared.stream, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(recording.forward_graph, **options):
                output = forward()
            if shared.weights:
                with torch.cuda.graph(recording.backward_graph, **options):
                    shared.work_out(output, recording.output_grad)
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
