"""However runs are cut and joined, resumed or branched, the outcome is the same to the bit."""

import os
import signal
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from clip_la.errors import UserError
from clip_la.runs import RunFolder, checkpoint_name
from clip_la.train.cli import main
from tests.train.runs import (
    BATCH,
    BUDGET,
    PATIENCE_S,
    assert_same_outcome,
    losses,
    newest,
    start_process,
    train,
    wait_for_checkpoint,
)


def test_resume_where_nothing_is_yet_starts_from_the_beginning(uninterrupted, shared, tmp_path, capsys):
    assert train(tmp_path / "run", shared, "--resume") == 0
    assert "starting from the beginning" in capsys.readouterr().err
    assert_same_outcome(uninterrupted, tmp_path / "run")


@pytest.fixture(scope="module")
def long_run(shared, tmp_path_factory):
    """A run long enough to be caught in the middle."""
    budget = 100 * BATCH
    options = [*shared, "--budget_samples", str(budget), "--checkpoint_samples", "[]", "--data.workers", "1"]
    out = tmp_path_factory.mktemp("runs") / "long"
    assert train(out, options) == 0
    return budget, options, out


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 0)],
    ids=["killed", "interrupted", "ended in order"],
)
def test_a_run_cut_short_goes_on_to_the_same_bits(number, code, long_run, tmp_path):
    budget, options, whole = long_run
    process = start_process(tmp_path / "run", options)
    wait_for_checkpoint(process, tmp_path / "run", 6 * BATCH)
    os.killpg(process.pid, number)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    reached = max(RunFolder(tmp_path / "run").saved_checkpoints())
    assert reached < budget, "the run was over before it could be cut short"
    if number != signal.SIGKILL:
        assert f"stopped at {reached:,} of {budget:,} samples" in stdout
        assert "Traceback" not in stderr
    half_saved = tmp_path / "run" / "checkpoints" / f".{checkpoint_name(reached + BATCH)}.x.part"
    half_saved.write_bytes(b"PK")
    assert main(["--resume", "--out", str(tmp_path / "run")]) == 0
    assert not half_saved.exists()
    assert_same_outcome(whole, tmp_path / "run", budget)
    assert losses(tmp_path / "run") == losses(whole)


def test_a_damaged_checkpoint_is_passed_over(shared, uninterrupted, tmp_path, capsys):
    run = tmp_path / "run"
    train(run, shared)
    newest = run / "checkpoints" / checkpoint_name(BUDGET)
    damaged = bytearray(newest.read_bytes())
    # In the name of a file inside, as the table of contents has it.
    damaged[damaged.rfind(b"data.pkl")] ^= 0x80
    newest.write_bytes(damaged)
    (run / "checkpoints" / checkpoint_name(7 * BATCH)).write_bytes(b"cut short")
    capsys.readouterr()
    assert main(["--resume", "--out", str(run)]) == 0
    shown = capsys.readouterr().err
    assert shown.count("skipping the damaged checkpoint") == 2
    assert f"going on from {run}/checkpoints/{checkpoint_name(4 * BATCH)}" in shown
    assert_same_outcome(uninterrupted, run)
    assert losses(run) == losses(uninterrupted)


@pytest.fixture
def readings(monkeypatch):
    """How often each file has been read by torch.load, and its checksums been worked out, since the test began."""
    loads, sums = Counter(), Counter()
    load, testzip = torch.load, zipfile.ZipFile.testzip

    def counted_load(file, *args, **kwargs):
        loads[Path(getattr(file, "name", file)).name] += 1
        return load(file, *args, **kwargs)

    def counted_testzip(archive):
        sums[Path(archive.filename).name] += 1
        return testzip(archive)

    monkeypatch.setattr(torch, "load", counted_load)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", counted_testzip)
    return loads, sums


def test_a_checkpoint_is_read_and_checked_once(run_options, tmp_path, readings):
    run, branch = tmp_path / "run", tmp_path / "branch"
    train(run, run_options, "--model.schedule", "constant", "--budget_samples", BATCH)
    start = checkpoint_name(BATCH)
    assert readings == ({}, {})
    assert main(["--resume", "--out", str(run), "--budget_samples", str(2 * BATCH)]) == 0
    assert readings == ({start: 1}, {start: 1})
    # A branch, and a run that begins with the weights alone.
    budget = ["--budget_samples", str(2 * BATCH)]
    assert main(["--branch_from", str(run / "checkpoints" / start), "--out", str(branch), *budget]) == 0
    assert readings == ({start: 2}, {start: 2})
    train(tmp_path / "tuned", run_options, *budget, "--model.init_from", run / "checkpoints" / start)
    assert readings == ({start: 3}, {start: 3})
    # Of several, the damaged ones are looked at once, and those before the newest whole one not at all.
    newest(run).write_bytes(newest(run).read_bytes()[:-7])
    assert main(["--resume", "--out", str(run), *budget]) == 0
    assert readings[0][start] == 4


def test_a_branch_equals_the_run_that_was_cooled_down_from_the_first(shared, tmp_path):
    """One constant-rate run gives several points; each is what a run of its own would have given."""
    train(tmp_path / "constant", shared, "--model.schedule", "constant")
    cooldown = ["--model.schedule", "cooldown", "--model.cooldown_samples", 3 * BATCH]
    branch = [*cooldown, "--budget_samples", 10 * BATCH]
    train(tmp_path / "whole", shared, *branch)
    parent = tmp_path / "constant" / "checkpoints" / checkpoint_name(7 * BATCH)
    parent_bytes = parent.read_bytes()
    assert main(["--branch_from", str(parent), "--out", str(tmp_path / "branch"), *map(str, branch)]) == 0
    assert_same_outcome(tmp_path / "branch", tmp_path / "whole", 10 * BATCH)
    meta, parent_meta = (torch.load(p, weights_only=True)["clip_la"] for p in (newest(tmp_path / "branch"), parent))
    assert (meta["schedule"], meta["samples_seen"], meta["budget_samples"]) == ("cooldown", 10 * BATCH, 10 * BATCH)
    assert (meta["parent_run_id"], meta["parent_samples"]) == (parent_meta["run_id"], 7 * BATCH)
    assert meta["run_id"] != parent_meta["run_id"]
    assert parent.read_bytes() == parent_bytes
    # A branch is a run: its own folder resumes it, and a parent that is too far is refused.
    assert main(["--resume", "--out", str(tmp_path / "branch")]) == 0
    with pytest.raises(UserError, match=r"seen 112 samples, too many: .* a branch can leave up to 96"):
        main(
            [
                "--branch_from",
                str(parent),
                "--out",
                str(tmp_path / "late"),
                *map(str, cooldown),
                "--budget_samples",
                "144",
            ]
        )


def test_only_a_constant_run_can_be_branched(uninterrupted, tmp_path):
    with pytest.raises(UserError, match="only a run of schedule constant can be branched"):
        main(["--branch_from", str(newest(uninterrupted)), "--out", str(tmp_path / "b"), "--budget_samples", "999"])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["--model.attention", "linear"], "is of another architecture: image_attention softmax (not linear)"),
        (["--model.name", "vit_nano"], "is of another architecture: name vit_pico (not vit_nano)"),
        (["--data.batch_size", "32"], "was trained with batch_size 16, not 32"),
        (["--seed", "4"], "was trained with seed 0, not 4"),
        (["--model.loss", "sigmoid"], "was trained with loss contrastive, not sigmoid"),
        (["--model.schedule", "constant"], "has schedule cosine, not constant"),
        (["--budget_samples", "320"], "has budget_samples 192, not 320"),
    ],
)
def test_resuming_as_something_else_is_refused(uninterrupted, changed, says):
    with pytest.raises(UserError) as caught:
        main(["--resume", "--out", str(uninterrupted), *changed])
    assert says in str(caught.value)


def test_a_constant_run_can_be_given_a_larger_budget(run_options, tmp_path):
    constant = [*run_options, "--model.schedule", "constant"]
    train(tmp_path / "run", constant, "--budget_samples", 2 * BATCH)
    assert main(["--resume", "--out", str(tmp_path / "run"), "--budget_samples", str(4 * BATCH)]) == 0
    train(tmp_path / "whole", constant, "--budget_samples", 4 * BATCH)
    assert_same_outcome(tmp_path / "run", tmp_path / "whole", 4 * BATCH)


def test_a_run_that_goes_on_takes_the_optimiser_as_it_is_set_now(run_options, tmp_path):
    constant = [*run_options, "--model.schedule", "constant"]
    train(tmp_path / "run", constant, "--budget_samples", BATCH)
    changed = ["--model.weight_decay", "0.05", "--model.beta2", "0.9"]
    assert main(["--resume", "--out", str(tmp_path / "run"), "--budget_samples", str(2 * BATCH), *changed]) == 0
    checkpoint = torch.load(newest(tmp_path / "run"), weights_only=True)
    decayed, spared = checkpoint["optimizer_states"][0]["param_groups"]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert decayed["betas"] == spared["betas"] == (0.9, 0.9)
    assert {int(state["step"]) for state in checkpoint["optimizer_states"][0]["state"].values()} == {2}
