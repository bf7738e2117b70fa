"""Names of samples: one list for everything, split as webdataset splits; merged and repeated ones are told."""

import io
import re
import tarfile
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import base_plus_ext

from clip_la.commands import data as command
from clip_la.data.images.augment import Augmentation
from clip_la.data.images.decode import decode_image
from clip_la.data.shards import problems
from clip_la.data.shards.formats import IMAGE_SUFFIXES, SUFFIXES, is_hidden, is_image, merged_keys
from clip_la.data.shards.reader import read_samples, split_name
from clip_la.data.stream.stream import ShardStream, WeightedSource
from clip_la.data.text.captions import Captions
from clip_la.data.tools.pack import image_suffix, pack
from clip_la.data.tools.pack_sources import find_source
from clip_la.data.tools.show import show
from clip_la.data.tools.verify import verify
from clip_la.errors import UserError
from clip_la.zeroshot.datasets.folders import images_in
from clip_la.zeroshot.datasets.shards import open_caption_shards


def saved(kind, mode="RGB"):
    data = io.BytesIO()
    Image.new(mode, (9, 7), 40 if mode == "L" else (200, 30, 90)).save(data, kind)
    return data.getvalue()


PNG = saved("PNG")


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def read(path):
    lost = []
    samples = list(read_samples(path, on_problem=lost.append))
    return [s["__key__"] for s in samples], [(problem.reason, problem.key) for problem in lost]


def test_every_suffix_is_one_that_pillow_has_for_the_format():
    known = Image.registered_extensions()
    assert {suffix: known[suffix] for suffix in IMAGE_SUFFIXES} == {
        suffix: kind for kind, own in SUFFIXES.items() for suffix in own
    }
    assert len(set(IMAGE_SUFFIXES)) == len(IMAGE_SUFFIXES)
    # open_clip's "jpg;png;jpeg;webp"
    assert IMAGE_SUFFIXES[:4] == (".jpg", ".png", ".jpeg", ".webp")


@pytest.mark.parametrize("kind", SUFFIXES)
def test_every_format_is_written_by_pack_and_decoded(kind):
    data = saved(kind)
    assert image_suffix(data) == SUFFIXES[kind][0]
    assert decode_image(data).size == (9, 7)


@pytest.mark.parametrize(
    "name",
    [
        "a/b.c.PNG",
        "./x.jpg",
        "a.b/c.d.txt",
        "../up.txt",
        "no",
        ".hidden",
        "a.",
        "UP.JPG",
        "\u00e4 b.tar.gz",
    ],
)
def test_split_as_webdataset_does(name):
    stem, part = base_plus_ext(name)
    key, ours = split_name(name)
    # webdataset has nothing at all where we have an empty half.
    assert (key, ours) == (stem, part.lower()) if stem and part else not (key and ours)


def test_names_of_pictures_and_hidden_ones():
    assert is_image("a/B.JPG")
    assert is_image("x.jfif")
    assert not is_image("a.jpg.txt")
    for name in ("._a.jpg", "__MACOSX/a.jpg", "a/.cache/b.jpg", ".DS_Store"):
        assert is_hidden(name)
    assert not any(map(is_hidden, ("./a.jpg", "../a.jpg", "a/b.c/d.jpg")))


@pytest.mark.parametrize(
    ("parts", "keys"),
    [
        (["jpg", "txt"], []),
        (["jpg", "txt", "seg.png"], []),
        (["jpg", "txt", "seg.png", "seg.json"], []),
        (["b.jpg", "b.txt", "c.jpg", "c.cls"], ["b", "c"]),
        (["b.jpg", "b.json"], ["b"]),
        (["jpg", "txt", "b.jpg", "b.txt"], ["b"]),
        (["b.c.jpg", "b.png", "b.c.txt"], ["b.c"]),
        (["jpg.txt"], []),
    ],
)
def test_merged_keys(parts, keys):
    assert merged_keys(parts) == keys


def test_keys_with_dots_are_told_with_their_names(tmp_path):
    members = [(f"photo v1.{i}{part}", data) for i in range(3) for part, data in ((".PNG", PNG), (".txt", b"a"))]
    members += [("whole.png", PNG), ("whole.txt", b"b"), ("whole.b.png", PNG), ("whole.b.txt", b"c")]
    path = tar(tmp_path / "0.tar", members)
    # webdataset makes one sample of the three, and one of the two.
    assert len(list(webdataset.WebDataset(path, shardshuffle=False, empty_check=False))) == 2
    merged = [(problems.MERGED, key) for key in ("photo v1.0", "photo v1.1", "photo v1.2", "whole.b")]
    assert read(path) == (["whole"], merged)
    report = verify([path], quiet=True)
    assert (report["samples"], report["usable"], report["skipped"]) == (1, 1, {problems.MERGED: 4})
    assert report["examples"] == {problems.MERGED: "0.tar: photo v1.0"}


def test_a_part_twice_under_one_key_is_told_and_loses_nothing(tmp_path):
    path = tar(tmp_path / "0.tar", [("k.png", PNG), ("k.txt", b"a"), ("k.PNG", PNG), ("k.txt", b"b")])
    assert read(path) == (["k", "k"], [(problems.PART_REPEATED, "k.PNG")])
    assert verify([path], quiet=True)["usable"] == 2


def test_what_macos_leaves_behind_is_no_sample(tmp_path):
    members = [("./._a.png", b"\0\5\26\7"), ("./a.png", PNG), ("./._a.txt", b"\0\5\26\7"), ("./a.txt", b"words")]
    path = tar(tmp_path / "0.tar", [*members, ("__MACOSX/._a.png", b"\0")])
    assert read(path) == (["./a"], [])


def stream(path, batch_size):
    place = {"rank": 0, "world_size": 1, "workers": 0, "seed": 0}
    augmentation = Augmentation(8)
    sources = [WeightedSource((path,))]
    return iter(ShardStream(sources, batch_size=batch_size, captions=Captions(), augmentation=augmentation, **place))


def test_show_says_why_there_is_nothing(tmp_path):
    path = tar(tmp_path / "0.tar", [("v1.0.png", PNG), ("v1.0.txt", b"a")])
    with pytest.raises(UserError, match=rf"{problems.MERGED} \(v1\.0\)"):
        show([path], tmp_path / "s.png", num=3)


NAMES = st.tuples(
    st.sampled_from(["", "d/", "v1.0/"]),
    st.sampled_from("ab"),
    st.sampled_from([".jpg", ".PNG", ".txt", ".json", ".seg.png", ".1.jpg", ".1.txt", ".1.2.gif", ".1.2.cls"]),
).map("".join)


@settings(max_examples=80, derandomize=True, deadline=None, database=None)
@given(st.lists(NAMES, min_size=1, max_size=12))
def test_samples_are_those_of_open_clip_but_for_what_is_reported(names):
    with tempfile.TemporaryDirectory() as folder:
        path = tar(Path(folder, "0.tar"), [(name, str(n).encode()) for n, name in enumerate(names)])
        lost = []
        ours = list(read_samples(path, on_problem=lost.append))
    theirs = grouped(names)
    told = tuple(f"{problem.key}." for problem in lost if problem.reason == problems.MERGED)
    members = [(key, part, number) for key, parts in theirs for part, number in parts.items()]
    used = [(s["__key__"], part, number) for s in ours for part, number in s.items() if part[0] != "_"]
    # The same parts under the same keys, in this order, less those of the keys that are told.
    assert used == [member for member in members if member in used]
    missing = [f"{key}.{part}" for key, part, number in members if (key, part, number) not in used]
    assert all(name.startswith(told) for name in missing)
    assert all(any(name.startswith(key) and is_image(name) for name in missing) for key in told)
    repeated = sum(one == two for (one, _), (two, _) in pairwise(theirs))
    assert sum(problem.reason == problems.PART_REPEATED for problem in lost) == repeated


def grouped(names):
    """Samples as open_clip's reader, which follows webdataset's, groups: (key, {part: number of its member})."""
    samples = []
    for number, name in enumerate(names):
        key, part = base_plus_ext(name)
        part = part.lower()
        if not samples or key != samples[-1][0] or part in samples[-1][1]:
            samples.append((key, {}))
        samples[-1][1][part] = str(number).encode()
    return samples


def test_training_says_which_keys_were_merged(tmp_path):
    members = [(f"v1.{i}{part}", data) for i in "01" for part, data in ((".png", PNG), (".txt", b"a"))]
    failure = next(stream(tar(tmp_path / "0.tar", members), 1))
    assert re.search(rf"{problems.MERGED} \d \(first: v1\.0\)", failure.message)


def test_repeated_parts_do_not_stop_training(tmp_path):
    path = tar(tmp_path / "0.tar", [("k.png", PNG), ("k.txt", b"a")] * 1200)
    assert next(stream(path, 1200))["skipped"] == {problems.PART_REPEATED: 1199}


def test_pack_of_pictures_of_every_kind_and_case_and_with_dots(tmp_path):
    folder = tmp_path / "in"
    for number, suffix in enumerate(IMAGE_SUFFIXES):
        kind = next(kind for kind, own in SUFFIXES.items() if suffix in own)
        name = f"a.{number}"
        (folder / "v1.0").mkdir(parents=True, exist_ok=True)
        (folder / "v1.0" / f"{name}{suffix.upper()}").write_bytes(saved(kind))
        (folder / "v1.0" / f"{name}.TXT").write_text(f"number {number}")
    (folder / "v1.0" / "._a.0.jpg").write_bytes(b"\0\5\26\7")
    result = pack(find_source(str(folder)), tmp_path / "out", quiet=True)
    assert (result["packed"], result["skipped"]) == (len(IMAGE_SUFFIXES), {})
    keys, lost = read(str(tmp_path / "out" / "00000.tar"))
    assert (len(set(keys)), lost) == (len(IMAGE_SUFFIXES), [])
    assert verify([str(tmp_path / "out" / "00000.tar")], quiet=True)["usable"] == len(IMAGE_SUFFIXES)
    (source,) = open_caption_shards(str(tmp_path / "out"), "s").sources
    assert [record.captions for record in source.records()] == [(s,) for s in captions_of(tmp_path / "out")]
    # An evaluation of folders sees the same files.
    assert len(images_in(folder, "v1.0")) == len(IMAGE_SUFFIXES)


def captions_of(out):
    return [s["txt"].decode() for path in sorted(out.glob("*.tar")) for s in read_samples(str(path))]


def test_texts_beside_images(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for name, data in {
        **{"a.png": PNG, "a.png.txt": b"by the whole name"},
        **{"b.png": PNG, "b.json": b'{"caption": "in the json", "url": "u"}'},
        **{"C.png": PNG, "C.txt": b"upper", "c.png": PNG, "c.txt": b"lower"},
        **{"d.png": PNG, "d.json": b'{"captions": ["one", "two"]}'},
        **{"e.png": PNG, "e.json": b"{damaged"},
    }.items():
        (root / name).write_bytes(data)
    (root / "metadata.csv").write_text("file_name,text\na.png,red\n")
    result = pack(find_source(str(root)), tmp_path / "out", quiet=True)
    assert captions_of(tmp_path / "out") == ["upper", "by the whole name", "in the json", "lower", "one"]
    assert result["examples"] == {problems.JSON_DAMAGED: "e.png"}
    for path in root.glob("*.*"):
        if path.suffix in (".txt", ".json"):
            path.unlink()
    with pytest.raises(UserError, match=r"6 no caption \(first: C.png\).*to pack a table, name it: .*metadata\.csv"):
        pack(find_source(str(root)), tmp_path / "out2", quiet=True)


def test_pack_counts_what_the_shards_that_it_reads_have_lost(tmp_path):
    (tmp_path / "in").mkdir()
    for shard in "02":
        members = [("v1.0.png", PNG), ("v1.0.txt", b"a"), ("b.png", PNG), ("b.txt", b"b")]
        tar(tmp_path / "in" / f"{shard}.tar", members)
    cut = tmp_path / "in" / "1.tar"
    tar(cut, [("c.png", PNG), ("c.txt", b"c"), ("d.png", PNG * 99)])
    cut.write_bytes(cut.read_bytes()[:4000])
    result = pack(find_source(str(tmp_path / "in")), tmp_path / "out", per_shard=2, quiet=True)
    assert (result["packed"], result["skipped"]) == (3, {problems.MERGED: 2, problems.SHARD_TRUNCATED: 1})
    assert result["examples"][problems.MERGED] == "0.tar/v1.0"


def test_the_commands_name_the_first_of_each_kind(tmp_path, capsys):
    tar(tmp_path / "0.tar", [("a.1.png", PNG), ("a.1.txt", b"x"), ("b.png", PNG), ("b.txt", b"y"), ("c.png", PNG)])
    assert command.main(["verify", str(tmp_path), "--workers", "1"]) == 1
    assert f"skipped 1: {problems.MERGED} (first: 0.tar: a.1)" in capsys.readouterr().out
    assert command.main(["read", str(tmp_path), "--workers", "1"]) == 0
    assert f"skipped 1: {problems.NO_CAPTION} (first: 0.tar: c)" in capsys.readouterr().out
    assert not command.main(["pack", str(tmp_path), str(tmp_path / "out"), "--workers", "1"])
    assert f"skipped 1: {problems.MERGED} (first: 0.tar/a.1)" in capsys.readouterr().out
