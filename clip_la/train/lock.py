"""One process at a time trains into a run's folder, or runs a sweep in its own."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from clip_la.errors import UserError, printable

LOCK = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)


@contextlib.contextmanager
def locked(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Holds FOLDER/.lock inside the block; the file names this process, for who finds it held, and is removed after.

    The lock is the kernel's (POSIX, by process): it ends with the process, also by SIGKILL, whatever the file still
    says, and the workers that a killed process leaves behind do not hold it. Over NFS it holds between machines. A file
    system without locks gives none: `report` gets a line then, and the run goes on.

    Args:
        folder: made if it is not there, and removed again if nothing else was written into it.

    Raises:
        UserError: another process has the lock.
    """
    is_new, path = not folder.exists(), folder / LOCK
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _acquired(path, report) as stream:
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            stream.flush()
            try:
                yield
            finally:
                # While it is held: afterwards it would be the next process's file.
                path.unlink(missing_ok=True)
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # something was written into it
                folder.rmdir()


def _acquired(path: Path, report: Callable[[str], None]) -> IO[str]:
    """The open file, locked. Closing any other handle on it in this process would end the lock."""
    while True:
        stream = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                stream.seek(0)
                holder = printable(stream.read().strip()) or "another process"
                stream.close()
                raise UserError(
                    f"{path.parent} is in use: {holder} trains into it; wait for it or stop it, or give another --out"
                ) from None
            report(
                f"{path.parent} lies on a file system without locks ({os.strerror(error.errno or 0)}): nothing keeps a "
                "second process from training into it"
            )
            return stream
        # Whoever had it may have removed the file between our opening and locking it: that lock would mean nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        stream.close()
