"""The demo as a user runs it, with budgets of a few batches."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip_la.cli import main
from clip_la.demo import BUDGETS_SAMPLES, Series, best_of_each_kind

BUDGETS = ("512", "640", "768")
ARGUMENTS = ["demo", "--models", "vit_pico", "--attention", "softmax", "linear", "--budgets", *BUDGETS]
START_DEADLINE_S = 120


def results(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def stop_once(out: Path, appeared: str) -> None:
    """Starts the demo and kills it as soon as a file of that pattern is there."""
    command = [sys.executable, "-m", "clip_la", *ARGUMENTS, "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + START_DEADLINE_S
        while not list(out.glob(appeared)):
            assert process.poll() is None, "the demo ended before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)


def test_a_killed_demo_goes_on_and_a_finished_one_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "demo"
    stop_once(out, "runs/vit_pico-softmax-512/checkpoints/*.ckpt")
    first_run = next(out.glob("runs/vit_pico-softmax/checkpoints/*.ckpt"))
    changed_at = first_run.stat().st_mtime_ns

    assert main([*ARGUMENTS, "--out", str(out)]) == 0
    assert first_run.stat().st_mtime_ns == changed_at
    lines = results(out)
    # 2 kinds x 3 budgets x (3 held-out splits, and the pairs of 2 of them).
    assert len(lines) == 30
    losses = [line["metrics"]["contrastive_loss"]["value"] for line in lines if "top1" not in line["metrics"]]
    # After a few batches still near chance, ln 256.
    assert len(losses) == 12
    assert all(4.5 < loss < 6.5 for loss in losses)
    assert {(line["attention"], line["samples_seen"]) for line in lines} == {
        (kind, int(budget)) for kind in ("softmax", "linear") for budget in BUDGETS
    }
    assert all(line["schedule"] == "cooldown" and line["samples_seen"] == line["budget_samples"] for line in lines)
    for name in (
        "scaling.png",
        "scaling_loss.png",
        "scaling_loss.svg",
        "report.md",
        "contact_sheet-softmax.png",
        "contact_sheet-linear.png",
    ):
        assert (out / name).stat().st_size > 1000, name

    written = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.ckpt")}
    capsys.readouterr()
    assert main([*ARGUMENTS, "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.ckpt")} == written
    assert results(out) == lines
    said = capsys.readouterr().out
    assert "best linear: vit_pico-linear-" in said
    # One run a kind shows nothing, and the demo says so in a sentence.
    verdict = said.splitlines()[-2]
    assert verdict.startswith("From 1 run of each kind it is not shown that contrastive_loss falls")
    assert (out / "report.md").read_text().startswith(verdict)

    assert main([*ARGUMENTS, "--out", str(out), "--seed", "1"]) == 2
    assert "another seed" in capsys.readouterr().err


def test_branches_leave_the_constant_run_where_it_kept_a_checkpoint(tmp_path: Path) -> None:
    series = Series(tmp_path, "vit_nano", "linear", BUDGETS_SAMPLES)
    trunk, *branches = series.steps(tmp_path / "shards", seed=3)
    kept = {*trunk.options["checkpoint_samples"], trunk.options["budget_samples"]}
    assert kept == {14_336, 28_672, 57_344}
    for branch in branches:
        assert branch.samples - branch.options["model.cooldown_samples"] in kept
        assert str(branch.options["branch_from"]).startswith(str(tmp_path / "vit_nano-linear/checkpoints"))


def test_the_best_of_a_kind_is_chosen_over_both_artists() -> None:
    class Result:
        def __init__(self, kind: str, checkpoint: str, dataset: str, top1: float) -> None:
            self.line = {
                "attention": kind,
                "checkpoint": checkpoint,
                "dataset": dataset,
                "metrics": {"top1": {"value": top1}},
            }

    shown = [
        Result(kind, f"{kind}-{n}", split, value)
        for kind, n, values in (("linear", 1, (0.5, 0.1)), ("linear", 2, (0.3, 0.4)), ("softmax", 1, (0.1, 0.1)))
        for split, value in zip(("renditions-twemoji", "renditions-openmoji"), values, strict=True)
    ]
    # On "concepts" the other one is better, which does not count.
    shown += [Result("linear", "linear-1", "concepts", 0.9), Result("linear", "linear-2", "concepts", 0.1)]
    shown += [Result("softmax", "softmax-1", "concepts", 0.1)]
    assert best_of_each_kind(shown) == {"linear": "linear-2", "softmax": "softmax-1"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "vit_nanoo"], "vit_nano"),
        (["--attention", "linaer"], "linear"),
        (["--budgets", "1000"], "multiples of 128"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "demo").exists()
