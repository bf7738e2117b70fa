"""What the blocks of a tar say: headers, pax records, the maps of sparse files; no byte is believed unchecked.

Forms: POSIX.1-2008 `pax` (ustar and extended headers) and the GNU tar manual, "Tar Internals". Where those leave room,
the reading is that of Python's `tarfile`.
"""

from typing import NamedTuple

BLOCK_BYTES = 512
REGULAR, OLD_REGULAR, CONTIGUOUS, GNU_SPARSE = b"0", b"\0", b"7", b"S"
HARD_LINK, SYMBOLIC_LINK, CHARACTER_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO = b"1", b"2", b"3", b"4", b"5", b"6"
GNU_LONG_NAME, GNU_LONG_LINK = b"L", b"K"
PAX, SOLARIS_PAX, PAX_GLOBAL = b"x", b"X", b"g"
# Members of these kinds carry no bytes, whatever their length field says; an unknown kind is a regular file's.
WITHOUT_BYTES = frozenset({HARD_LINK, SYMBOLIC_LINK, CHARACTER_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO})
MAGIC = slice(257, 265)
MAGIC_WORD = b"ustar"
GNU_MAGIC = b"ustar  \0"
# A length of more digits is no length, and Python's int() is slow with long ones.
MAX_DIGITS = 20
# Pieces of one sparse file: no picture has as many, and a map could be made to take memory instead of the data.
MAX_PIECES = 1 << 16
CHECKSUM = slice(148, 156)
_PREFIX = slice(345, 500)
_GNU_TIME = slice(345, 357)
_OLD_MAP, OLD_MAP_GOES_ON, _OLD_REAL_SIZE = slice(386, 482), 482, slice(483, 495)
_MAP_BLOCK, MAP_BLOCK_GOES_ON = slice(0, 504), 504
_NUMBER_BYTES = 12
_POSITIVE, _NEGATIVE = 0o200, 0o377  # first bytes of GNU's base-256 numbers


class BadHeader(ValueError):
    """A block that is no header, or records that make no sense."""


class Header(NamedTuple):
    """A member's header; `size` counts the bytes that follow it in the archive."""

    name: str
    size: int
    kind: bytes


class Piece(NamedTuple):
    """A part of a sparse file that is stored: `size` bytes that belong at `start`."""

    start: int
    size: int


def parse_header(block: bytes) -> Header:
    """Raises BadHeader for a wrong checksum or length."""
    checksum = number(block[CHECKSUM])
    # It counts its own eight bytes as spaces; old tars add the bytes as signed numbers.
    rest = block[: CHECKSUM.start] + block[CHECKSUM.stop :]
    total = sum(rest) + 8 * ord(" ")
    if checksum != total and checksum != total - 256 * sum(byte > 127 for byte in rest):
        raise BadHeader("checksum")
    size, kind = number(block[124:136]), block[156:157]
    if size < 0 and kind not in WITHOUT_BYTES:
        raise BadHeader("length")
    raw = until_zero(block[:100])
    if kind == OLD_REGULAR and raw.endswith(b"/"):
        kind = DIRECTORY
    if block[_PREFIX.start] and kind not in (GNU_LONG_NAME, GNU_LONG_LINK, GNU_SPARSE) and not _has_gnu_times(block):
        raw = until_zero(block[_PREFIX]) + b"/" + raw
    return Header(text(raw), size, kind)


def _has_gnu_times(block: bytes) -> bool:
    """GNU tar keeps a time where POSIX keeps the folder."""
    if block[MAGIC] != GNU_MAGIC:
        return False
    try:
        number(block[_GNU_TIME])
    except BadHeader:
        return False
    return True


def number(field: bytes) -> int:
    """A number field: octal digits, or base-256 after a byte of 0x80 (positive) or 0xff (negative)."""
    if field[0] in (_POSITIVE, _NEGATIVE):
        value = int.from_bytes(field[1:], "big")
        return value - (1 << 8 * (len(field) - 1)) if field[0] == _NEGATIVE else value
    try:
        return int(until_zero(field).decode("ascii").strip() or "0", 8)
    except ValueError as error:
        raise BadHeader("number") from error


def until_zero(field: bytes) -> bytes:
    """The field up to its first zero byte."""
    return field.partition(b"\0")[0]


def text(raw: bytes) -> str:
    """A name. What is not UTF-8 stays distinct, printable and writable as JSON."""
    return raw.decode("utf-8", "backslashreplace")


def pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records "LENGTH KEY=VALUE\\n" of an extended header, in order; LENGTH counts the whole record.

    Raises BadHeader for a length that is no number, is too short for its record or reaches beyond the data.
    """
    records = []
    at = 0
    while at < len(data) and data[at]:
        digits, space, _ = data[at : at + MAX_DIGITS].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[at + len(digits) + 1 : at + length]
        key, separator, value = record.partition(b"=")
        # Also what ends the walk: a record that is accepted has a length of at least five.
        if not (key and separator and record.endswith(b"\n")) or at + length > len(data):
            raise BadHeader("pax record")
        records.append((key, value[:-1]))
        at += length
    return records


def decimal(digits: bytes) -> int:
    """A number of a pax record."""
    if not digits.isdigit() or len(digits) > MAX_DIGITS:
        raise BadHeader("pax number")
    return int(digits)


def old_map(block: bytes) -> tuple[list[Piece], int]:
    """Of an old GNU sparse header: its pieces, and the file's real size. Blocks follow while `*_GOES_ON` is set."""
    return _pieces(block[_OLD_MAP]), number(block[_OLD_REAL_SIZE])


def old_map_block(block: bytes) -> list[Piece]:
    """The pieces in a block that follows an old GNU sparse header."""
    return _pieces(block[_MAP_BLOCK])


def _pieces(entries: bytes) -> list[Piece]:
    numbers = [entries[i : i + _NUMBER_BYTES] for i in range(0, len(entries), _NUMBER_BYTES)]
    return [Piece(number(start), number(count)) for start, count in zip(numbers[::2], numbers[1::2], strict=True)]


def pax_map(numbers: list[bytes]) -> list[Piece]:
    """The pieces of a list "start, count, start, count, ..."."""
    if len(numbers) % 2 or len(numbers) > 2 * MAX_PIECES:
        raise BadHeader("sparse map")
    values = [decimal(digits) for digits in numbers]
    return [Piece(*pair) for pair in zip(values[::2], values[1::2], strict=True)]


def leading_map(data: bytes) -> tuple[list[Piece], bytes]:
    """Pax sparse 1.0: the map that stands before the bytes, a number a line, filled up to whole blocks; the bytes."""
    count = data[: MAX_DIGITS + 1].partition(b"\n")[0]
    num = 2 * decimal(count)
    if num > 2 * MAX_PIECES:
        raise BadHeader("sparse map")
    lines = data.split(b"\n", num + 1)
    if len(lines) < num + 2:
        raise BadHeader("sparse map")
    length = len(data) - len(lines[-1])
    return pax_map(lines[1:-1]), data[length + -length % BLOCK_BYTES :]


def expanded(stored: bytes, pieces: list[Piece], size: int) -> bytes:
    """The sparse file of `size` bytes, zeros where nothing is stored.

    Raises BadHeader for pieces that overlap, lie outside, or need more bytes than are stored.
    """
    parts: list[bytes] = []
    end = taken = 0
    for start, count in pieces:
        if not count:
            continue
        if count < 0 or start < end or start + count > size or taken + count > len(stored):
            raise BadHeader("sparse map")
        parts += (bytes(start - end), stored[taken : taken + count])
        end, taken = start + count, taken + count
    return b"".join((*parts, bytes(size - end)))
