"""What a process hears of another one that leaves, and of one that fails. (test_launched.py has whole jobs.)"""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from clip_la.train.rank_watch import LEFT, RankWatch

PATIENCE_S = 20.0


def until(has_come: Any) -> None:
    """Waits for it; fails after PATIENCE_S."""
    end = time.monotonic() + PATIENCE_S
    while not has_come():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RankWatch, RankWatch]]:
    """Those of two processes, here in one, each of which has heard the other."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    ports: list[int] = []

    def broadcast(port: int) -> int:
        ports.append(port)
        return ports[0]

    both = RankWatch(), RankWatch()
    for rank, watch in enumerate(both):
        trainer: Any = SimpleNamespace(global_rank=rank, world_size=2, strategy=SimpleNamespace(broadcast=broadcast))
        watch.setup(trainer, None, "fit")  # type: ignore[arg-type]
    until(lambda: LEFT not in (both[0]._heard[1], both[1]._heard[0]))
    yield both
    for watch in both:
        watch._end()


@pytest.mark.parametrize("first", [0, 1])
def test_one_that_has_come_to_its_end_is_not_waited_for(watches: tuple[RankWatch, RankWatch], first: int) -> None:
    """Also the first one, which keeps what the others ask: they may have much to do after it."""
    leaving, staying = watches[first], watches[1 - first]
    leaving.teardown(None, None, "fit")  # type: ignore[arg-type]
    until(lambda: staying._heard[first] == LEFT)


@pytest.mark.parametrize("first", [0, 1])
def test_one_that_fails_alone_is_waited_for(watches: tuple[RankWatch, RankWatch], first: int) -> None:
    failing, staying = watches[first], watches[1 - first]
    failing.on_exception(None, None, OSError("disk full"))  # type: ignore[arg-type]
    assert failing._speaker is not None
    assert not failing._speaker.is_alive()
    beats = watches[1 - first]._store
    assert beats is not None
    assert beats.get(str(first)) != LEFT.encode()
    staying.teardown(None, None, "fit")  # type: ignore[arg-type]
