"""What the blocks of a tar say: headers and pax records; no byte is believed unchecked. `tar_sparse` has the rest.

Forms: POSIX.1-2008 `pax` (ustar and extended headers) and the GNU tar manual, "Tar Internals". Where those leave room,
the reading is that of Python's `tarfile`.
"""

import contextlib
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
# Of names: what is not UTF-8 stays distinct, printable and writable as JSON.
NAME_CODING = ("utf-8", "backslashreplace")
# A length of more digits is no length, and Python's int() is slow with long ones.
MAX_DIGITS = 20
CHECKSUM = slice(148, 156)
_PREFIX = slice(345, 500)
_GNU_TIME = slice(345, 357)
_POSITIVE, _NEGATIVE = 0o200, 0o377  # first bytes of GNU's base-256 numbers


class BadHeader(ValueError):
    """A block that is no header, or records that make no sense."""


class Header(NamedTuple):
    """A member's header; `size` counts the bytes that follow it in the archive."""

    name: str
    size: int
    kind: bytes


def parse_header(block: bytes) -> Header:
    """The header in a block of 512 bytes; raises BadHeader for a wrong checksum or length."""
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
    if block[_PREFIX.start] and kind not in (GNU_LONG_NAME, GNU_LONG_LINK, GNU_SPARSE):
        # GNU tar keeps a time where POSIX keeps the folder; its magic alone does not tell which of the two it is.
        has_time = False
        if block[MAGIC] == GNU_MAGIC:
            with contextlib.suppress(BadHeader):
                number(block[_GNU_TIME])
                has_time = True
        if not has_time:
            raw = until_zero(block[_PREFIX]) + b"/" + raw
    return Header(raw.decode(*NAME_CODING), size, kind)


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
        # Also what ends the loop: a record that is accepted has a length of at least five.
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
