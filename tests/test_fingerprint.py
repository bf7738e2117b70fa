"""Hashes of files: of the content, whatever names, sizes and times say; remembered only where that is safe."""

import hashlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip_la import fingerprint
from clip_la.fingerprint import UNREADABLE, combined, file_hash, file_hashes, stream_hash


@pytest.fixture
def database(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clip_la" / "file_hashes.sqlite"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The files that are read, not known; all files count as settled at once."""
    monkeypatch.setattr(fingerprint, "RACY_S", -1.0)
    read, found = fingerprint._File.read, []
    monkeypatch.setattr(fingerprint._File, "read", lambda path: (found.append(Path(path).name), read(path))[1])
    return found


def expected(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def test_many_files_in_their_order_and_read_once(database: Path, reads: list[str], tmp_path: Path):
    paths = [tmp_path / f"{i}" for i in range(1100)]
    for number, path in enumerate(paths):
        path.write_bytes(b"x" * (number % 7) + str(number % 50).encode())
    wanted = [expected(path.read_bytes()) for path in paths]
    assert list(file_hashes(paths)) == wanted
    assert len(reads) == 1100
    reads.clear()
    assert list(file_hashes(reversed(paths))) == wanted[::-1]
    assert not reads
    with paths[3].open("rb") as stream:
        assert stream_hash(stream) == wanted[3]


def same_size_same_mtime(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def renamed_over(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"other")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)


def other_target(path: Path) -> None:
    (path.parent / "second").write_bytes(b"other")
    path.unlink()
    path.symlink_to("second")


def swapped_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("before"))
    path.parent.mkdir()
    path.write_bytes(b"other")


@pytest.mark.parametrize("change", [same_size_same_mtime, renamed_over, other_target, swapped_folder])
def test_other_content_of_equal_size_is_seen(database: Path, reads: list[str], tmp_path: Path, change):
    target = tmp_path / "folder" / "target"
    target.parent.mkdir()
    target.write_bytes(b"first")
    path = target.parent / "link"
    path.symlink_to("target")
    if change is not other_target:
        path = target
    assert file_hash(path) == file_hash(path) == expected(b"first")
    assert reads == [path.name]
    change(path)
    assert file_hash(path) == expected(b"other")


def test_a_file_as_young_as_a_tick_of_the_clock_is_not_trusted(database: Path, tmp_path: Path, monkeypatch):
    path = tmp_path / "young"
    path.write_bytes(b"first")
    assert file_hash(path) == expected(b"first")
    # The same time and inode, as a second edit within one tick leaves them; only the content differs.
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM files").fetchone() == (0,)
    now = time.time()
    monkeypatch.setattr(fingerprint.time, "time", lambda: now + 10)
    assert file_hash(path) == expected(b"first")
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM files").fetchone() == (1,)
    # A time ahead of this machine's clock is no settled one.
    monkeypatch.setattr(fingerprint.time, "time", lambda: now - 10)
    ahead = tmp_path / "ahead"
    ahead.write_bytes(b"x")
    file_hash(ahead)
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM files").fetchone() == (1,)


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    database: Path, reads: list[str], tmp_path: Path, monkeypatch
):
    path = tmp_path / "growing"
    path.write_bytes(b"1")
    digest = hashlib.file_digest

    def slow(stream, make):
        found = digest(stream, make)
        with path.open("ab") as more:
            more.write(b"1")
        return found

    monkeypatch.setattr(fingerprint.hashlib, "file_digest", slow)
    file_hash(path)
    monkeypatch.setattr(fingerprint.hashlib, "file_digest", digest)
    reads.clear()
    assert file_hash(path) == expected(path.read_bytes())
    assert reads


def test_what_is_no_file_has_no_content(database: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    names = ["absent", "pipe", "dangling", ".", "x" * 300, "zero\0byte", "pipe/x"]
    assert list(file_hashes(f"{tmp_path}/{name}" for name in names)) == [UNREADABLE] * 7
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    Path(odd).write_bytes(b"odd")
    assert file_hash(odd) == expected(b"odd")


def half(database: Path) -> None:
    database.write_bytes(database.read_bytes()[: database.stat().st_size // 2])


@pytest.mark.parametrize(
    "harm",
    [
        half,
        lambda database: database.write_bytes(b"no database at all" * 100),
        lambda database: (database.unlink(), database.mkdir()),
        lambda database: database.write_bytes(b""),
    ],
    ids=["cut", "nonsense", "folder", "empty"],
)
def test_a_damaged_database_costs_time_alone(database: Path, reads: list[str], tmp_path: Path, harm):
    (tmp_path / "a").write_bytes(b"a")
    file_hash(tmp_path / "a")
    harm(database)
    assert [file_hash(tmp_path / "a") for _ in range(3)] == [expected(b"a")] * 3
    assert len(reads) <= (4 if database.is_dir() else 3)


def test_no_place_for_a_database(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_bytes(b"a")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert file_hash(tmp_path / "file") == expected(b"a")


def test_a_locked_database_is_done_without(database: Path, reads: list[str], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fingerprint, "LOCK_WAIT_S", 0.0)
    (tmp_path / "a").write_bytes(b"a")
    file_hash(tmp_path / "a")
    with sqlite3.connect(database, isolation_level=None) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert file_hash(tmp_path / "a") == expected(b"a")
    reads.clear()
    assert file_hash(tmp_path / "a") == expected(b"a")
    assert not reads


def test_several_processes_at_once(database: Path, tmp_path: Path):
    for number in range(700):
        (tmp_path / f"{number}").write_bytes(str(number).encode())
    code = (
        "import sys; from clip_la import fingerprint; fingerprint.RACY_S = -1.0\n"
        f"paths = [f'{tmp_path}/{{i}}' for i in range(700)]\n"
        "print(fingerprint.combined(fingerprint.file_hashes(paths)))"
    )
    how = {"stdout": subprocess.PIPE, "text": True, "cwd": Path(fingerprint.__file__).parents[1]}
    running = [subprocess.Popen([sys.executable, "-c", code], **how) for _ in range(4)]
    wanted = combined(expected(str(number).encode()) for number in range(700))
    assert [process.communicate()[0].strip() for process in running] == [wanted] * 4
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM files").fetchone() == (700,)


def test_lines_do_not_run_into_each_other():
    assert len({combined(lines) for lines in (["ab", "c"], ["a", "bc"], ["abc"], ["a\nb"], ["a", "b"], [])}) == 6
    assert combined(["\udce9"]) == combined(["\udce9"])
