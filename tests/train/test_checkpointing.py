"""Selective checkpointing: the same gradients to the bit from fewer kept tensors, eager, compiled and in parts."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clip_la.models import create_model
from clip_la.models.blocks import TowerBlock
from clip_la.train.options import ModelOptions
from clip_la.train.task import ContrastiveTask

from .runs import BATCH, assert_same_outcome, final, train
from .test_features import batch_of, is_close, share_of, task_of

MODES = (False, "selective", True)
WIDTH, TOKENS, IMAGES = 96, 82, 4  # 72 pixels in patches of 8: more tokens than attention's plain products are for
FLOAT_BYTES = 4


class Allocations(TorchDispatchMode):
    """Notes the storages that operators make, whoever keeps them: autograd, or selective checkpointing beside it."""

    def __init__(self):
        super().__init__()
        self._given, self._made = set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._given |= {ref for ref, _ in storages((args, kwargs))} - self._made.keys()
        result = func(*args, **(kwargs or {}))
        self._made |= {ref: size for ref, size in storages(result) if ref not in self._given}
        return result

    def bytes_alive(self):
        return sum(size for ref, size in self._made.items() if not ref.expired())


def storages(tree):
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return [(StorageWeakRef(t.untyped_storage()), t.untyped_storage().nbytes()) for t in tensors]


def held_by(function):
    """(its result, bytes that it allocated and that are still there)."""
    with Allocations() as made:
        result = function()
    return result, made.bytes_alive()


def step_of(**options):
    """(loss and gradients of a training step, bytes held between its passes)."""
    task = task_of(**options)
    batch = share_of(batch_of(), slice(None))
    loss, held = held_by(lambda: task.training_step(batch, 0))
    loss.backward()
    return [loss.detach(), *(p.grad for p in task.parameters())], held


@pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])
@pytest.mark.parametrize("attention", ["softmax", "linear_mean", "rala", "mhla(conv=3)", "gla", "ttt"])
def test_a_step_has_the_same_gradients_and_holds_less(attention, loss):
    options = {"image_attention": attention, "loss": loss}
    found = {mode: step_of(grad_checkpointing=mode, **options) for mode in MODES}
    (wanted, most), (_, least) = found[False], found[True]
    for mode in MODES:
        assert all(torch.equal(a, b) for a, b in zip(found[mode][0], wanted, strict=True)), mode
    assert least < 0.5 * most
    assert least < found["selective"][1] < 0.9 * most


@pytest.mark.parametrize("patch_dropout", [0.0, 0.5])
def test_parts_hold_nothing_between_the_passes(patch_dropout):
    """What a block keeps lies beside autograd, where a checkpoint around the whole part cannot let go of it."""
    options = {"micro_batches": 2, "patch_dropout": patch_dropout}
    (wanted, held), (found, held_selective) = (step_of(grad_checkpointing=mode, **options) for mode in MODES[:2])
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert held_selective == held
    assert not TowerBlock.keeps_nothing
    whole, _ = step_of(grad_checkpointing="selective", patch_dropout=patch_dropout)
    assert all(is_close(a, b) for a, b in zip(found, whole, strict=True))


def block_of(mode):
    """(a block in training, its input)."""
    model = create_model("vit_micro", image_size=72, seed=0).train()
    model.set_grad_checkpointing(mode)
    x = torch.randn(IMAGES, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    return model.image.trunk.blocks[0], x.requires_grad_()


def test_a_block_keeps_the_results_of_its_products_and_attention():
    """In features a token: q, k, v 3, attention 1, its projection 1, the MLP's first 4; and its own result, 1."""
    block, x = block_of("selective")
    result, held = held_by(lambda: block(x))
    one = IMAGES * TOKENS * WIDTH * FLOAT_BYTES
    softmax_sums = IMAGES * 6 * TOKENS * FLOAT_BYTES
    assert held == pytest.approx(10 * one + softmax_sums, rel=0.01)
    result.sum().backward()
    # In evaluation, and where no gradient is wanted, a block is as it always is.
    with torch.no_grad():
        quiet, held = held_by(lambda: block(x))
    assert held == pytest.approx(one, rel=0.01)
    assert torch.equal(quiet, result)


@pytest.mark.parametrize("backend", ["aot_eager", "aot_eager_decomp_partition"])
def test_a_compiled_block_keeps_the_same_and_has_the_same_gradients(backend):
    torch.compiler.reset()
    outcomes, bytes_kept = [], []
    for mode in MODES[:2]:
        block, x = block_of(mode)
        weights = {p.untyped_storage().data_ptr() for p in block.parameters()}
        block.compile(backend=backend, dynamic=False)
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = block(x)
        result.square().sum().backward()
        outcomes.append([result.detach(), x.grad, *(p.grad for p in block.parameters())])
        bytes_kept.append(sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    one = IMAGES * TOKENS * WIDTH * FLOAT_BYTES
    assert bytes_kept[1] == pytest.approx(10 * one, rel=0.02)  # its input in place of its result
    assert bytes_kept[0] > 15 * one
    torch.compiler.reset()


def test_weights_lent_to_a_recording_get_the_gradients():
    """CUDA graphs are recorded on copies of the weights; a backward pass recomputes after they are given back."""
    model = create_model("vit_nano", seed=0).train()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = torch.autograd.grad(model.image(images).square().sum(), list(model.image.parameters()))
    model.set_grad_checkpointing("selective")
    lent = {name: torch.nn.Parameter(p.detach()) for name, p in model.image.named_parameters()}
    result = torch.func.functional_call(model.image, lent, images)
    found = torch.autograd.grad(result.square().sum(), list(lent.values()))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("checkpointing", "cuda_graphs", "is_recorded"),
    [(False, None, True), ("selective", None, False), ("selective", True, True), (True, None, False)],
)
def test_recomputing_towers_are_recorded_only_when_asked_for(checkpointing, cuda_graphs, is_recorded):
    options = ModelOptions(name="vit_pico", compile=True, grad_checkpointing=checkpointing, cuda_graphs=cuda_graphs)
    task = ContrastiveTask(options, batch_size=4, budget_samples=4)
    assert bool(task._encoder._graphed) is is_recorded


def test_a_run_is_the_same_to_the_bit_and_may_change_its_mind(run_options, tmp_path):
    options = [*run_options, "--model.schedule", "constant"]
    train(tmp_path / "plain", options, "--budget_samples", 3 * BATCH)
    mode = "--model.grad_checkpointing"
    train(tmp_path / "run", options, "--budget_samples", BATCH, mode, "selective")
    train(tmp_path / "run", ["--resume"], "--budget_samples", 2 * BATCH)
    assert "grad_checkpointing: selective" in (tmp_path / "run" / "config.yaml").read_text()
    train(tmp_path / "run", ["--resume"], "--budget_samples", 3 * BATCH, mode, "true")
    assert "grad_checkpointing: true" in (tmp_path / "run" / "config.yaml").read_text()
    assert_same_outcome(tmp_path / "run", tmp_path / "plain", 3 * BATCH)
    assert final(tmp_path / "run", 3 * BATCH)["clip_la"]["samples_seen"] == 3 * BATCH
