"""Remote shards and pipes as one unbroken stream of bytes: what breaks is opened again at the byte where it broke."""

import contextlib
import io
import logging
import os
import select
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import IO, Any

from clip_la.data.shards.watch import rest, sample_seconds
from clip_la.errors import UserError

PIPE = "pipe:"
READ_AHEAD_BYTES = 1 << 20
# Object stores are asked for so many bytes at a time: long against their latency, little to ask for again.
REQUEST_BYTES = 8 << 20
HTTP = ("http://", "https://")
TIMEOUT_S = 60.0
PARTIAL_CONTENT = 206
GONE = (404, 410)
WORTH_ANOTHER_TRY = (408, 425, 429)
FIRST_SERVER_ERROR = 500
LONGEST_WAIT_S = 60.0
# What a command gets to end by itself.
CLOSING_S = 2.0

logger = logging.getLogger(__name__)


def is_remote(url: str) -> bool:
    """True for `https://`, `s3://`, `gs://` and whatever else fsspec knows."""
    return "://" in url and not url.startswith((PIPE, "file://"))


class Resuming(io.RawIOBase):
    """The bytes of a remote shard or a pipe.

    Raises (on opening or reading):
        UserError: the shard does not exist, its file system is not installed, or all tries failed.
    """

    def __init__(self, url: str, retries: int, backoff_s: float) -> None:
        self._url = url
        self._retries = retries
        self._backoff_s = backoff_s
        self._offset = 0
        self._size: int | None = None
        self._stream: IO[bytes] | io.RawIOBase | None = None
        self._try(self._open)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._try(lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _try(self, act: Callable[[], Any]) -> Any:
        """Does `act`, again and again with longer and longer waits. Tries are counted anew after each success."""
        rest()  # the network has limits of its own
        for attempt in range(self._retries + 1):
            try:
                return act()
            except FileNotFoundError as error:
                raise UserError(f"shard '{self._url}' does not exist") from error
            except ImportError as error:
                raise UserError(f"shard '{self._url}': {error}") from error
            except UserError:
                raise
            # Network libraries raise exceptions of many families; each is worth another try.
            except Exception as error:
                self._drop()
                if attempt == self._retries:
                    raise UserError(
                        f"shard '{self._url}' cannot be read beyond byte {self._offset} after {attempt + 1} tries: "
                        f"{error or type(error).__name__}"
                    ) from error
                wait_s = min(self._backoff_s * 2**attempt, LONGEST_WAIT_S)
                logger.warning("%s: %r at byte %d; again in %.1f s", self._url, error, self._offset, wait_s)
                time.sleep(wait_s)
        raise AssertionError("a loop with at least one turn")

    def _read(self, size: int) -> bytes:
        stream = self._stream or self._open()
        data = stream.read(size) or b""
        if not data and self._size is not None and self._offset < self._size:
            raise EOFError(f"ended at byte {self._offset} of {self._size}")
        return data

    def _open(self) -> IO[bytes] | io.RawIOBase:
        if self._url.startswith(PIPE):
            self._stream = _Pipe(self._url[len(PIPE) :])
            _skip_to(self._stream, self._offset)
        elif self._url.startswith(HTTP):
            self._stream = self._open_http()
        else:
            import fsspec

            try:
                system, path = fsspec.core.url_to_fs(self._url)
            except ValueError as error:
                raise UserError(f"shard '{self._url}': {error}") from error
            self._stream = system.open(path, "rb", block_size=REQUEST_BYTES, cache_type="readahead")
            self._size = getattr(self._stream, "size", None)
            _skip_to(self._stream, self._offset)
        return self._stream

    def _open_http(self) -> IO[bytes]:
        """One answer streamed from the offset on: unlike requests for blocks, what came before a drop is not lost."""
        headers = {"Range": f"bytes={self._offset}-"} if self._offset else {}
        try:
            answer = urllib.request.urlopen(urllib.request.Request(self._url, headers=headers), timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code in GONE:
                raise FileNotFoundError(self._url) from error
            if error.code < FIRST_SERVER_ERROR and error.code not in WORTH_ANOTHER_TRY:
                raise UserError(f"shard '{self._url}' cannot be read: {error.code} {error.reason}") from error
            raise
        length = answer.headers.get("Content-Length")
        is_whole = not self._offset or answer.status != PARTIAL_CONTENT
        self._size = (0 if is_whole else self._offset) + int(length) if length else None
        # A server that knows no ranges sends all of it again.
        if is_whole:
            _skip_to(answer, self._offset)
        return answer

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except Exception as error:
                logger.debug("%s: %r on closing", self._url, error)


def _skip_to(stream: IO[bytes] | io.RawIOBase, offset: int) -> None:
    if stream.seekable():
        stream.seek(offset)
        return
    while offset:
        data = stream.read(min(offset, READ_AHEAD_BYTES))
        if not data:
            raise EOFError(f"ended {offset} bytes before the place to resume at")
        offset -= len(data)


class _Pipe(io.RawIOBase):
    """What a shell command prints; a failing command, or one that prints nothing for long, is an error, not an early
    end of the shard."""

    def __init__(self, command: str) -> None:
        # Unbuffered: a buffer would swallow what came before the failure.
        self._process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, bufsize=0, start_new_session=True)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        assert self._process.stdout is not None
        seconds = sample_seconds()
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise OSError(f"the command printed nothing for {seconds:g} s")
        count = self._process.stdout.readinto(buffer)  # type: ignore[attr-defined]
        if count == 0 and self._process.wait() != 0:
            raise OSError(f"the command ended with exit code {self._process.returncode}")
        return int(count)

    def close(self) -> None:
        if not self.closed:
            assert self._process.stdout is not None
            self._process.stdout.close()
            for number in (signal.SIGTERM, signal.SIGKILL):
                if self._process.poll() is None:
                    # The shell and what it has started.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(CLOSING_S)
        super().close()
