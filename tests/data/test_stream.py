"""The stream gives the right samples in the same order, however it is run, and goes on where it was left."""

import itertools
from collections import Counter

import pytest
import torch

from clip_la.data.images.augment import Augmentation
from clip_la.data.shards import problems
from clip_la.data.stream.loader import ShardLoader
from clip_la.data.stream.stream import RankState, ShardStream, WeightedSource
from clip_la.data.text.captions import Captions
from clip_la.data.text.tokenizer import caption_ids, get_tokenizer
from clip_la.errors import UserError

SIZE = 8


def stream_of(urls, *, workers=1, rank=0, world_size=1, batch_size=4, start=None, **options):
    sources = urls if isinstance(urls[0], WeightedSource) else [WeightedSource(tuple(urls))]
    options = {"captions": Captions(), "augmentation": Augmentation(SIZE), "bad_share_limit": 1.0, **options}
    return ShardStream(
        sources,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        workers=workers,
        seed=3,
        start=start,
        **options,
    )


def loader_of(urls, *, workers=1, method="fork", **options):
    return ShardLoader(stream_of(urls, workers=workers, **options), workers=workers, start_method=method)


def take(batches, count):
    return list(itertools.islice(batches, count))


def keys(batches):
    return [key for batch in batches for key in batch["keys"]]


def one_worker(urls, worker, **options):
    """The batches of one logical worker, in this process."""
    start = RankState.fresh(options["workers"], 1)
    start.next_worker = worker
    return iter(stream_of(urls, start=start, **options))


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(("num_shards", "workers"), [(6, 3), (3, 3), (1, 3), (2, 1)])
def test_every_sample_comes_once_a_pass(make_shards, num_shards, workers, in_memory):
    urls = make_shards(num_shards, 72 // num_shards)
    streams = [
        one_worker(urls, worker, rank=rank, world_size=2, workers=workers, in_memory=in_memory, batch_size=1)
        for rank in range(2)
        for worker in range(workers)
    ]
    share = 72 // len(streams)
    seen = Counter(key for stream in streams for key in keys(take(stream, share)))
    assert sorted(seen) == [f"shards{i:04d}" for i in range(72)]
    assert set(seen.values()) == {1}


def test_batches_hold_what_they_promise(make_shards):
    urls = make_shards(2, 10)
    batch = next(iter(stream_of(urls, batch_size=7, augmentation=Augmentation(SIZE, min_crop_area=1.0))))
    captions = [f"thing number {int(key[-4:])}" for key in batch["keys"]]
    tokens = get_tokenizer()(captions)
    assert batch["image"].shape == (7, 3, SIZE, SIZE)
    assert batch["image"].dtype == torch.uint8
    assert batch["image"][:, :, 0, 0].tolist() == [[int(key[-4:]), 0, 77] for key in batch["keys"]]
    assert torch.equal(batch["tokens"], tokens[:, : batch["tokens"].shape[1]])
    assert not tokens[:, batch["tokens"].shape[1] :].any()
    assert batch["tokens"][:, -1].any()
    assert torch.equal(batch["caption_id"], caption_ids(captions))
    assert batch["skipped"] == {}
    assert [url.endswith(".tar") for url in batch["shards"]] == [True] * 7


SPOIL = {
    3: {"png": b"", "reason": problems.IMAGE_EMPTY},
    11: {"txt": "  \n", "reason": problems.EMPTY_CAPTION},
    12: {"txt": None, "reason": problems.NO_CAPTION},
    13: {"png": None, "reason": problems.NO_IMAGE},
    25: {"txt": b"\xff\xfe\x00", "reason": problems.CAPTION_NOT_TEXT},
    38: {"png": b"<svg/>" * 30, "reason": problems.NOT_AN_IMAGE},
}


@pytest.mark.parametrize("in_memory", [False, True])
def test_bad_samples_are_passed_over_and_counted_once(make_shards, in_memory):
    spoil = {i: {part: value for part, value in what.items() if part != "reason"} for i, what in SPOIL.items()}
    urls = make_shards(4, 10, spoil=spoil)
    batches = take(stream_of(urls, batch_size=1, block_shards=4, in_memory=in_memory), 34)
    good = [f"shards{i:04d}" for i in range(40) if i not in SPOIL]
    assert sorted(keys(batches)) == good
    # Bad samples behind the last good one of the pass are met on the way to the next one.
    batches += take(stream_of(urls, batch_size=1, block_shards=4, in_memory=in_memory), 35)[34:]
    found = [(key, reason) for batch in batches for reason, _, key in batch["problems"]]
    assert dict(found) == {f"shards{i:04d}": what["reason"] for i, what in SPOIL.items()}
    assert len(found) == len(SPOIL) or not in_memory
    assert sum((Counter(b["skipped"]) for b in batches), Counter()) == Counter(reason for _, reason in found)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("consumed", [1, 4, 11])
def test_resuming_goes_on_with_the_very_next_sample(make_shards, consumed, workers, in_memory):
    options = {"workers": workers, "in_memory": in_memory, "block_shards": 2, "captions": Captions(("txt", "alt"))}
    spoil = {i: {"png": b"broken" * 9} for i in range(0, 70, 9)}
    urls = make_shards(5, 14, spoil=spoil)
    whole = take(loader_of(urls, **options), 20)
    state = RankState.fresh(workers, 1)
    for batch in whole[:consumed]:
        state.advance(batch)
    state = RankState.from_plain(state.to_plain())
    rest = take(loader_of(urls, start=state, **options), 20 - consumed)
    for expected, got in zip(whole[consumed:], rest, strict=True):
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(value, got[name]) if isinstance(value, torch.Tensor) else value == got[name]


def test_a_stream_from_memory_starts_no_processes(make_shards):
    loader = loader_of(make_shards(2, 12), workers=3, in_memory=True)
    assert loader.num_workers == 0
    batches = take(loader, 6)
    assert [batch["cursor"][0] for batch in batches] == [0, 1, 2, 0, 1, 2]
    assert sorted(keys(batches)) == [f"shards{i:04d}" for i in range(24)]


def test_reading_ahead_changes_nothing(make_shards, tmp_path):
    urls = make_shards(5, 14, spoil={i: {"png": b"broken" * 9} for i in range(0, 70, 9)})
    plain, ahead = (take(stream_of(urls, read_ahead=on), 30) for on in (False, True))
    assert keys(plain) == keys(ahead)
    assert [batch["problems"] for batch in plain] == [batch["problems"] for batch in ahead]
    with pytest.raises(UserError, match="does not exist"):
        take(loader_of([*urls, str(tmp_path / "gone.tar")], workers=0, read_ahead=True), 90)


def test_ranks_are_disjoint_and_the_order_is_the_same_for_every_start_method(make_shards):
    urls = make_shards(4, 12)
    forked = [keys(take(loader_of(urls, rank=rank, world_size=2, method="fork"), 6)) for rank in range(2)]
    assert sorted(forked[0] + forked[1]) == [f"shards{i:04d}" for i in range(48)]
    for method in ("spawn", "forkserver"):
        assert keys(take(loader_of(urls, rank=1, world_size=2, method=method), 6)) == forked[1]


def test_sources_are_mixed_by_samples_not_by_shards(make_shards):
    small, large = make_shards(1, 5, name="small"), make_shards(4, 40, name="large")
    sources = [WeightedSource(tuple(small), weight=3.0), WeightedSource(tuple(large), weight=1.0)]
    seen = keys(take(stream_of(sources), 100))
    share = sum(key.startswith("small") for key in seen) / len(seen)
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 400) ** 0.5
    assert len({key for key in seen if key.startswith("large")}) == len([k for k in seen if k.startswith("large")])


def test_captions_are_chosen_by_weight_and_reproducibly(make_shards):
    spoil = {i: {"alt": f"other {i}", "json": {"list": ["one", "two"]}} for i in range(40)}
    urls = make_shards(1, 40, spoil=spoil)
    captions = Captions(("txt", "alt", "json.list"), (1.0, 2.0, 1.0))
    ids = torch.cat([b["caption_id"] for b in take(stream_of(urls, captions=captions), 400)])
    again = torch.cat([b["caption_id"] for b in take(stream_of(urls, captions=captions), 400)])
    assert torch.equal(ids, again)
    from_list = torch.isin(ids, caption_ids(["one", "two"])).float().mean()
    one = (ids == caption_ids(["one"])).float().mean()
    alternatives = torch.isin(ids, caption_ids([f"other {i}" for i in range(40)])).float().mean()
    assert abs(alternatives - 0.5) < 4 * 0.5 / 40
    assert abs(from_list - 0.25) < 4 * 0.44 / 40
    assert abs(one - 0.125) < 4 * 0.34 / 40


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_shards_without_captions_stop_the_run_and_say_what_is_there(make_shards, workers, in_memory):
    urls = make_shards(2, 6, spoil={i: {"txt": None, "cls": "3"} for i in range(12)})
    with pytest.raises(UserError, match=r"no caption \d+; parts found: cls, png; captions are looked for in txt"):
        next(iter(loader_of(urls, workers=workers, in_memory=in_memory)))


def test_empty_shards_stop_the_run(make_shards):
    with pytest.raises(UserError, match="no samples at all; parts found: none"):
        next(iter(loader_of(make_shards(3, 0))))


def test_too_many_bad_samples_stop_the_run(make_shards):
    urls = make_shards(4, 400, spoil={i: {"txt": ""} for i in range(0, 1600, 5)})
    with pytest.raises(UserError, match=r"empty caption \d+.* more than bad_share_limit 0.1"):
        take(loader_of(urls, bad_share_limit=0.1, batch_size=50), 40)
    take(loader_of(urls, bad_share_limit=0.25, batch_size=50), 40)


def test_a_shard_that_vanishes_is_named(make_shards, tmp_path):
    urls = make_shards(2, 6)
    with pytest.raises(UserError, match=r"gone\.tar.* does not exist"):
        take(loader_of([*urls, str(tmp_path / "gone.tar")]), 9)
