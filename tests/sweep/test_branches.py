"""Several budgets from one trunk: what a sweep plans and keeps, what it costs, and the digits of its branches."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from clip_la.cli import main
from clip_la.data.corpora.scenes import build_scenes
from clip_la.errors import UserError
from clip_la.sweep.costs import cost_table, training_flops
from clip_la.sweep.plan import expand, keep_manifest, read_manifest
from clip_la.sweep.planned_run import PlannedRun
from clip_la.sweep.runner import Sweep
from clip_la.sweep.state import last_row, start_of

from .runs import BATCH, BUDGETS, OPTIONS, log_samples, touch_checkpoint

DEADLINE_S = 120
# The larger of the two budgets in one run of its own.
APART = {"budget_samples": 8 * BATCH, "model.schedule": "cooldown", "model.cooldown_samples": 2 * BATCH}


def metrics(out: Path, run: str) -> list[dict[str, str]]:
    with (out / "runs" / run / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_budgets_become_a_trunk_and_a_branch_each() -> None:
    trunk, small, large = expand({**OPTIONS, "zeroshot_suite": "s.yaml"}, {"seed": [3], "arm": {"a": BUDGETS}})
    assert [run.name for run in (trunk, small, large)] == ["seed3-a-trunk", "seed3-a-n128", "seed3-a-n256"]
    # 25 % of 128 and 256 samples: the branches leave after 96 and 192.
    assert (small.leaves_at, large.leaves_at, trunk.budget_samples) == (96, 192, 192)
    assert trunk.options["checkpoint_samples"] == [96, 192]
    assert trunk.options["model.schedule"] == "constant"
    assert "zeroshot_suite" not in trunk.options
    assert large.options["zeroshot_suite"] == "s.yaml"
    assert (large.options["model.schedule"], large.options["model.cooldown_samples"]) == ("cooldown", 64)
    assert large.place == {"seed": 3, "arm": "a", "budget_samples": 256}
    # What is trained: 192 + 32 + 64 samples, instead of 128 + 256 apart.
    assert sum(run.own_samples for run in (trunk, small, large)) == 288
    # A budget that is no whole number of batches ends, and leaves, at one.
    _, odd = expand(OPTIONS, {"arm": {"a": {"budgets": [100]}}})
    assert (odd.budget_samples, odd.leaves_at) == (128, 96)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budgets": 128}, "must be a list of whole numbers"),
        ({"budgets": [128, "x"]}, "must be a list of whole numbers"),
        ({"budgets": []}, "must be a list of whole numbers"),
        ({"budgets": [128], "cooldown_share": 1.5}, "between 0 and 1"),
        ({"budgets": [128], "budget_samples": 128}, "budget_samples is set by the sweep itself"),
        ({"budgets": [128], "model.schedule": "cosine"}, "model.schedule is set by the sweep itself"),
        ({"budgets": [32]}, "32 samples are too few"),
        ({"budgets": [128], "model.warmup_samples": 1000}, "128 samples are too few"),
        ({"budgets": [128], "model.warmup_samples": "few"}, "model.warmup_samples must be a whole number"),
        ({"budgets": [128], "data.batch_size": None}, "data.batch_size is missing"),
        ({"budget_samples": 128, "cooldown_share": 0.2}, "cooldown_share belongs to options.budgets"),
    ],
)
def test_wrong_budgets_are_one_line(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        expand({**OPTIONS, **options}, {"seed": [0]})


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("all", ["seed0-n128", "seed0-n256", "seed0-trunk", "seed1-n128", "seed1-trunk"]),
        ("branches", ["seed0-n128", "seed0-n256", "seed1-n128", "seed1-trunk"]),
        ("none", ["seed1-trunk"]),
    ],
)
def test_what_an_earlier_call_kept_is_deleted_at_the_start(tmp_path: Path, keep: str, kept: list[str]) -> None:
    runs = expand({**OPTIONS, **BUDGETS}, {"seed": [0, 1]})
    for run in runs:
        if run.name != "seed1-n256":
            log_samples(tmp_path, run.name, run.budget_samples)
            touch_checkpoint(tmp_path, run.name, run.budget_samples)

    class Broken:
        """Trains nothing: a branch of the second trunk stays unfinished."""

        runs_per_gpu = 1
        gpu = None

        def train(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
            assert name == "seed1-n256"
            return {"error": "broken", "seconds": 0.0}

        def close(self) -> None:
            pass

    said: list[str] = []
    sweep = Sweep(runs, tmp_path, [Broken()], num_evaluations=lambda _: 0, report=said.append, keep=keep)
    assert sweep.run() == ["seed1-n256"]
    assert sorted(path.parts[-3] for path in tmp_path.glob("runs/*/checkpoints/*.ckpt")) == kept
    first = {"branches": "deleted 1 checkpoint that", "none": "deleted 4 checkpoints that"}.get(keep, "6 runs, ")
    assert first in said[0]
    assert "6 runs, 5 finished already, 1 to train on 1 place" in said


def test_a_budget_given_later_starts_from_an_earlier_checkpoint(tmp_path: Path) -> None:
    keep_manifest(tmp_path, expand({**OPTIONS, **BUDGETS}, {"seed": [0]}))
    grown = expand({**OPTIONS, **BUDGETS, "budgets": [128, 200, 256, 512]}, {"seed": [0]})
    keep_manifest(tmp_path, grown)
    assert read_manifest(tmp_path)["seed0-trunk"].budget_samples == 384
    between = next(run for run in grown if run.name == "seed0-n200")
    assert between.leaves_at == 160
    early = touch_checkpoint(tmp_path, "seed0-trunk", 96)
    log_samples(tmp_path, "seed0-trunk", 128)
    # The trunk will still come to 160 samples.
    assert start_of(tmp_path, between, is_trunk_at_work=False) is None
    log_samples(tmp_path, "seed0-trunk", 192)
    assert start_of(tmp_path, between, is_trunk_at_work=False) == early
    assert start_of(tmp_path, between, is_trunk_at_work=True) is None
    with pytest.raises(UserError, match=r"run seed0-trunk with other options \(model.lr\)"):
        keep_manifest(tmp_path, expand({**OPTIONS, **BUDGETS, "model.lr": 1.0}, {"seed": [0]}))
    (tmp_path / "sweep.json").write_text("[1]")
    with pytest.raises(UserError, match="is damaged"):
        read_manifest(tmp_path)


def test_the_cost_counts_the_trunk_once_and_takes_rates_from_other_sweeps(tmp_path: Path) -> None:
    runs = expand({**OPTIONS, **BUDGETS}, {"seed": [0]})
    apart = expand({**OPTIONS, "budget_samples": 288}, {"seed": [0]})
    assert sum(map(training_flops, runs)) == training_flops(apart[0])
    pilot = tmp_path / "pilot"
    pilot.mkdir()
    keep_manifest(pilot, [PlannedRun("other-seed", {}, runs[0].options)])
    log_samples(pilot, "other-seed", 64)
    # 288 samples at 10 pairs/s on two places.
    last = cost_table(runs, tmp_path / "out", 2, [pilot]).splitlines()[-1]
    assert "0.01 device hours, 0.00 hours on 2 places" in last
    assert cost_table(runs, tmp_path / "out", 2, [pilot]).splitlines()[0].endswith(" 19 s")
    assert "not measured yet" in cost_table(runs, tmp_path / "out", 2).splitlines()[-1]


def test_an_interrupted_sweep_calls_no_run_a_failure(tmp_path: Path) -> None:
    build_scenes(tmp_path / "scenes", pairs=64, size_px=32, quiet=True)
    path = tmp_path / "sweep.yaml"
    options = {**OPTIONS, "data.shards": str(tmp_path / "scenes/train"), "budget_samples": 10**7}
    path.write_text(yaml.safe_dump({"options": options, "grid": {"seed": [0]}}))
    command = [
        sys.executable,
        "-m",
        "clip_la",
        "scaling",
        "sweep",
        str(path),
        "--out",
        str(tmp_path / "out"),
        "--gpus=",
    ]

    def heed_interrupts() -> None:
        """What a shell starts in the background ignores them, and so do its children."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts) as process:
        deadline = time.monotonic() + DEADLINE_S
        while not (tmp_path / "out/runs/seed0/metrics.csv").exists():
            assert process.poll() is None, "the sweep ended before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE_S)
    assert "interrupted" in said
    assert "FAILED" not in said
    # Told to stop, the run has saved.
    assert list((tmp_path / "out/runs/seed0/checkpoints").glob("*.ckpt"))


def test_a_killed_sweep_goes_on_and_its_branches_have_the_digits_of_runs_trained_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    build_scenes(tmp_path / "scenes", pairs=64, size_px=32, quiet=True)
    shards = str(tmp_path / "scenes/train")
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"datasets": [{"data": shards, "name": "own", "task": "zeroshot_retrieval"}]}))
    options = {**OPTIONS, "data.shards": shards, "zeroshot_suite": str(suite)}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"options": options, "grid": {"arm": {"branched": BUDGETS, "apart": APART}}}))
    out = tmp_path / "out"
    command = ["scaling", "sweep", str(path), "--out", str(out), "--gpus", "", "--keep", "branches"]
    first = out / "runs/branched-trunk/checkpoints/samples=000000096.ckpt"
    with subprocess.Popen([sys.executable, "-m", "clip_la", *command], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + DEADLINE_S
        while not first.exists():
            assert process.poll() is None, "the sweep ended before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    written_at = first.stat().st_mtime_ns

    assert main(command) == 0
    said = capsys.readouterr().err
    assert not first.exists() or first.stat().st_mtime_ns == written_at
    losses = {run: last_row(out / "runs" / run) for run in ("branched-n256", "apart")}
    for name in ("samples_seen", "loss", "grad_norm", "lr"):
        assert losses["branched-n256"][name] == losses["apart"][name]
    # The seconds of a branch count from the beginning of its trunk.
    (at_leaving,) = (row for row in metrics(out, "branched-trunk") if row["samples_seen"] == "96")
    assert float(metrics(out, "branched-n128")[0]["train_s"]) > float(at_leaving["train_s"])
    lines = {run: json.loads((out / f"runs/{run}/results.jsonl").read_text()) for run in losses}
    assert lines["branched-n256"]["metrics"] == lines["apart"]["metrics"]
    assert lines["branched-n256"]["parent_run_id"]
    assert not (out / "runs/branched-trunk/results.jsonl").exists()

    # Trunk checkpoints are gone with the last branch, those of the branches stay.
    assert not list((out / "runs/branched-trunk/checkpoints").glob("*.ckpt"))
    assert (out / "runs/branched-n128/checkpoints/samples=000000128.ckpt").is_file()
    with (out / "sweep.csv").open(newline="") as stream:
        rows = {row["run"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {"branched-n128", "branched-n256", "apart"}
    assert rows["branched-n128"]["trunk"] == "branched-trunk"
    status = (out / "status.txt").read_text()
    assert status.startswith("4 of 4 runs finished, 0 training, done")
    assert any(line.split()[:4] == ["branched-n128", "finished", "128", "128"] for line in status.splitlines())
    assert "branched-n128: loss" in said

    assert main(command) == 0
    assert "4 runs, 4 finished already, 0 to train" in capsys.readouterr().err
