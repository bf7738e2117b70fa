"""Shards are read as webdataset and tarfile read them, and damage costs what it touches."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from clip_la.data.shards import problems
from clip_la.data.shards.reader import ShardWriter, expand_urls, read_samples, split_name
from clip_la.data.shards.sources import ShardOpener
from clip_la.errors import UserError

SAMPLES = [
    {"__key__": f"{i:05d}", "png": bytes([i]) * (700 * i + 3), "txt": f"caption {i}", "json": {"b": i, "a": [i]}}
    for i in range(7)
]


def write(path, samples=SAMPLES):
    with ShardWriter(path) as writer:
        for sample in samples:
            writer.write(sample)
    return str(path)


def read(path):
    found = []
    samples = list(read_samples(str(path), on_problem=found.append))
    assert {sample.pop("__url__") for sample in samples} <= {str(path)}
    return samples, [problem.reason for problem in found]


def tar_of(members, fmt=tarfile.USTAR_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=fmt) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_what_is_written_is_read_by_us_and_by_webdataset(tmp_path):
    path = write(tmp_path / "a.tar")
    ours, reasons = read(path)
    theirs = list(webdataset.WebDataset(path, shardshuffle=False, empty_check=False))
    assert not reasons
    assert len(ours) == len(theirs) == len(SAMPLES)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["__key__"] == other["__key__"]
        assert {part: data for part, data in mine.items() if part[0] != "_"} == {
            k: v for k, v in other.items() if k[0] != "_"
        }


def test_what_follows_the_end_mark_is_told(tmp_path):
    """Tars put one after another, and one that lost blocks to zeros, end at the mark for every reader."""
    whole = Path(write(tmp_path / "a.tar")).read_bytes()
    assert read(write(tmp_path / "a.tar"))[1] == []
    for name, pack in (("b.tar", bytes), ("c.tar", gzip.compress)):
        (tmp_path / name).write_bytes(pack(whole + whole))
        samples, reasons = read(tmp_path / name)
        assert len(samples) == len(SAMPLES)
        assert reasons == [problems.SHARD_GOES_ON]
    (tmp_path / "d.tar").write_bytes(bytes(1024) + whole[1024:])
    assert read(tmp_path / "d.tar")[1] == [problems.SHARD_GOES_ON]


def test_written_bytes_depend_on_the_samples_alone(tmp_path):
    write(tmp_path / "a.tar")
    write(tmp_path / "b.tar", [dict(reversed(sample.items())) for sample in SAMPLES])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_failed_writer_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="read back"):
        write(tmp_path / "a.tar", [SAMPLES[0], {"__key__": "a.b", "png": b""}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compress", [False, True])
def test_tar_formats_and_long_names(tmp_path, fmt, compress):
    long = "folder/" * 12 + "n" * 60 if fmt == tarfile.USTAR_FORMAT else "folder/" * 40 + "n" * 150
    members = [(f"{long}.jpg", b"x" * 1000), (f"{long}.txt", b"y"), ("k\u00e9y.jpg", b""), ("k\u00e9y.txt", b"z" * 512)]
    raw = tar_of(members, fmt)
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(raw) if compress else raw)
    samples, reasons = read(path)
    assert not reasons
    assert [(s["__key__"], s["jpg"], s["txt"]) for s in samples] == [
        (long, b"x" * 1000, b"y"),
        ("k\u00e9y", b"", b"z" * 512),
    ]


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_tar_cut_short_gives_the_whole_samples_before_the_cut(tmp_path, cut):
    raw = (tmp_path / "x").with_name("whole.tar")
    write(raw)
    data = raw.read_bytes()
    keep = len(data) * cut // 40
    (tmp_path / "cut.tar").write_bytes(data[:keep])
    samples, reasons = read(tmp_path / "cut.tar")
    whole, _ = read(raw)
    # Independent reference: tarfile knows where each member's bytes end.
    with tarfile.open(raw) as tar:
        ends = {}
        for member in tar:
            ends[member.name.split(".")[0]] = member.offset_data + member.size
    expected = sum(end <= keep for end in ends.values())
    complete = [s for s in samples if len(s) == len(whole[0])]
    assert len(reasons) <= 1
    assert complete == whole[:expected]
    assert len(samples) - len(complete) <= 1
    end_mark = max(ends.values()) + 511 & ~511
    assert bool(reasons) == (keep < end_mark + 512)


def test_damage_in_the_middle_is_named(tmp_path):
    write(tmp_path / "a.tar")
    data = bytearray((tmp_path / "a.tar").read_bytes())
    with tarfile.open(tmp_path / "a.tar") as tar:
        header = tar.getmember("00003.txt").offset
    data[header + 130] ^= 1
    (tmp_path / "b.tar").write_bytes(data)
    samples, reasons = read(tmp_path / "b.tar")
    assert reasons == [problems.SHARD_DAMAGED]
    # Nothing but the damaged member is lost.
    assert [s["__key__"] for s in samples] == [f"{i:05d}" for i in range(7)]
    assert [s["__key__"] for s in samples if "txt" not in s] == ["00003"]
    assert samples[4:] == read(tmp_path / "a.tar")[0][4:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", problems.SHARD_EMPTY),
        (b"<html>gone</html>" * 99, problems.SHARD_NOT_TAR),
        (b"short", problems.SHARD_NOT_TAR),
    ],
)
def test_files_that_are_no_tars(tmp_path, data, reason):
    (tmp_path / "a.tar").write_bytes(data)
    assert read(tmp_path / "a.tar") == ([], [reason])


def test_links_and_odd_names_are_passed_over_and_counted(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in [
            ("dir", tarfile.DIRTYPE),
            ("a.txt", tarfile.SYMTYPE),
            ("README", tarfile.REGTYPE),
            (".hidden", tarfile.REGTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
    samples, reasons = read(tmp_path / "a.tar")
    assert samples == []
    assert reasons == [problems.NOT_A_FILE, problems.NAME_WITHOUT_PARTS, problems.NAME_WITHOUT_PARTS]


def test_a_repeated_part_begins_a_new_sample(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of([("k.jpg", b"1"), ("k.txt", b"2"), ("k.jpg", b"3"), ("k.txt", b"4")]))
    samples, _ = read(tmp_path / "a.tar")
    assert [(s["jpg"], s["txt"]) for s in samples] == [(b"1", b"2"), (b"3", b"4")]


def test_names_split_as_webdataset_splits_them():
    assert split_name("a.b/c.D.png") == ("a.b/c", "d.png")
    assert split_name("../../etc/passwd.txt") == ("../../etc/passwd", "txt")
    assert split_name("none") == ("none", "")


def test_expansion(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i:02d}.tar", [])
    paths = [str(tmp_path / f"{i:02d}.tar") for i in range(3)]
    assert expand_urls(f"{tmp_path}/{{00..02}}.tar") == paths
    assert expand_urls(f"{tmp_path}/*.tar") == paths
    assert expand_urls(str(tmp_path)) == paths
    assert expand_urls([f"{paths[0]}::{paths[2]}", paths[1]]) == [paths[0], paths[2], paths[1]]
    assert expand_urls("s3://bucket/{0..1}.tar") == ["s3://bucket/0.tar", "s3://bucket/1.tar"]
    assert expand_urls("pipe:cat {a,b}.tar") == ["pipe:cat a.tar", "pipe:cat b.tar"]


def test_a_folder_above_the_shards_is_told_where_they_are(tmp_path):
    (tmp_path / "corpus" / "train").mkdir(parents=True)
    (tmp_path / "corpus" / "train" / "0.tar").touch()
    with pytest.raises(UserError, match=r"no shard matches '.*corpus/\*\.tar'; its folders train hold some"):
        expand_urls(str(tmp_path / "corpus"))


@pytest.mark.parametrize("spec", ["{tmp}/{{00..01}}.tar", "{tmp}/none.tar", "{tmp}/*.tar", "{tmp}"])
def test_missing_shards_are_named(tmp_path, spec):
    with pytest.raises(UserError, match=str(tmp_path)):
        expand_urls(spec.format(tmp=tmp_path))


def test_pipes_are_read_and_their_failure_is_an_error(tmp_path):
    path = write(tmp_path / "a.tar")
    assert len(read(f"pipe:cat {path}")[0]) == len(SAMPLES)
    with pytest.raises(UserError, match="byte 2000 after 2 tries: the command ended with exit code 3"):
        list(read_samples(f"pipe:head -c 2000 {path}; exit 3", opener=ShardOpener(retries=1, backoff_s=0.01)))
