"""Every touch of what Lightning keeps private, in one place: each checks that what it touches is there.

Lightning may change these between releases without a word; then the functions here raise and name it, where a plain
assignment would do nothing.
"""

import importlib
from typing import Any

import pytorch_lightning as pl


def process_rank() -> int:
    """This process's number, from the environment of torchrun or SLURM, before the processes have met; else 0.

    Raises:
        RuntimeError: this release of Lightning has no `_get_rank`.
    """
    get_rank = _needed(importlib.import_module("lightning_fabric.utilities.rank_zero"), "_get_rank")
    return int(get_rank() or 0)


def ask_for_no_signals(trainer: pl.Trainer) -> None:
    """Lightning asks all processes before each step for a SIGTERM and waits for the GPU to answer; not any more.

    Raises:
        RuntimeError: the loop of this release of Lightning has no `_broadcast_sigterm_tensor`.
    """
    loop = trainer.fit_loop.epoch_loop
    _needed(loop, "_broadcast_sigterm_tensor")
    loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def _needed(owner: Any, name: str) -> Any:
    if not hasattr(owner, name):
        where = getattr(owner, "__name__", type(owner).__name__)
        raise RuntimeError(
            f"pytorch-lightning {pl.__version__} has no {where}.{name}; clip_la needs a release that has"
        )
    return getattr(owner, name)
