"""A batch worked out in parts has the loss and the gradients of the whole one."""

import itertools
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import clip_la.losses
from clip_la.data.text.tokenizer import order_of
from clip_la.errors import UserError
from clip_la.train.options import ModelOptions
from clip_la.train.task import ContrastiveTask

LENGTHS = (20, 3, 11, 32, 8, 15, 6, 9)
LOSSES = ("contrastive", "sigmoid")


def batch_of():
    """Eight pairs with captions of different lengths; some count as equal."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    for row, length in zip(tokens, LENGTHS, strict=True):
        row[:length] = torch.randint(1, 49406, (length,), generator=generator)
        row[length - 1] = 49407
    return {
        "image": torch.randint(0, 256, (len(LENGTHS), 3, 32, 32), dtype=torch.uint8, generator=generator),
        "tokens": tokens,
        "caption_id": torch.tensor([4, 2, 4, 1, 7, 4, 9, 2]),
        **order_of(tokens),
    }


def share_of(batch, rows):
    """The batch of one rank."""
    tokens = batch["tokens"][rows]
    return {
        "image": batch["image"][rows],
        "tokens": tokens,
        "caption_id": batch["caption_id"][rows],
        **order_of(tokens),
    }


def task_of(**options):
    """The task of such a batch."""
    model = ModelOptions(name="vit_pico", **options)
    return ContrastiveTask(model, batch_size=len(LENGTHS), budget_samples=len(LENGTHS))


def loss_and_gradients(loss, rows=slice(None), **options):
    task = task_of(loss=loss, **options)
    value = task.training_step(share_of(batch_of(), rows), 0)
    value.backward()
    return [value.detach(), *(p.grad for p in task.parameters())]


def is_close(found, wanted):
    """But for float32's rounding of sums in another order, measured on the whole of a gradient."""
    return (found - wanted).norm() <= 3e-6 * wanted.norm() + 1e-9


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("options", [{"micro_batches": 3}, {"micro_batches": 2, "text_groups": 4}, {"text_groups": 3}])
def test_parts_have_the_loss_and_the_gradients_of_the_whole(loss, options):
    whole, parts = loss_and_gradients(loss), loss_and_gradients(loss, **options)
    for wanted, found in zip(whole, parts, strict=True):
        assert is_close(found, wanted)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_only_one_part_is_held_in_memory(micro_batches):
    """Bytes saved for the backward pass when it begins; what is left is of the size of features."""
    task = task_of(micro_batches=micro_batches)
    held = 0

    def pack(tensor):
        nonlocal held
        held += tensor.numel() * (tensor.grad_fn is not None)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        task.training_step(batch_of(), 0)
    tokens, width = 17, 48
    one_layer = len(LENGTHS) * tokens * width
    assert held < one_layer if micro_batches > 1 else held > 10 * one_layer


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"micro_batches": 0}, "micro_batches must be from 1 to batch_size"),
        ({"text_groups": 9}, r"text_groups must be from 1 to batch_size \(8\), not 9"),
        ({"grad_checkpointing": True, "cuda_graphs": True}, "grad_checkpointing true exclude each other"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        task_of(**options)


class Step(torch.nn.Module):
    """A task as DDP wraps it."""

    def __init__(self, task):
        super().__init__()
        self.task = task

    def forward(self, batch):
        return self.task.training_step(batch, 0)


def one_rank(init, out, rank):
    """What each of two freshly started processes runs: this file is also their script."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init}", rank=rank, world_size=2)
    results = {}
    for loss, micro_batches, tiled in CASES:
        clip_la.losses.TILED_FROM_LOGITS = 1 if tiled else 1 << 30
        step = DistributedDataParallel(Step(task_of(loss=loss, micro_batches=micro_batches)))
        value = step(share_of(batch_of(), slice(4 * rank, 4 * rank + 4)))
        value.backward()
        mean = value.detach() / 2
        dist.all_reduce(mean)
        results[loss, micro_batches, tiled] = [mean, *(p.grad for p in step.parameters())]
    if rank == 0:
        torch.save(results, out)
    dist.destroy_process_group()


# Loss, parts of a rank's batch, whether the loss goes by blocks.
CASES = tuple(itertools.product(LOSSES, (1, 2), (False, True)))


def test_two_processes_have_the_gradients_of_one(tmp_path):
    """The whole of a gradient to 1e-6, each parameter's own to `is_close`."""
    command = [sys.executable, __file__, str(tmp_path / "init"), str(tmp_path / "out.pt")]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    found, wanted = torch.load(tmp_path / "out.pt"), {loss: loss_and_gradients(loss) for loss in LOSSES}
    assert set(found) == set(CASES)
    for case, values in found.items():
        one = wanted[case[0]]
        assert all(is_close(a, b) for a, b in zip(values, one, strict=True)), case
        for mine, other in ((values[:1], one[:1]), (values[1:], one[1:])):
            mine, other = (torch.cat([t.flatten() for t in each]) for each in (mine, other))
            assert (mine - other).norm() <= 1e-6 * other.norm(), case


if __name__ == "__main__":
    one_rank(sys.argv[1], sys.argv[2], int(sys.argv[3]))
