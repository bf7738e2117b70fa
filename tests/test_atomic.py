"""A file has its name once it is whole; what a killed writer leaves is found and removed, and nothing else."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from clip_la.atomic import atomic_write, remove_unfinished

KILLED = """
import os, signal, sys
from clip_la.atomic import atomic_write
with atomic_write(sys.argv[1]) as stream:
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_writer(path):
    run = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert run.returncode == -signal.SIGKILL


def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_write(path) as stream:
        stream.writelines([b"new", "not bytes"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    assert path.read_bytes() == b"old"


def test_what_killed_writers_leave_is_removed(tmp_path):
    for name in ("a.ckpt", "b.json"):
        killed_writer(tmp_path / name)
    others = {".hidden", "c.part", ".part", "a.ckpt.x.part"}
    for name in others:
        (tmp_path / name).touch()
    left = {path.name for path in tmp_path.iterdir()} - others
    assert len(left) == 2
    remove_unfinished(tmp_path, "*.json")
    assert [path.name[:7] for path in tmp_path.iterdir() if path.name not in others] == [".a.ckpt"]
    remove_unfinished(tmp_path, older_than_s=60)
    (unfinished,) = (path for path in tmp_path.iterdir() if path.name not in others)
    os.utime(unfinished, (time.time() - 61,) * 2)
    remove_unfinished(tmp_path, older_than_s=60)
    assert {path.name for path in tmp_path.iterdir()} == others
    remove_unfinished(tmp_path / "absent")


def test_a_full_disk_is_named_whatever_the_writer_makes_of_it(tmp_path):
    """torch.save answers one with a RuntimeError about positions in its file."""
    import resource

    import torch

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"a\.ckpt") as caught, atomic_write(tmp_path / "a.ckpt") as stream:
            torch.save({"weights": torch.zeros(100_000)}, stream)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []
