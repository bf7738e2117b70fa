"""Real runs on a small corpus: they learn, and however they are cut and joined the outcome is the same to the bit."""

import csv
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from clip_la.data.images.augment import Augmentation
from clip_la.data.shards.sources import expand_urls
from clip_la.data.stream.loader import ShardLoader
from clip_la.data.stream.stream import ShardStream, WeightedSource
from clip_la.data.text.captions import Captions
from clip_la.errors import UserError
from clip_la.models import load_checkpoint
from clip_la.runs import RunFolder, checkpoint_name
from clip_la.train.cli import main

BATCH = 16
BUDGET = 12 * BATCH
PATIENCE_S = 120


def train(out, options, *more):
    return main([*options, "--out", str(out), *map(str, more)])


def final(out, samples=BUDGET):
    return torch.load(Path(out) / "checkpoints" / checkpoint_name(samples), weights_only=True)


def rows(out):
    with (Path(out) / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def losses(out):
    return [(row["samples_seen"], row["loss"], row["lr"]) for row in rows(out)]


def assert_same_outcome(one, other, samples=BUDGET):
    """Weights, optimiser and place in the data, to the bit."""
    a, b = final(one, samples), final(other, samples)
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])
    for p, q in zip(
        a["optimizer_states"][0]["state"].values(), b["optimizer_states"][0]["state"].values(), strict=True
    ):
        assert all(torch.equal(p[name], q[name]) for name in p)
    assert a["ShardDataModule"] == b["ShardDataModule"]


@pytest.fixture(scope="module")
def shared(shards):
    """Options of a run that is cut in many ways: a row each two batches, a checkpoint for resuming each three."""
    return [
        *("--model.name", "vit_pico", "--model.lr", "0.003", "--data.shards", shards, "--data.batch_size", str(BATCH)),
        *("--data.workers", "0", "--data.cache", "memory", "--tensorboard", "false", "--accelerator", "cpu"),
        *("--budget_samples", str(BUDGET), "--log_every_samples", str(2 * BATCH)),
        *("--save_every_samples", str(3 * BATCH), "--checkpoint_samples", f"[{4 * BATCH}, {7 * BATCH - 3}]"),
        *("--model.patch_dropout", "0.25"),
    ]


@pytest.fixture(scope="module")
def uninterrupted(shared, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(out, shared) == 0
    # Decided for this hardware, and kept by a run that goes on elsewhere.
    assert RunFolder(out).read_config()["model"]["compile"] is False
    return out


def test_a_run_learns(run_options, tmp_path):
    budget = 80 * BATCH
    assert train(tmp_path / "run", run_options, "--budget_samples", budget, "--log_every_samples", 10 * BATCH) == 0
    table = rows(tmp_path / "run")
    assert [int(row["samples_seen"]) for row in table] == list(range(10 * BATCH, budget + 1, 10 * BATCH))
    assert float(table[0]["chance_loss"]) == pytest.approx(math.log(BATCH))
    assert float(table[-1]["loss"]) < math.log(BATCH) - 1
    assert all(float(row["pairs_per_s"]) > 0 and 0 <= float(row["data_wait_share"]) <= 1 for row in table)


def test_the_sigmoid_loss_learns(run_options, tmp_path):
    options = ["--model.loss", "sigmoid", "--budget_samples", 60 * BATCH, "--log_every_samples", 10 * BATCH]
    assert train(tmp_path / "run", run_options, *options) == 0
    table = rows(tmp_path / "run")
    assert float(table[-1]["loss"]) < 0.7 * float(table[0]["loss"])
    assert table[0]["chance_loss"] == ""


def test_what_a_run_leaves(uninterrupted, shared):
    assert {path.name for path in uninterrupted.iterdir()} == {"config.yaml", "metrics.csv", "checkpoints"}
    assert list(RunFolder(uninterrupted).saved_checkpoints()) == [4 * BATCH, 7 * BATCH, BUDGET]
    model, meta = load_checkpoint(uninterrupted / "checkpoints" / checkpoint_name(7 * BATCH))
    assert model.spec.name == "vit_pico"
    assert (meta["samples_seen"], meta["budget_samples"], meta["schedule"]) == (7 * BATCH, BUDGET, "cosine")
    assert (meta["batch_size"], meta["seed"], meta["train_data"]) == (
        BATCH,
        0,
        shared[shared.index("--data.shards") + 1],
    )
    assert (
        meta["versions"]["torch"] == torch.__version__.split("+")[0] or meta["versions"]["torch"] == torch.__version__
    )


def test_time_is_told_in_samples_alone(uninterrupted, capsys, run_options, tmp_path):
    train(tmp_path / "run", run_options, "--budget_samples", BATCH)
    shown = capsys.readouterr()
    written = (uninterrupted / "config.yaml").read_text() + (uninterrupted / "metrics.csv").read_text()
    names = " ".join(path.name for path in uninterrupted.rglob("*"))
    assert "epoch" not in (shown.out + shown.err + written + names).lower()


def test_progress_shows_what_matters(run_options, tmp_path, capsys):
    train(tmp_path / "run", run_options, "--budget_samples", 4 * BATCH, "--log_every_samples", BATCH)
    shown = capsys.readouterr()
    line = shown.err.replace("\r", "\n").strip().splitlines()[-1]
    for part in ("64.0/64.0 samples", "pairs/s", "(ln 16 = 2.77)", "lr ", "data wait ", " GiB", " left"):
        assert part in line
    assert (
        shown.out
        == f"64 samples seen; wrote {tmp_path}/run/metrics.csv and {tmp_path}/run/checkpoints/samples=000000064.ckpt\n"
    )


def test_progress_in_a_file_is_whole_lines(run_options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("clip_la.train.callbacks.FILE_INTERVAL_S", 0.0)
    train(tmp_path / "run", run_options, "--budget_samples", 3 * BATCH)
    shown = capsys.readouterr().err
    assert "\r" not in shown
    # A line for each batch and one for the end, after those that say what the run will do and warn of its batch size.
    heads = [line.split(" samples")[0] for line in shown.splitlines()[2:]]
    assert heads == [f"vit_pico: {seen}/48.0" for seen in ("16.0", "32.0", "48.0", "48.0")]


def test_progress_on_a_terminal_is_drawn_over(run_options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(tmp_path / "run", run_options, "--budget_samples", 3 * BATCH)
    shown = capsys.readouterr().err
    assert "\rvit_pico: 0.00/48.0 samples" in shown
    assert "\rvit_pico: 48.0/48.0 samples" in shown
    assert shown.count("\n") == 3


def test_a_finished_run_is_left_alone(uninterrupted, capsys):
    before = (uninterrupted / "metrics.csv").read_bytes()
    assert main(["--resume", "--out", str(uninterrupted)]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (uninterrupted / "metrics.csv").read_bytes() == before


def test_a_run_is_not_overwritten(uninterrupted, shared):
    with pytest.raises(UserError, match=r"holds a run already: add --resume"):
        train(uninterrupted, shared)


def test_a_start_that_failed_leaves_its_folder_to_the_corrected_command(run_options, shared, tmp_path, capsys):
    options = [*run_options, "--budget_samples", str(BATCH), "--tensorboard", "true"]
    with pytest.raises(UserError, match="no caption"):
        train(tmp_path / "run", options, "--data.caption_fields", "[nosuch]")
    assert (tmp_path / "run" / "config.yaml").exists()
    assert train(tmp_path / "run", options) == 0
    assert "nosuch" not in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        train(tmp_path / "run", options)


def test_resume_where_nothing_is_yet_starts_from_the_beginning(uninterrupted, shared, tmp_path, capsys):
    assert train(tmp_path / "run", shared, "--resume") == 0
    assert "starting from the beginning" in capsys.readouterr().err
    assert_same_outcome(uninterrupted, tmp_path / "run")


def start_process(out, options, launcher=(sys.executable, "-m")):
    """`clip-la train` as a user starts it."""
    command = [*launcher, "clip_la", "train", *options, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # A session of its own, so that a signal can go to all its processes, as a terminal's Ctrl-C does.
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_checkpoint(process, out, samples):
    deadline = time.monotonic() + PATIENCE_S
    while not any(n >= samples for n in RunFolder(Path(out)).saved_checkpoints()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


def newest(out):
    return RunFolder(Path(out)).newest_checkpoint()


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


def test_a_loss_that_is_not_finite_stops_the_run(run_options, tmp_path):
    with pytest.raises(UserError, match=r"at \d+ samples the loss is "):
        train(
            tmp_path / "run",
            run_options,
            "--budget_samples",
            BUDGET,
            "--model.lr",
            "1e30",
            "--save_every_samples",
            BATCH,
        )
    for path in RunFolder(tmp_path / "run").saved_checkpoints().values():
        model, _ = load_checkpoint(path)
        assert all(p.isfinite().all() for p in model.parameters()), "weights that are not finite were saved"
    assert not any(bar.desc.startswith("vit_pico") for bar in tqdm._instances), "the progress line was left open"


def test_two_processes_train_together_and_stop_together(shared, tmp_path):
    """Under torchrun, with gloo: Ctrl-C ends both at the same step, with one checkpoint of both places in the data."""
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    process = start_process(run, [*shared, "--budget_samples", str(1000 * BATCH)], launcher=torchrun)
    wait_for_checkpoint(process, run, 6 * BATCH)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    reached = max(RunFolder(run).saved_checkpoints())
    assert stdout.count(f"stopped at {reached:,} of 16,000 samples") == 1, stderr
    checkpoint = final(run, reached)
    assert checkpoint["clip_la"]["samples_seen"] == reached < 1000 * BATCH
    assert len(checkpoint["ShardDataModule"]["ranks"]) == 2
    assert [int(row["samples_seen"]) for row in rows(run)] == list(range(2 * BATCH, reached + 1, 2 * BATCH))


def test_the_order_under_torchrun_is_that_of_every_start_method(shards, tmp_path):
    """torchrun starts the ranks, spawn their workers; in this process the other start methods give the same order."""
    steps, seed = 8, 5
    data = [
        *("--data.batch_size", str(BATCH), "--data.workers", "2", "--data.start_method", "spawn"),
        "--tensorboard=false",
    ]
    options = ["--model.name", "vit_pico", "--data.shards", shards, *data, "--seed", str(seed), "--accelerator", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "clip_la"]
    command += ["train", *options, "--out", str(tmp_path / "run"), "--budget_samples", str(steps * BATCH)]
    run = subprocess.run([*command, "--data.audit", str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE_S)
    assert run.returncode == 0, run.stderr
    for rank in range(2):
        lines = (tmp_path / f"keys-rank{rank}.jsonl").read_text().splitlines()
        trained = [(Path(line["shard"]).name, line["key"]) for line in map(json.loads, lines)]
        for method in ("fork", "forkserver")[: 2 - rank]:
            assert order(shards, seed, rank, method, steps) == trained, method


def order(shards, seed, rank, method, num_batches):
    """(shard, key) of the first samples of one of two ranks, two workers each."""
    stream = ShardStream(
        [WeightedSource(tuple(expand_urls(shards)))],
        batch_size=BATCH // 2,
        rank=rank,
        world_size=2,
        workers=2,
        seed=seed,
        captions=Captions(),
        augmentation=Augmentation(8),
    )
    batches = itertools.islice(ShardLoader(stream, workers=2, start_method=method), num_batches)
    return [(Path(shard).name, key) for b in batches for shard, key in zip(b["shards"], b["keys"], strict=True)]


def test_tensorboard_counts_samples_too(run_options, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    budget = 4 * BATCH
    options = ["--budget_samples", budget, "--log_every_samples", 2 * BATCH, "--tensorboard", "true"]
    assert train(tmp_path / "run", run_options, *options) == 0
    accumulator = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    accumulator.Reload()
    written = [(event.step, event.value) for event in accumulator.Scalars("loss")]
    expected = [(int(row["samples_seen"]), float(row["loss"])) for row in rows(tmp_path / "run")]
    assert written == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in expected]
