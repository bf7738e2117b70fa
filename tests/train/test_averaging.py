"""Averaged weights against a mean in float64 and the checkpoints of a run; their results beside the others."""

from pathlib import Path

import pytest
import torch

import clip_la
from clip_la import results
from clip_la.cli import main
from clip_la.errors import UserError
from clip_la.models import create_model, load_checkpoint
from clip_la.models.checkpoint import save_checkpoint
from clip_la.runs import checkpoint_name
from clip_la.train.averaging import WeightAverage

from .runs import BATCH, final
from .test_zeroshot import lines, suite  # noqa: F401 (a fixture)

STEPS = 6


def mean(series, log2_decay):
    """sum d^(t-s) w_s / sum d^(t-s), in float64."""
    factors = 2.0 ** (log2_decay * torch.arange(len(series) - 1, -1, -1, dtype=torch.float64))
    stacked = torch.stack([tensor.double() for tensor in series])
    return torch.tensordot(factors, stacked, 1) / factors.sum()


def test_the_average_is_the_weighted_mean():
    torch.manual_seed(0)
    one, frozen = torch.nn.Parameter(torch.randn(7, 3)), torch.nn.Parameter(torch.randn(2), requires_grad=False)
    average = WeightAverage(half_life=100, samples_per_step=32)
    average.start([("one", one), ("frozen", frozen)])
    series = []
    for _ in range(50):
        with torch.no_grad():
            one.add_(torch.randn(7, 3))
        series.append(one.detach().clone())
        average.update()
        found = average.state_dict()["state_dict"]
        torch.testing.assert_close(found["one"].double(), mean(series, -0.32), rtol=1e-5, atol=1e-5)
    assert found.keys() == {"one"}
    kept = one.detach().clone()
    with average.applied():
        assert torch.equal(one, found["one"])
    assert torch.equal(one, kept)


def test_the_span_is_counted_in_samples():
    """Weights that jump once: a half-life of samples later the average is half-way, whatever the batch."""
    for batch in (1, 8, 64):
        weight = torch.nn.Parameter(torch.zeros(()))
        average = WeightAverage(half_life=64, samples_per_step=batch)
        average.start([("w", weight)])
        for step in range(64 * 40 // batch):
            if step * batch >= 64 * 39:
                weight.data.fill_(1.0)
            average.update()
        assert average.state_dict()["state_dict"]["w"].item() == pytest.approx(0.5, abs=1e-5)


def test_what_was_loaded_must_be_of_the_weights_that_train():
    average = WeightAverage(half_life=64, samples_per_step=1)
    average.load_state_dict({"state_dict": {"w": torch.zeros(3)}, "num_updates": 1})
    with pytest.raises(UserError, match="averaged weights are not those of the weights that train"):
        average.start([("w", torch.nn.Parameter(torch.zeros(2)))])


@pytest.fixture(scope="module")
def run(shards, suite, tmp_path_factory):  # noqa: F811
    """A run with averages, a checkpoint after each step, evaluated at its end."""
    out = tmp_path_factory.mktemp("runs") / "averaged"
    options = [
        *("--model.name", "vit_pico", "--model.lr", "0.003", "--data.shards", shards, "--data.batch_size", str(BATCH)),
        *("--data.workers", "0", "--tensorboard", "false", "--accelerator", "cpu", "--model.loss", "sigmoid"),
        *("--model.ema_samples", str(2 * BATCH), "--budget_samples", str(STEPS * BATCH)),
        *("--checkpoint_samples", str([n * BATCH for n in range(1, STEPS + 1)]), "--zeroshot_suite", str(suite)),
    ]
    assert main(["train", *options, "--out", str(out)]) == 0
    return out


def test_a_run_saves_the_mean_of_its_weights(run):
    series = [final(run, n * BATCH) for n in range(1, STEPS + 1)]
    for number in (1, 3, STEPS):
        average = series[number - 1]["ema"]
        assert average["num_updates"] == number
        assert average["state_dict"].keys() == series[0]["state_dict"].keys()
        for name, tensor in average["state_dict"].items():
            expected = mean([each["state_dict"][name] for each in series[:number]], -0.5)
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
    path = run / "checkpoints" / checkpoint_name(STEPS * BATCH)
    trained, averaged = (load_checkpoint(path, weights)[0].state_dict() for weights in ("trained", "ema"))
    for name, tensor in averaged.items():
        assert torch.equal(tensor, series[-1]["ema"]["state_dict"][f"model.{name}"])
        assert torch.equal(trained[name], series[-1]["state_dict"][f"model.{name}"])
    model, _, _ = clip_la.load_model(run, weights="ema")
    assert torch.equal(model.state_dict()["text.projection.weight"], averaged["text.projection.weight"])
    assert not torch.equal(averaged["text.projection.weight"], trained["text.projection.weight"])


def test_both_kinds_of_weights_are_evaluated(run, suite, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    found = lines(run)
    assert [line["weights"] for line in found] == [None] * 3 + ["ema"] * 3
    assert len({line["evaluation"] for line in found}) == 6
    for weights, expected in (("trained", found[:3]), ("ema", found[3:])):
        arguments = ["eval", str(run), "--config", str(suite), "--device", "cpu", "--weights", weights]
        assert main([*arguments, "--again", "--out", f"{weights}.jsonl"]) == 0
        again = list(results.read(f"{weights}.jsonl"))
        assert [line["metrics"] for line in again] == [line["metrics"] for line in expected]
        capsys.readouterr()
        assert main(arguments) == 0
        assert capsys.readouterr().out.count("already in") == 3


def test_what_an_evaluation_at_the_end_lacks_is_made_up_for_both(run, tmp_path):
    whole = (run / "results.jsonl").read_bytes()
    try:
        (run / "results.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
        assert main(["train", "--resume", "--out", str(run)]) == 0
        assert [line["weights"] for line in lines(run)] == [None] * 3 + ["ema"] * 3
    finally:
        (run / "results.jsonl").write_bytes(whole)


def test_a_checkpoint_without_an_average_has_none(tmp_path):
    model = create_model("vit_pico", seed=0)
    save_checkpoint(tmp_path / "plain.ckpt", model)
    with pytest.raises(UserError, match=r"plain.ckpt holds no averaged weights; a run with --model.ema_samples"):
        load_checkpoint(tmp_path / "plain.ckpt", "ema")
    with pytest.raises(UserError, match="weights"):
        load_checkpoint(tmp_path / "plain.ckpt", "averaged")
    with pytest.raises(UserError, match=r"ViT-B-32:x\.pt has one set of weights"):
        clip_la.load_model("ViT-B-32:x.pt", weights="ema")


def test_a_sweep_and_a_fit_tell_them_apart(run):
    from clip_la.scaling.results import result_points
    from clip_la.sweep.state import figures

    shown = figures(Path(run))
    assert sum("drawings (averaged weights) " in text for text in shown) == 3
    with pytest.raises(UserError, match="differ in weights"):
        result_points([run], metric="top1", filters={"task": "zeroshot_classification"})
    for weights in ("None", "ema"):
        filters = {"task": "zeroshot_classification", "weights": weights}
        (point,) = result_points([run], metric="top1", filters=filters).points
        assert point.samples_seen == STEPS * BATCH
