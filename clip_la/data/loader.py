"""The DataLoader of a ShardStream. Free of Lightning, so that spawned loader processes start in little time."""

import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from clip_la.data.stream import Batch, ShardStream, StreamFailure
from clip_la.errors import UserError


class ShardLoader(DataLoader):
    """Batches of a stream, from its workers by turns.

    Args:
        stream: what to read.
        start_method: of the worker processes, "fork", "spawn" or "forkserver"; the platform's own if None.
        prefetch_batches: how many batches each worker makes ahead.
        pin_memory: put tensors into page-locked memory, for quick copies to a GPU.

    Raises (while iterating):
        UserError: what the stream could not go on with, as the one line it is.
    """

    def __init__(
        self,
        stream: ShardStream,
        *,
        workers: int,
        start_method: str | None = None,
        prefetch_batches: int = 2,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            stream,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            multiprocessing_context=start_method if workers else None,
            prefetch_factor=prefetch_batches if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_interrupts,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, StreamFailure):
                raise UserError(batch.message)
            yield batch


def _ignore_interrupts(worker: int) -> None:
    """A terminal's Ctrl-C reaches all processes; what to do about it is for the training process to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _unchanged(batch: Any) -> Any:
    return batch
