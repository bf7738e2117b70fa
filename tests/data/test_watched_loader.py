"""A loader's worker that stops before its first line is noticed."""

import os
import time
import warnings

import pytest
from torch.utils.data import IterableDataset

from clip_la.data.shards import problems
from clip_la.data.stream import watched_loader
from clip_la.data.stream.watched_loader import WatchedLoader, WorkerDied

# Forks still to come that stop in their child, as those do whose copy of a lock nobody opens.
_stopping: list[int] = []


def _stop_if_asked() -> None:
    if _stopping:
        time.sleep(600)


os.register_at_fork(after_in_child=_stop_if_asked)


class Numbers(IterableDataset):
    def __iter__(self):
        yield from range(3)


def test_more_workers_than_cores_are_no_warning():
    """PyTorch says so twice a loader, three lines each; training warns where batches are waited for."""
    many = 4 * (os.cpu_count() or 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WatchedLoader(Numbers(), num_workers=many, batch_size=None)


def test_a_worker_that_never_begins_is_reported_instead_of_waited_for(monkeypatch):
    monkeypatch.setattr(watched_loader, "BEGIN_S", 1.0)
    _stopping.append(1)
    try:
        with pytest.raises(WorkerDied, match="the loader process did not begin") as died:
            list(WatchedLoader(Numbers(), num_workers=1, batch_size=None, multiprocessing_context="fork"))
    finally:
        _stopping.clear()
    assert died.value.reason == problems.WORKER_DIED
    assert list(WatchedLoader(Numbers(), num_workers=1, batch_size=None, multiprocessing_context="fork")) == [0, 1, 2]
