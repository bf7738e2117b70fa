"""A sweep as a user runs it, on the CPU, with runs of a few batches."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from clip_la.cli import main
from clip_la.data.corpora.scenes import build_scenes
from clip_la.errors import UserError
from clip_la.sweep.costs import cost_table
from clip_la.sweep.places import Worker, slots
from clip_la.sweep.plan import expand, keep_manifest, read_plan
from clip_la.sweep.runner import Sweep
from clip_la.sweep.state import last_row

BATCH = 32
OPTIONS = {
    "model.name": "vit_pico",
    "data.batch_size": BATCH,
    "data.workers": 0,
    "data.cache": "memory",
    "budget_samples": 2 * BATCH,
    "log_every_samples": BATCH,
    "tensorboard": False,
    "accelerator": "cpu",
}
ARMS = {
    "softmax": {"model.attention": "softmax"},
    "image-linear": {"model.image_attention": "linear_mean", "model.text_attention": "softmax"},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    build_scenes(folder, pairs=64, size_px=32, quiet=True)
    return folder / "train"


def sweep_file(folder: Path, grid: dict, **options: object) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"options": OPTIONS | options, "grid": grid}, sort_keys=False))
    return path


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "sweep.csv").open(newline="") as stream:
        return {row["run"]: row for row in csv.DictReader(stream)}


def test_a_sweep_trains_its_grid_goes_on_and_reports_what_failed(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"datasets": [{"data": str(scenes), "name": "own", "task": "zeroshot_retrieval"}]}))
    wild = {"model.attention": "softmax", "model.max_grad_norm": None, "model.weight_decay": 1e38}
    grid = {"arm": {**ARMS, "wild": wild}, "model.lr": [1e-3]}
    path = sweep_file(tmp_path, grid, **{"data.shards": str(scenes), "zeroshot_suite": str(suite)})
    out = tmp_path / "out"
    assert main(["scaling", "sweep", str(path), "--out", str(out), "--gpus", ""]) == 1
    printed = capsys.readouterr()
    assert "wild-lr0.001: FAILED: at 64 samples the loss is nan" in printed.err
    assert "1 failed: wild-lr0.001" in printed.out

    rows = table(out)
    assert {"softmax-lr0.001", "image-linear-lr0.001"} <= set(rows)
    row = rows["image-linear-lr0.001"]
    assert (row["arm"], float(row["model.lr"]), row["samples_seen"]) == ("image-linear", 1e-3, "64")
    assert row["image_attention"] == "linear_mean"
    line = json.loads((out / "runs/image-linear-lr0.001/results.jsonl").read_text())
    recall = line["metrics"]["image_retrieval_recall@1"]["value"]
    assert float(row["own/image_retrieval_recall@1"]) == recall
    assert (row["own/num_samples"], row["tokens"]) == ("64", str(line["tokens"]))
    # Each run is what `clip-la train` makes of the same options.
    assert float(row["loss"]) == float(last_row(out / "runs/image-linear-lr0.001")["loss"])

    before = (out / "runs/softmax-lr0.001/metrics.csv").stat().st_mtime_ns
    assert main(["scaling", "sweep", str(path), "--out", str(out), "--gpus", ""]) == 1
    assert "3 runs, 2 finished already, 1 to train" in capsys.readouterr().err
    assert (out / "runs/softmax-lr0.001/metrics.csv").stat().st_mtime_ns == before

    shown = sweep_file(tmp_path, {"arm": ARMS}, **{"data.shards": str(scenes)})
    assert main(["scaling", "sweep", str(shown), "--out", str(out), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 runs, ")


def test_the_same_run_by_a_sweep_and_by_train_is_bit_equal(scenes: Path, tmp_path: Path) -> None:
    path = sweep_file(tmp_path, {"arm": {"softmax": ARMS["softmax"]}, "seed": [3]}, **{"data.shards": str(scenes)})
    assert main(["scaling", "sweep", str(path), "--out", str(tmp_path / "out"), "--gpus", ""]) == 0
    (run,) = read_plan(path)
    # In a process of its own, as the sweep's worker is: what runs here may have set another number of threads.
    subprocess.run([sys.executable, "-m", "clip_la", "train", *run.arguments(tmp_path / "by_hand")], check=True)
    rows = [last_row(folder / "runs/softmax-seed3") for folder in (tmp_path / "out", tmp_path / "by_hand")]
    assert rows[0]["loss"] == rows[1]["loss"]
    assert rows[0]["grad_norm"] == rows[1]["grad_norm"]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"modle.lr": 3}, 'run softmax: clip-la train: "modle.lr" must be given via "model.lr"'),
        ({"model.lr": ["abc"]}, r"run softmax: clip-la train: model.lr: .*abc"),
        ({"seed": [1, 2]}, r"run softmax: clip-la train: seed: .*\[1, 2\]"),
        ({"data.weights": [1, 2]}, "run softmax: .*weights has 2 numbers for 1 entries of shards"),
        ({"model.beta1": 2}, "run softmax: .*beta1 must be from 0 to below 1, not 2"),
        ({"model.attention": "softmax*3"}, r"run softmax: image tower of .*: the attention 'softmax\*3' is for 3"),
        ({"zeroshot_suite": "/nope"}, "run softmax: option zeroshot_suite: no suite at /nope"),
        ({"model.schedule": "cooldown"}, "run softmax: schedule 'cooldown' with cooldown_samples 0: "),
        ({"model.warmup_samples": 9999}, "run softmax: warmup_samples 9,999 "),
        ({"zeroshot_samples": [9999], "zeroshot_suite": "configs/eval/starter.yaml"}, "run softmax: zeroshot_samples "),
    ],
)
def test_wrong_options_are_one_line_before_anything_starts(
    options: dict[str, object], said: str, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = sweep_file(tmp_path, {"arm": {"softmax": {}}}, **{"data.shards": "x", **options})
    assert main(["scaling", "sweep", str(path), "--out", str(tmp_path / "out"), "--gpus", "", *more]) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(rf"clip-la: error: {path}: {said}.*\n", printed.err), printed.err
    assert printed.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("axis", ["run", "tokens", "samples_seen"])
def test_an_axis_called_as_a_column_of_the_table_is_one_line(axis: str, tmp_path: Path, capsys) -> None:
    """The table's own figure would stand where the place in the grid should."""
    path = sweep_file(tmp_path, {"seed": [0], axis: {"a": {"model.attention": "softmax"}}}, **{"data.shards": "x"})
    assert main(["scaling", "sweep", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    said = f"{path}: grid.{axis}: sweep.csv has a column of that name: call the axis otherwise\n"
    assert capsys.readouterr().err == f"clip-la: error: {said}"


def test_missing_data_is_one_line_before_anything_starts_unless_it_is_not_needed(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shards, out = tmp_path / "shards", tmp_path / "out"
    path = sweep_file(tmp_path, {"seed": [0]}, **{"data.shards": str(shards)})
    command = ["scaling", "sweep", str(path), "--out", str(out), "--gpus", ""]
    assert main(command) == 2
    assert f"{path}: run seed0: shard '{shards}' does not exist" in capsys.readouterr().err
    # What it would cost can be asked elsewhere.
    assert main([*command, "--dry-run"]) == 0
    assert not out.exists()
    shutil.copytree(scenes, shards)
    assert main(command) == 0
    # Of a sweep that is finished the table is written anew without them.
    shutil.rmtree(shards)
    assert main(command) == 0


def test_places_that_cannot_be_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sweep_file(tmp_path, {"seed": [0]}, **{"data.shards": "x"})
    assert main(["scaling", "sweep", str(path), "--out", str(path)]) == 2
    assert f"{path} is a file; --out must name a folder" in capsys.readouterr().err
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(["scaling", "sweep", str(path), "--out", str(tmp_path / "out"), "--gpus", "0"]) == 2
    assert "--gpus 0: no GPU can be used here" in capsys.readouterr().err


def test_a_branch_with_a_wrong_suite_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its trunk is not evaluated, and has no suite."""
    plan = {key: value for key, value in OPTIONS.items() if key != "budget_samples"}
    plan |= {"data.shards": "x", "budgets": [8 * BATCH, 16 * BATCH], "zeroshot_suite": "/nope"}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"options": plan, "grid": {"seed": [0, 1]}}))
    assert main(["scaling", "sweep", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert "s.yaml: run seed0-n256: option zeroshot_suite: no suite at /nope" in capsys.readouterr().err


def test_the_worker_of_a_killed_sweep_ends_in_the_middle_of_its_run() -> None:
    """A sweep called again would train in the same folder beside it."""
    worker = (
        "import time\nfrom clip_la.sweep import worker\nworker.train_one = lambda _: time.sleep(1000)\nworker.main()"
    )
    sweep = (
        "import os, signal, subprocess, sys, time\n"
        f"worker = subprocess.Popen([sys.executable, '-c', {worker!r}], stdin=subprocess.PIPE, text=True)\n"
        'print(\'{"name": "a", "arguments": []}\', file=worker.stdin, flush=True)\n'
        "time.sleep(1)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # Comes back once nobody holds the pipe any more.
    done = subprocess.run(
        [sys.executable, "-c", sweep], env=environment, stderr=subprocess.PIPE, timeout=30, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_a_fault_in_the_midst_of_a_sweep_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {"options": {**OPTIONS, "data.shards": "x"}, "grid": {"seed": [0]}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(plan))
    monkeypatch.setattr(Worker, "train", lambda self, name, arguments: {"error": None, "seconds": "no number"})
    places = [Worker(slot, tmp_path) for slot in slots(["0"], 2)]
    with pytest.raises(ValueError, match="format"):
        Sweep(read_plan(tmp_path / "s.yaml"), tmp_path, places, num_evaluations=lambda _: 0, report=print).run()
    # Two runs share the GPU, and so its seconds.
    assert json.loads((tmp_path / "runs/seed0/place.json").read_text()) == {"runs_per_gpu": 2}


def test_hours_are_told_of_runs_alone_that_were_measured(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump({"options": {**OPTIONS, "data.shards": "x"}, "grid": {"seed": [0]}})
    )
    runs = read_plan(tmp_path / "s.yaml")
    assert "hours" not in cost_table(runs, tmp_path / "out", 1)


def test_places_spread_over_the_gpus_first() -> None:
    assert [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in slots(["0", "3"], 2)] == ["0", "3", "0", "3"]
    assert [slot.runs_per_gpu for slot in slots(["0", "3"], 2)] == [2] * 4
    assert [slot.number for slot in slots([], 2)] == [0, 1]
    assert "CUDA_VISIBLE_DEVICES" not in slots([], 1)[0].environment


class Idle:
    """A place whose runs end at once."""

    runs_per_gpu = 1
    gpu = None

    def train(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        return {"error": None, "seconds": 0.0}

    def close(self) -> None:
        pass


def test_a_second_sweep_in_the_same_folder_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump({"options": {**OPTIONS, "data.shards": "x"}, "grid": {"seed": [0]}})
    )
    out = tmp_path / "out"
    # The place of the first sweep trains until its standard input ends.
    first = (
        "import sys\nfrom pathlib import Path\nfrom clip_la.sweep.plan import read_plan\n"
        "from clip_la.sweep.runner import Sweep\n"
        "class Place:\n"
        "    runs_per_gpu, gpu = 1, None\n"
        "    def train(self, name, arguments):\n"
        "        print('at work', flush=True)\n"
        "        sys.stdin.read()\n"
        "        return {'error': None, 'seconds': 0.0}\n"
        "    def close(self): pass\n"
        "file, out = map(Path, sys.argv[1:])\n"
        "Sweep(read_plan(file), out, [Place()], num_evaluations=lambda _: 0, report=lambda _: None).run()\n"
    )
    command = [sys.executable, "-c", first, str(tmp_path / "s.yaml"), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        second = Sweep(read_plan(tmp_path / "s.yaml"), out, [Idle()], num_evaluations=lambda _: 0, report=print)
        with pytest.raises(UserError, match=rf"^{out} is in use: process {process.pid} on [^\n]*$"):
            second.run()
    finally:
        process.kill()
        process.communicate()
    # The lock ends with its process, even one that was killed.
    assert second.run() == []


def test_one_run_on_one_place_is_said_in_the_singular(tmp_path: Path) -> None:
    (run,) = expand({**OPTIONS, "data.shards": "x"}, {"seed": [0]})
    last = cost_table([run], tmp_path, 1).splitlines()[-1]
    assert last.startswith("1 run, ")
    assert last.endswith(", 1 run is of an architecture not measured yet")
    (tmp_path / "runs/seed0").mkdir(parents=True)
    (tmp_path / "runs/seed0/metrics.csv").write_text("samples_seen,train_s\n64,3600.0\n")
    keep_manifest(tmp_path, [run])
    assert cost_table([run], tmp_path, 1).endswith(" FLOPs, 1.00 device hours, 1.00 hours on 1 place")
