"""Runs with Muon, layer decay, averages and frozen towers: resumed and branched off they are the same to the bit."""

import pytest
import torch

from clip_la.cli import main
from clip_la.errors import UserError
from clip_la.models import load_checkpoint
from clip_la.runs import checkpoint_name

from .runs import BATCH, assert_same_outcome, final, train

CONSTANT = ("--model.schedule", "constant")
EVERYTHING = ("--model.optimizer", "muon", "--model.layer_decay", "0.7", "--model.ema_samples", str(3 * BATCH))


def assert_same_average(one, other, samples):
    a, b = (final(out, samples)["ema"] for out in (one, other))
    assert a["num_updates"] == b["num_updates"] == samples // BATCH
    assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])


@pytest.fixture(scope="module")
def options(shards):
    return [
        *("--model.name", "vit_pico", "--model.lr", "0.003", "--data.shards", shards, "--data.batch_size", str(BATCH)),
        *("--data.workers", "0", "--tensorboard", "false", "--accelerator", "cpu", "--seed", "3"),
    ]


@pytest.fixture(scope="module")
def half(options, tmp_path_factory):
    """A run of four batches at a constant rate."""
    out = tmp_path_factory.mktemp("runs") / "half"
    assert train(out, [*options, *EVERYTHING, *CONSTANT], "--budget_samples", 4 * BATCH) == 0
    return out


def test_a_branch_equals_a_run_of_its_own(half, options, tmp_path):
    cooled = ["--budget_samples", 8 * BATCH, "--model.schedule", "cooldown", "--model.cooldown_samples", 3 * BATCH]
    parent = half / "checkpoints" / checkpoint_name(4 * BATCH)
    assert train(tmp_path / "branch", [], "--branch_from", parent, *cooled) == 0
    assert train(tmp_path / "whole", [*options, *EVERYTHING], *cooled) == 0
    assert_same_outcome(tmp_path / "branch", tmp_path / "whole", 8 * BATCH)
    assert_same_average(tmp_path / "branch", tmp_path / "whole", 8 * BATCH)
    groups = final(tmp_path / "branch", 8 * BATCH)["optimizer_states"][0]["param_groups"]
    assert {"betas", "momentum"} <= {name for group in groups for name in group}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (("--model.optimizer", "adamw"), "was trained with optimizer muon, not adamw"),
        (("--model.layer_decay", "1.0"), "was trained with layer_decay 0.7, not 1.0"),
    ],
)
def test_what_a_run_keeps_to_its_end(half, changed, says):
    with pytest.raises(UserError, match=says):
        train(half, [], "--resume", "--budget_samples", 5 * BATCH, *changed)


def test_a_resumed_run_equals_one_that_was_not_stopped(half, options, tmp_path):
    assert train(tmp_path / "whole", [*options, *EVERYTHING, *CONSTANT], "--budget_samples", 6 * BATCH) == 0
    assert main(["train", "--resume", "--out", str(half), "--budget_samples", str(6 * BATCH)]) == 0
    assert_same_outcome(half, tmp_path / "whole", 6 * BATCH)
    assert_same_average(half, tmp_path / "whole", 6 * BATCH)


def test_an_average_can_begin_later_and_end_earlier(options, tmp_path):
    out = tmp_path / "run"
    resume = ["train", "--resume", "--out", str(out), "--budget_samples"]
    assert train(out, [*options, *CONSTANT], "--budget_samples", 2 * BATCH) == 0
    assert main([*resume, str(3 * BATCH), "--model.ema_samples", "64"]) == 0
    checkpoint = final(out, 3 * BATCH)
    assert checkpoint["ema"]["num_updates"] == 1
    # The mean over one step is that step's weights.
    for name, tensor in checkpoint["ema"]["state_dict"].items():
        torch.testing.assert_close(tensor, checkpoint["state_dict"][name], rtol=1e-6, atol=1e-7)
    assert main([*resume, str(4 * BATCH), "--model.ema_samples", "null"]) == 0
    assert "ema" not in final(out, 4 * BATCH)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize(("tower", "other"), [("image", "text"), ("text", "image")])
def test_a_frozen_tower_keeps_its_weights(tower, other, micro_batches, half, options, tmp_path):
    begun = half / "checkpoints" / checkpoint_name(4 * BATCH)
    more = ["--model.init_from", begun, "--model.freeze", tower, "--model.ema_samples", 32]
    more += ["--model.micro_batches", micro_batches, "--budget_samples", 3 * BATCH]
    assert train(tmp_path / "run", options, *more) == 0
    before = load_checkpoint(begun)[0].state_dict()
    path = tmp_path / "run" / "checkpoints" / checkpoint_name(3 * BATCH)
    trained, averaged = (load_checkpoint(path, weights)[0].state_dict() for weights in ("trained", "ema"))
    for name, tensor in before.items():
        is_frozen = name.startswith(f"{tower}.")
        assert torch.equal(tensor, trained[name]) == torch.equal(tensor, averaged[name]) == is_frozen, name
    checkpoint = final(tmp_path / "run", 3 * BATCH)
    assert not any(name.startswith(f"model.{tower}.") for name in checkpoint["ema"]["state_dict"])
    places = [place for group in checkpoint["optimizer_states"][0]["param_groups"] for place in group["params"]]
    assert len(places) == sum(not name.startswith(f"{tower}.") for name in before)
    assert any(name.startswith(f"model.{other}.") for name in checkpoint["ema"]["state_dict"])


def test_the_other_tower_learns_as_if_both_did(half, options, tmp_path):
    """The first gradient of the tower that trains is what it is beside one that trains too."""
    begun = half / "checkpoints" / checkpoint_name(4 * BATCH)
    shared = ["--model.init_from", begun, "--model.max_grad_norm", "null", "--budget_samples", BATCH]
    assert train(tmp_path / "both", options, *shared) == 0
    assert train(tmp_path / "one", options, *shared, "--model.freeze", "image") == 0
    both, one = (final(tmp_path / name, BATCH)["state_dict"] for name in ("both", "one"))
    assert all(torch.equal(both[name], one[name]) for name in both if not name.startswith("model.image."))
