"""Files that are whole or absent: temporary file beside the target, fsync, rename."""

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PART = ".part"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO]:
    """Opens a temporary file beside `path`; renames it onto `path` once the block ends well, removes it otherwise.

    Raises OSError naming `path` where the disk is full or nothing can be written there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=PART)
    except OSError as error:
        # Of the temporary file nobody has heard.
        raise OSError(error.errno, error.strerror, str(target)) from None
    try:
        # mkstemp gives 0600; a result is as readable as any other file of this user.
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(handle, 0o666 & ~umask)
        # On disk before it has its name: after a crash the file is the old one or the new one, never a part.
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, target)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        # A writer such as torch.save may have wrapped the error of a full disk in one of its own.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in DISK_FULL:
                raise OSError(cause.errno, cause.strerror, str(target)) from error
            cause = cause.__cause__ or cause.__context__
        raise


def remove_unfinished(folder: Path, pattern: str = "*", older_than_s: float = 0.0) -> None:
    """Removes the temporary files that killed writers of files `pattern` have left in a folder.

    A file that changed less than `older_than_s` seconds ago stays: its writer may be at work. With the default of 0 no
    other process may be writing there.
    """
    for path in folder.glob(f".{pattern}.*{PART}"):
        try:
            if time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()
        except FileNotFoundError:  # it has just got its name, or another process has removed it
            continue
