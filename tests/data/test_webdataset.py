"""Our reader and writer with webdataset's: the same samples from whole shards, and nothing lost in silence."""

import doctest
import gzip
import io
import os
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import pytest
import webdataset as wds
from webdataset import tariterators

from clip_la.data.shards import problems
from clip_la.data.shards.expander import tar_file_expander
from clip_la.data.shards.reader import ShardWriter, read_samples
from clip_la.data.shards.tar import TarDamage


def sample(number):
    parts = {"jpg": bytes([number % 256]) * (number * 7), "txt": f"caption {number}", "json": {"n": number, "a": []}}
    return {"__key__": f"d.1/{number:05d}", **parts}


def write(path, numbers):
    with ShardWriter(path) as writer:
        for number in numbers:
            writer.write(sample(number))
    return str(path)


def pipeline(urls, expander, handler=wds.reraise_exception):
    """A user's own pipeline; of webdataset's stages only the one that reads tars is replaced."""
    return wds.DataPipeline(
        wds.SimpleShardList(list(map(str, urls))),
        partial(tariterators.url_opener, handler=handler),
        partial(expander, handler=handler),
        partial(tariterators.group_by_keys, handler=handler),
    )


def damaged(path, number):
    """The shard with one bit of the header of one caption flipped, in the middle of its mode."""
    with tarfile.open(path) as tar:
        offset = tar.getmember(f"d.1/{number:05d}.txt").offset
    data = bytearray(path.read_bytes())
    data[offset + 103] ^= 1
    path.write_bytes(data)


def test_webdataset_ends_in_silence_at_a_damaged_header_and_we_go_on(tmp_path):
    path = tmp_path / "0.tar"
    write(path, range(200))
    damaged(path, 100)
    theirs, ours = [], []
    heard = {"theirs": [], "ours": []}
    for name, expander, found in (
        ("theirs", tariterators.tar_file_expander, theirs),
        ("ours", tar_file_expander, ours),
    ):
        handler = lambda error, name=name: heard[name].append(error) or True  # noqa: E731
        found += [s["__key__"] for s in pipeline([path], expander, handler) if "txt" in s]
    everything = [f"d.1/{n:05d}" for n in range(200)]
    assert theirs == everything[:100]
    assert heard["theirs"] == []
    assert ours == everything[:100] + everything[101:]
    (error,) = heard["ours"]
    assert isinstance(error, TarDamage)
    assert error.reason == problems.SHARD_DAMAGED
    assert error.args[-1] == str(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_pipeline_gets_from_ours_what_it_gets_from_webdatasets(tmp_path, pack):
    paths = [tmp_path / f"{shard}.tar{'' if pack is bytes else '.gz'}" for shard in range(2)]
    for shard, path in enumerate(paths):
        raw = tmp_path / "raw"
        write(raw, range(10 * shard, 10 * shard + 10))
        path.write_bytes(pack(raw.read_bytes()))
    # gopen's own unpacking would need a program; TarSource and tarfile both see the bytes.
    ours, theirs = (
        list(wds.DataPipeline([opened(paths)], expander, tariterators.group_by_keys))
        for expander in (tar_file_expander, tariterators.tar_file_expander)
    )
    assert ours == theirs
    assert len(ours) == 20
    assert ours[0].keys() == {"__key__", "__url__", "jpg", "txt", "json"}
    assert ours == [s for path in paths for s in read_samples(str(path))]


def opened(paths):
    return [{"url": str(path), "stream": open(path, "rb")} for path in paths]


def test_files_are_selected_renamed_and_ended_as_in_webdataset(tmp_path):
    members = ["__meta__/x.json", "__info__", "a.jpg", "a.txt", "folder/", "b.jpg"]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = 0 if name.endswith("/") else 3
            tar.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("c.jpg")
        link.type = tarfile.SYMTYPE
        tar.addfile(link)
    options = {
        "select_files": lambda name: name.endswith("x.jpg"),
        "rename_files": lambda name: f"x{name[:1]}x{name[1:]}",
    }
    options["rename_files"] = lambda name: name.replace(".jpg", "x.jpg")
    for more in ({}, options, {"eof_value": None}, {"eof_value": {"end": 1}}):
        sources = [{**source, "local_path": "here"} for source in opened([tmp_path / "0.tar"])]
        again = [{**source, "local_path": "here"} for source in opened([tmp_path / "0.tar"])]
        assert list(tar_file_expander(sources, **more)) == list(tariterators.tar_file_expander(again, **more))
    names = [file["fname"] for file in tar_file_expander(opened([tmp_path / "0.tar"]), **options) if file]
    assert names == ["ax.jpg", "bx.jpg"]


def test_handlers_decide_as_in_webdataset(tmp_path):
    first, second = tmp_path / "0.tar", tmp_path / "1.tar"
    write(first, range(9))
    write(second, range(9, 12))
    damaged(first, 4)
    with pytest.raises(TarDamage):
        list(pipeline([first, second], tar_file_expander))
    stopped = [s["__key__"][-1] for s in pipeline([first, second], tar_file_expander, wds.ignore_and_stop)]
    # False ends the tar; the part of 4 before the damage is there, as group_by_keys knows of no damage.
    assert stopped == ["0", "1", "2", "3", "4", "9", "0", "1"]
    first.write_bytes(first.read_bytes()[:3000])
    heard = []
    handler = lambda error: heard.append(error.reason) or True  # noqa: E731
    assert [s["__key__"][-2:] for s in pipeline([first, second], tar_file_expander, handler)][-3:] == ["09", "10", "11"]
    assert heard == [problems.SHARD_TRUNCATED]


def test_shards_are_webdatasets_with_times_and_owners_of_zero(tmp_path):
    """Against tarfile: the bytes do not hang on webdataset's version, user or clock."""
    write(tmp_path / "0.tar", range(5))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(5):
            parts = sample(number)
            for part, data in (
                ("jpg", parts["jpg"]),
                ("json", b'{"a": [], "n": %d}' % number),
                ("txt", parts["txt"].encode()),
            ):
                info = tarfile.TarInfo(f"{parts['__key__']}.{part}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert (tmp_path / "0.tar").read_bytes() == buffer.getvalue()


def test_the_lines_of_the_data_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "data.md"
    done = doctest.testfile(str(page), module_relative=False)
    assert done.attempted > 30
    assert done.failed == 0


def test_writing_and_reading_a_shard_imports_no_torch(tmp_path):
    """`data pack` starts many processes."""
    code = f"""
import sys
from clip_la.data.shards.reader import ShardWriter, read_samples
import clip_la.data.tools.pack
with ShardWriter({str(tmp_path / "0.tar")!r}) as writer:
    writer.write({{"__key__": "k", "txt": "a"}})
print(len(list(read_samples({str(tmp_path / "0.tar")!r}))), "torch" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1 False\n"


def test_a_sample_of_webdatasets_is_written_as_it_is(tmp_path):
    write(tmp_path / "0.tar", range(5))
    with ShardWriter(tmp_path / "1.tar") as writer:
        for each in wds.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False):
            writer.write(each)
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()
    # Suffixes of files are taken for parts.
    with ShardWriter(tmp_path / "2.tar") as writer:
        writer.write({"__key__": "k", ".txt": "a"})
    assert [s["txt"] for s in read_samples(str(tmp_path / "2.tar"))] == [b"a"]
