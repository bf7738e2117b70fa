"""Two gloo processes whose recorded towers average their own gradients, under a real DDP that ignores their weights.

One pair of processes runs all cases; the tests read what both have saved. Recordings are emulated as in test_graphed;
passes that are not recorded run as they do on a GPU. On two GPUs, where there are two, the recordings are real.
"""

import re

import pytest
import torch

from clip_la.train.options import ModelOptions
from clip_la.train.task import ContrastiveTask
from tests.train.tapes import record_on_the_cpu
from tests.train.test_features import batch_of, is_close, loss_and_gradients, task_of
from tests.train.two_recording_ranks import CASES, LIMITS, two_processes

PROJECTION = "model.image.trunk.patch_embed.proj.weight"
NAMES = [name for name, _ in task_of(loss="sigmoid").named_parameters()]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What processes 0 and 1 have found, on the CPU."""
    return two_processes(tmp_path_factory.mktemp("two"), "cpu")


def assert_equal(found, wanted):
    """To the bit."""
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name


def is_tower(name):
    return name.startswith(("model.image.", "model.text."))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_one_process_and_of_ddp(both, case):
    """The whole of a gradient to 1e-6, each parameter's own to `is_close`; and what DDP makes of the same halves."""
    loss, parts, _ = case
    zero, one = (each["towers", *case] for each in both)
    assert_equal(zero, one)
    assert_equal(zero, both[0]["ddp", loss, parts])
    wanted = loss_and_gradients(loss)[1:]
    assert all(is_close(a, b) for a, b in zip(zero.values(), wanted, strict=True))
    mine, other = (torch.cat([t.flatten() for t in each]) for each in (zero.values(), wanted))
    assert (mine - other).norm() <= 1e-6 * other.norm()


def test_a_tower_is_one_collective_images_first_whoever_records(both):
    sizes = {
        tower: sum(p.numel() for name, p in task_of().named_parameters() if name.startswith(f"model.{tower}."))
        for tower in ("image", "text")
    }
    for case in CASES:
        sent = both[0]["sent", *case]
        assert sent == both[1]["sent", *case], case
        assert [dtype for _, dtype in sent] == ["torch.float32"] * 2
        for (count, _), tower in zip(sent, ("image", "text"), strict=True):
            # With the gaps between gradients.
            assert sizes[tower] <= count <= sizes[tower] + 128 * len(NAMES)


def test_a_second_backward_pass_adds_its_mean(both):
    """Gradients that are still there: the mean must have arrived before autograd adds it."""
    task = task_of()
    for turned in (0, 1):
        batch = batch_of()
        task.training_step({**batch, "image": batch["image"].roll(turned, 0)}, 0).backward()
    wanted = torch.cat([p.grad.flatten() for p in task.parameters()])
    for key in (*(("twice", limits) for limits in LIMITS), "twice in parts"):
        assert_equal(both[0][key], both[1][key])
        found = torch.cat([grad.flatten() for grad in both[0][key].values()])
        assert (found - wanted).norm() <= 1e-6 * wanted.norm(), key


def test_after_steps_of_the_optimiser_both_processes_have_the_weights_that_ddp_gives(both):
    before = dict(task_of().named_parameters())
    for limits in LIMITS:
        zero, one = (each["trained", limits] for each in both)
        assert_equal(zero, one)
        assert_equal(zero, both[0]["trained by ddp"])
        assert sum(not torch.equal(zero[name], before[name]) for name in zero) > 0.9 * len(zero)


def test_gradients_sent_in_bfloat16_are_those_of_ddps_hook(both):
    for limits in LIMITS:
        found = both[0]["narrow", limits]
        assert_equal(found, both[1]["narrow", limits])
        assert_equal(found, both[0]["narrow by ddp"])
        assert [dtype for _, dtype in both[0]["narrow sent", limits]] == ["torch.bfloat16"] * 2
        for name, grad in found.items():
            assert grad.dtype == torch.float32
            assert torch.equal(grad, grad.bfloat16().float()), name


@pytest.mark.parametrize("parts", [1, 2])
def test_passes_that_are_not_recorded_keep_autocast_in_the_backward_pass(both, parts):
    assert_equal(both[0]["autocast", parts, True], both[0]["autocast", parts, False])


def test_every_process_begins_with_the_weights_of_the_first(both):
    first = dict(task_of().named_parameters())
    for each in both:
        assert_equal(each["start"], first)
    # Its own were others.
    second = ContrastiveTask(ModelOptions(name="vit_pico"), batch_size=8, budget_samples=8, seed=1)
    assert not torch.equal(second.model.image.trunk.patch_embed.proj.weight, first[PROJECTION])


def test_processes_of_which_one_does_not_record_are_refused_in_one_line(both):
    assert both[0]["one records"] == both[1]["one records"]
    wanted = r"process 1 records 0 weights' .* and process 0 [1-9]\d*: give all .*--model\.cuda_graphs false"
    assert re.fullmatch(wanted, both[0]["one records"])


def test_a_gradient_that_autograd_has_copied_is_refused(both):
    for says in (*both[0]["copied"], *both[1]["copied"]):
        assert says.startswith("a gradient of a recorded tower was copied before it was averaged")


def test_tasks_that_train_tower_weights_alone_stay_with_ddp(both):
    zero, one = (each["matching"] for each in both)
    for kind in ("LayerMatching", "FeatureMatching"):
        for each in (zero, one):
            ignored, recorded = each[kind, True]
            assert ignored == 0
            assert any(grad.any() for grad in recorded.values())
            assert_equal(recorded, zero[kind, True][1])
            torch.testing.assert_close(recorded, each[kind, False][1], rtol=1e-4, atol=1e-6)


def test_the_strategy_of_a_run_leaves_towers_to_themselves(both):
    ignored, sent = both[0]["lightning"]
    assert ignored == sorted(filter(is_tower, NAMES))
    assert sent == ["torch.bfloat16"] * 2


def test_a_frozen_tower_sends_nothing(both):
    (zero, sent), (one, _) = (each["frozen"] for each in both)
    assert {name.split(".")[1] for name in zero if is_tower(name)} == {"text"}
    assert len(sent) == 1
    towers = [{name: grad for name, grad in each.items() if is_tower(name)} for each in (zero, one)]
    assert_equal(*towers)


def test_one_process_averages_nothing(monkeypatch):
    record_on_the_cpu(monkeypatch)
    task = ContrastiveTask(ModelOptions(name="vit_pico", cuda_graphs=True), batch_size=8, budget_samples=8)
    task.average_towers(task, None)
    assert not hasattr(task, "_ddp_params_and_buffers_to_ignore")
    assert all(tower._mean is None for tower in task._encoder._graphed.values())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_real_recordings_on_two_gpus_have_the_gradients_of_ddp(tmp_path):
    """Both processes' to the bit; DDP's but for the order of sums, which some kernels leave open."""
    zero, one = two_processes(tmp_path, "cuda")
    for key, found in zero.items():
        if not isinstance(found, dict):
            assert found == one[key], key
            continue
        assert_equal(found, one[key])
        if key[0] in ("towers", "narrow"):
            by_ddp = zero["narrow by ddp"] if key[0] == "narrow" else zero["ddp", *key[1:3]]
            mine, other = (torch.cat([t.flatten() for t in each.values()]) for each in (found, by_ddp))
            assert (mine - other).norm() <= (1e-2 if key[0] == "narrow" else 1e-5) * other.norm(), key
