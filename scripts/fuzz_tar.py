"""Differential fuzzing of the tar reader against Python's `tarfile`.

    python scripts/fuzz_tar.py [--cases 100000] [--seed 0]

Whole archives of every form must give the same members and bytes; of damaged ones whatever tarfile still reads must be
read too, but for as many members as damage is reported. Imported by tests, which run a few thousand cases.
"""

import argparse
import io
import random
import re
import signal
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from clip_la.data.shards import problems
from clip_la.data.shards.tar import TarDamage, read_members

BLOCK = 512
# Larger members of a damaged header are not compared: tarfile would make them in memory.
MAX_COMPARED = 4 << 20
# tarfile of some Python versions loops on negative lengths.
REFERENCE_LIMIT_S = 1.0
Members = list[tuple[str, bytes]]
GNU_TIME = b"13737461234"
_TIME = re.compile("^[0-7]{11}/")
NAMES = (b"k%03d.txt", b"folder/k%03d.png", b"./d.1/k%03d.JPG", b"n\xc3\xa9%03d.txt", b"n\xe9%03d.txt")
ENDS = (bytes(2 * BLOCK), bytes(BLOCK), bytes(20 * BLOCK), b"", bytes(2 * BLOCK) + b"rubbish" * 99)
NUMBERS = (
    b"-0000000005\0",
    b"00000000000\0",
    b"77777777777\0",
    b"00000001\0   ",
    b"\xff" * 12,
    b"\x80" + b"\0" * 10 + b"\7",
)


def padded(data: bytes) -> bytes:
    """Filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def sealed(header: bytearray, signed: bool = False) -> bytes:
    """The header with its checksum."""
    header[148:156] = b" " * 8
    total = sum(header) - (256 * sum(byte > 127 for byte in header) if signed else 0)
    header[148:156] = b"%06o\0 " % (total & 0o777777)
    return bytes(header)


def header(name: bytes, size: int, kind: bytes = b"0", magic: bytes = b"ustar\x0000", **options: Any) -> bytes:
    """One header block; `base256`, `prefix`, `signed` and `edit`, a function on the block, as options."""
    block = bytearray(BLOCK)
    block[: len(name[:100])] = name[:100]
    for start, value in ((100, 0o644), (108, 0), (116, 0)):
        block[start : start + 8] = b"%07o\0" % value
    block[124:136] = size.to_bytes(12, "big", signed=True) if options.get("base256") else b"%011o\0" % size
    if options.get("base256"):
        block[124] = 0xFF if size < 0 else 0x80
    block[136:148] = b"%011o\0" % 0
    block[156:157] = kind
    block[257:265] = magic
    prefix = options.get("prefix", b"")
    block[345 : 345 + len(prefix)] = prefix
    if "edit" in options:
        options["edit"](block)
    return sealed(block, options.get("signed", False))


def record(key: str, value: bytes) -> bytes:
    """One pax record."""
    rest = b" %s=%s\n" % (key.encode(), value)
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def extended(records: bytes, kind: bytes = b"x") -> bytes:
    """A pax header with its records."""
    return header(b"./PaxHeaders/x", len(records), kind) + padded(records)


Pieces = list[tuple[int, bytes]]


def _pieces(rng: random.Random, num: int) -> tuple[Pieces, int]:
    pieces, at = [], 0
    for _ in range(num):
        at += BLOCK * rng.randrange(1, 5)
        data = rng.randbytes(rng.choice((BLOCK, 2 * BLOCK, 100)))
        pieces.append((at, data))
        at += len(data)
    return pieces, at + BLOCK * rng.randrange(3)


def old_sparse(rng: random.Random, name: bytes) -> bytes:
    """A sparse file as GNU tar has long written it."""
    pieces, size = _pieces(rng, rng.choice((0, 1, 3, 4, 5, 26, 60)))
    entries = [b"%011o\0%011o\0" % (start, len(data)) for start, data in pieces]
    blocks = [entries[i : i + 21] for i in range(4, len(entries), 21)]

    def edit(block: bytearray) -> None:
        for i, entry in enumerate(entries[:4]):
            block[386 + 24 * i : 410 + 24 * i] = entry
        block[482] = bool(blocks)
        block[483:495] = b"%011o\0" % size

    stored = b"".join(data for _, data in pieces)
    more = b"".join(
        b"".join(b).ljust(504, b"\0") + bytes([i + 1 < len(blocks)]) + bytes(7) for i, b in enumerate(blocks)
    )
    return header(name, len(stored), b"S", b"ustar  \0", edit=edit) + more + padded(stored)


def pax_sparse(rng: random.Random, name: bytes) -> bytes:
    """A sparse file in one of the three pax forms."""
    pieces, size = _pieces(rng, rng.choice((0, 1, 4, 30)))
    numbers = [n for start, data in pieces for n in (start, len(data))]
    stored = b"".join(data for _, data in pieces)
    form = rng.randrange(3) if pieces else 2
    number = record("GNU.sparse.numblocks", b"%d" % len(pieces))
    if form == 0:
        maps = b"".join(
            record(f"GNU.sparse.{key}", b"%d" % n) for n, key in zip(numbers, ("offset", "numbytes") * 99, strict=False)
        )
        records = record("GNU.sparse.size", b"%d" % size) + number + maps
    elif form == 1:
        listed = record("GNU.sparse.map", ",".join(map(str, numbers)).encode())
        records = record("GNU.sparse.size", b"%d" % size) + number + record("GNU.sparse.name", name) + listed
    else:
        records = record("GNU.sparse.major", b"1") + record("GNU.sparse.minor", b"0")
        records += record("GNU.sparse.name", name) + record("GNU.sparse.realsize", b"%d" % size)
        stored = padded("".join(f"{n}\n" for n in (len(pieces), *numbers)).encode()) + stored
    return extended(records) + header(name if form == 0 else b"./GNUSparseFile.1/x", len(stored)) + padded(stored)


def member(rng: random.Random, number: int) -> bytes:
    """One entry of a kind drawn by `rng`, with all headers that belong to it."""
    name = (
        rng.choice((b"k%03d.txt", b"folder/k%03d.png", b"./d.1/k%03d.JPG", b"n\xc3\xa9%03d.txt", b"n\xe9%03d.txt"))
        % number
    )
    data = rng.randbytes(rng.choice((0, 1, 511, 512, 513, 3000)))
    body = padded(data)
    magic = rng.choice((b"ustar\x0000", b"ustar  \0"))
    long_name = b"long/" * rng.randrange(15, 60) + name
    kinds: list[Callable[[], bytes]] = [
        lambda: header(name, len(data), magic=magic) + body,
        lambda: header(name, len(data), rng.choice((b"\0", b"7")), magic=rng.choice((magic, bytes(8)))) + body,
        lambda: header(name, len(data), signed=True) + body,
        lambda: header(name, len(data), base256=True, magic=magic) + body,
        lambda: header(name, len(data), prefix=b"p/" * rng.randrange(1, 70) + b"q") + body,
        lambda: header(name, len(data), magic=b"ustar  \0", prefix=(GNU_TIME + b"\0") * 2) + body,
        lambda: header(name, len(data), rng.choice((b"Z", b"V", b"\xff", b"8", b"A"))) + body,
        lambda: header(name, 0, rng.choice((b"1", b"2", b"3", b"4", b"5", b"6"))),
        lambda: header(name + b"/", 0, b"\0"),
        lambda: (
            header(b"././@LongLink", len(long_name) + 1, b"L", b"ustar  \0")
            + padded(long_name + b"\0")
            + header(long_name[:100], len(data), magic=b"ustar  \0")
            + body
        ),
        lambda: header(b"././@LongLink", 200, b"K", b"ustar  \0") + padded(b"t" * 200) + header(name, 0, b"2"),
        lambda: extended(record("path", long_name) + record("mtime", b"1.5")) + header(name, len(data)) + body,
        lambda: extended(record("size", b"%d" % len(data))) + header(name, 0) + body,
        lambda: extended(record("comment", b"x" * rng.randrange(2000)), b"g") + header(name, len(data)) + body,
        lambda: (
            extended(record("path", b"first.txt")) + extended(record("path", b"x.y")) + header(name, len(data)) + body
        ),
        lambda: old_sparse(rng, name),
        lambda: pax_sparse(rng, name),
    ]
    return rng.choice(kinds)()


def archive(rng: random.Random) -> bytes:
    """A whole archive, with one of the ends that archives have."""
    data = b"".join(member(rng, number) for number in range(rng.randrange(1, 7)))
    return data + rng.choice(
        (bytes(2 * BLOCK), bytes(BLOCK), bytes(20 * BLOCK), b"", bytes(2 * BLOCK) + b"rubbish" * 99)
    )


NUMBERS = (
    b"-0000000005\0",
    b"00000000000\0",
    b"77777777777\0",
    b"00000001\0   ",
    b"\xff" * 12,
    b"\x80" + bytes(10) + b"\7",
    b"9",
)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """The archive with one to three things wrong."""
    raw = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        start = BLOCK * rng.randrange(max(len(raw) // BLOCK, 1))
        block = raw[start : start + BLOCK]
        way = rng.randrange(7)
        if way == 0 and block:  # a flipped bit, anywhere
            raw[start + rng.randrange(len(block))] ^= 1 << rng.randrange(8)
        elif way == 1 and len(block) == BLOCK:  # another byte under a right checksum
            block[rng.randrange(BLOCK)] = rng.choice((0, 32, 48, 49, 120, 255, rng.randrange(256)))
            raw[start : start + BLOCK] = sealed(block)
        elif way == 2 and len(block) == BLOCK:  # another length under a right checksum
            block[124:136] = rng.choice(NUMBERS).ljust(12, b"\0")
            raw[start : start + BLOCK] = sealed(block)
        elif way == 3:  # another length of a pax record
            place = raw.find(b"=", start)
            digits = raw.rfind(b" ", 0, place) - 1 if place > 0 else -1
            if digits > 0 and raw[digits : digits + 1].isdigit():
                raw[digits] = rng.choice(b"0123456789-")
        elif way == 4:
            del raw[rng.randrange(len(raw) + 1) :]
        elif way == 5:
            del raw[start : start + rng.choice((1, 100, BLOCK))]
        else:
            raw[start:start] = rng.choice(
                (rng.randbytes(BLOCK), bytes(BLOCK), extended(b"0 path=x\n"), rng.randbytes(77))
            )
    return bytes(raw)


def ours(data: bytes) -> tuple[Members, list[str]]:
    """What the reader under test gives: members, and the reasons of what is missing."""
    found: Members = []
    reasons: list[str] = []
    try:
        for each in read_members(io.BufferedReader(io.BytesIO(data))):  # type: ignore[arg-type]
            if each.reason is None:
                found.append((each.name, each.data))
            elif each.reason != problems.NOT_A_FILE:
                reasons.append(each.reason)
    except TarDamage as damage:
        reasons.append(damage.reason)
    return found, reasons


class _TookTooLong(Exception):
    pass


def _too_long(*_: Any) -> None:
    raise _TookTooLong


def theirs(data: bytes) -> tuple[Members, bool]:
    """What tarfile gives, and whether it came to the end of the archive; names are written as ours are."""
    found: Members = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for info in tar:
                if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES:
                    name = info.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                    if 0 <= info.size <= MAX_COMPARED:
                        stream = tar.extractfile(info)
                        assert stream is not None
                        found.append((name, stream.read()))
            rest = data[tar.offset : tar.offset + BLOCK]
            return found, not rest.strip(b"\0")
    # tarfile answers damage with whatever its code meets.
    except Exception:
        return found, False


def compare(data: bytes, whole: bool) -> str:
    """Raises AssertionError where the two readers differ beyond what damage explains; says how they agree."""
    mine, reasons = ours(data)
    signal.setitimer(signal.ITIMER_REAL, REFERENCE_LIMIT_S)
    try:
        other, complete = theirs(data)
    except _TookTooLong:
        return "tarfile hangs"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    # A block of zeros under a checksum is a member without a name, or with a letter for one, to tarfile.
    # The time in a GNU header is a folder to it, and to both where the header's magic word is damaged.
    mine, other = ([(_TIME.sub("", n), d) for n, d in found if n[1:]] for found in (mine, other))
    if whole or (complete and not reasons):
        assert mine == other, f"{_told(mine)} is not {_told(other)}"
        assert not whole or set(reasons) <= {problems.SHARD_WITHOUT_END}, reasons
        return "equal"
    missing = Counter(other) - Counter(mine)
    assert missing.total() <= len(reasons), f"{_told(mine)} with {reasons} lacks {_told(list(missing))}"
    return "damage reported" if reasons else "tarfile stops early"


def _told(members: Members) -> list[tuple[str, int]]:
    return [(name, len(data)) for name, data in members]


def fuzz(seed: int, cases: int) -> Counter[str]:
    """Compares so many archives, a third of them whole; counts how they agree."""
    counts: Counter[str] = Counter()
    previous = signal.signal(signal.SIGALRM, _too_long)
    try:
        for number in range(cases):
            rng = random.Random(f"{seed}/{number}")
            whole = number % 3 == 0
            data = archive(rng) if whole else damaged(rng, archive(rng))
            try:
                counts[compare(data, whole)] += 1
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, case {number}: {error}") from error
    finally:
        signal.signal(signal.SIGALRM, previous)
    return counts


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="archives to compare (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default %(default)s)")
    args = parser.parse_args()
    began = time.monotonic()
    counts = fuzz(args.seed, args.cases)
    print(f"{args.cases} archives in {time.monotonic() - began:.0f} s: {dict(counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
