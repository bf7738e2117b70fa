"""A process that evaluates model after model decodes a small, unchanged test set once; every result stays the same."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_la import distributed as ranks
from clip_la import fingerprint
from clip_la.data.shards.problems import NO_CAPTION, NOT_AN_IMAGE
from clip_la.data.shards.reader import ShardWriter
from clip_la.launched import SHARED_BY_VARIABLE, core_share
from clip_la.models.clip import model_from_spec
from clip_la.models.spec import ModelSpec
from clip_la.sweep.places import slots
from clip_la.zeroshot.model.eval_model import UInt8Preprocess, of_model
from clip_la.zeroshot.options import SuiteEntry
from clip_la.zeroshot.runner import decoded
from clip_la.zeroshot.runner.batches import image_batches
from clip_la.zeroshot.runner.decoded import BYTES_PER_WORKER, DecodedSets, pixel_bytes, worker_count
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.suite import evaluate_tasks, prepare

from .conftest import picture

PAIRS = 40
BAD = "bad"


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures with captions, one of them damaged and one without a caption, in a file that counts as settled."""
    path = tmp_path / "data" / "00000.tar"
    path.parent.mkdir()
    write(path, range(PAIRS))
    monkeypatch.setattr(fingerprint, "RACY_S", -1.0)
    monkeypatch.setattr(decoded, "DECODED", DecodedSets())
    return path


def write(path: Path, seeds: Sequence[int]) -> None:
    with ShardWriter(path) as writer:
        for number, seed in enumerate(seeds):
            image = b"no image" if number == 7 else picture(seed)
            text = {} if number == 11 else {".txt": f"noise {number}"}
            writer.write({"__key__": f"{number:03d}", ".png": image, **text})


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the batch size of each pass that is decoded."""
    passes: list[int] = []

    def counted(*args: Any, **options: Any) -> Iterator[Any]:
        passes.append(options["batch_size"])
        return image_batches(*args, **options)

    monkeypatch.setattr(decoded, "image_batches", counted)
    return passes


def line(shard: Path, folder: Path, spec: ModelSpec, seed: int = 0, **how: Any) -> dict[str, Any]:
    task = prepare(SuiteEntry(data=str(shard), name="noise", task="zeroshot_retrieval"))
    model = of_model(model_from_spec(spec, seed=seed).eval())
    settings = EvalSettings(**{"batch_size": 16, "num_workers": 0, "progress": False, **how})
    (evaluation,) = evaluate_tasks(model, [task], settings, folder / "results.jsonl", report=lambda text: None)
    return {key: value for key, value in evaluation.line.items() if key != "date"}


def test_the_next_model_decodes_nothing_and_every_line_is_the_same(
    shard: Path, tmp_path: Path, tiny_spec: ModelSpec, decodes: list[int]
) -> None:
    expected = []
    for seed in (0, 1):
        decoded.DECODED.clear()
        expected.append(line(shard, tmp_path / f"apart{seed}", tiny_spec, seed))
    decoded.DECODED.clear()
    decodes.clear()
    assert [line(shard, tmp_path / f"one{seed}", tiny_spec, seed) for seed in (0, 1)] == expected
    assert decodes == [16]
    assert expected[0]["skipped"] == {NO_CAPTION: 1, NOT_AN_IMAGE: 1}
    assert expected[0]["metrics"] != expected[1]["metrics"]


def test_what_a_stopped_evaluation_has_done_is_left_out(
    shard: Path, tmp_path: Path, tiny_spec: ModelSpec, decodes: list[int]
) -> None:
    test_set = prepare(SuiteEntry(data=str(shard), name="noise", task="zeroshot_retrieval")).test_set
    given: dict[str, Any] = {"batch_size": 16, "num_workers": 0}

    def units(done: Sequence[int]) -> list[int]:
        found = decoded.decoded_batches(
            test_set, UInt8Preprocess(32), done=frozenset((0, number) for number in done), **given
        )
        return [batch.unit[1] for batch in found]

    # Of a pass that leaves some out nothing is kept, nor of one that somebody ends early.
    assert units([0]) == [1, 2]
    next(iter(decoded.decoded_batches(test_set, UInt8Preprocess(32), **given)))
    assert units([]) == [0, 1, 2]
    assert len(decodes) == 3
    assert units([1]) == [0, 2]
    assert len(decodes) == 3


def test_another_size_batch_content_or_label_is_decoded_anew(
    shard: Path, tmp_path: Path, tiny_spec: ModelSpec, decodes: list[int]
) -> None:
    before = line(shard, tmp_path / "a", tiny_spec)
    line(shard, tmp_path / "b", tiny_spec, batch_size=8)
    assert decodes == [16, 8]
    test_set = prepare(SuiteEntry(data=str(shard), name="noise", task="zeroshot_retrieval")).test_set
    for size in (32, 48):
        for _ in range(2):
            batch = next(iter(decoded.decoded_batches(test_set, UInt8Preprocess(size), batch_size=16, num_workers=0)))
            assert batch.images is not None
            assert batch.images.shape == (16, 3, size, size)
    decodes.clear()
    # Other pictures of the same number of bytes on the disk, with the same time of change.
    status = shard.stat()
    write(shard, range(PAIRS, 2 * PAIRS))
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = line(shard, tmp_path / "c", tiny_spec)
    assert decodes == [16]
    assert after["metrics"] != before["metrics"]


def test_files_that_change_meanwhile_or_have_just_changed_are_not_kept(
    shard: Path, decodes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    test_set = prepare(SuiteEntry(data=str(shard), name="noise", task="zeroshot_retrieval")).test_set

    def read() -> None:
        list(decoded.decoded_batches(test_set, UInt8Preprocess(32), batch_size=16, num_workers=0))

    batches = decoded.decoded_batches(test_set, UInt8Preprocess(32), batch_size=16, num_workers=0)
    next(batches)
    write(shard, range(PAIRS))
    list(batches)
    decodes.clear()
    read()
    assert decodes == [16]
    monkeypatch.setattr(fingerprint, "RACY_S", 3600.0)
    read()
    assert decodes == [16, 16]


def test_memory_is_bounded_and_what_was_used_last_stays(shard: Path) -> None:
    test_set = prepare(SuiteEntry(data=str(shard), name="noise", task="zeroshot_retrieval")).test_set
    batches = list(image_batches(test_set.sources, UInt8Preprocess(32), batch_size=16, num_workers=0))
    size = sum(map(pixel_bytes, batches))
    assert size == 3 * 16 * 3 * 32 * 32
    sets = DecodedSets(2 * size)
    for name in ("a", "b"):
        list(sets.passing_through(batches, (name,)))
    assert sets.find(("a",)) is not None
    list(sets.passing_through(batches, ("c",)))
    assert [sets.find((name,)) is not None for name in "abc"] == [True, False, True]
    kept = sets.find(("c",))
    assert kept is not None
    for own, batch in zip(kept, batches, strict=True):
        assert torch.equal(own.images, batch.images)
        assert own.images.data_ptr() != batch.images.data_ptr()
        assert (own.keys, own.captions, own.skipped, own.rows) == (
            batch.keys,
            batch.captions,
            batch.skipped,
            batch.rows,
        )
    small = DecodedSets(size - 1)
    assert list(small.passing_through(batches, ("a",))) == batches
    assert small.find(("a",)) is None


@pytest.mark.parametrize("reason", sorted(decoded.PASSING))
def test_a_set_with_what_may_not_happen_again_is_not_kept(shard: Path, reason: str) -> None:
    test_set = prepare(SuiteEntry(data=str(shard), name="noise", task="zeroshot_retrieval")).test_set
    batches = list(image_batches(test_set.sources, UInt8Preprocess(32), batch_size=16, num_workers=0))
    batches[1].skipped.append((20, "020", reason))
    sets = DecodedSets()
    assert list(sets.passing_through(batches, ("a",))) == batches
    assert sets.find(("a",)) is None


def test_a_small_test_set_takes_few_workers(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_set = prepare(SuiteEntry(data=str(shard), name="noise", task="zeroshot_retrieval")).test_set
    monkeypatch.setattr(ranks, "default_workers", lambda: 16)
    assert worker_count(test_set, None) == 1
    assert [worker_count(test_set, number) for number in (0, 7)] == [0, 7]
    with shard.open("ab") as stream:
        stream.truncate(3 * BYTES_PER_WORKER - 1)
    assert worker_count(test_set, None) == 3
    with shard.open("ab") as stream:
        stream.truncate(100 * BYTES_PER_WORKER)
    assert worker_count(test_set, None) == 16


def test_places_of_a_sweep_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", SHARED_BY_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    assert (core_share(), ranks.default_workers()) == (16, 16)
    assert SHARED_BY_VARIABLE not in slots(["0"], 1)[0].environment
    for places, share in ((4, 4), (6, 2), (40, 1)):
        (environment, *others) = [slot.environment for slot in slots(["0"], places)]
        assert all(each == environment for each in others)
        assert environment["OMP_NUM_THREADS"] == str(share)
        with monkeypatch.context() as patch:
            patch.setenv(SHARED_BY_VARIABLE, environment[SHARED_BY_VARIABLE])
            assert (core_share(), ranks.default_workers()) == (share, share)
            patch.setenv("LOCAL_WORLD_SIZE", "2")
            assert ranks.default_workers() == max(1, share // 2)
