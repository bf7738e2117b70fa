"""The tar reader reads what tarfile reads, and whatever a tar claims it ends soon and costs little."""

import gzip
import io
import tracemalloc
import zlib
from collections import Counter

import pytest

from clip_la.data.shards import problems, tar_source
from clip_la.data.shards.reader import read_samples
from clip_la.data.shards.tar import TarDamage, read_members

from .test_hostile import script

fuzz = script("fuzz_tar")
END = bytes(1024)
PAIR = fuzz.header(b"k.png", 3) + fuzz.padded(b"png") + fuzz.header(b"k.txt", 4) + fuzz.padded(b"text")
READ_PAIR = [("k.png", b"png"), ("k.txt", b"text")]


def read(data):
    """(members, reasons with the names they are of)."""
    found, reasons = [], []
    try:
        for member in read_members(io.BufferedReader(io.BytesIO(data))):
            if member.reason:
                reasons.append((member.reason, member.name))
            else:
                found.append((member.name, member.data))
    except TarDamage as damage:
        reasons.append((damage.reason, damage.name or ""))
    return found, reasons


def test_as_tarfile_on_thousands_of_archives_whole_and_damaged():
    counts = fuzz.fuzz(seed=0, cases=3000)
    assert counts.total() == 3000
    assert counts["equal"] > 1500
    assert counts["damage reported"] > 1000


@pytest.mark.parametrize(
    "records",
    [
        b"0 path=k.txt\n",
        b"00000 path=k.txt\n",
        b"-5 path=k.txt\n",
        b"5 path=k.txt\n",
        b"999 path=k.txt\n",
        b"99999999999999999999999 path=k.txt\n",
        b"x path=k.txt\n",
        b"13 path=k.txt",
        b" \n" * 9,
        b"4 a=\n" * 9,
        fuzz.record("size", b"-512"),
        fuzz.record("size", b"9" * 5000),
        fuzz.record("GNU.sparse.realsize", b"5"),
        fuzz.record("GNU.sparse.size", b"x") + fuzz.record("GNU.sparse.map", b"0,1"),
    ],
)
def test_records_that_make_no_sense_cost_their_member(records):
    described = fuzz.header(b"lost.txt", 5) + fuzz.padded(b"lost!")
    assert read(PAIR + fuzz.extended(records) + described + PAIR + END) == (
        READ_PAIR * 2,
        [(problems.SHARD_DAMAGED, "lost.txt")],
    )


@pytest.mark.parametrize("kind", [b"Z", b"V", b"M", b"D", b"N", b"\x00", b"7", b"\xff"])
def test_a_member_of_any_kind_is_a_file(kind):
    odd = fuzz.header(b"odd.bin", 600, kind) + fuzz.padded(b"o" * 600)
    assert read(odd + PAIR + END) == ([("odd.bin", b"o" * 600), *READ_PAIR], [])


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6"])
def test_links_and_devices_carry_nothing_whatever_they_claim(kind):
    assert read(fuzz.header(b"a.txt", 1 << 30, kind) + PAIR + END) == (READ_PAIR, [(problems.NOT_A_FILE, "a.txt")])


def old_sparse(real_size, start, count, stored):
    def edit(block):
        block[386:410] = b"%011o\0%011o\0" % (start, count)
        block[483:495] = b"\x80" + real_size.to_bytes(11, "big")

    return fuzz.header(b"s.bin", len(stored), b"S", b"ustar  \0", edit=edit) + fuzz.padded(stored)


def pax_sparse(real_size, start, count, stored):
    listed = fuzz.padded(b"1\n%d\n%d\n" % (start, count)) + stored
    records = {"major": b"1", "minor": b"0", "name": b"s.bin", "realsize": b"%d" % real_size}
    described = b"".join(fuzz.record(f"GNU.sparse.{key}", value) for key, value in records.items())
    return fuzz.extended(described) + fuzz.header(b"GNUSparseFile.1/x", len(listed)) + fuzz.padded(listed)


@pytest.mark.parametrize("sparse", [old_sparse, pax_sparse])
def test_sparse_files_come_whole_and_are_no_bombs(sparse):
    assert read(sparse(2000, 512, 5, b"bytes") + PAIR + END) == (
        [("s.bin", bytes(512) + b"bytes" + bytes(1483)), *READ_PAIR],
        [],
    )
    tracemalloc.start()
    found = read(sparse(1 << 40, 512, 5, b"bytes") + PAIR + END)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert found == (READ_PAIR, [(problems.PART_TOO_LARGE, "s.bin")])
    for lie in ((2000, 1999, 5), (2000, 0, 6)):
        assert read(sparse(*lie, b"bytes") + PAIR + END) == (READ_PAIR, [(problems.SHARD_DAMAGED, "s.bin")])


def test_many_sparse_files_together_are_no_bomb(monkeypatch):
    monkeypatch.setattr("clip_la.data.shards.tar.MAX_MEMBER_BYTES", 10_000)
    found, reasons = read(old_sparse(4005, 0, 5, b"bytes") * 4 + PAIR + END)
    assert [len(data) for _, data in found] == [4005, 4005, 3, 4]
    assert reasons == [(problems.PART_TOO_LARGE, "s.bin")] * 2


@pytest.mark.parametrize("shift", [0, 1, 100, 511])
def test_reading_goes_on_at_the_next_header_wherever_it_is(shift):
    lost = bytes([1] * 512) + b"x" * (3 * 512 + shift)
    assert read(PAIR + lost + PAIR + END) == (READ_PAIR * 2, [(problems.SHARD_DAMAGED, "")])
    assert read(lost + PAIR + END) == (READ_PAIR, [(problems.SHARD_DAMAGED, "")])


def test_no_header_is_looked_for_without_end(monkeypatch):
    monkeypatch.setattr(tar_source, "REACH_BYTES", 1 << 20)
    far = b"\1" * (2 << 20)
    assert read(PAIR + far + PAIR + END) == (READ_PAIR, [(problems.SHARD_DAMAGED, "")])


def test_what_follows_the_end_is_not_read():
    assert read(PAIR + END + PAIR + END) == (READ_PAIR, [])


def test_damaged_gzip_gives_what_was_before_it():
    noise = fuzz.random.Random(0).randbytes(200_000)
    tar = PAIR + fuzz.header(b"n.bin", len(noise)) + fuzz.padded(noise) + PAIR + END
    packed = bytearray(gzip.compress(tar, mtime=0))
    packed[100_000:100_200] = b"\xff" * 200
    found, reasons = read(bytes(packed))
    assert found[:2] == READ_PAIR
    assert [reason for reason, _ in reasons] == [problems.SHARD_DAMAGED]


def test_a_gzip_bomb_ends_soon(monkeypatch):
    monkeypatch.setattr(tar_source, "FREE_UNPACKED_BYTES", 1 << 20)
    packer = zlib.compressobj(9, wbits=31)
    bomb = packer.compress(PAIR + fuzz.header(b"z.bin", 100 << 20, base256=True))
    bomb += b"".join(packer.compress(bytes(1 << 20)) for _ in range(20)) + packer.flush()
    monkeypatch.setattr("clip_la.data.shards.tar.MAX_MEMBER_BYTES", 1 << 20)
    assert read(bomb) == (READ_PAIR, [(problems.SHARD_BOMB, "")])


def test_a_damaged_part_costs_its_sample_alone(tmp_path):
    bad = fuzz.extended(b"0 path=k\n") + fuzz.header(b"b.txt", 1) + fuzz.padded(b"b")
    shard = tmp_path / "0.tar"
    members = [fuzz.header(n, 1) + fuzz.padded(b"1") for n in (b"b.png", b"b.json")]
    whole = [fuzz.header(n, 1) + fuzz.padded(b"1") for n in (b"a.png", b"a.txt", b"c.png", b"c.txt")]
    shard.write_bytes(b"".join([*whole[:2], members[0], bad, members[1], *whole[2:], END]))
    found: Counter = Counter()
    samples = list(read_samples(str(shard), on_problem=lambda problem: found.update([(problem.reason, problem.key)])))
    assert [sample["__key__"] for sample in samples] == ["a", "c"]
    assert found == {(problems.SHARD_DAMAGED, "b.txt"): 1}
