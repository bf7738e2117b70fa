"""A user's own webdataset pipeline over a stream: every sample once, in the same order, however often it is killed."""

import itertools
import json
import multiprocessing
import os
import signal
import time
from functools import partial

import pytest
import torch
import webdataset as wds

from clip_la.atomic import atomic_write
from clip_la.data.images.augment import Augmentation
from clip_la.data.shards import watch
from clip_la.data.stream.pipeline import StreamLoader, StreamPipeline
from clip_la.data.stream.stream import ShardStream, WeightedSource
from clip_la.errors import UserError

WORKERS, ITEMS = 2, 40


def stream_of(urls, **options):
    sources = [WeightedSource(tuple(urls))] if isinstance(urls[0], str) else urls
    return ShardStream(sources, **{"rank": 0, "world_size": 1, "workers": WORKERS, "seed": 3, **options})


def number_of(sample):
    return int(sample["__key__"][-4:])


def is_wanted(number):
    return number % 7 != 3


def as_parity(numbers):
    return {"numbers": numbers, "odd": sum(numbers) % 2}


def is_large(item):
    return min(item["numbers"]) > 5


def loader_of(urls, processes=True, **options):
    """Stages in the workers and in this process, which drop items and join them, in both."""
    pipeline = StreamPipeline(stream_of(urls, **options)).map(number_of).select(is_wanted).listed(3)
    return StreamLoader(pipeline, processes=processes, start_method="fork").map(as_parity).select(is_large).listed(2)


def take(items, count):
    return list(itertools.islice(items, count))


def test_samples_leave_the_stream_as_webdataset_has_them(make_shards):
    urls = make_shards(2, 6)
    ours = take(StreamLoader(StreamPipeline(stream_of(urls, workers=1)), processes=False), 12)
    theirs = list(wds.WebDataset(urls, shardshuffle=False))
    for sample in theirs:
        sample.pop("__local_path__", None)
    assert sorted(ours, key=number_of) == sorted(theirs, key=number_of)
    assert [set(sample) for sample in ours] == [{"__key__", "__url__", "png", "txt"}] * 12


@pytest.mark.parametrize("consumed", [1, 2, 5, 9])
@pytest.mark.parametrize("sources", [1, 2])
def test_a_loaded_position_goes_on_with_the_very_next_item(make_shards, consumed, sources):
    urls = make_shards(5, 14)
    if sources == 2:
        urls = [WeightedSource(tuple(urls[:2]), 2.0), WeightedSource(tuple(urls[2:]))]
    whole = take(loader_of(urls, processes=False, block_shards=2), ITEMS)
    first = loader_of(urls, block_shards=2)
    got = take(first, consumed)
    second = loader_of(urls, block_shards=2)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert got + take(second, ITEMS - consumed) == whole


def test_all_samples_come_once_a_pass(make_shards):
    urls = make_shards(4, 12)
    loader = StreamLoader(StreamPipeline(stream_of(urls)).map(number_of).listed(4), start_method="fork")
    batches = take(loader, 12)
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(48))


def run(urls, folder):
    """A run of its own process group: takes items, logs each, then saves the position behind it."""
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    loader, place, begun = loader_of(urls), folder / "place.json", 0
    if place.exists():
        saved = json.loads(place.read_text())
        loader.load_state_dict(saved["loader"])
        begun = saved["items"]
    for number, item in enumerate(itertools.islice(loader, ITEMS - begun), begun):
        with open(folder / "log.jsonl", "a") as log:
            log.write(json.dumps([number, item]) + "\n")
        time.sleep(0.01)
        with atomic_write(place, "w") as file:
            file.write(json.dumps({"loader": loader.state_dict(), "items": number + 1}))


def test_a_killed_run_resumes_to_the_item(make_shards, tmp_path):
    urls = make_shards(5, 14)
    log, kills = tmp_path / "log.jsonl", 0
    while True:
        process = multiprocessing.get_context("fork").Process(target=run, args=(urls, tmp_path))
        process.start()
        seen = log.stat().st_size if log.exists() else 0
        while kills < 3 and process.is_alive() and (log.stat().st_size if log.exists() else 0) < seen + 300:
            time.sleep(0.005)
        if kills == 3 or not process.is_alive():
            process.join()
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert (kills, process.exitcode) == (3, 0)
    items = {}
    for number, item in map(json.loads, log.read_text().splitlines()):
        # What was logged but not yet saved comes again, and is the same.
        assert items.setdefault(number, item) == item
    assert [items[number] for number in range(ITEMS)] == take(loader_of(urls, processes=False), ITEMS)


def image_sum(batch):
    return batch["keys"], int(batch["image"].sum())


@pytest.mark.parametrize("in_memory", [False, True])
def test_batches_of_the_stream_go_through_a_pipeline_too(make_shards, in_memory):
    options = {"augmentation": Augmentation(8), "batch_size": 4, "in_memory": in_memory}
    urls = make_shards(4, 8)

    def loader():
        return StreamLoader(StreamPipeline(stream_of(urls, **options)).map(image_sum), start_method="fork").listed(2)

    whole = take(loader(), 8)
    first, second = loader(), loader()
    got = take(first, 3)
    second.load_state_dict(first.state_dict())
    assert got + take(second, 5) == whole
    keys = [key for pair in whole for batch, _ in pair for key in batch]
    assert sorted(keys[:32]) == [f"shards{i:04d}" for i in range(32)]


@pytest.mark.parametrize("change", [{"seed": 4}, {"workers": 3}, {"block_shards": 2}, {"rank": 1, "world_size": 2}])
def test_a_position_of_another_stream_is_refused(make_shards, change):
    urls = make_shards(4, 6)
    state = loader_of(urls).state_dict()
    with pytest.raises(UserError, match=rf"{next(iter(change))} \d.*, now \d"):
        loader_of(urls, **change).load_state_dict(state)


@pytest.mark.parametrize("state", [{}, {"a": 1}, None, {"layout": None}], ids=str)
def test_what_is_no_position_is_refused(make_shards, state):
    with pytest.raises(UserError, match="not a state_dict of a StreamLoader"):
        loader_of(make_shards(4, 6)).load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("positions", []),
        ("positions", 3),
        ("positions", [[1, [[0, 0]]]]),
        ("positions", [[-1, [[0, 0]]], [0, [[0, 0]]]]),
        ("positions", [[1, [[0, "x"]]], [0, [[0, 0]]]]),
        ("positions", [[1, []], [0, [[0, 0]]]]),
        ("next_worker", "x"),
        ("next_worker", -1),
        ("next_worker", 2),
        ("next_worker", True),
        ("layout", -1),
    ],
)
def test_a_position_of_wrong_values_is_refused(make_shards, name, value):
    loader = loader_of(make_shards(4, 6))
    take(loader, 1)
    saved = loader.state_dict()
    with pytest.raises(UserError, match=f"not a state_dict of a StreamLoader: its {name} (is|are) ") as error:
        loader.load_state_dict({**saved, name: value})
    assert "\n" not in str(error.value)
    # What was refused has moved nothing, and a right position, as JSON or not, still does.
    assert loader.state_dict() == saved
    loader.load_state_dict(saved)


@pytest.mark.parametrize("stage", [wds.shuffle(10), wds.slice(5), wds.rsample(0.5), wds.unbatched()], ids=str)
def test_stages_that_cannot_be_exact_are_refused(make_shards, stage):
    pipeline = StreamPipeline(stream_of(make_shards(1, 4)))
    for each in (pipeline, StreamLoader(pipeline)):
        with pytest.raises(UserError, match="cannot be resumed exactly"):
            each.compose(stage)
        with pytest.raises(UserError, match="cannot be resumed exactly"):
            each.append(stage)
        with pytest.raises(UserError, match="no epochs"):
            each.with_epoch(10)
    assert pipeline.pipeline == []


def twice(items):
    for item in items:
        yield item
        yield item


@pytest.mark.parametrize("in_worker", [False, True])
def test_a_stage_of_ones_own_that_gives_too_much_is_named(make_shards, in_worker):
    pipeline = StreamPipeline(stream_of(make_shards(2, 4)))
    loader = StreamLoader(pipeline.compose(twice)) if in_worker else StreamLoader(pipeline).compose(twice)
    with pytest.raises(UserError, match="gave several items for one"):
        take(loader, 3)


def test_a_missing_shard_is_one_line_whatever_the_users_handler(make_shards, tmp_path):
    stream = stream_of([*make_shards(3, 4), str(tmp_path / "gone.tar")])
    loader = StreamLoader(StreamPipeline(stream).map(number_of, handler=wds.ignore_and_continue))
    with pytest.raises(UserError, match=r"gone\.tar.* does not exist"):
        take(loader, 40)


def hang(hangs, sample):
    if number_of(sample) == hangs:
        time.sleep(1000)
    return sample


def test_a_function_that_hangs_is_named_by_its_sample(make_shards, monkeypatch):
    monkeypatch.setenv(watch.VARIABLE, "0.3")
    monkeypatch.setattr(watch, "GRACE_S", 0.1)
    loader = StreamLoader(StreamPipeline(stream_of(make_shards(2, 6))).map(partial(hang, 7)))
    with pytest.raises(UserError, match=r"sample shards0007 of .*00001\.tar: took more than 0.3 s"):
        take(loader, 20)


def test_raw_samples_do_not_lie_in_memory(make_shards):
    with pytest.raises(UserError, match="give it an augmentation"):
        stream_of(make_shards(1, 2), in_memory=True)
