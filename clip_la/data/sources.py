"""Where shards come from: local paths, brace ranges, globs and lists; anything fsspec opens; `pipe:COMMAND`."""

import glob
import io
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import braceexpand

from clip_la.errors import UserError

PIPE = "pipe:"
READ_AHEAD_BYTES = 1 << 20


def is_remote(url: str) -> bool:
    """True for what is opened through fsspec (`s3://`, `gs://`, `https://` and so on)."""
    return "://" in url and not url.startswith((PIPE, "file://"))


def expand_urls(spec: str | Iterable[str]) -> list[str]:
    """One address a shard, from a path, a brace range (`{0000..0100}.tar`), a glob, `a::b`, or a list of these.

    Raises:
        UserError: a local shard is missing, a glob or a folder matches nothing, or the list is empty.
    """
    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    urls = [url for one in specs for url in _expand(os.fspath(one))]
    if not urls:
        raise UserError("no shards given; name a path, a brace range like '/data/{00000..00099}.tar' or a glob")
    return urls


def _expand(spec: str) -> list[str]:
    if spec.startswith(PIPE):
        return list(braceexpand.braceexpand(spec))
    return [url for one in spec.split("::") for brace in _braces(one) for url in _matches(brace)]


def _braces(spec: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(spec))
    except ValueError as error:
        raise UserError(f"shards '{spec}': braces do not balance; write '{{00000..00099}}.tar'") from error


def _matches(path: str) -> list[str]:
    if is_remote(path):
        return _remote_matches(path)
    path = os.path.expanduser(path.removeprefix("file://"))
    if os.path.isdir(path):
        path = os.path.join(path, "*.tar")
    if not glob.has_magic(path) or os.path.exists(path):
        if not os.path.exists(path):
            raise UserError(f"shard '{path}' does not exist")
        return [path]
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise UserError(f"no shard matches '{path}'")
    return found


def _remote_matches(url: str) -> list[str]:
    if not glob.has_magic(url.partition("://")[2].partition("?")[0]):
        return [url]
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    found = [system.unstrip_protocol(match) for match in sorted(system.glob(path))]
    if not found:
        raise UserError(f"no shard matches '{url}'")
    return found


class _Pipe(io.RawIOBase):
    """What a shell command prints; a failing command is an error, not an early end of the shard."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        assert self._process.stdout is not None
        count = self._process.stdout.readinto(buffer)  # type: ignore[attr-defined]
        if count == 0 and self._process.wait() != 0:
            raise OSError(f"'{PIPE}{self._command}' ended with exit code {self._process.returncode}")
        return int(count)

    def close(self) -> None:
        if not self.closed:
            assert self._process.stdout is not None
            self._process.stdout.close()
            if self._process.poll() is None:
                self._process.terminate()
            self._process.wait()
        super().close()


def open_shard(url: str) -> IO[bytes]:
    """Opens one shard for reading from front to back.

    Raises:
        UserError: the shard does not exist; the message names it.
    """
    if url.startswith(PIPE):
        return io.BufferedReader(_Pipe(url[len(PIPE) :]), READ_AHEAD_BYTES)
    try:
        if is_remote(url):
            import fsspec

            return io.BufferedReader(fsspec.open(url, "rb").open(), READ_AHEAD_BYTES)
        return open(url, "rb", buffering=READ_AHEAD_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"shard '{url}' does not exist") from error
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"shard '{url}' cannot be read: {error.strerror}") from error


def shard_name(url: str) -> str:
    """The short name of a shard in counts and messages: its file name."""
    return url if url.startswith(PIPE) else Path(url.partition("?")[0]).name
