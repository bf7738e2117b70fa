"""Runs on the small corpus as a user starts them, and what they leave."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

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


def newest(out):
    return RunFolder(Path(out)).newest_checkpoint()


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
