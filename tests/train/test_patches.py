"""Patch dropout: which patches are kept, what the tower makes of them, and in which steps."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clip_la.data.stream.order import PATCHES, hashed
from clip_la.errors import UserError
from clip_la.models import create_model, model_spec
from clip_la.models.flops import flops, num_image_patches, training_flops
from clip_la.train.options import ModelOptions
from clip_la.train.patches import draw_kept
from clip_la.train.task import ContrastiveTask

from .runs import BATCH, assert_same_outcome, train
from .test_features import batch_of, is_close, share_of, task_of

CPU = torch.device("cpu")


def test_patches_are_drawn_from_the_hashes_of_their_samples():
    first, samples, patches, kept = 10**11, 7, 49, 24
    hashes = hashed((PATCHES, 5), np.arange(first * patches, (first + samples) * patches)).view(np.int64)
    wanted = np.sort(np.argsort(hashes.reshape(samples, patches), axis=1)[:, :kept], axis=1)
    found = draw_kept(5, first, samples, patches, kept, CPU)
    assert found.dtype == torch.int64
    assert found.tolist() == wanted.tolist()
    # A sample's own, whatever batch or rank it is in.
    assert torch.equal(draw_kept(5, first + 3, 2, patches, kept, CPU), found[3:5])
    assert not torch.equal(draw_kept(6, first, samples, patches, kept, CPU), found)


def test_every_patch_is_kept_as_often_as_another():
    samples, patches, kept = 4000, 25, 10
    drawn = draw_kept(0, 0, samples, patches, kept, CPU)
    assert (drawn.diff(dim=1) > 0).all()
    counts = drawn.flatten().bincount(minlength=patches).double()
    # 5 standard deviations of a binomial count; and pairs of patches are no more common than by chance.
    assert (counts / samples - 0.4).abs().max() < 5 * (0.4 * 0.6 / samples) ** 0.5
    is_kept = torch.zeros(samples, patches, dtype=torch.float64).scatter_(1, drawn, 1.0)
    pairs = (is_kept.T @ is_kept / samples).fill_diagonal_(0)
    chance = kept * (kept - 1) / (patches * (patches - 1))
    assert (pairs.sum() / (patches * (patches - 1)) - chance).abs() < 1e-12
    assert pairs[~torch.eye(patches, dtype=torch.bool)].sub(chance).abs().max() < 6 * (chance / samples) ** 0.5


@pytest.mark.parametrize(("dropped", "kept"), [(0.0, 49), (0.5, 24), (0.9, 4), (0.99, 1), (0.3, 34), (2 / 7, 35)])
def test_as_many_are_kept_as_by_open_clip_and_at_least_one(dropped, kept):
    assert num_image_patches(model_spec("vit_b16", image_size=112), dropped) == kept


KINDS = ("softmax", "softmax(cls=softmax,gate=sigmoid,norm=rms)", "linear", "linear_mean", "linear_norm", "linear_map")


# 25 and 15 are no powers of two; 40 pixels are five patches a side.
@pytest.mark.parametrize("attention", [*KINDS, "fastmax1", "hedgehog", "ttt"])
def test_a_tower_of_kept_patches_is_one_of_shorter_images(attention):
    """Each image by itself, its tokens taken by hand: values, and the gradients of all weights, in float64."""
    model = create_model("vit_nano", image_attention=attention, image_size=40, seed=0).double()
    tower, trunk = model.image, model.image.trunk
    images = torch.randn(3, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = draw_kept(1, 0, 3, 25, 15, CPU)
    weight = torch.randn(3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def alone(image, own):
        patches = trunk.patch_embed.proj(image[None]).flatten(2).transpose(1, 2)[0]
        tokens = [trunk.cls_token[0, 0] + trunk.pos_embed[0, 0]]
        tokens += [patches[number] + trunk.pos_embed[0, 1 + number] for number in own.tolist()]
        x = trunk.norm_pre(torch.stack(tokens)[None])
        for block in trunk.blocks:
            x = block(x)
        return tower.projection(trunk.fc_norm(x[:, 0]))

    found, wanted = tower(images, kept), torch.cat([alone(*each) for each in zip(images, kept, strict=True)])
    torch.testing.assert_close(found, wanted)
    weights = dict(tower.named_parameters())
    ours, theirs = (torch.autograd.grad((out * weight).sum(), weights.values()) for out in (found, wanted))
    for name, a, b in zip(weights, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(tower(images, torch.arange(25).expand(3, 25)), tower(images))


def step_of(rows=slice(None), first=0, **options):
    """[loss, gradients] of some samples of the batch, of which the first is number `first` of the run."""
    task = task_of(patch_dropout=0.5, **options)
    task.first_sample = first
    loss = task.training_step(share_of(batch_of(), rows), 0)
    loss.backward()
    return [loss.detach(), *(p.grad for p in task.parameters())]


@pytest.mark.parametrize(("loss", "attention"), [*itertools.product(("contrastive", "sigmoid"), ("softmax", "linear"))])
def test_parts_keep_the_patches_of_the_whole_batch_in_both_passes(loss, attention):
    options = {"loss": loss, "attention": attention}
    whole = step_of(**options)
    for parts in ({"micro_batches": 3}, {"micro_batches": 2, "text_groups": 4}, {"grad_checkpointing": True}):
        assert all(is_close(a, b) for a, b in zip(step_of(**options, **parts), whole, strict=True)), parts
    # It is no step on all patches, nor on those of other samples.
    task = task_of(**options)
    assert not is_close(task.training_step(batch_of(), 0).detach(), whole[0])
    assert not is_close(step_of(first=8, **options)[0], whole[0])


def test_a_rank_draws_for_its_own_samples():
    """Row by row what one process draws, whichever process has them."""
    task = task_of(patch_dropout=0.5)
    drawn = []
    for ranks in (1, 2):
        for rank in range(ranks):
            rows = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
            task.trainer = SimpleNamespace(global_step=3, global_rank=rank)
            batch = share_of(batch_of(), rows)
            task.on_train_batch_start(batch, 0)
            drawn.append(task._kept_patches(batch["image"]))
    assert torch.equal(drawn[0], torch.cat(drawn[1:]))
    assert torch.equal(drawn[0], draw_kept(0, 3 * 8, 8, 16, 8, CPU))


def test_training_sees_the_kept_patches_and_evaluation_all():
    task, plain = task_of(patch_dropout=0.75), task_of()
    seen = []
    for block in task.model.image.trunk.blocks:
        block.register_forward_pre_hook(lambda block, given: seen.append(given[0].shape[1]))
    task.training_step(batch_of(), 0)
    assert seen == [1 + 4]
    images = batch_of()["image"] / 255.0
    with torch.no_grad():
        for model in (task.model, plain.model):
            model.eval()
        assert torch.equal(task.model.encode_image(images), plain.model.encode_image(images))
    assert seen == [1 + 4, 1 + 16]


def test_a_run_draws_anew_each_step_and_resumes_to_the_same_bits(run_options, tmp_path, monkeypatch):
    drawn = []

    def noted(*arguments):
        drawn.append(draw_kept(*arguments))
        return drawn[-1]

    monkeypatch.setattr("clip_la.train.task.draw_kept", noted)
    options = [*run_options, "--model.schedule", "constant", "--model.patch_dropout", "0.5", "--seed", "3"]
    options += ["--model.ema_samples", "32"]
    train(tmp_path / "whole", options, "--budget_samples", 4 * BATCH)
    assert torch.equal(torch.cat(drawn), draw_kept(3, 0, 4 * BATCH, 16, 8, CPU))
    train(tmp_path / "run", options, "--budget_samples", 2 * BATCH)
    train(tmp_path / "run", ["--resume"], "--budget_samples", 4 * BATCH)
    assert_same_outcome(tmp_path / "run", tmp_path / "whole", 4 * BATCH)
    assert torch.equal(torch.cat(drawn[4:]), torch.cat(drawn[:4]))


@pytest.mark.parametrize(
    "attention",
    [
        *("softmax(conv=3)", "linear_mean(conv=dynamic)", "linear(rope=axial)", "rala", "inline", "mhla", "gla"),
        *("gated_delta", "window_linear", "linear_mean+softmax(rope=axial)"),
    ],
)
def test_attention_that_reads_the_grid_is_refused(attention):
    options = ModelOptions(name="vit_nano", image_attention=attention, patch_dropout=0.5)
    choice = create_model("vit_nano", image_attention=attention, seed=0).spec.image_choices[-1]
    with pytest.raises(UserError) as caught:
        ContrastiveTask(options, batch_size=4, budget_samples=4)
    assert f"image attention '{choice}' reads it: leave patch_dropout out" in str(caught.value)
    assert "\n" not in str(caught.value)
    # The text tower may have it.
    options = ModelOptions(name="vit_nano", text_attention=attention, patch_dropout=0.5)
    ContrastiveTask(options, batch_size=4, budget_samples=4)


def test_what_grows_with_the_tokens_is_said(capsys):
    task_of(patch_dropout=0.5, attention="linear_mean")
    assert not capsys.readouterr().err
    task_of(patch_dropout=0.5, image_attention="linear")
    assert "'linear' sums over the tokens without a denominator" in capsys.readouterr().err


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_that_cannot_be_are_refused(share):
    with pytest.raises(UserError, match="patch_dropout must be from 0"):
        task_of(patch_dropout=share)


@pytest.mark.parametrize("attention", ["softmax", "kernel"])
def test_kept_tokens_cost_what_pytorch_counts(attention):
    spec = model_spec("vit_micro", image_attention=attention, image_size=80)
    model = create_model("vit_micro", image_attention=attention, image_size=80, seed=0)
    kept = draw_kept(0, 0, 1, 100, num_image_patches(spec, 0.6), CPU)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.image(torch.randn(1, 3, 80, 80), kept)
    skipped = 40 * 16 * spec.image_width**2  # the last MLP runs for one token but counts for all
    assert counter.get_total_flops() + skipped == flops(spec, 0.6)["image"]
    assert training_flops(spec, 0.6) == 3 * (flops(spec, 0.6)["image"] + flops(spec)["text"])
