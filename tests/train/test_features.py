"""A batch worked out in parts has the loss and the gradients of the whole one."""

import pytest
import torch

from clip_la.data.tokenizer import order_of
from clip_la.errors import UserError
from clip_la.train.task import ContrastiveTask

LENGTHS = (20, 3, 11, 32, 8, 15, 6)


def batch_of():
    """Seven pairs with captions of different lengths, two of them equal."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    for row, length in zip(tokens, LENGTHS, strict=True):
        row[:length] = torch.randint(1, 49406, (length,), generator=generator)
        row[length - 1] = 49407
    return {
        "image": torch.randint(0, 256, (len(LENGTHS), 3, 32, 32), dtype=torch.uint8, generator=generator),
        "tokens": tokens,
        "caption_id": torch.tensor([4, 2, 4, 1, 7, 8, 9]),
        **order_of(tokens),
    }


def loss_and_gradients(loss, **options):
    task = ContrastiveTask("vit_pico", loss=loss, batch_size=len(LENGTHS), budget_samples=len(LENGTHS), **options)
    value = task.training_step(batch_of(), 0)
    value.backward()
    return [value.detach(), *(p.grad for p in task.parameters())]


@pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])
@pytest.mark.parametrize("options", [{"micro_batches": 3}, {"micro_batches": 2, "text_groups": 4}, {"text_groups": 3}])
def test_parts_have_the_loss_and_the_gradients_of_the_whole(loss, options):
    whole, parts = loss_and_gradients(loss), loss_and_gradients(loss, **options)
    for wanted, found in zip(whole, parts, strict=True):
        # Sums in another order: float32's rounding, measured on the whole of a gradient.
        assert (found - wanted).norm() <= 3e-6 * wanted.norm() + 1e-9


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_only_one_part_is_held_in_memory(micro_batches):
    """Bytes saved for the backward pass when it begins; what is left is of the size of features."""
    task = ContrastiveTask("vit_pico", micro_batches=micro_batches, batch_size=len(LENGTHS), budget_samples=7)
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
        ({"micro_batches": 2, "cuda_graphs": True}, "exclude each other"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        ContrastiveTask("vit_pico", batch_size=8, budget_samples=8, **options)
