"""Processes and devices of a run, and what its ranks send each other."""

import pytest
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from clip_la.errors import UserError
from clip_la.train.hardware import BUCKET_MIB, cluster_plugins, ddp_settings, trainer_hardware
from clip_la.train.options import HardwareOptions


def test_torchrun_inside_a_slurm_job_counts_the_processes(monkeypatch):
    for name, value in {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "clip-la"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="ntasks-per-node"):
        cluster_plugins()
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    assert trainer_hardware(HardwareOptions(accelerator="cpu"))["num_nodes"] == 2
    assert [type(plugin).__name__ for plugin in cluster_plugins()] == ["SLURMEnvironment"]
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "16"}.items():
        monkeypatch.setenv(name, value)
    hardware = trainer_hardware(HardwareOptions(accelerator="cpu"))
    assert (hardware["devices"], hardware["num_nodes"]) == (8, 2)
    assert cluster_plugins() == []


def test_gradients_are_sent_as_asked_for():
    two = [HardwareOptions(accelerator="cpu", devices=2, reduction=reduction) for reduction in ("float32", "bfloat16")]
    strategies = [trainer_hardware(options)["strategy"] for options in two]
    assert [strategy._ddp_comm_hook for strategy in strategies] == [None, bf16_compress_hook]
    # Where a step is timed DDP gets the same.
    assert ddp_settings() == {"gradient_as_bucket_view": True, "bucket_cap_mb": BUCKET_MIB}
    for strategy in strategies:
        assert strategy._ddp_kwargs == ddp_settings()
