"""Weights, gradients and moments divided among the processes (FSDP2): each holds its share and gathers the rest.

Lightning's ModelParallelStrategy sets the processes up; state goes in and out here in the form that one process has, so
that a checkpoint is one whole file, whatever strategy wrote it and whatever strategy goes on from it.
"""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from clip_la.models.clip import CLIP, empty_model


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes.

    Args:
        num_processes: of the whole job.
        reduce_dtype: what gradients are sent in; None: float32, as they are.
        timeout: how long a process waits for another one.
    """

    def __init__(self, num_processes: int, reduce_dtype: torch.dtype | None, timeout: timedelta) -> None:
        super().__init__(num_processes, 1, save_distributed_checkpoint=False, timeout=timeout)
        self._policy = MixedPrecisionPolicy(reduce_dtype=reduce_dtype)

    def shard(self, task: nn.Module, model: CLIP) -> None:
        """Divides the weights of both towers in place, block by block; gradients become means over the processes."""
        options: dict[str, Any] = {"mesh": self.device_mesh["data_parallel"], "mp_policy": self._policy}
        for tower, blocks in ((model.image, model.image.trunk.blocks), (model.text, model.text.blocks)):
            for block in blocks:
                fully_shard(block, **options)
            fully_shard(tower, **options)
        for parameter in task.parameters():
            # FSDP2 takes no scalars: logit scale and bias are whole in each process, and averaged here.
            if not isinstance(parameter, DTensor):
                parameter.register_post_accumulate_grad_hook(_average_grad)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors on the CPU; all processes call this."""
        assert self.model is not None
        return {name: whole(value).cpu() for name, value in self.model.state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As `optimizer.state_dict()` of one process, on the CPU; all processes call this."""
        state: dict[str, Any] = tree_map_only(Tensor, lambda value: whole(value).cpu(), optimizer.state_dict())
        return state

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """By way of the checkpoint IO, as in other strategies, which has the file in memory already."""
        checkpoint: dict[str, Any] = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        own = self.model.state_dict()
        shares = {name: share(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.model.load_state_dict(shares, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            # Numbered through the groups, as state_dict numbers them.
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            shares = {
                number: {name: share(value, parameters[number]) if value.ndim else value for name, value in own.items()}
                for number, own in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": shares})


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be divided among the processes, in one piece; all processes call this."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.full_tensor()


def share(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's part of a whole tensor that all processes have, divided as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_model(model: CLIP) -> CLIP:
    """The model itself, or where it is divided a copy in one piece on its device, in eval mode; by all processes."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    copy = empty_model(model.spec)
    copy.load_state_dict({name: whole(value) for name, value in model.state_dict().items()}, assign=True)
    return copy.eval()


def _average_grad(parameter: Tensor) -> None:
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()
