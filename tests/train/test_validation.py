"""`clip-la train --validate_on`: contrastive loss and retrieval on held-out shards, without a trace in the training."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from clip_la import results
from clip_la.cli import main
from clip_la.data.images.transforms import eval_transform
from clip_la.data.shards.reader import ShardWriter, read_samples
from clip_la.data.text.tokenizer import get_tokenizer
from clip_la.models import load_checkpoint
from clip_la.runs import checkpoint_name

from .conftest import COLOURS, SHAPES, drawing
from .runs import BATCH, PATIENCE_S, assert_same_outcome, losses

BUDGET = 5 * BATCH
# 20 samples are two batches: validations at 32, 64 and at the end of the budget.
MOMENTS = [2 * BATCH, 4 * BATCH, BUDGET]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> str:
    """Sixteen pairs, each caption once."""
    path = tmp_path_factory.mktemp("held_out") / "00000.tar"
    with ShardWriter(path) as writer:
        for number, (colour, shape) in enumerate(itertools.product(COLOURS, SHAPES)):
            png = drawing(colour, shape, 2)
            writer.write({"__key__": f"{number:02d}", ".png": png, ".txt": f"a {colour} {shape}"})
    return str(path)


@pytest.fixture
def options(run_options, held_out: str) -> list[str]:
    return [
        *(*run_options, "--budget_samples", str(BUDGET), "--log_every_samples", str(BATCH)),
        *("--validate_on", held_out, "--validate_every_samples", "20"),
    ]


def lines(run: Path) -> list[dict]:
    return list(results.read(run / "results.jsonl"))


def test_validation_leaves_no_trace_in_the_training(options, run_options, tmp_path: Path):
    """The same bits with and without, augmentation by worker processes included."""
    workers = ["--data.cache", "none", "--data.workers", "2", "--data.jitter", "0.2", "--budget_samples", str(BUDGET)]
    workers += ["--log_every_samples", str(BATCH)]
    assert main(["train", *options, *workers, "--out", str(tmp_path / "with")]) == 0
    assert main(["train", *run_options, *workers, "--out", str(tmp_path / "without")]) == 0
    assert_same_outcome(tmp_path / "with", tmp_path / "without", BUDGET)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert [line["samples_seen"] for line in lines(tmp_path / "with")] == MOMENTS
    # No checkpoint is saved for it.
    assert [path.name for path in (tmp_path / "with" / "checkpoints").iterdir()] == [checkpoint_name(BUDGET)]


def test_the_curves_are_the_loss_and_recall_of_the_weights(options, held_out: str, tmp_path: Path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    assert main(["train", *options, "--tensorboard", "true", "--out", str(run)]) == 0
    accumulator = events.EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    curves = {name: accumulator.Scalars(name) for name in ("val_loss", "val_recall")}
    assert [event.step for event in curves["val_loss"]] == [event.step for event in curves["val_recall"]] == MOMENTS
    model, _ = load_checkpoint(run / "checkpoints" / checkpoint_name(BUDGET))
    found = reference(model, held_out)
    assert [curves[name][-1].value for name in curves] == pytest.approx(found, rel=1e-4)


def reference(model, shard: str) -> list[float]:
    """Loss and recall at 1 of all pairs of a shard as one batch, from their definition."""
    samples = list(read_samples(shard))
    spec = model.spec
    pixels = torch.stack([eval_transform(spec.image_size)(sample["png"]) for sample in samples])
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (spec.pixel_mean, spec.pixel_std))
    with torch.no_grad():
        images = model.encode_image((pixels.float() / 255 - mean) / std)
        texts = model.encode_text(get_tokenizer("clip", spec.context_length)([s["txt"].decode() for s in samples]))
        cosines = images @ texts.T
        logits, own = model.logit_scale.exp() * cosines, torch.arange(len(samples))
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    hits = [(each.argmax(1) == own).double().mean().item() for each in (cosines, cosines.T)]
    return [loss.item(), sum(hits) / 2]


def test_a_run_killed_on_the_way_validates_once_each(options, tmp_path: Path):
    """Resumed from before a validation that was made, it finds its result and makes the others."""
    run = tmp_path / "run"
    begun = [*options, "--model.schedule", "constant"]
    assert main(["train", *begun, "--budget_samples", str(3 * BATCH), "--out", str(run)]) == 0
    assert main(["train", "--resume", "--out", str(run), "--budget_samples", str(BUDGET)]) == 0
    (run / "checkpoints" / checkpoint_name(BUDGET)).unlink()
    assert main(["train", "--resume", "--out", str(run), "--budget_samples", str(BUDGET)]) == 0
    assert [line["samples_seen"] for line in lines(run)] == [2 * BATCH, 3 * BATCH, 4 * BATCH, BUDGET]
    # What is missing at the end is made from the last checkpoint.
    kept = (run / "results.jsonl").read_text().splitlines(keepends=True)[:-1]
    (run / "results.jsonl").write_text("".join(kept))
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert [line["samples_seen"] for line in lines(run)][-1] == BUDGET
    assert lines(run)[-1]["dataset"] == "validation"


def test_two_processes_validate_together(options, tmp_path: Path):
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = [*torchrun, "clip_la", "train", *options, "--data.cache", "none", "--out", str(run)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert [line["samples_seen"] for line in lines(run)] == MOMENTS
