"""Two real processes under torchrun: an error is told once and ends both, and a rank that is gone is named."""

import io
import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
from PIL import Image

from clip_la import launched
from clip_la.data.shards.reader import ShardWriter
from clip_la.errors import UserError

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# The command as a user starts it, but that something happens to rank 1 at its third batch.
CHILD = """
import os, signal, sys
from clip_la.cli import main
from clip_la.data.stream.sample_iterator import SampleIterator
from clip_la.errors import UserError
from clip_la.train import rank_watch
if sys.argv[1] == "stop":
    rank_watch.SILENT_S = 5.0
next_sample, calls = SampleIterator.next_sample, []

def odd(self, draws):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 20:
        if sys.argv[1] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[1] == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        raise UserError("shard 7 is not there")
    return next_sample(self, draws)

SampleIterator.next_sample = odd
sys.exit(main(sys.argv[2:]))
"""


def run(*command):
    """The ended process; its stderr without what shells and PyTorch's logging of other things may add."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    # The pipes close when the last process has ended.
    return subprocess.run(
        [*TORCHRUN, *command], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def train(folder, what):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "PNG")
    with ShardWriter(folder / "0.tar") as writer:
        for n in range(32):
            writer.write({"__key__": f"{n:04d}", "png": buffer.getvalue(), "txt": f"a {n}"})
    (folder / "child.py").write_text(CHILD)
    options = ["--model.name", "vit_pico", "--data.shards", folder / "0.tar", "--data.batch_size", "16"]
    options += ["--data.workers", "0", "--tensorboard", "false", "--accelerator", "cpu", "--out", folder / "run"]
    return run(folder / "child.py", what, "train", *options, "--budget_samples", "16000")


def test_an_error_of_all_ranks_is_one_line_and_nothing_else(tmp_path):
    done = run("-m", "clip_la", "eval", "x", "--data", tmp_path / "none")
    assert done.returncode == -signal.SIGUSR1
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"clip-la: error: no data at {tmp_path / 'none'}")
    assert done.stdout == ""


def test_an_error_of_one_rank_ends_both_in_one_line(tmp_path):
    done = train(tmp_path, "raise")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("vit_pico: ", "warning: batch_size"))]
    assert lines == ["clip-la: error: shard 7 is not there"]


def test_a_killed_rank_ends_the_other_and_is_named(tmp_path):
    done = train(tmp_path, "die")
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("clip-la: error: ")]
    assert len(told) == 1, done.stderr
    assert told[0].startswith("clip-la: error: rank 1 of 2 is gone: killed, or out of memory")


def test_a_silent_rank_ends_the_other_and_is_named(tmp_path):
    """Long before a collective call gives up, which takes a quarter of an hour."""
    done = train(tmp_path, "stop")
    assert done.returncode == -signal.SIGUSR1
    told = [line for line in done.stderr.splitlines() if not line.startswith(("vit_pico: ", "warning: batch_size"))]
    assert len(told) == 1, done.stderr
    assert told[0].startswith("clip-la: error: rank 1 of 2 has been silent for 5 s")
    assert "--resume" in told[0]


def test_only_what_comes_of_other_ranks_is_told_of_them(monkeypatch):
    closed = RuntimeError("[/x/gloo/pair.cc:5] Read error [127.0.0.1]:1: Connection reset by peer. Check the logs.\nx")
    assert launched.lost_rank(closed) is None  # one process has no others
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    told = launched.lost_rank(closed)
    assert told is not None
    assert "another rank of 2 does not answer (seen by rank 1: Read error  Connection reset by peer);" in told
    assert launched.lost_rank(RuntimeError("shapes do not match")) is None
    # The first rank was refused before the processes met.
    unmet = RuntimeError("Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server crash?")
    assert launched.lost_rank(unmet) is not None


@pytest.mark.parametrize(("given", "seconds"), [(None, 900), ("", 900), ("7.5", 7.5)])
def test_how_long_ranks_wait_for_each_other(monkeypatch, given, seconds):
    monkeypatch.delenv(launched.RANK_SECONDS_VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(launched.RANK_SECONDS_VARIABLE, given)
    assert launched.rank_timeout() == timedelta(seconds=seconds)


@pytest.mark.parametrize("given", ["0", "-3", "15m", "nan", "inf", "1e300"])
def test_what_is_no_time_to_wait_is_refused(monkeypatch, given):
    monkeypatch.setenv(launched.RANK_SECONDS_VARIABLE, given)
    with pytest.raises(UserError, match=rf"CLIP_LA_RANK_SECONDS is '{given}': give the seconds"):
        launched.rank_timeout()


def test_processes_that_the_first_one_starts_tell_of_an_error_once():
    """As with --devices 2: the first process has no LOCAL_RANK, those it starts have one."""
    error = "import sys; from clip_la import cli; code = cli._fail('clip-la', 'wrong')"
    first = f"import os, subprocess; {error}; env = {{**os.environ, 'LOCAL_RANK': '1'}}; subprocess.run("
    first += f"[sys.executable, '-c', {error!r}], env=env); sys.exit(code)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", first], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (2, "clip-la: error: wrong\n")
