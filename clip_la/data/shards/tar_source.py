"""The bytes that a tar is read from: plain or gzipped, within bounds; after damage, from the next header on."""

import contextlib
import gzip
import zlib
from types import SimpleNamespace
from typing import IO, Any

from clip_la.data.shards import problems, tar_headers
from clip_la.data.shards.tar_headers import BLOCK_BYTES, MAGIC, MAGIC_WORD, BadHeader, parse_header

SKIP_CHUNK_BYTES = 1 << 20
# How far after damage another header is looked for, and how much at a time.
REACH_BYTES = 256 << 20
SEARCH_BYTES = 64 << 10
GZIP_MAGIC = b"\x1f\x8b"
# A gzipped tar may unpack to this and so many times its own size; a bomb has a thousand times its size.
FREE_UNPACKED_BYTES = 1 << 30
MAX_RATIO = 100


class TarDamage(Exception):
    """The tar cannot be read further. `reason` is one of `problems`; `name` the member it happened in, if known."""

    def __init__(self, reason: str, name: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.name = name


class TarSource:
    """The bytes of a tar, unpacked where it is gzipped; bytes can be put back.

    Args:
        stream: anything with a `read(size)` that gives fewer bytes than asked for only at the end.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        head = stream.read(len(GZIP_MAGIC))
        is_packed = head == GZIP_MAGIC
        self._stream: Any = _Unzipped(stream, head) if is_packed else stream
        self._held = b"" if is_packed else head

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end."""
        if not self._held:
            return self._stream.read(size)
        data, self._held = self._held[:size], self._held[size:]
        return data if len(data) == size else data + self._stream.read(size - len(data))

    def exactly(self, size: int, name: str) -> bytes:
        """So many bytes; also reads what fills up their last block. Raises TarDamage where they end too soon."""
        padding = -size % BLOCK_BYTES
        data = self.read(size + padding)
        if len(data) < size:
            raise TarDamage(problems.SHARD_TRUNCATED, name)
        return data[:size] if padding else data

    def skip(self, size: int, name: str) -> None:
        """As `exactly`, without keeping the bytes."""
        left = size + -size % BLOCK_BYTES
        while left:
            data = self.read(min(left, SKIP_CHUNK_BYTES))
            if not data:
                raise TarDamage(problems.SHARD_TRUNCATED, name)
            left -= len(data)

    def goes_on(self) -> bool:
        """To be called at the tar's end mark: whether anything but zeros follows.

        Reads what fills the tar up, behind which the checksum of a gzipped one stands.
        """
        for _ in range(REACH_BYTES // SEARCH_BYTES):
            data = self.read(SEARCH_BYTES)
            if data.strip(b"\0"):
                return True
            if not data:
                return False
        return False

    def find_header(self, damaged: bytes) -> bool:
        """Moves to the next header after a block that is none; False where there is none within reach.

        Headers with a magic word are found anywhere, those of old tars at whole blocks from here.
        """
        window, first = damaged, 1
        at_block = 0  # where in the window a whole block begins
        for _ in range(REACH_BYTES // SEARCH_BYTES):
            more = self.read(SEARCH_BYTES)
            window += more
            place = _first_header(window, first, at_block)
            if place is not None:
                self._held = window[place:] + self._held
                return True
            if not more:
                return False
            # A header may lie across two reads: its first bytes stay in the window.
            dropped = max(len(window) - BLOCK_BYTES + 1, 0)
            window, first, at_block = window[dropped:], 0, (at_block - dropped) % BLOCK_BYTES
        return False


def _first_header(window: bytes, first: int, at_block: int) -> int | None:
    """The first place, from `first` on, at which a whole header lies in the window."""
    places = set(range(at_block, len(window) - BLOCK_BYTES + 1, BLOCK_BYTES))
    magic = window.find(MAGIC_WORD, first + MAGIC.start)
    while magic >= 0:
        places.add(magic - MAGIC.start)
        magic = window.find(MAGIC_WORD, magic + 1)
    for place in sorted(places):
        block = window[place : place + BLOCK_BYTES]
        # A block of zeros with nothing but a checksum is no header anybody wrote, though it would parse.
        if place < first or len(block) < BLOCK_BYTES or not block[0]:
            continue
        # Parsing sums up all bytes: most places that are none are seen from one byte.
        if block[tar_headers.CHECKSUM.start] in b" 01234567":
            with contextlib.suppress(BadHeader):
                parse_header(block)
                return place
    return None


class _Unzipped:
    """A gzipped tar's bytes, within bounds. `head` was read from the stream already."""

    def __init__(self, stream: IO[bytes], head: bytes) -> None:
        self._packed = stream
        self._head = head
        self._packed_bytes = self._unpacked_bytes = 0
        self._stream = gzip.GzipFile(fileobj=SimpleNamespace(read=self._read_packed))

    def _read_packed(self, size: int = -1) -> bytes:
        data, self._head = self._head or self._packed.read(size), b""
        self._packed_bytes += len(data)
        return data

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._stream.read(size)
        except EOFError as error:
            raise TarDamage(problems.SHARD_TRUNCATED) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise TarDamage(problems.SHARD_DAMAGED) from error
        self._unpacked_bytes += len(data)
        if self._unpacked_bytes > FREE_UNPACKED_BYTES + MAX_RATIO * self._packed_bytes:
            raise TarDamage(problems.SHARD_BOMB)
        return data
