"""The hardware of a run as arguments of Lightning's Trainer; what Lightning says, silenced."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from clip_la.errors import UserError
from clip_la.launched import rank_timeout
from clip_la.train.lightning_private import process_rank
from clip_la.train.options import HardwareOptions, Reduction
from clip_la.train.sharded import ShardedStrategy

# MiB of gradients that DDP sends at once. Recorded towers send theirs themselves; where they leave it to DDP they hand
# over all of them together, so that PyTorch's 25 overlap with nothing more, and each costs a start.
BUCKET_MIB = 128

_LIGHTNING_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")


def trainer_hardware(options: HardwareOptions) -> dict[str, Any]:
    """The Trainer's arguments for processes, devices and precision. Raises UserError for a GPU that is not there."""
    if options.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator gpu: PyTorch finds no GPU here; give cpu or auto")
    on_gpu = options.accelerator != "cpu" and torch.cuda.is_available()
    # Without a launcher this is one process on one machine.
    per_node, num_nodes = 1, 1
    if TorchElasticEnvironment.detect():
        per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // per_node
    elif SLURMEnvironment.detect():
        num_nodes = int(os.environ.get("SLURM_NNODES", "1"))
        per_node = int(os.environ.get("SLURM_NTASKS", "1")) // num_nodes
    num_devices = options.devices or per_node
    strategy: DDPStrategy | ShardedStrategy | str = "auto"
    if num_devices * num_nodes > 1 and options.strategy == "fsdp":
        reduce_dtype = torch.bfloat16 if options.reduction == "bfloat16" else None
        strategy = ShardedStrategy(num_devices * num_nodes, reduce_dtype, rank_timeout())
    elif num_devices * num_nodes > 1:
        # A process that waits longer than this for another one ends with an error.
        strategy = TowerDDPStrategy(options.reduction, **ddp_settings(), timeout=rank_timeout())
    # Emulated bfloat16, on GPUs of before 2020, is slower than float32.
    has_bfloat16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    is_mixed = options.precision == "bfloat16" or (options.precision == "auto" and has_bfloat16)
    return {
        "accelerator": "gpu" if on_gpu else "cpu",
        "devices": num_devices,
        "num_nodes": num_nodes,
        "strategy": strategy,
        "precision": "bf16-mixed" if is_mixed else "32-true",
    }


class TowerDDPStrategy(DDPStrategy):
    """DDP for a ContrastiveTask: recorded towers average their gradients themselves, it averages what else trains.

    Args:
        reduction: what both send gradients in.
        settings: of DDPStrategy.
    """

    def __init__(self, reduction: Reduction, **settings: Any) -> None:
        is_narrow = reduction == "bfloat16"
        super().__init__(**settings, ddp_comm_hook=bf16_compress_hook if is_narrow else None)
        self._reduce_dtype = torch.bfloat16 if is_narrow else None

    def configure_ddp(self) -> None:
        # Here the weights are on their device, and those of a checkpoint are loaded.
        task: Any = self.lightning_module
        task.average_towers(task, self._reduce_dtype)
        super().configure_ddp()


def ddp_settings() -> dict[str, Any]:
    """What DistributedDataParallel gets in a run, and where its step is timed."""
    return {"gradient_as_bucket_view": True, "bucket_cap_mb": BUCKET_MIB}


def cluster_plugins() -> list[Any]:
    """Under srun, Lightning without its own requeueing: a requeued job goes on by --resume.

    Torchrun inside a SLURM job counts the processes itself: SLURM knows only one of them a machine. Raises UserError
    for a job without --ntasks-per-node.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    try:
        return [SLURMEnvironment(auto_requeue=False)]
    except RuntimeError as error:
        raise UserError(str(error)) from None


def is_first_process() -> bool:
    """Whether this is the process that writes and speaks; known before the processes have met."""
    return process_rank() == 0


def note(text: str) -> None:
    """One line on stderr, of the first process."""
    if is_first_process():
        print(text, file=sys.stderr)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silences Lightning's banners, tips and warnings inside the block; errors still raise."""
    loggers = [logging.getLogger(name) for name in _LIGHTNING_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for module in ("pytorch_lightning", "lightning_fabric"):
            warnings.filterwarnings("ignore", module=module)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def fast_matmul() -> Iterator[None]:
    """TensorFloat-32 for float32 products on GPUs that have it, inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
