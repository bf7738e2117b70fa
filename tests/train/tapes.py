"""CUDA graphs' part on any machine: a tape of operators that runs again on the same tensors, as a replay does."""

from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from clip_la.train import graphed
from clip_la.train.graphed import GraphedTower

# Of operators whose result the host must know before it can go on: a stream that is captured refuses them.
WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# What copies numbers of Python's to a device.
FROM_THE_HOST = torch.ops.aten.lift_fresh.default


def storages(values):
    """Where the tensors among values, nested or not, lie."""
    return {x.untyped_storage().data_ptr() for x in tree_leaves(values) if isinstance(x, torch.Tensor)}


def is_made(x, given):
    """Whether an operator's result has memory of its own, unlike views and what is changed in place."""
    return isinstance(x, torch.Tensor) and not storages(x) & given


def waits(func, args):
    """Whether the host waits for the device in an operator."""
    if func is torch.ops.aten.index.Tensor:
        return any(x.dtype == torch.bool for x in args[1] if x is not None)
    return func is FROM_THE_HOST or bool(WAITING & set(func.tags))


class Tape(TorchDispatchMode):
    """A torch.cuda.CUDAGraph as far as this repository uses it.

    Python runs once, while the tape records. A replay does what the operators did, into the tensors that they made
    then: whoever still holds one of these sees it overwritten. Tapes of one pool share their memory: what the others
    have made, and this one does not read, is NaN afterwards.
    """

    def __init__(self):
        super().__init__()
        self._calls, self._written, self._reads, self._pool = [], set(), set(), []

    @contextmanager
    def into(self, pool):
        """Records what happens inside the block."""
        self._pool = pool
        pool.append(self)
        with self:
            yield

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if waits(func, args):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        given = storages((args, kwargs))
        self._reads |= given - self._written
        # Tensors of its own on the same memory: shapes may be changed in place.
        own_args, own_kwargs = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs))
        result = func(*args, **kwargs)
        made = [x.detach() if is_made(x, given) else None for x in tree_leaves(result)]
        self._written |= storages(made)
        if torch.Tag.inplace_view not in func.tags:
            self._calls.append((func, own_args, own_kwargs, made))
        return result

    def replay(self):
        # As a graph's kernels: no autograd, and no autocast of whoever replays.
        with torch._C._AutoDispatchBelowAutograd(), torch._C._DisableAutocast():
            for other in self._pool:
                if other is not self:
                    other.overwrite(self._reads)
            for func, args, kwargs, made in self._calls:
                for old, new in zip(made, tree_leaves(func(*args, **kwargs)), strict=True):
                    if old is not None:
                        old.copy_(new)

    def overwrite(self, kept):
        """Another replay has used the memory of this tape's results, but for those that it reads."""
        for *_, made in self._calls:
            for x in made:
                if x is not None and x.is_floating_point() and not storages(x) & kept:
                    x.fill_(torch.nan)


def record_on_the_cpu(patch):
    """Towers on a processor are recorded from now on, by tapes; `patch` is a MonkeyPatch."""
    patch.setattr(GraphedTower, "device_type", "cpu")
    patch.setattr(graphed, "_recording_stream", lambda device: None)
    patch.setattr(torch.cuda, "CUDAGraph", Tape)
    patch.setattr(torch.cuda, "graph", lambda tape, pool, **_: tape.into(pool))
    patch.setattr(torch.cuda, "graph_pool_handle", list)
    patch.setattr(torch.cuda, "stream", nullcontext)
    patch.setattr(torch.cuda, "synchronize", lambda: None)
    patch.setattr(torch.cuda, "current_device", lambda: 0)
