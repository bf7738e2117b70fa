"""Hashes of files' contents. A file is read once; from then on its path, size, times and inode identify it.

One small database, `$XDG_CACHE_HOME/clip_la/file_hashes.sqlite`, keeps the hashes. Where it is locked, damaged or
cannot be written, files are read again.
"""

import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

from tqdm import tqdm

# A clock ticks coarsely: a file changed so shortly before it is read may change once more without another time.
RACY_S = 2.0
THREADS = 16
FILES_A_TASK = 32
FILES_AT_ONCE = THREADS * FILES_A_TASK
# A file that changes while it is read is read again, so often.
TRIES = 3
UNREADABLE = "unreadable"
BLAKE2B = partial(hashlib.blake2b, digest_size=16)
LOCK_WAIT_S = 10.0


def file_hash(path: str | os.PathLike[str]) -> str:
    """`file_hashes` of one file."""
    return next(file_hashes([path]))


def file_hashes(paths: Iterable[str | os.PathLike[str]], total: int | None = None) -> Iterator[str]:
    """BLAKE2b of each file's bytes as 32 hex digits, in order; "unreadable" for what is no file or cannot be read.

    A link counts as what it points to. A file is read again unless path, size, mtime, ctime and inode are those it had
    when it was read, and it had then not been touched for RACY_S seconds. `total` is for the progress bar alone.
    """

    def look(path: str, known: _File | None) -> _File:
        try:
            # A pipe or a device would wait for ever.
            if not stat.S_ISREG((status := os.stat(path)).st_mode):
                return _File(path, "", UNREADABLE)
            return known if known is not None and known.state == _File.state_of(status) else _File.read(path)
        except (OSError, ValueError):  # ValueError: a name with a zero byte
            return _File(path, "", UNREADABLE)

    rest = iter(paths)
    bar = tqdm(desc="hashing files", total=total, unit="file", delay=3, leave=False, disable=None)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip_la" / "file_hashes.sqlite"
    with _Known(cache) as known, ThreadPoolExecutor(THREADS) as pool, bar:
        while batch := [os.path.abspath(path) for path in islice(rest, FILES_AT_ONCE)]:
            before = known.load(batch)
            tasks = [batch[start : start + FILES_A_TASK] for start in range(0, len(batch), FILES_A_TASK)]
            looked = pool.map(lambda task, before=before: [look(path, before.get(path)) for path in task], tasks)
            found = [each for task in looked for each in task]
            known.store([each for each in found if each.is_new])
            bar.update(len(found))
            yield from (each.digest for each in found)


def stream_hash(stream: IO[bytes]) -> str:
    """BLAKE2b of the rest of a stream as 32 hex digits: what `file_hashes` gives for a file of these bytes."""
    return hashlib.file_digest(stream, BLAKE2B).hexdigest()  # type: ignore[arg-type]


def combined(lines: Iterable[str]) -> str:
    """One hash of many lines, in their order."""
    digest = BLAKE2B()
    for line in lines:
        data = line.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%b" % (len(data), data))
    return digest.hexdigest()


def settled_states(paths: Sequence[str | os.PathLike[str]]) -> tuple[tuple[str, str], ...] | None:
    """Absolute path and state (size, times, inode) of each file: equal ones, later on, mean equal bytes.

    None where that cannot be said: no files, one that is none, or one that was touched within RACY_S seconds.
    """
    found = []
    for path in map(os.path.abspath, paths):
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode) or not _File.is_settled(status, time.time()):
            return None
        found.append((path, _File.state_of(status)))
    return tuple(found) or None


class _File(NamedTuple):
    """A file's hash, and the state it was in; `is_new` says that it was read just now and may be kept."""

    path: str
    state: str
    digest: str
    is_new: bool = False

    @classmethod
    def read(cls, path: str) -> "_File":
        """The hash of a file as it was for the whole of one reading."""
        digest = ""
        for _ in range(TRIES):
            with open(path, "rb", buffering=0) as stream:
                before, now = os.fstat(stream.fileno()), time.time()
                digest = hashlib.file_digest(stream, BLAKE2B).hexdigest()
                after = os.fstat(stream.fileno())
            if cls.state_of(before) == cls.state_of(after):
                return cls(path, cls.state_of(before), digest, cls.is_settled(before, now))
        return cls(path, "", digest)

    @staticmethod
    def is_settled(status: os.stat_result, now: float) -> bool:
        """Whether any later change will show in a file's times."""
        # A time ahead of this machine's clock, as a file server may set it, is no settled one either.
        return now - max(status.st_mtime, status.st_ctime) > RACY_S

    @staticmethod
    def state_of(status: os.stat_result) -> str:
        """What a file is known again by. ctime too, since mtime can be set back; inode, since a rename keeps both."""
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


class _Known:
    """The database; several processes may use it at once. After an error it knows nothing and keeps nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=LOCK_WAIT_S, check_same_thread=False)
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, state TEXT, digest TEXT) WITHOUT ROWID"
                )
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def load(self, paths: Sequence[str]) -> dict[str, _File]:
        """What is known of these files."""
        if self._connection is None:
            return {}
        marks = ",".join("?" * len(paths))
        try:
            rows = self._connection.execute(
                f"SELECT path, state, digest FROM files WHERE path IN ({marks})", [os.fsencode(path) for path in paths]
            ).fetchall()
        except sqlite3.Error as error:
            self._give_up(error)
            return {}
        return {os.fsdecode(path): _File(os.fsdecode(path), str(state), str(digest)) for path, state, digest in rows}

    def store(self, files: Sequence[_File]) -> None:
        """Keeps these for later calls."""
        if self._connection is None or not files:
            return
        rows = [(os.fsencode(file.path), file.state, file.digest) for file in files]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._close()
        # Operational errors are of the circumstances: locked, read-only, disk full. Others mean a damaged file.
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
