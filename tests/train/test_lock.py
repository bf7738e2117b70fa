"""One process at a time trains into a folder, however the others ended."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

from clip_la.cli import main
from clip_la.runs import checkpoint_name
from clip_la.train.lock import LOCK, locked

from .runs import BATCH, PATIENCE_S, start_process, wait_for_checkpoint

ATTEMPT = """
import sys
from pathlib import Path
from clip_la.train.lock import locked

with locked(Path(sys.argv[1]), print):
    print("locked too")
"""


def test_a_second_process_gets_one_line_and_a_killed_one_leaves_no_lock(run_options, tmp_path: Path, capsys):
    run = tmp_path / "run"
    options = [*run_options, "--data.workers", "2", "--data.cache", "none", "--model.schedule", "constant"]
    options += ["--save_every_samples", str(BATCH), "--budget_samples", str(100_000 * BATCH)]
    process = start_process(run, options)
    try:
        wait_for_checkpoint(process, run, 2 * BATCH)
        before = (run / "metrics.csv").exists()
        for second in (["--resume", "--out", str(run)], [*options, "--out", str(run)]):
            assert main(["train", *second]) == 2
            shown = capsys.readouterr().err
            assert f"{run} is in use: process {process.pid} on " in shown
            assert shown.count("\n") == 1
        assert process.poll() is None
        assert (run / "metrics.csv").exists() == before
        # The process alone: its workers live on for a while.
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_S)
        assert (run / LOCK).exists()
        reached = max(int(path.stem.split("=")[1]) for path in (run / "checkpoints").glob("samples=*.ckpt"))
        budget = reached + 2 * BATCH
        assert main(["train", "--resume", "--out", str(run), "--budget_samples", str(budget)]) == 0
        assert (run / "checkpoints" / checkpoint_name(budget)).exists()
        assert not (run / LOCK).exists()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_file_system_without_locks_is_told_of(run_options, tmp_path: Path, capsys, monkeypatch):
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert main(["train", *run_options, "--budget_samples", str(BATCH), "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err.count("lies on a file system without locks (No locks available)") == 1


def test_a_folder_that_nothing_was_written_into_is_not_left(tmp_path: Path):
    with locked(tmp_path / "run", print):
        assert (tmp_path / "run" / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert not (tmp_path / "run").exists()


def test_a_file_removed_before_it_was_locked_is_no_lock(tmp_path: Path, monkeypatch):
    """Another process ends, and removes its file, between the opening and the locking of it here."""
    lockf, path = fcntl.lockf, tmp_path / LOCK

    def late(*args: object) -> None:
        monkeypatch.setattr(fcntl, "lockf", lockf)
        path.unlink()
        path.touch()
        lockf(*args)

    monkeypatch.setattr(fcntl, "lockf", late)
    with locked(tmp_path, print):
        command = [sys.executable, "-c", ATTEMPT, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.stdout == ""
        assert f"{tmp_path} is in use: process {os.getpid()}" in done.stderr
