"""Recorded passes as nodes of autograd, on any machine: tapes stand in for CUDA graphs, whose own replays are tested on
a GPU (test_compiled_gpu)."""

import pytest
import torch
from torch import nn

from clip_la.models import create_model
from clip_la.train.graphed import WARM_UP_PASSES, GraphedTower, Part
from clip_la.train.patches import draw_kept
from clip_la.train.tower_nodes import ALIGNMENT_BYTES
from tests.train.tapes import record_on_the_cpu


@pytest.fixture
def tower(monkeypatch):
    """(a GraphedTower, its function) of a small tower in float64."""
    record_on_the_cpu(monkeypatch)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    return GraphedTower(module), module


def batch(seed, rows=4):
    return torch.randn(rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradients(module):
    return [weight.grad.clone() for weight in module.parameters()]


def plain(module, *inputs):
    """The gradients of the sum of squares of the module's output, summed over inputs."""
    module.zero_grad()
    sum(module(x).square().sum() for x in inputs).backward()
    return gradients(module)


def test_step_after_step_has_its_own_gradients_and_features_that_stay(tower):
    run, module = tower
    first = run(Part((), module, (batch(1),)))
    kept = first.detach().clone()
    first.square().sum().backward()
    torch.testing.assert_close(gradients(module), plain(module, batch(1)))
    module.zero_grad()
    run(Part((), module, (batch(2),))).square().sum().backward()
    torch.testing.assert_close(gradients(module), plain(module, batch(2)))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("rows", [(4, 4, 4), (4, 2, 3)])
def test_gradients_that_are_still_there_are_added_to(rows, tower):
    """Autograd's `.grad` may be the very memory that the next replay writes, or the next recording."""
    run, module = tower
    module.zero_grad()
    batches = [batch(seed, each) for seed, each in enumerate(rows)]
    for each in batches:
        run(Part((), module, (each,))).square().sum().backward()
    torch.testing.assert_close(gradients(module), plain(module, *batches))
    assert len(run._recordings) == len(set(rows))


def test_parts_of_several_shapes_have_the_gradients_of_the_whole(tower):
    run, module = tower
    parts = [batch(1, 4), batch(2, 2), batch(3, 4)]
    module.zero_grad()
    features = run.in_parts([Part((), module, (part,)) for part in parts])
    torch.testing.assert_close(features, module(torch.cat(parts)))
    features.square().sum().backward()
    torch.testing.assert_close(gradients(module), plain(module, *parts))


def test_recorded_parts_keep_the_patches_they_are_given(tower):
    """Kept patches are an input of the recording: other ones next time, the same ones in both passes of a part."""
    model = create_model("vit_pico", seed=0).double()
    run, module = GraphedTower(model.image), model.image
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for first in (0, 6):
        kept = draw_kept(0, first, 6, 16, 7, torch.device("cpu"))
        wanted = module(images, kept)
        wanted_grads = torch.autograd.grad(wanted.square().sum(), list(module.parameters()))
        module.zero_grad()
        found = run.in_parts([Part((), module, (images[rows], kept[rows])) for rows in (slice(0, 3), slice(3, 6))])
        torch.testing.assert_close(found, wanted)
        found.square().sum().backward()
        torch.testing.assert_close(gradients(module), list(wanted_grads))
    assert len(run._recordings) == 1


@pytest.mark.parametrize("again", ["forward", "other shape", "backward"])
def test_a_pass_in_between_is_refused_as_it_would_give_wrong_gradients(tower, again):
    run, module = tower
    features = run(Part((), module, (batch(1),)))
    if again == "backward":
        features.sum().backward(retain_graph=True)
    else:
        run(Part((), module, (batch(2, 4 if again == "forward" else 2),)))
    with pytest.raises(RuntimeError, match="one pass at a time, or cuda_graphs=False"):
        features.sum().backward()


def test_nothing_is_recorded_without_gradients_and_all_is_given_back(tower):
    run, module = tower
    with torch.no_grad():
        torch.testing.assert_close(run(Part((), module, (batch(1),))), module(batch(1)))
    assert not run._recordings
    run(Part((), module, (batch(1),)))
    assert len(run._recordings) == 1
    run.release()
    assert not run._recordings
    assert run._shared is None
    module.zero_grad()
    run(Part((), module, (batch(2),))).square().sum().backward()
    torch.testing.assert_close(gradients(module), plain(module, batch(2)))


def test_gradients_lie_side_by_side_and_are_taken_not_copied(tower):
    run, _ = tower
    odd = nn.Sequential(nn.Linear(5, 7), nn.Conv2d(1, 3, 2).to(memory_format=torch.channels_last)).double()
    odd[1].weight.requires_grad_(False)
    turned = nn.Parameter(torch.randn(6, 4, dtype=torch.float64).T)
    odd.register_parameter("turned", turned)
    run = GraphedTower(odd)
    run(Part((), lambda x: odd[0](x)[:, :4] @ odd.turned + odd[1].bias.sum(), (batch(1),))).square().sum().backward()
    flat = run._shared.flat_grad
    taken = [odd.turned, odd[0].weight, odd[0].bias, odd[1].bias]
    assert odd[1].weight.grad is None
    for weight in taken:
        assert weight.grad.untyped_storage().data_ptr() == flat.data_ptr()
        assert weight.grad.stride() == weight.stride()
        assert weight.grad.data_ptr() % ALIGNMENT_BYTES == flat.data_ptr() % ALIGNMENT_BYTES
    assert len({weight.grad.data_ptr() for weight in taken}) == len(taken)
    assert flat.numel() < sum(weight.numel() for weight in taken) + len(taken) * 64


def test_python_runs_while_a_pass_is_recorded_and_never_again(tower):
    run, module = tower
    calls = []

    def encode(x):
        calls.append(x)
        return module(x)

    for seed in (1, 2, 3):
        features = run(Part((), encode, (batch(seed),)))
        torch.testing.assert_close(features, module(batch(seed)))
        features.sum().backward()
    assert len(calls) == WARM_UP_PASSES + 1


def test_a_function_that_waits_for_the_device_runs_unrecorded_and_says_so(tower):
    run, module = tower
    module.zero_grad()
    with pytest.warns(UserWarning, match=r"no CUDA graph of a tower, .*: operation not permitted"):
        run(Part((), lambda x: module(x) * x.abs().max().item(), (batch(1),))).square().sum().backward()
    wanted = torch.autograd.grad((module(batch(1)) * batch(1).abs().max()).square().sum(), list(module.parameters()))
    torch.testing.assert_close(gradients(module), list(wanted))
