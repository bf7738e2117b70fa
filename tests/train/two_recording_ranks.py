"""Two processes whose recorded towers average their own gradients, under a real DDP that ignores their weights.

Each trains all cases and saves gradients, weights and what it has sent; test_tower_reduction reads them.
"""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from clip_la.bench.train_steps import train_step
from clip_la.convert.matching import FeatureMatching, LayerMatching
from clip_la.errors import UserError
from clip_la.models import create_model
from clip_la.train import graphed
from clip_la.train.hardware import ddp_settings, trainer_hardware
from clip_la.train.options import HardwareOptions, ModelOptions
from clip_la.train.task import ContrastiveTask
from tests.train.tapes import record_on_the_cpu
from tests.train.test_features import LENGTHS, LOSSES, Step, batch_of, share_of

# Recordings that process 0 and 1 may make: enough, none by process 1, none at all. Cut into parts, process 0 has
# captions of two lengths, of which one recording holds one.
LIMITS = {"recorded": (24, 24), "mixed": (1, 0), "unrecorded": (0, 0)}
CASES = tuple(itertools.product(LOSSES, (1, 2), LIMITS))

# Installed packages bring a `tests` of their own, which hides this folder from a new interpreter.
SCRIPT = """
import sys, types
sys.modules["tests"] = tests = types.ModuleType("tests")
tests.__path__ = [sys.argv[1]]
from tests.train.two_recording_ranks import one_process
one_process(*sys.argv[2:4], int(sys.argv[4]), sys.argv[5])
"""


class Rank:
    """One of the two processes."""

    def __init__(self, rank, device):
        self.rank, self.device, self.results, self.sent = rank, device, {}, []
        self.patch = pytest.MonkeyPatch()
        all_reduce = dist.all_reduce

        def logged(tensor, *args, **kwargs):
            # DDP's hook sends the scale, in a bucket, by this way too.
            if tensor.numel() > 2:
                self.sent.append((tensor.numel(), str(tensor.dtype)))
            return all_reduce(tensor, *args, **kwargs)

        self.patch.setattr(dist, "all_reduce", logged)

    def batch(self, turned=0):
        """This process's half; `turned`: with other images."""
        whole = batch_of()
        rows = slice(4 * self.rank, 4 * self.rank + 4)
        batch = share_of({**whole, "image": whole["image"].roll(turned, 0)}, rows)
        return {name: x.to(self.device) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}

    def step(self, loss="contrastive", parts=1, limits="recorded", dtype=None, by_towers=True, seed=0):
        """(DDP, task) whose towers are averaged by themselves, or as they would be without recordings."""
        graphed.MAX_RECORDINGS = LIMITS[limits][self.rank]
        graphed.GraphedTower.device_type = self.device if by_towers else "none"
        options = ModelOptions(name="vit_pico", loss=loss, micro_batches=parts, cuda_graphs=True)
        task = ContrastiveTask(options, batch_size=len(LENGTHS), budget_samples=len(LENGTHS), seed=seed).to(self.device)
        module = Step(task)
        task.average_towers(module, dtype)
        wrapped = DistributedDataParallel(module, **ddp_settings())
        if dtype is not None:
            wrapped.register_comm_hook(None, bf16_compress_hook)
        self.sent.clear()
        return wrapped, task

    def gradients(self, turns=(0,), autocast=False, **options):
        """Of each parameter, summed over backward passes."""
        wrapped, task = self.step(**options)
        for turned in turns:
            # Its cache would add up the parts' gradients in bfloat16.
            with torch.autocast("cpu", torch.bfloat16, autocast, cache_enabled=False):
                loss = wrapped(self.batch(turned))
            loss.backward()
        return {name: p.grad.clone() for name, p in task.named_parameters()}

    def trained(self, **options):
        """The weights after two steps."""
        wrapped, task = self.step(**options)
        optimizer = task.configure_optimizers()
        for turned in range(2):
            train_step(wrapped, optimizer, self.batch(turned), torch.float32, task.model.logit_scale)
        return {name: p.detach().clone() for name, p in task.named_parameters()}

    def run(self):
        """All cases of gradients and steps."""
        keep = self.results
        for loss, parts, limits in CASES:
            keep["towers", loss, parts, limits] = self.gradients(loss=loss, parts=parts, limits=limits)
            keep["sent", loss, parts, limits] = list(self.sent)
        for loss, parts in itertools.product(LOSSES, (1, 2)):
            keep["ddp", loss, parts] = self.gradients(loss=loss, parts=parts, by_towers=False)
        for limits in LIMITS:
            keep["twice", limits] = self.gradients(turns=(0, 1), limits=limits)
            keep["trained", limits] = self.trained(limits=limits)
            narrow = {"dtype": torch.bfloat16}
            keep["narrow", limits] = self.gradients(limits=limits, **narrow)
            keep["narrow sent", limits] = list(self.sent)
        keep["twice in parts"] = self.gradients(turns=(0, 1), parts=2)
        keep["trained by ddp"] = self.trained(by_towers=False)
        keep["narrow by ddp"] = self.gradients(by_towers=False, **narrow)

    def run_on_the_cpu(self):
        """What is the same on every device, or goes by the CPU's arithmetic."""
        keep = self.results
        for parts, who in itertools.product((1, 2), (True, False)):
            keep["autocast", parts, who] = self.gradients(
                parts=parts, limits="unrecorded", autocast=True, by_towers=who
            )
        keep["start"] = {name: p.detach().clone() for name, p in self.step(seed=self.rank)[1].named_parameters()}
        keep["one records"] = self.refused()
        keep["copied"] = [self.refused_copy(limits) for limits in LIMITS]
        keep["matching"] = self.matchings()
        keep["lightning"] = self.by_lightning()
        keep["frozen"] = self.frozen()

    def refused(self):
        with pytest.raises(UserError) as refused:
            self.step(by_towers=self.rank == 0)
        return str(refused.value)

    def refused_copy(self, limits):
        wrapped, task = self.step(limits=limits)
        task.model.text.token_embedding.weight.register_hook(torch.clone)
        with pytest.raises(RuntimeError) as refused:
            wrapped(self.batch()).backward()
        return str(refused.value)

    def matchings(self):
        """Of tasks that train weights of towers alone: how many DDP is told to ignore, and the second step's gradients,
        recorded and not."""
        found = {}
        graphed.MAX_RECORDINGS = 24
        for kind, is_recorded in itertools.product((LayerMatching, FeatureMatching), (True, False)):
            graphed.GraphedTower.device_type = self.device if is_recorded else "none"
            options = ModelOptions(name="vit_pico", cuda_graphs=True)
            task = kind(options, create_model("vit_pico", seed=1), batch_size=8, budget_samples=8)
            module = Step(task)
            task.average_towers(module, None)
            wrapped = DistributedDataParallel(module, **ddp_settings())
            for turned in range(2):
                loss = wrapped(self.batch(turned))
                task.zero_grad()
                loss.backward()
            grads = {name: p.grad.clone() for name, p in task.named_parameters() if p.requires_grad}
            found[kind.__name__, is_recorded] = len(wrapped.parameters_to_ignore), grads
        return found

    def by_lightning(self):
        """What the strategy of a run has DDP ignore, and what the towers send."""
        options = HardwareOptions(accelerator="cpu", devices=2, reduction="bfloat16")
        strategy = trainer_hardware(options)["strategy"]
        _, task = self.step()
        strategy.parallel_devices = [torch.device("cpu")] * 2
        self.patch.setattr(type(strategy), "root_device", torch.device("cpu"))
        strategy.connect(task)
        strategy.configure_ddp()
        self.sent.clear()
        task.training_step(self.batch(), 0).backward()
        return sorted(strategy.model.parameters_to_ignore), [dtype for _, dtype in self.sent]

    def frozen(self):
        """(gradients, what was sent) in locked-image tuning."""
        options = ModelOptions(name="vit_pico", cuda_graphs=True)
        task = ContrastiveTask(options, batch_size=len(LENGTHS), budget_samples=len(LENGTHS))
        task.model.image.requires_grad_(False)
        task.average_towers(task, None)
        self.sent.clear()
        task.training_step(self.batch(), 0).backward()
        return {name: p.grad for name, p in task.named_parameters() if p.grad is not None}, list(self.sent)


def one_process(meeting, out, rank, device):
    """What each of the two processes runs."""
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=2)
    one = Rank(rank, device)
    # Compiling takes minutes and is not what is tested here.
    with torch.compiler.set_stance("force_eager"):
        if device == "cpu":
            record_on_the_cpu(one.patch)
            one.run_on_the_cpu()
        one.run()
    torch.save(one.results, f"{out}{rank}")
    dist.destroy_process_group()


def two_processes(folder, device):
    """What processes 0 and 1 have found."""
    command = [sys.executable, "-c", SCRIPT, Path(__file__).parents[1], folder / "meeting", folder / "out"]
    started = [subprocess.Popen([*map(str, command), str(rank), device]) for rank in range(2)]
    try:
        assert [process.wait(timeout=240) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"out{rank}", map_location="cpu") for rank in range(2)]
