"""A folder of .tar.gz or .tgz is a folder of shards, for every command: the same samples as from the plain tars."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip_la.data.images.augment import Augmentation
from clip_la.data.shards.problems import SHARD_DAMAGED, Problem
from clip_la.data.shards.reader import ShardWriter, read_samples
from clip_la.data.shards.sources import expand_urls
from clip_la.data.stream.stream import ShardStream, WeightedSource
from clip_la.data.text.captions import Captions
from clip_la.data.tools.pack_sources import ShardSource, find_source
from clip_la.data.tools.read import Reading, read
from clip_la.data.tools.verify import missing_shards, verify
from clip_la.errors import UserError
from clip_la.zeroshot.datasets.find import open_dataset
from clip_la.zeroshot.datasets.shards import open_caption_shards


@pytest.fixture(params=[".tar.gz", ".tgz", ".TAR.GZ", ".TAR"])
def compressed(request: pytest.FixtureRequest, shard_folder: Path, tmp_path: Path) -> Path:
    """The test set `shard_folder` again, its shards under other names, one of them hidden by an operating system."""
    folder = tmp_path / "again"
    shutil.copytree(shard_folder, folder)
    for path in (folder / "test").glob("*.tar"):
        data = path.read_bytes()
        path.unlink()
        data = data if request.param == ".TAR" else gzip.compress(data)
        path.with_suffix(request.param).write_bytes(data)
    (folder / "test" / f"._0{request.param}").write_bytes(b"resource fork")
    return folder


def test_a_test_set_is_the_same(compressed: Path, shard_folder: Path) -> None:
    found, expected = (open_dataset(str(folder)) for folder in (compressed, shard_folder))
    assert found.classes.names == expected.classes.names
    pairs = zip(found.sources, expected.sources, strict=True)
    for one, other in pairs:
        records = [[(r.key, r.labels, r.read()) for r in source.records()] for source in (one, other)]
        assert records[0] == records[1]
        assert records[0]
    assert len(open_caption_shards(str(compressed), "again").sources) == len(found.sources)
    assert open_dataset(str(found.sources[0].url)).classes.names == found.classes.names


def first_batch(urls: list[str]) -> dict[str, Any]:
    """A training batch; samples have no caption of their own, so their class is taken."""
    stream = ShardStream(
        [WeightedSource(tuple(urls))],
        batch_size=9,
        rank=0,
        world_size=1,
        workers=1,
        seed=3,
        captions=Captions(("json.class",)),
        augmentation=Augmentation(16),
    )
    return next(iter(stream))


def test_training_read_verify_and_pack_find_the_same(compressed: Path, shard_folder: Path) -> None:
    urls, plain = (expand_urls(str(folder / "test")) for folder in (compressed, shard_folder))
    assert [Path(url).name.partition(".")[0] for url in urls] == [Path(url).stem for url in plain]
    batch, expected = first_batch(urls), first_batch(plain)
    assert batch["keys"] == expected["keys"]
    assert torch.equal(batch["image"], expected["image"])
    assert torch.equal(batch["tokens"], expected["tokens"])
    reports = [verify(each, workers=1)["samples"] for each in (urls, plain)]
    passes = [read(Reading(tuple(each), 16), workers=1) for each in (urls, plain)]
    assert reports == [18, 18]
    assert [each["samples"] for each in passes] == [18, 18]
    assert passes[0]["skipped"] == passes[1]["skipped"]
    for spec in (str(compressed / "test"), urls[0]):
        assert isinstance(find_source(spec), ShardSource)


def test_a_shard_in_both_forms_is_not_counted_twice(shard_folder: Path) -> None:
    folder = shard_folder / "test"
    (folder / "1.tar.gz").write_bytes(gzip.compress((folder / "1.tar").read_bytes()))
    for use in (lambda: expand_urls(str(folder)), lambda: open_dataset(str(shard_folder))):
        with pytest.raises(UserError, match=rf"{folder} holds both 1.tar and 1.tar.gz: is this one shard, twice\?"):
            use()


def test_damaged_compression_costs_the_rest_of_a_shard(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "0.tar") as writer:
        for number in range(50):
            writer.write({"__key__": f"{number:03d}", ".txt": f"{number} words " * 90})
    whole = gzip.compress((tmp_path / "0.tar").read_bytes())
    rng, reasons = np.random.default_rng(0), set()
    for _ in range(40):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(20, len(data), 3)] ^= rng.integers(1, 256, 3, dtype=np.uint8)
        (tmp_path / "0.tar.gz").write_bytes(data.tobytes())
        found: list[Problem] = []
        for _sample in read_samples(str(tmp_path / "0.tar.gz"), on_problem=found.append):
            pass
        assert found
        reasons |= {problem.reason for problem in found}
    assert SHARD_DAMAGED in reasons


def test_gaps_in_the_numbers_are_seen() -> None:
    assert missing_shards(["a-00.tgz", "a-02.tgz", "b-7.tar.gz", "b-9.tar.gz"]) == ["a-01.tgz", "b-8.tar.gz"]
