"""`clip-la train --strategy fsdp` with two gloo processes: the gradients, steps and checkpoints of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clip_la.cli import main
from clip_la.errors import UserError
from clip_la.models import load_checkpoint
from clip_la.runs import checkpoint_name
from clip_la.train.hardware import trainer_hardware
from clip_la.train.options import HardwareOptions, ModelOptions
from clip_la.train.task import ContrastiveTask

from .runs import BATCH, PATIENCE_S, assert_same_outcome, final, losses

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
SAMPLES = 4 * BATCH

# Each process makes the step of the whole batch alone, then its part of it with the other one.
STEPS = """
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from clip_la.data.text.tokenizer import order_of
from clip_la.train.options import ModelOptions
from clip_la.train.sharded import ShardedStrategy, whole
from clip_la.train.task import ContrastiveTask

def batch_of(rows, size):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 49000, (8, 8), generator=generator)
    tokens[:, -1] = 49407
    images = torch.randint(0, 256, (8, 3, size, size), generator=generator, dtype=torch.uint8)
    ids = torch.tensor([0, 1, 2, 3, 4, 4, 6, 1])
    return {"image": images[rows], "tokens": tokens[rows], "caption_id": ids[rows], **order_of(tokens[rows])}

def step(loss, parts, recompute, rows, strategy=None):
    step = {"micro_batches": parts, "grad_checkpointing": recompute}
    options = ModelOptions(name="vit_pico", loss=loss, max_grad_norm=0.5, **step)
    task = ContrastiveTask(options, batch_size=8, budget_samples=8)
    if strategy:
        strategy.shard(task, task.model)
    task._trained = list(task.parameters())
    optimizer = task.configure_optimizers()
    task.training_step(batch_of(rows, task.model.spec.image_size), 0).backward()
    grads = {name: whole(p.grad).clone() for name, p in task.named_parameters()}
    task.configure_gradient_clipping()
    optimizer.step()
    local = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in task.parameters())
    return grads, task.grad_norm, {name: whole(p.detach()) for name, p in task.named_parameters()}, local

# Splitting a batch moves float32 sums by 1.5e-6 on one process already; in float64 all agree to 4e-15.
CASES = {("contrastive", 1, False): 1e-6, ("contrastive", 2, "selective"): 3e-6, ("sigmoid", 1, "selective"): 1e-6}
alone = [step(*case, slice(0, 8)) for case in CASES]
dist.init_process_group("gloo")
strategy = ShardedStrategy(2, None, timedelta(seconds=60))
strategy._device_mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
rank = dist.get_rank()
for (case, tolerance), (grads, norm, weights, count) in zip(CASES.items(), alone):
    found_grads, found_norm, found_weights, found_count = step(*case, slice(4 * rank, 4 * rank + 4), strategy)
    for name, wanted in grads.items():
        off = ((found_grads[name] - wanted).norm() / wanted.norm()).item()
        assert off < tolerance, (case, name, off)
    torch.testing.assert_close(found_norm, norm, rtol=tolerance, atol=0)
    for name, wanted in weights.items():
        torch.testing.assert_close(found_weights[name], wanted, rtol=1e-4, atol=2e-5)
    assert found_count < 0.52 * count, (found_count, count)
dist.destroy_process_group()
"""


def in_two_processes(*arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_make_the_step_of_one(tmp_path: Path):
    (tmp_path / "steps.py").write_text(STEPS)
    in_two_processes(tmp_path / "steps.py")


def test_a_run_resumes_to_the_same_bits_and_leaves_whole_checkpoints(shards, run_options, tmp_path: Path):
    run, one = tmp_path / "run", tmp_path / "one"
    options = [*run_options, "--data.cache", "none", "--budget_samples", SAMPLES, "--log_every_samples", BATCH]
    options += ["--checkpoint_samples", f"[{2 * BATCH}]", "--validate_on", shards, "--model.patch_dropout", "0.5"]
    in_two_processes("-m", "clip_la", "train", *options, "--strategy", "fsdp", "--out", run)
    # One process alone writes the same names, shapes and types.
    assert main(["train", *map(str, options), "--out", str(one)]) == 0
    divided, plain = final(run, SAMPLES), final(one, SAMPLES)
    assert shapes(divided["state_dict"]) == shapes(plain["state_dict"])
    (ours,), (theirs,) = divided["optimizer_states"], plain["optimizer_states"]
    assert ours["param_groups"] == theirs["param_groups"]
    assert {n: shapes(s) for n, s in ours["state"].items()} == {n: shapes(s) for n, s in theirs["state"].items()}

    # As a kill would leave it, resumed.
    before = losses(run)
    (run / "checkpoints" / checkpoint_name(SAMPLES)).rename(tmp_path / "first.ckpt")
    in_two_processes("-m", "clip_la", "train", "--resume", "--out", run)
    assert losses(run) == before
    whole = tmp_path / "whole" / "checkpoints"
    whole.mkdir(parents=True)
    (tmp_path / "first.ckpt").rename(whole / checkpoint_name(SAMPLES))
    assert_same_outcome(run, tmp_path / "whole", SAMPLES)

    # What was found while training is what the checkpoint gives to one process, which can go on from it as well.
    model, _ = load_checkpoint(run / "checkpoints" / checkpoint_name(SAMPLES))
    assert all(torch.equal(p, divided["state_dict"][f"model.{name}"]) for name, p in model.named_parameters())
    assert main(["eval", str(run), "--task", "zeroshot_retrieval", "--data", shards, "--device", "cpu"]) == 0
    (run / "checkpoints" / checkpoint_name(SAMPLES)).unlink()
    assert main(["train", "--resume", "--out", str(run), "--data.changed_layout", "reshuffle"]) == 0
    assert final(run, SAMPLES)["clip_la"]["samples_seen"] == SAMPLES


def shapes(state: dict) -> dict:
    return {name: (value.shape, value.dtype) for name, value in state.items()}


def test_divided_towers_are_not_recorded():
    """CUDA graphs read weights where they were, and divided ones come and go."""
    strategy = trainer_hardware(HardwareOptions(accelerator="cpu", devices=2, strategy="fsdp"))["strategy"]
    sizes = {"batch_size": 4, "budget_samples": 8}
    asked = ContrastiveTask(ModelOptions(name="vit_pico", cuda_graphs=True), **sizes)
    with pytest.raises(UserError, match=r"fsdp and model\.cuda_graphs exclude each other"):
        asked.check_hardware("gpu", strategy)
    # Left to the run, they are left out.
    task = ContrastiveTask(ModelOptions(name="vit_pico", compile=True), **sizes)
    assert task._encoder._graphed
    task.check_hardware("gpu", strategy)
    assert not task._encoder._graphed
