"""Sharing work over the ranks of a torch.distributed job; with no job there is one rank.

An error on one rank must not leave the others waiting: every rank reaches `all_gather`, with a result or with an error,
and if one brings an error all of them raise it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from clip_la import launched
from clip_la.errors import UserError

T = TypeVar("T")
MAX_WORKERS = 16


def rank() -> int:
    """This process's number among those of the job."""
    return dist.get_rank() if joined() else 0


def world_size() -> int:
    """How many processes the job has."""
    return dist.get_world_size() if joined() else 1


def joined() -> bool:
    """Whether this process has joined a job."""
    return dist.is_available() and dist.is_initialized()


def all_gather(work: Callable[[], T]) -> list[T]:
    """Runs `work` here, then gives every rank the results of all ranks, in rank order.

    Raises:
        UserError: `work` raised one on some rank; every rank raises the first rank's. Other errors of other ranks
            arrive as RuntimeError, so that no rank waits for one that has gone.
    """
    if world_size() == 1:
        return [work()]
    result: Any = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    gathered: list[Any] = [None] * world_size()
    # In a form that every process can unpickle: classes of errors may be known to one process alone.
    portable: Exception | None = None
    if error is not None:
        is_wrong_input = isinstance(error, UserError)
        portable = UserError(str(error)) if is_wrong_input else RuntimeError(f"{type(error).__name__}: {error}")
    dist.all_gather_object(gathered, (result, portable))
    if error is not None:
        raise error
    failed = next((other for _, other in gathered if other is not None), None)
    if failed is not None:
        raise failed
    return [other for other, _ in gathered]


def join_from_environment() -> int:
    """Joins the job that torchrun or SLURM describes in the environment, on gloo; returns this process's local rank.

    Results are a few bytes an image and the classifier is tens of megabytes, so the CPU's backend serves CPU and GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not joined():
        dist.init_process_group("gloo", timeout=launched.rank_timeout())
    return int(os.environ.get("LOCAL_RANK", "0"))


def default_workers() -> int:
    """Worker processes for this rank: its part of the cores that are its job's (`launched.core_share`), at most 16."""
    return max(1, min(MAX_WORKERS, launched.core_share() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def leave() -> None:
    """Ends this process's part in the job, if there is one."""
    if joined():
        dist.destroy_process_group()


@contextmanager
def membership() -> Iterator[int]:
    """Inside, this process has joined the job that its environment describes; gives its local rank.

    It leaves at the end, unless it had joined before: a caller's own job is not ours to end.
    """
    was_joined = joined()
    try:
        yield join_from_environment()
    finally:
        if not was_joined:
            leave()
