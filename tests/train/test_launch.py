"""The scripts that start many processes: what they call, and that training understands it."""

import os
import subprocess
from pathlib import Path

import pytest

from clip_la.train.cli import parse

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize(
    ("script", "launcher", "calls"),
    [
        ("train_torchrun.sh", "torchrun", ["--standalone", "--nproc_per_node", "gpu", "-m", "clip_la", "train"]),
        ("train_slurm.sh", "srun", ["--kill-on-bad-exit=1", "clip-la", "train", "--resume"]),
    ],
)
def test_a_script_hands_its_arguments_on(script: str, launcher: str, calls: list[str], tmp_path: Path) -> None:
    """A dry run: the launcher, which is not on this machine or would need GPUs, prints what it is called with."""
    dry = tmp_path / launcher
    dry.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    dry.chmod(0o755)
    options = [
        "--config",
        str(SCRIPTS.parent / "configs/train/vit_b16.yaml"),
        "--out",
        "a run",
        "--data.shards",
        "{0..3}",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "GPUS"}
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    command = ["bash", str(SCRIPTS / script), *options]
    called = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert called == [*calls, *options]
    given = parse(called[called.index("train") + 1 :])
    assert (given.out, given.data.shards, given.model.name) == ("a run", "{0..3}", "vit_b16")
    assert given.resume == (launcher == "srun")
