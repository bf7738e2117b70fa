"""Runs that begin with given weights: which, what they say of themselves, what they refuse."""

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from clip_la.errors import UserError
from clip_la.models import create_model, load_checkpoint, save_checkpoint
from clip_la.runs import checkpoint_name
from clip_la.train.beginning import read_beginning
from clip_la.train.cli import main
from clip_la.train.options import ModelOptions
from clip_la.train.task import SIGMOID_INIT_BIAS, SIGMOID_INIT_SCALE, ContrastiveTask

BATCH = 16


def task(path, **more):
    options = ModelOptions(**{"name": "vit_pico", "init_from": str(path), **more})
    return ContrastiveTask(options, batch_size=BATCH, budget_samples=BATCH, seed=5)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A file of save_checkpoint, which no training can go on from."""
    path = tmp_path_factory.mktemp("start") / "start.ckpt"
    save_checkpoint(path, create_model("vit_pico", image_attention="linear", seed=3), samples_seen=7, run_id="abc")
    return path


def test_a_run_begins_with_the_weights_and_remembers_them(start, run_options, tmp_path):
    options = ["--model.image_attention", "linear*1", "--model.init_from", str(start), "--model.lr", "1e-30"]
    out = tmp_path / "run"
    assert main([*run_options, *options, "--budget_samples", str(BATCH), "--out", str(out)]) == 0
    model, meta = load_checkpoint(out / "checkpoints" / checkpoint_name(BATCH))
    given = create_model("vit_pico", image_attention="linear", seed=3).state_dict()
    # Biases of zero move by the rate.
    assert all(torch.allclose(t, given[name], rtol=0, atol=1e-25) for name, t in model.state_dict().items())
    line = {"checkpoint": str(start), "model": "vit_pico", "attention": "linear/softmax", "loss": None}
    assert meta["lineage"] == [{**line, "run_id": "abc", "samples_seen": 7}]
    assert meta["run_id"] != "abc"
    # The next one knows both.
    assert [line["samples_seen"] for line in read_beginning(out / "checkpoints" / checkpoint_name(BATCH)).lineage] == [
        7,
        BATCH,
    ]


def test_scale_and_bias_of_the_sigmoid_loss_belong_together(start, run_options, tmp_path):
    fresh = task(start, image_attention="linear", loss="sigmoid")
    assert fresh.model.logit_scale.exp().item() == pytest.approx(SIGMOID_INIT_SCALE)
    assert fresh.logit_bias.item() == SIGMOID_INIT_BIAS
    out, options = tmp_path / "run", ["--model.loss", "sigmoid", "--budget_samples", str(8 * BATCH)]
    assert main([*run_options, *options, "--out", str(out)]) == 0
    trained = torch.load(out / "checkpoints" / checkpoint_name(8 * BATCH), weights_only=True)["state_dict"]
    again = task(out / "checkpoints" / checkpoint_name(8 * BATCH), loss="sigmoid")
    assert again.logit_bias.item() == trained["logit_bias"].item() != SIGMOID_INIT_BIAS
    assert torch.equal(again.model.logit_scale, trained["model.logit_scale"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "start.ckpt has image_attention linear, not softmax; `clip-la convert` changes the attention"),
        ({"image_attention": "linear", "image_size": 36}, "image_size 36 is no multiple of patch_size 8"),
        ({"image_attention": "linear", "patch_size": 4}, "start.ckpt has patch_size 8, not 4"),
        ({"image_attention": "linear", "init_from": "gone.ckpt"}, "no checkpoint at gone.ckpt"),
    ],
)
def test_another_architecture_is_refused(start, options, says):
    with pytest.raises(UserError) as raised:
        task(start, **options)
    assert says in str(raised.value)


def test_another_image_size_interpolates_the_positions(start, run_options, tmp_path, capsys):
    options = ["--model.image_attention", "linear*1", "--model.init_from", str(start), "--model.image_size", "48"]
    out = tmp_path / "run"
    assert main([*run_options, *options, "--model.lr", "1e-30", "--budget_samples", str(BATCH), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert (
        "start.ckpt: positions interpolated from 32 to 48 pixels (17 to 37 tokens); all image layers sum over" in said
    )
    model, meta = load_checkpoint(out / "checkpoints" / checkpoint_name(BATCH))
    assert model.spec.image_size == 48
    given = create_model("vit_pico", image_attention="linear", seed=3).image.trunk.pos_embed
    expected = resample_abs_pos_embed(given.detach(), new_size=[6, 6], old_size=[4, 4])
    torch.testing.assert_close(model.image.trunk.pos_embed.detach(), expected, rtol=0, atol=1e-6)
    assert [line["image_size"] for line in meta["lineage"]] == [32]
    # The run is whole: it can be resumed, though the checkpoint it began with has another size.
    more = ["--resume", "--out", str(out)]
    assert main(more) == 0


def test_another_model_is_refused(start):
    with pytest.raises(UserError, match="is a vit_pico, not a vit_nano: no run of this model can begin with it"):
        task(start, name="vit_nano")
