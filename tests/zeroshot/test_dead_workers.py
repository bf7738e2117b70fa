"""An evaluation whose worker hangs or dies goes on, with all other pictures and one line that says at which."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_la.data.shards import problems, watch
from clip_la.data.stream import watched_loader
from clip_la.models.clip import CLIP
from clip_la.zeroshot.labels import prompts
from clip_la.zeroshot.tasks.classification import Evaluation, evaluate_zeroshot

from .conftest import picture, write_shards

# The ninth picture of all: the second of the second shard.
ODD, ODD_KEY = picture(108), "s0008"


def sleep() -> None:
    time.sleep(1000)


def hang() -> None:
    """As a loop in C does: no signal comes through."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(1000)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(mark: Path) -> Callable[[], None]:
    def act() -> None:
        if not mark.exists():
            mark.touch()
            die()

    return act


@pytest.fixture
def odd_picture(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Lets every process that decodes that picture do something else first."""
    opened = Image.open

    def install(act: Callable[[], None]) -> None:
        def odd(stream: Any, *args: Any, **options: Any) -> Image.Image:
            if stream.getvalue() == ODD:
                act()
            return opened(stream, *args, **options)

        monkeypatch.setattr(Image, "open", odd)

    monkeypatch.setenv(watch.VARIABLE, "0.5")
    monkeypatch.setattr(watch, "GRACE_S", 0.1)
    monkeypatch.setattr(watched_loader, "POLL_S", 0.2)
    return install


def evaluate(model: CLIP, folder: Path, num_workers: int) -> Evaluation:
    templates = prompts.PromptSet("one", ("a photo of a {c}.",))
    return evaluate_zeroshot(
        model, str(folder), templates=templates, batch_size=2, num_workers=num_workers, progress=False
    )


@pytest.mark.parametrize(
    ("act", "workers", "reason", "lines"),
    [
        (sleep, 0, problems.TOOK_TOO_LONG, 1),
        (sleep, 2, problems.TOOK_TOO_LONG, 1),
        (hang, 2, problems.TOOK_TOO_LONG, 1),
        (die, 2, problems.WORKER_DIED, 2),
    ],
)
def test_the_others_are_evaluated(
    act: Callable[[], None],
    workers: int,
    reason: str,
    lines: int,
    tiny_model: CLIP,
    tmp_path: Path,
    odd_picture: Callable[[Callable[[], None]], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_shards(tmp_path / "things")
    whole = evaluate(tiny_model, tmp_path / "things", 0).predictions
    odd_picture(act)
    found = evaluate(tiny_model, tmp_path / "things", workers)
    kept = whole.keys != ODD_KEY
    assert kept.sum() == 17
    assert np.array_equal(found.predictions.keys, whole.keys[kept])
    assert np.array_equal(found.predictions.scores, whole.scores[kept])
    assert found.line["skipped"] == {reason: 1}
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith(f"sample {ODD_KEY} of ")]
    assert len(said) == lines


def test_one_death_from_outside_changes_nothing(
    tiny_model: CLIP, tmp_path: Path, odd_picture: Callable[[Callable[[], None]], None]
) -> None:
    write_shards(tmp_path / "things")
    whole = evaluate(tiny_model, tmp_path / "things", 0).predictions
    odd_picture(die_once(tmp_path / "died"))
    found = evaluate(tiny_model, tmp_path / "things", 2)
    assert (tmp_path / "died").exists()
    assert np.array_equal(found.predictions.scores, whole.scores)
    assert found.line["skipped"] == {}
