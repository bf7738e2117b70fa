"""Recorded towers average their gradients over the processes themselves: one flat all-reduce a tower, without DDP.

A recorded tower has all its gradients at once. DDP then copies each into a bucket by a kernel of its own, and waits for
buckets: on two H200s a step of ViT-B/16 takes 4 ms longer than on one, where its gradients travel for 1.8 ms. Here they
lie side by side from the start (`tower_nodes`), and those of the image tower travel during the backward pass of the
text tower. On four H200s that took .7 % less time a step, and .5 GiB less memory (results/LOG.md).

Collectives must come in the same order on all processes. A tower's is part of its one node of autograd, and that node
is in the same place of the same graph on every process, whether its pass is recorded there or not.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from clip_la import distributed as ranks
from clip_la.errors import UserError


class GradientMean:
    """The mean over processes of a tower's gradients; to be asked for inside of a node's backward pass.

    Args:
        dtype: what gradients are sent in; None: as they are.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype

    def start(self, flat: Tensor, weights: Sequence[Tensor], addresses: Sequence[int]) -> None:
        """Puts the mean in the place of `flat`, at the latest when the running backward pass ends.

        Args:
            flat: gradients of all weights, which autograd is about to take as their `.grad`.
            weights: those of the tower.
            addresses: where in memory the gradient of each weight begins. No tensors: autograd takes a gradient only
                if nobody else holds it, and copies it otherwise.

        Raises RuntimeError at the end of the backward pass where a weight's `.grad` is not the memory of the mean.
        """
        finish = self._send(flat)
        # Autograd adds to a gradient that is there already as soon as the node returns.
        if any(weight.grad is not None for weight in weights):
            finish()
            return

        def at_the_end() -> None:
            finish()
            # A copy, made before the mean arrived, would be this process's own gradient without a word.
            pairs = zip(weights, addresses, strict=True)
            if any(weight.grad is None or weight.grad.data_ptr() != address for weight, address in pairs):
                raise RuntimeError(
                    "a gradient of a recorded tower was copied before it was averaged over the processes, by a hook or "
                    "a second use of the weight: leave that out, or cuda_graphs=False"
                )

        engine: Any = Variable._execution_engine
        # The engine calls it with the streams of the caller of backward() as the current ones: so the clipping and the
        # optimiser behind it wait, and the text tower's backward pass, in between, does not.
        engine.queue_callback(at_the_end)

    def _send(self, flat: Tensor) -> Callable[[], object]:
        """Starts the all-reduce; returns what makes the current stream wait for its result in `flat`."""
        work: Any
        if self._dtype is None and dist.get_backend() == dist.Backend.NCCL:
            work = dist.all_reduce(flat, dist.ReduceOp.AVG, async_op=True)
            return work.wait
        # Divided first, in the dtype that is sent, as DDP and its bf16_compress_hook do; gloo has no mean.
        sent = (flat if self._dtype is None else flat.to(self._dtype)).div_(dist.get_world_size())
        work = dist.all_reduce(sent, async_op=True)
        if self._dtype is None:
            return work.wait

        def unpack() -> None:
            work.wait()
            flat.copy_(sent)
            if sent.is_cuda:
                # Its memory belongs to the stream of the node, which may be another one.
                sent.record_stream(torch.cuda.current_stream(sent.device))

        return unpack


def ignore_in_ddp(wrapped: nn.Module, weights: Collection[nn.Parameter]) -> None:
    """Has DDP, which is about to wrap a module, leave some of its weights alone: neither broadcast nor averaged."""
    own = set(weights)
    names = [name for name, weight in wrapped.named_parameters(remove_duplicate=False) if weight in own]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(wrapped, names)


def begin_as_the_first(weights: Mapping[str, Tensor]) -> None:
    """Gives every process the first one's values of weights that DDP ignores, as DDP does with all others.

    All processes call it, with the weights on their device. Raises UserError, on every process, unless all of them
    average the same weights: one that leaves its gradients to DDP would wait for collectives that never come.
    """
    first, *others = ranks.all_gather(lambda: list(weights))
    for number, other in enumerate(others, start=1):
        if other != first:
            raise UserError(
                f"process {number} records {len(other)} weights' gradients by CUDA graphs and process 0 {len(first)}: "
                "give all processes the same options, GPUs and packages, or --model.cuda_graphs false"
            )
    for weight in weights.values():
        dist.broadcast(weight.detach(), src=0)
