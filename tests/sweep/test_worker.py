"""The process that trains a sweep's runs: what it keeps from one run to the next, and what it does not."""

import gc
import io
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clip_la.data.corpora.scenes import build_scenes
from clip_la.data.stream import in_memory
from clip_la.sweep import worker
from clip_la.train import cli
from clip_la.train.task import ContrastiveTask

BATCH = 16


@pytest.fixture(autouse=True)
def nothing_stays_frozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def requests(folder: Path, *attentions: str) -> Iterator[str]:
    build_scenes(folder / "scenes", pairs=32, size_px=32, quiet=True)
    for number, attention in enumerate(attentions):
        options = {
            "model.name": "vit_pico",
            "model.attention": attention,
            "data.shards": folder / "scenes/train",
            "data.batch_size": BATCH,
            "data.workers": 0,
            "data.cache": "memory",
            "budget_samples": 2 * BATCH,
            "tensorboard": "false",
            "accelerator": "cpu",
            "out": folder / str(number),
        }
        yield json.dumps({"name": str(number), "arguments": [f"--{key}={value}" for key, value in options.items()]})


def test_what_lives_on_is_searched_once_and_what_a_run_leaves_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[weakref.ref[ContrastiveTask]] = []
    fills: list[None] = []
    make, fill, train = cli.make_task_and_data, in_memory._fill, worker.train_one

    def remembered(options: Any) -> Any:
        made = make(options)
        tasks.append(weakref.ref(made[0]))
        return made

    def counted(*recipe: Any) -> Any:
        fills.append(None)
        return fill(*recipe)

    # Of each run: models of earlier ones at its start, and objects that a search then looks through.
    alive, searched = [], []

    def watched(arguments: Any) -> dict[str, Any]:
        alive.append(sum(task() is not None for task in tasks))
        searched.append(len(gc.get_objects()))
        return train(arguments)

    monkeypatch.setattr(cli, "make_task_and_data", remembered)
    monkeypatch.setattr(in_memory, "_fill", counted)
    monkeypatch.setattr(worker, "train_one", watched)
    in_memory.forget_pool()
    answers = io.StringIO()
    worker.serve(requests(tmp_path, "softmax", "softmax", "softmax", "linear"), answers)
    assert [json.loads(line)["error"] for line in answers.getvalue().splitlines()] == [None] * 4
    assert alive == [0, 0, 0, 0]
    assert len(tasks) == 4
    assert len(fills) == 1
    assert searched[1] < searched[0] / 10
    assert searched[2] < searched[0] / 10
    # Compiled code of other layers is found, and freed, again.
    assert searched[3] > searched[0] / 2
