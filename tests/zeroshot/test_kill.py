"""An evaluation that is killed, by a real SIGKILL, goes on where it was and ends with the digits it would have had."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml

from clip_la import results
from clip_la.cli import main
from clip_la.data.shards.reader import ShardWriter
from clip_la.models.checkpoint import save_checkpoint
from clip_la.models.clip import CLIP
from clip_la.zeroshot.model.eval_model import EvalModel
from clip_la.zeroshot.runner.rows import Features, ImageFeatures, PartialResults, Predictions, UnitRows
from clip_la.zeroshot.tasks import retrieval

from .conftest import NAMES, picture

PICTURES = 240
TEXTS_PER_CHUNK = 8
PATIENCE_S = 120
# The command as a user starts it, but that it keeps every unit at once instead of every twenty seconds.
CHILD = f"""
import sys
from clip_la.zeroshot.runner import loop
from clip_la.zeroshot.tasks import retrieval
loop.SECONDS_BETWEEN_SAVES = -1.0
retrieval.TEXTS_PER_CHUNK = {TEXTS_PER_CHUNK}
from clip_la.cli import main
sys.exit(main(["eval", *sys.argv[1:]]))
"""


def write_set(folder: Path, first: int) -> None:
    """A shard that serves for classes and for captions."""
    folder.mkdir()
    (folder / "classnames.txt").write_text("\n".join(NAMES))
    with ShardWriter(folder / "0.tar") as writer:
        for n in range(first, first + PICTURES):
            text = f"a {NAMES[n % 6]} {n}\none more {NAMES[n % 6]}"
            writer.write({"__key__": f"k{n}", ".png": picture(n, (24, 24)), ".cls": str(n % 6), ".txt": text})


@pytest.fixture
def suite(tmp_path: Path, tiny_model: CLIP) -> list[str]:
    """The arguments of an evaluation of four tasks, the last two of which share their features."""
    write_set(tmp_path / "train", 0)
    write_set(tmp_path / "test", PICTURES)
    save_checkpoint(tmp_path / "run" / "checkpoints" / "samples=000000064.ckpt", tiny_model, samples_seen=64)
    learnt = {"data": str(tmp_path / "test"), "train": str(tmp_path / "train")}
    entries = [
        {"data": str(tmp_path / "test"), "templates": "plain"},
        {"data": str(tmp_path / "test"), "task": "zeroshot_retrieval"},
        {**learnt, "task": "linear_probe"},
        {**learnt, "task": "knn", "shots": 5},
    ]
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"models": [str(tmp_path / "run")], "datasets": entries}))
    return [
        *("--config", str(tmp_path / "suite.yaml"), "--workers", "0", "--batch-size", "2", "--device", "cpu"),
        *("--cache", "none"),
    ]


def kill_when(arguments: list[str], pattern: str, folder: Path, count: int) -> None:
    """Starts the evaluation and kills it once `folder` holds `count` files like `pattern` more than before."""
    before = set(folder.glob(pattern))
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE_S
    while len(set(folder.glob(pattern)) - before) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def units_in(folder: Path, kind: type[UnitRows]) -> int:
    return sum(len(rows.unit_set) for rows in PartialResults(folder, "", kind).load())


def counting(function: Callable, name: str, made: Counter[str]) -> Callable:
    def counted(*args):
        made[name] += 1
        return function(*args)

    return counted


def timeless(path: Path) -> list[dict]:
    return [{**line, "date": ""} for line in results.read(path)]


def test_a_killed_suite_goes_on_to_the_same_digits(suite: list[str], tmp_path: Path, monkeypatch):
    whole, cut = tmp_path / "whole" / "results.jsonl", tmp_path / "cut" / "results.jsonl"
    monkeypatch.setattr(retrieval, "TEXTS_PER_CHUNK", TEXTS_PER_CHUNK)
    assert main(["eval", *suite, "--out", str(whole)]) == 0
    state = cut.parent / "predictions"
    arguments = [*suite, "--out", str(cut)]

    kill_when(arguments, "*.parts/*.npz", state, 5)
    assert not cut.exists()
    (unfinished,) = state.glob("*.parts")
    classified = units_in(unfinished, Predictions)
    assert 5 <= classified < PICTURES / 2
    kill_when(arguments, "features/*-*.parts/*.npz", state, 5)
    (captions,) = state.glob("features/*-*.parts")
    captioned = units_in(captions, Features)
    assert 5 <= captioned < 2 * PICTURES / TEXTS_PER_CHUNK
    assert [line["task"] for line in results.read(cut)] == ["zeroshot_classification"]
    (pictured,) = set(state.glob("features/*.parts")) - {captions}
    assert units_in(pictured, ImageFeatures) == PICTURES / 2

    # Enough for the pictures to learn from, and some of those to be tested on.
    kill_when(arguments, "features/*.parts/*.npz", state, 2 * PICTURES // TEXTS_PER_CHUNK + PICTURES // 2 + 5)
    assert [line["task"] for line in results.read(cut)] == ["zeroshot_classification", "zeroshot_retrieval"]
    of_images = set(state.glob("features/*.parts")) - {captions}
    tested = min(units_in(folder, ImageFeatures) for folder in of_images)
    assert 5 <= tested < PICTURES / 2

    made: Counter[str] = Counter()
    for module, name in ((EvalModel, "encode_images"), (retrieval, "encode_tokens")):
        monkeypatch.setattr(module, name, counting(getattr(module, name), name, made))
    assert main(["eval", *arguments]) == 0
    # The first two tasks were done, the last one has its features from the third, which lacked these.
    assert made == {"encode_images": PICTURES // 2 - tested}
    assert timeless(cut) == timeless(whole)
    assert json.loads(cut.read_text().splitlines()[3])["num_train"] == 5 * len(NAMES)
    for line in results.read(whole):
        if line["task"] == results.CLASSIFICATION:
            own, other = (
                Predictions.load(p.parent / "predictions" / f"{line['evaluation']}.npz") for p in (whole, cut)
            )
            assert all(np.array_equal(getattr(own, each.name), getattr(other, each.name)) for each in fields(own))
    # Nothing is left but the predictions, nor of the uninterrupted one.
    assert [path.suffix for folder in (whole, cut) for path in (folder.parent / "predictions").iterdir()] == [
        ".npz"
    ] * 2
