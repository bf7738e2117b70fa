"""Decoders that hang and workers that die, in every pass over shards: named, counted, and the rest is done."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from clip_la.cli import main
from clip_la.data.shards import problems
from clip_la.data.shards.problems import BadSample, Problem
from clip_la.data.shards.reader import ShardWriter, read_samples
from clip_la.data.shards.sources import ShardOpener, open_shard
from clip_la.data.shards.watch import VARIABLE, At, TimeLimit, sample_seconds
from clip_la.errors import UserError

from .test_hostile import script

SECONDS = "0.3"
PNG = script("hostile_shards").saved("PNG")
# What stands in the picture files that a decoder of the children below sleeps at, hangs at or dies of.
SLEEPS, HANGS, DIES = b"sleeps", b"hangs", b"dies"
# The command as a user starts it, but for what Pillow does with three files; its workers import this file too.
CHILD = f"""
import os, signal, sys, time
from PIL import Image
from clip_la.data.shards import watch
watch.GRACE_S = 0.2
opened = Image.open
def odd(stream, *args, **options):
    data = stream.getvalue() if hasattr(stream, "getvalue") else b""
    if data == {SLEEPS!r}:
        time.sleep(1000)
    if data == {HANGS!r}:  # as a loop in C: no signal comes through
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(1000)
    if data == {DIES!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return opened(stream, *args, **options)
Image.open = odd
if __name__ == "__main__":
    from clip_la.cli import main
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv(VARIABLE, SECONDS)
    monkeypatch.setattr("clip_la.data.shards.watch.GRACE_S", 0.1)


def write(folder, odd):
    """A shard of four pairs for each of the files `odd`, which is the picture of its third pair."""
    folder.mkdir(exist_ok=True)
    for shard, picture in enumerate(odd):
        with ShardWriter(folder / f"{shard}.tar") as writer:
            for n in range(4):
                writer.write({"__key__": f"k{shard}{n}", "png": picture if n == 2 else PNG, "txt": f"caption {n}"})
    return folder


def run(folder, *arguments):
    """(exit code, what it printed as JSON, stderr)."""
    program = folder.parent / "child.py"
    program.write_text(CHILD)
    done = subprocess.run(
        [sys.executable, str(program), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout, done.stderr


def test_verify_and_pack_go_on_past_all_of_it(tmp_path):
    folder = write(tmp_path / "shards", [SLEEPS, HANGS, DIES])
    skipped = {problems.TOOK_TOO_LONG: 2, problems.WORKER_DIED: 1}
    code, report, stderr = run(folder, "data", "verify", folder, "--workers", 2, "--json")
    assert code == 1
    assert (report["samples"], report["usable"], report["skipped"]) == (12, 9, skipped)
    assert report["by_shard"][str(folder / "1.tar")]["skipped"] == {problems.TOOK_TOO_LONG: 1}
    assert_named(stderr, "sample k{0}2 of {1}", folder)

    out = tmp_path / "out"
    code, packed, stderr = run(folder, "data", "pack", folder, out, "--workers", 2, "--per-shard", 4, "--json")
    assert code == 0
    assert (packed["packed"], packed["skipped"]) == (9, skipped)
    assert_named(stderr, "sample {0}.tar/k{0}2 of ", folder)


def test_read_goes_on_past_it_in_a_single_shard(tmp_path):
    folder = write(tmp_path / "shards", [DIES])
    found, counts, stderr = run(folder, "data", "read", folder, "--workers", 2, "--image-size", 16, "--json")
    assert (found, counts["ok"], counts["skipped"]) == (1, 3, {problems.WORKER_DIED: 1})
    assert f"sample k02 of {folder / '0.tar'}" in stderr


def test_a_script_without_a_guard_is_not_run_again_by_its_workers(tmp_path):
    folder = write(tmp_path / "shards", [PNG, PNG])
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom clip_la.cli import main\n"
        f"Path({str(tmp_path / 'once')!r}).mkdir()\nsys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, str(script), "data", "verify", str(folder), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_name_from_a_shard_neither_begins_a_line_nor_steers_the_terminal(tmp_path, capsys):
    key = "k\nclip-la: error: no disk\x1b[2J"
    with ShardWriter(tmp_path / "0.tar") as writer:
        writer.write({"__key__": key, "png": b"x", "txt": "odd"})
        writer.write({"__key__": "good", "png": PNG, "txt": "a thing"})
    for command in (["read", tmp_path], ["verify", tmp_path], ["pack", tmp_path, tmp_path / "out"]):
        main(["data", *map(str, command), "--workers", "1"])
        said = capsys.readouterr()
        assert r"k\nclip-la: error: no disk\x1b[2J" in said.out
        assert key not in said.out + said.err
    (tmp_path / "set").mkdir()
    with ShardWriter(tmp_path / "set/0.tar") as writer:
        writer.write({"__key__": key, "png": b"x", "txt": "odd"})
    assert main(["data", "pack", str(tmp_path / "set"), str(tmp_path / "none"), "--workers", "1"]) == 2
    assert "\x1b" not in capsys.readouterr().err
    assert str(At(1, 0.0, 0, "0.tar", key)).isprintable()
    assert str(Problem(problems.NO_IMAGE, "0.tar", key)).isprintable()


def assert_named(stderr, form, folder):
    """Each of the three samples has its lines: those that a process hangs or dies at are tried twice."""
    for shard, times in enumerate((1, 2, 2)):
        told = form.format(shard, folder / f"{shard}.tar")
        assert sum(told in line for line in stderr.splitlines()) == times, stderr


def test_one_process_is_interrupted_where_it_sleeps(tmp_path):
    folder = write(tmp_path / "shards", [SLEEPS])
    _, report, _ = run(folder, "data", "verify", folder, "--workers", 1, "--json")
    assert (report["usable"], report["skipped"]) == (3, {problems.TOOK_TOO_LONG: 1})


def test_the_option_says_how_long(tmp_path):
    folder = write(tmp_path / "shards", [b"x"])
    code, _, stderr = run(folder, "data", "read", folder, "--sample-seconds", "0")
    assert code == 2
    assert "sample" in stderr
    assert len(stderr.splitlines()) == 1


CREW = """
import os, signal, sys, time
from clip_la.data.shards import crew, watch
from clip_la.errors import UserError
watch.GRACE_S = 0.1

def killed_once(job, skips):
    if job == 1 and not os.path.exists(sys.argv[1]):
        open(sys.argv[1], "w").close()
        watch.note("1.tar", "k", 7)
        os.kill(os.getpid(), signal.SIGKILL)
    return job, skips

def dies_at_five(job, skips):
    for number in range(5):
        if job == 1 and number not in skips:
            watch.note("1.tar", str(number), number)
            os.kill(os.getpid(), signal.SIGKILL)
    return sorted(skips)

def hangs_while_reading(job, skips):
    if job == 1:
        watch.note("1.tar")
        time.sleep(1000)
    return job

def raises(job, skips):
    if job == 1:
        raise UserError("shard 1 is not there")
    return job

def is_full(job, skips):
    raise OSError(28, "No space left on device", "a.tar")

if __name__ == "__main__":
    print(list(crew.run_jobs(killed_once, [0, 1, 2], 2)))
    if len(sys.argv) > 2:
        sys.exit(print(list(crew.run_jobs(dies_at_five, [0, 1], 2))))
    first, lost, last = crew.run_jobs(hangs_while_reading, [0, 1, 2], 2)
    print(first, last, isinstance(lost, crew.Lost), lost.reason, lost.at)
    try:
        list(crew.run_jobs(raises, [0, 1, 2], 2))
    except UserError as error:
        print(error)
    try:
        list(crew.run_jobs(is_full, [0, 1], 2))
    except OSError as error:
        print(error.filename, error.strerror)
"""


def test_jobs_are_done_whatever_becomes_of_workers(tmp_path):
    """One killed from outside costs nothing; a shard that cannot be read on is lost; an error is the caller's."""
    (tmp_path / "crew.py").write_text(CREW)
    done = subprocess.run(
        [sys.executable, tmp_path / "crew.py", tmp_path / "died"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "[(0, {}), (1, {}), (2, {})]",
        f"0 2 True {problems.TOOK_TOO_LONG} 1.tar",
        "shard 1 is not there",
        "a.tar No space left on device",
    ]
    assert done.stderr.splitlines() == [
        "sample k of 1.tar: the worker was killed by SIGKILL (out of memory?); the shard is begun again",
        "1.tar: took more than 0.3 s; the shard is given up",
    ]


def test_five_samples_of_a_job_may_stop_it_twice_each(tmp_path):
    (tmp_path / "crew.py").write_text(CREW)
    done = subprocess.run(
        [sys.executable, tmp_path / "crew.py", tmp_path / "died", "five"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[[], [0, 1, 2, 3, 4]]"


def test_a_limit_holds_inside_code_that_catches_everything(capfd):
    def decode():
        with TimeLimit("0.tar", "k"), contextlib.suppress(Exception):
            time.sleep(1000)

    with pytest.raises(BadSample, match=problems.TOOK_TOO_LONG):
        decode()
    assert capfd.readouterr().err == "sample k of 0.tar: took more than 0.3 s; skipped\n"
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "x"])
def test_the_limit_is_a_positive_number(monkeypatch, given):
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(UserError, match=f"'{given}'"):
        sample_seconds()


def test_a_named_pipe_and_a_silent_command_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(UserError, match=r"0\.tar' does not open"):
        open_shard(str(tmp_path / "0.tar"))
    shards = write(tmp_path / "shards", [b"x"])
    opener = ShardOpener(retries=0)
    with pytest.raises(UserError, match="printed nothing for"):
        list(read_samples(f"pipe:head -c 600 {shards}/0.tar; sleep 1000", opener=opener))
