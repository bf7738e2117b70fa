"""What real small runs say of themselves: the figures of each window, and warnings that say what to do."""

import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from clip_la.cli import main
from clip_la.data.shards.reader import ShardWriter, read_samples
from clip_la.data.shards.sources import expand_urls

from .conftest import SHAPES, drawing
from .runs import BATCH, PATIENCE_S, losses, rows


@pytest.fixture
def run(run_options, tmp_path: Path, capsys):
    """Runs with further options, a row each batch; gives the folder and what was said on stderr."""

    def train(*options: object, batches: int = 4, folder: str = "run") -> tuple[Path, str]:
        given = ["--budget_samples", batches * BATCH, "--log_every_samples", BATCH, "--out", tmp_path / folder]
        assert main(["train", *run_options, *map(str, [*given, *options])]) == 0
        return tmp_path / folder, capsys.readouterr().err

    return train


def repeated(captions: list[str]) -> float:
    """Share of captions that are not the first of their kind."""
    return 1 - len(Counter(captions)) / len(captions)


def trained_captions(folder: Path, rank: int, shards: str) -> list[str]:
    """Captions in the order in which a process was trained on them."""
    texts = {
        (Path(url).name, sample["__key__"]): sample["txt"].decode()
        for url in expand_urls(shards)
        for sample in read_samples(url)
    }
    lines = map(json.loads, (folder / f"keys-rank{rank}.jsonl").read_text().splitlines())
    return [texts[Path(line["shard"]).name, line["key"]] for line in lines]


def test_each_window_has_its_figures(run, shards, tmp_path: Path):
    folder, _ = run("--data.audit", tmp_path, "--log_every_samples", 2 * BATCH)
    first, last = rows(folder)
    captions = trained_captions(tmp_path, 0, shards)
    batches = [repeated(captions[start : start + BATCH]) for start in range(0, 4 * BATCH, BATCH)]
    found = [float(row["repeated_captions_share"]) for row in (first, last)]
    assert found == pytest.approx([sum(batches[:2]) / 2, sum(batches[2:]) / 2])
    assert 0 < found[0] < 1
    for row in (first, last):
        assert row["pairs_per_s_per_gpu"] == row["pairs_per_s"]
        # The peak of a processor is not known.
        assert (row["mfu"], float(row["compile_s"])) == ("", 0)
        assert 0.1 < float(row["peak_gib"]) < 100
    assert float(first["eta_s"]) == pytest.approx(2 * BATCH / float(first["pairs_per_s"]))
    assert float(last["eta_s"]) == 0


def test_processes_count_their_captions_together(shards, tmp_path: Path):
    """A caption that another process has in the same batch is repeated too; rates are of all and of each."""
    options = ["--model.name", "vit_pico", "--data.shards", shards, "--data.batch_size", BATCH, "--data.workers", 0]
    options += ["--tensorboard", "false", "--accelerator", "cpu", "--data.audit", tmp_path, "--out", tmp_path / "run"]
    options += ["--budget_samples", 3 * BATCH, "--log_every_samples", BATCH]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "clip_la", "train", *map(str, options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: batch_size") == 1
    own = [trained_captions(tmp_path, rank, shards) for rank in range(2)]
    half = BATCH // 2
    batches = [own[0][at : at + half] + own[1][at : at + half] for at in range(0, 3 * half, half)]
    table = rows(tmp_path / "run")
    assert [float(row["repeated_captions_share"]) for row in table] == pytest.approx(list(map(repeated, batches)))
    for row in table:
        assert float(row["pairs_per_s_per_gpu"]) == pytest.approx(float(row["pairs_per_s"]) / 2)


def test_a_window_that_was_cut_keeps_its_captions(run):
    options = ("--log_every_samples", 3 * BATCH, "--model.schedule", "constant")
    whole, _ = run(*options, batches=6, folder="whole")
    run(*options, "--checkpoint_samples", f"[{2 * BATCH}]", batches=2)
    cut, _ = run("--resume", *options, batches=6)
    shares = [[row["repeated_captions_share"] for row in rows(folder)][-1] for folder in (whole, cut)]
    assert shares[0] == shares[1]
    assert losses(cut)[-1] == losses(whole)[-1]


def test_a_table_of_an_earlier_version_gets_the_new_columns(run):
    folder, _ = run("--model.schedule", "constant", batches=2)
    names = ["samples_seen", "loss", "lr"]
    old = [[row[name] for name in names] for row in rows(folder)]
    (folder / "metrics.csv").write_text("\n".join(",".join(line) for line in [names, *old]) + "\n")
    run("--resume", "--model.schedule", "constant", batches=3)
    table = rows(folder)
    assert [[row[name] for name in names] for row in table[:2]] == old
    assert [row["peak_gib"] == "" for row in table] == [True, True, False]


def warnings_in(said):
    """How many there are, but for that of a slow loader: on a busy machine every loader is one."""
    return said.count("warning") - said.count("warning: training waits for data")


def test_figures_that_a_loss_lacks_are_no_curves(run):
    """The sigmoid loss has no chance_loss, which TensorBoard would refuse."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder, said = run("--model.loss", "sigmoid", "--tensorboard", "true")
    accumulator = events.EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    curves = set(accumulator.Tags()["scalars"])
    assert {"grad_norm", "logit_scale", "peak_gib", "eta_s", "repeated_captions_share"} <= curves
    assert not {"chance_loss", "mfu"} & curves
    assert warnings_in(said) == 0


def test_a_small_batch_and_a_long_warm_up_are_said_once(run):
    _, said = run("--model.warmup_samples", 2 * BATCH)
    assert said.count("warning: batch_size 16 leaves the contrastive loss 15 negatives a pair") == 1
    assert said.count("the warm-up takes 50% of the budget; lower --model.warmup_samples to 12 or less") == 1
    assert warnings_in(said) == 2


def test_a_branch_does_not_repeat_what_its_run_was_told(run):
    cooled = ("--model.schedule", "cooldown", "--model.cooldown_samples", BATCH)
    folder, first = run("--model.schedule", "constant", "--checkpoint_samples", f"[{2 * BATCH}]")
    checkpoint = folder / "checkpoints" / f"samples={2 * BATCH:09d}.ckpt"
    _, branch = run("--branch_from", checkpoint, *cooled, folder="branch")
    assert (warnings_in(first), warnings_in(branch)) == (1, 0)


def test_a_flat_loss_is_said_once(run, monkeypatch):
    monkeypatch.setattr("clip_la.train.advice.FLAT_AFTER_STEPS", 3)
    _, said = run("--model.lr", 1e-12, "--model.repeated_captions_are_negatives", "true", batches=8)
    (line,) = [line for line in said.splitlines() if "still at ln(batch)" in line]
    assert line.startswith("warning: after 48 samples the loss is still at ln(batch)")


def test_a_slow_loader_is_said_once(run, tmp_path: Path):
    """Large images, decoded by the process that trains."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    with ShardWriter(tmp_path / "large.tar") as writer:
        for number in range(BATCH):
            parts = {".png": (tmp_path / "noise.png").read_bytes(), ".txt": f"noise {number}"}
            writer.write({"__key__": str(number), **parts})
    folder, said = run("--data.shards", tmp_path / "large.tar", "--data.cache", "none", batches=5)
    assert all(float(row["data_wait_share"]) > 0.1 for row in rows(folder))
    assert said.count("warning: training waits for data") == 1
    assert "raise --data.workers" in said


def test_who_keeps_data_decoded_is_not_told_to(run, monkeypatch):
    monkeypatch.setattr("clip_la.train.advice.DATA_WAIT_SHARE", -1.0)
    _, said = run("--data.cache", "memory", batches=5)
    assert "waits for data" not in said
    _, said = run("--data.cache", "none", batches=5, folder="streamed")
    assert said.count("warning: training waits for data") == 1


def test_ever_new_lengths_are_said_once(run, tmp_path: Path):
    """A shard of each length, read one after another: each batch has a length that none before had."""
    words = {length: " ".join(["cat"] * (length - 2)) for length in (10, 20, 40, 60, 77)}
    for length, caption in words.items():
        with ShardWriter(tmp_path / f"{length:05d}.tar") as writer:
            for number in range(BATCH):
                shape = SHAPES[number % len(SHAPES)]
                writer.write({"__key__": str(number), ".png": drawing("red", shape, 1), ".txt": caption})
    options = ("--model.compile", "true", "--model.context_length", 77, "--data.cache", "none")
    # What is compiled does not matter here, and takes a minute.
    with torch._dynamo.config.patch(disable=True):
        folder, said = run(*options, "--data.shards", tmp_path / "{00010,00020,00040,00060,00077}.tar", batches=8)
    seconds = [float(row["compile_s"]) for row in rows(folder)]
    assert [value > 0 for value in seconds] == [True] * 5 + [False] * 3
    assert said.count("warning: captions of new lengths make the step compile anew") == 1
    assert said.count("compiling for captions of") == 5


def test_wandb_that_is_not_installed_is_one_line(run_options, tmp_path: Path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    options = ["--budget_samples", "32", "--out", str(tmp_path / "run"), "--wandb", "clip"]
    assert main(["train", *run_options, *options]) == 2
    assert capsys.readouterr().err == ("clip-la: error: --wandb needs Weights & Biases: pip install 'clip_la[wandb]'\n")
    assert not (tmp_path / "run").exists()


def test_wandb_gets_the_figures(run, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, _ = run("--wandb", "clip")
    assert list((folder / "wandb").rglob("*.wandb"))


def test_saving_is_no_waiting_for_data(run, monkeypatch):
    """By a clock that stands still but for the loader, the saves and the evaluations, so each figure is exact."""
    now, ticks = [0.0], {"wait": 1.0, "save": 10.0, "step": 4.0}

    def slow(target: str, seconds: str):
        module, _, name = target.rpartition(".")
        owner = pkgutil.resolve_name(module)
        before = getattr(owner, name)

        def after_a_while(*args, **options):
            now[0] += ticks[seconds]
            return before(*args, **options)

        monkeypatch.setattr(owner, name, after_a_while)

    monkeypatch.setattr("clip_la.train.meter.time", SimpleNamespace(perf_counter=lambda: now[0]))
    slow("clip_la.train.checkpoint.AtomicCheckpointIO.save_checkpoint", "save")
    slow("clip_la.train.task.ContrastiveTask.training_step", "step")
    # The first thing that happens to a batch once the loader has given it.
    slow("clip_la.data.datamodule.ShardDataModule.transfer_batch_to_device", "wait")
    folder, _ = run("--save_every_samples", BATCH, "--log_every_samples", 2 * BATCH, batches=6)
    table = rows(folder)
    # Two steps a window. A save at its end is of the next window; the last one, of the finished run, is of none.
    assert [float(row["save_s"]) for row in table] == [10, 20, 20]
    assert [float(row["data_wait_share"]) for row in table] == pytest.approx([2 / 20, 2 / 30, 2 / 30])
    assert float(table[-1]["train_s"]) == 80
