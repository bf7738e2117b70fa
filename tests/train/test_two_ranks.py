"""Two processes under torchrun: they stop together, and see the order of every start method."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from clip_la.data.images.augment import Augmentation
from clip_la.data.shards.sources import expand_urls
from clip_la.data.stream.loader import ShardLoader
from clip_la.data.stream.stream import ShardStream, WeightedSource
from clip_la.data.text.captions import Captions
from clip_la.runs import RunFolder
from tests.train.runs import BATCH, PATIENCE_S, final, rows, start_process, wait_for_checkpoint


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
