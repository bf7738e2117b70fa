"""Training whose decoder sleeps goes on; one whose loader process dies or hangs ends with one line."""

import multiprocessing
import os
import signal
import time

import pytest
from PIL import Image

from clip_la.cli import main
from clip_la.data.shards import problems, watch
from clip_la.data.shards.reader import ShardWriter
from clip_la.data.stream import watched_loader
from clip_la.runs import RunFolder

from .conftest import drawing

ODD = drawing("red", "circle", 0) + b"odd"
BATCH = 8


def sleep():
    time.sleep(1000)


def hang():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(1000)


def term():
    os.kill(os.getpid(), signal.SIGTERM)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def options(tmp_path, monkeypatch):
    """A run of twelve batches a pass, the eleventh of which meets the odd picture, if it is not shuffled before."""
    monkeypatch.setenv(watch.VARIABLE, "0.5")
    monkeypatch.setattr(watch, "GRACE_S", 0.1)
    monkeypatch.setattr(watched_loader, "POLL_S", 0.2)
    with ShardWriter(tmp_path / "0.tar") as writer:
        for n in range(24):
            png = ODD if n == 20 else drawing("blue", "square", n % 6)
            writer.write({"__key__": f"k{n:02d}", ".png": png, ".txt": f"a thing {n}"})
    return [
        *("--model.name", "vit_pico", "--data.shards", str(tmp_path / "0.tar"), "--data.batch_size", str(BATCH)),
        *("--data.workers", "1", "--data.start_method", "fork", "--tensorboard", "false", "--accelerator", "cpu"),
        *("--budget_samples", str(6 * BATCH), "--save_every_samples", str(BATCH), "--out", str(tmp_path / "run")),
        *("--data.bad_share_limit", "1"),
    ]


def train(monkeypatch, options, act):
    opened = Image.open

    def odd(stream, *args, **more):
        if stream.getvalue() == ODD:
            act()
        return opened(stream, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", odd)
        return main(["train", *options])


def test_a_sample_that_sleeps_is_passed_over(options, monkeypatch, capfd):
    assert train(monkeypatch, options, sleep) == 0
    err = capfd.readouterr().err
    assert f"samples skipped: {problems.TOOK_TOO_LONG} " in err
    assert "sample k20 of " in err


def test_a_sigterm_to_all_processes_is_for_the_training_process_to_answer(options, monkeypatch, capfd):
    """Loader processes that it ended would end the run before it has saved."""
    assert train(monkeypatch, options, term) == 0
    assert "samples skipped" not in capfd.readouterr().err
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("act", "how"), [(hang, "took more than 0.5 s; take the sample out"), (die, "was killed by SIGKILL")]
)
def test_a_worker_that_is_gone_ends_the_run_in_one_line_and_loses_nothing(
    options, tmp_path, monkeypatch, capfd, act, how
):
    assert train(monkeypatch, options, act) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith(f"clip-la: error: sample k20 of {tmp_path / '0.tar'}: ")
    assert how in lines[-1]
    assert "--resume" in lines[-1]
    assert not any("Traceback" in line for line in lines)
    before = max(RunFolder(tmp_path / "run").saved_checkpoints(), default=0)
    # What it was is mended.
    assert main(["train", *options, "--resume"]) == 0
    assert max(RunFolder(tmp_path / "run").saved_checkpoints()) == 6 * BATCH > before
