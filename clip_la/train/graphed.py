"""Forward and backward passes of a tower as CUDA graphs: the host asks for a whole pass at once.

A step of ViT-B/16 at batch 256 keeps an H100 busy for about 95 ms, but its host needs about 160 ms to ask for it kernel
by kernel when blocks are compiled one by one. Compiled whole, a tower takes a minute to compile. Blocks recorded into
a graph have both: the short start and no host time. PyTorch's own `make_graphed_callables` records modules whose shape
never changes; here each shape of a batch has a recording of its own, and all recordings of a tower share their memory,
since a step replays one of them. What autograd sees of a pass is in `tower_nodes`.
"""

import warnings
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clip_la.models.blocks import keeping_nothing
from clip_la.train.tower_nodes import (
    Bound,
    Encode,
    PartsNode,
    Pass,
    PassNode,
    TowerState,
    UnrecordedPass,
    uncached_autocast,
)
from clip_la.train.tower_reduction import GradientMean

# Passes before the recording: the first compiles, and libraries set themselves up on the next.
WARM_UP_PASSES = 2
# Shapes that are recorded; a run that meets more of them works the others out kernel by kernel.
MAX_RECORDINGS = 24


@lru_cache
def _recording_stream(device: int) -> torch.cuda.Stream:
    """One a GPU for the whole process: cuBLAS keeps some 70 MiB of room for each stream that it has ever worked in."""
    return torch.cuda.Stream(device)


class _Recording:
    """One shape's two graphs and the tensors that they read and write, which stay where they are.

    Attributes:
        inputs: what the forward graph reads.
        output, output_grad: what it writes, and what the backward graph reads.
        shared: what all recordings of the tower have in common.
    """

    def __init__(self, inputs: tuple[Tensor, ...], shared: TowerState) -> None:
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
        self._shared: TowerState | None = None
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
        result: Tensor = PassNode.apply(recording, len(part.inputs), *part.inputs, *recording.shared.weights)
        return result

    def in_parts(self, parts: Sequence[Part]) -> Tensor:
        """All parts' features, one after another; memory holds the activations of one part."""
        recordings = [(recording, part.inputs) for part in parts if (recording := self._recording(part)) is not None]
        if len(recordings) < len(parts):
            return torch.cat([recomputed(part) for part in parts])
        result: Tensor = PartsNode.apply(recordings, *recordings[0][0].shared.weights)
        return result

    def _recording(self, part: Part) -> Pass | None:
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
            return UnrecordedPass(Bound(self._tower, part.encode), kind, self._common())
        return recording

    def _common(self) -> TowerState:
        if self._shared is None:
            self._shared = TowerState(self._tower, self._mean)
        return self._shared

    def _record(self, encode: Encode, inputs: tuple[Tensor, ...]) -> _Recording:
        shared = self._common()
        recording = _Recording(tuple(x.detach().clone() for x in inputs), shared)
        bound, stream = Bound(self._tower, encode), _recording_stream(torch.cuda.current_device())

        def forward() -> Tensor:
            result: Tensor = torch.func.functional_call(bound, shared.aliases, recording.inputs)
            return result

        # The passes before the recording write gradients as well.
        shared.save_earlier_grads()
        with uncached_autocast(inputs[0].device.type):
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_PASSES):
                    output = forward()
                    recording.output_grad = torch.zeros_like(output)
                    # A frozen tower, as in locked-image tuning, has no backward pass.
                    if shared.weights:
                        shared.work_out(output, recording.output_grad)
                    del output
            torch.cuda.synchronize()
            # Other threads (the loader's, NCCL's) may call CUDA meanwhile.
            options: Any = {"pool": shared.pool, "stream": stream, "capture_error_mode": "thread_local"}
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
