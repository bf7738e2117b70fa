"""`clip-la train --zeroshot_suite`: the evaluations of a run, made by all its processes, also when it is killed."""

import itertools
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import yaml

from clip_la import results
from clip_la.cli import main
from clip_la.data.shards.reader import ShardWriter
from clip_la.runs import checkpoint_name
from clip_la.train.zeroshot_callback import ZeroShotEvaluation

from .conftest import COLOURS, SHAPES, drawing
from .runs import BATCH, PATIENCE_S, assert_same_outcome, rows, start_process

BUDGET = 6 * BATCH
MOMENTS = (2 * BATCH, 4 * BATCH, BUDGET)
TASKS = ("zeroshot_classification", "zeroshot_retrieval", "knn")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """Sixteen drawings to tell apart, to find by caption, and to learn from."""
    folder = tmp_path_factory.mktemp("drawings")
    kinds = list(itertools.product(COLOURS, SHAPES))
    (folder / "classnames.txt").write_text("\n".join(f"{colour} {shape}" for colour, shape in kinds))
    with ShardWriter(folder / "0.tar") as writer:
        for number, (colour, shape) in enumerate(kinds):
            parts = {".png": drawing(colour, shape, 1), ".cls": str(number), ".txt": f"a {colour} {shape}"}
            writer.write({"__key__": f"k{number}", **parts})
    data = str(folder / "0.tar")
    datasets = [
        {"data": data, "name": "drawings", "templates": "a {c}"},
        {"data": data, "name": "drawings", "task": "zeroshot_retrieval"},
        {"data": data, "name": "drawings", "task": "knn", "train": data},
    ]
    (folder / "suite.yaml").write_text(yaml.safe_dump({"datasets": datasets}))
    return folder / "suite.yaml"


@pytest.fixture
def options(run_options, suite: Path) -> list[str]:
    # 20 samples are reached after two batches.
    return [
        *run_options,
        *("--budget_samples", str(BUDGET), "--log_every_samples", str(BATCH)),
        *("--zeroshot_suite", str(suite), "--zeroshot_samples", f"[20, {4 * BATCH}]"),
    ]


def lines(run: Path) -> list[dict]:
    return list(results.read(run / "results.jsonl"))


def figures(run: Path) -> list[tuple]:
    """What must not depend on how a run was made."""
    return [
        (line["samples_seen"], line["task"], line["evaluation"], json.dumps(line["metrics"])) for line in lines(run)
    ]


def test_a_run_evaluates_at_given_samples_and_at_its_end(options, run_options, suite: Path, tmp_path: Path, capsys):
    run, plain = tmp_path / "run", tmp_path / "plain"
    assert main(["train", *options, "--out", str(run)]) == 0
    shown = capsys.readouterr().err
    assert [(line["samples_seen"], line["task"]) for line in lines(run)] == list(itertools.product(MOMENTS, TASKS))
    for samples in MOMENTS:
        assert shown.count(f"\nat {samples} samples: vit_pico on drawings") == 3
    assert "\r" not in shown, "a line was drawn over, which a file does not show"
    (run_id,) = {line["run_id"] for line in lines(run)}
    assert run_id
    assert lines(run)[-1]["budget_samples"] == BUDGET
    assert {path.suffix for path in (run / "predictions").iterdir()} == {".npz"}

    assert main(["train", *run_options, "--budget_samples", str(BUDGET), "--out", str(plain)]) == 0
    assert_same_outcome(run, plain, BUDGET)

    # The command on the run's checkpoint finds the results of the end: they are the same evaluations.
    assert main(["eval", str(run), "--config", str(suite), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("already in") == 3
    assert main(["eval", str(run), "--config", str(suite), "--device", "cpu", "--again", "--out", "again.jsonl"]) == 0
    again = list(results.read("again.jsonl"))
    assert [line["metrics"] for line in again] == [line["metrics"] for line in lines(run)[-3:]]


def test_evaluations_are_no_training_time(options, tmp_path: Path, monkeypatch):
    """The clock of the training stands still: an evaluation that takes an hour leaves no trace in the rates."""
    from clip_la.train import callbacks

    passed_s = 0.0
    clock = callbacks.time.perf_counter
    inner = ZeroShotEvaluation._subject

    def slow(self, task):
        nonlocal passed_s
        passed_s += 3600.0
        return inner(self, task)

    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: clock() + passed_s)
    monkeypatch.setattr(ZeroShotEvaluation, "_subject", slow)
    assert main(["train", *options, "--out", str(tmp_path / "run")]) == 0
    assert passed_s == 3 * 3600.0
    assert float(rows(tmp_path / "run")[-1]["train_s"]) < 3600.0
    assert all(float(row["pairs_per_s"]) > 1 for row in rows(tmp_path / "run"))


def test_tensorboard_has_the_curves(options, tmp_path: Path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main(["train", *options, "--out", str(tmp_path / "run"), "--tensorboard", "true"]) == 0
    accumulator = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    accumulator.Reload()
    curve = [(event.step, event.value) for event in accumulator.Scalars("zeroshot_classification/drawings/top1")]
    found = [line for line in lines(tmp_path / "run") if line["task"] == "zeroshot_classification"]
    assert curve == [(line["samples_seen"], pytest.approx(line["metrics"]["top1"]["value"])) for line in found]
    assert [step for step, _ in curve] == list(MOMENTS)


def killed_in_an_evaluation(monkeypatch, samples: int):
    """Breaks off before the results of `samples` are written, as a kill would; returns how to mend it."""
    from clip_la.zeroshot import suite as suites

    inner = suites.results.append

    class Killed(BaseException):
        pass

    def append(path, line):
        if line["samples_seen"] == samples and line["task"] == "zeroshot_retrieval":
            raise Killed
        inner(path, line)

    monkeypatch.setattr(suites.results, "append", append)
    return Killed


@pytest.mark.parametrize("samples", [4 * BATCH, BUDGET], ids=["on the way", "at the end"])
def test_an_evaluation_that_was_cut_short_is_made_up_for(samples: int, options, tmp_path: Path, monkeypatch, capsys):
    assert main(["train", *options, "--out", str(tmp_path / "whole")]) == 0
    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(killed_in_an_evaluation(patched, samples)):
        main(["train", *options, "--out", str(run)])
    # The step before was saved; only what came after it is missing.
    assert (run / "checkpoints" / checkpoint_name(samples)).is_file()
    assert len(lines(run)) == (4 if samples < BUDGET else 7)
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert "\r" not in capsys.readouterr().err, "a line was drawn over, which a file does not show"
    assert figures(run) == figures(tmp_path / "whole")
    assert_same_outcome(run, tmp_path / "whole", BUDGET)


def test_two_processes_evaluate_together(options, tmp_path: Path):
    """Under torchrun, with gloo: each result once, with the digits that one process finds in the checkpoint."""
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    process = start_process(run, options, launcher=torchrun)
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, stderr
    assert f"{BUDGET} samples seen" in stdout
    assert [(line["samples_seen"], line["task"]) for line in lines(run)] == list(itertools.product(MOMENTS, TASKS))
    arguments = ["--config", options[options.index("--zeroshot_suite") + 1], "--device", "cpu"]
    assert main(["eval", str(run), *arguments, "--again", "--out", "alone.jsonl"]) == 0
    alone = [(line["evaluation"], line["metrics"]) for line in results.read("alone.jsonl")]
    assert alone == [(line["evaluation"], line["metrics"]) for line in lines(run)[-3:]]
