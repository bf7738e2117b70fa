"""`clip-la models` and `clip-la export`, as a user calls them."""

import json
from pathlib import Path

import pytest
import torch

from clip_la.cli import main
from clip_la.models import create_model, list_attention, list_models, model_spec, save_checkpoint
from clip_la.models.attention.kinds import attention_kind
from clip_la.models.flops import num_parameters


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_models_lists_every_preset_with_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["attention"]) for row in rows] == [
        (m, k if attention_kind(k).causal else f"{k}/softmax") for m in list_models() for k in list_attention()
    ]
    (softmax,) = [row for row in rows if (row["model"], row["attention"]) == ("vit_b16", "softmax")]
    assert softmax["parameters"]["total"] == 149_620_737
    assert softmax["gflops"]["total"] == pytest.approx(41.09, rel=5e-3)
    assert (softmax["image_size"], softmax["image_tokens"], softmax["context_length"]) == (224, 197, 77)


def test_models_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "vit_b16", "vit_s16", "--attention", "linear*11+softmax"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].split()[:5] == ["vit_b16", "linear*11+softmax", "224", "197", "77"]


def test_models_takes_a_patch_size(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--image-size", "64", "--patch-size", "8"]
    assert main(["models", "vit_ti16", "--attention", "softmax", *sizes, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["model"], row["image_size"], row["patch_size"], row["image_tokens"]) == ("vit_ti16", 64, 8, 65)
    assert main(["models", "vit_ti16", "--patch-size", "10"]) == 2
    assert "image_size 224 is no multiple of patch_size 10" in error_line(capsys)


def test_models_leaves_out_presets_that_a_plan_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """As the plan is longer than they are; one that is named, or a plan for no preset at all, is refused."""
    plan = "linear_mean:softmax=5:1/softmax"
    assert main(["models", "--attention", plan, "--json"]) == 0
    out, err = capsys.readouterr()
    fit = {m for m in list_models() if model_spec(m).image_layers >= 6}
    assert {row["model"] for row in json.loads(out)} == fit
    assert len(fit) < len(list_models())
    assert sum(line.startswith("left out: image tower of") for line in err.splitlines()) == len(list_models()) - len(
        fit
    )
    assert main(["models", "vit_micro", "--attention", plan]) == 2
    assert main(["models", "--attention", "linear*100+softmax"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_models_takes_a_plan_a_tower_and_measures_it(capsys: pytest.CaptureFixture[str]) -> None:
    plan = "linear_mean,softmax@1/softmax(conv=3)"
    assert main(["models", "vit_nano", "--attention", plan, "--speed", "2", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["attention"] == "linear_mean+softmax/softmax(conv=3)"
    assert row["parameters"]["text"] - model_parameters("vit_nano")["text"] == 2 * 3 * 64
    assert row["pairs_per_second"]["forward"] > row["pairs_per_second"]["training"] > 0


def test_models_measures_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for kind in ("linear", "linear(norm=rms)", "hedgehog"):
        assert main(["models", "vit_micro", "--attention", kind, "--image-size", "64", "--start", "--json"]) == 0
        rows += json.loads(capsys.readouterr().out)
    unbound, bound, mapped = (row["start"] for row in rows)
    # Eq. 7 sums over 65 tokens; a norm of heads ends that.
    assert unbound["residual_last"] > 10 > 4 > bound["residual_last"] > 1
    assert unbound["branch_first"] > 1 > bound["branch_first"]
    assert mapped["gradient_q"] > 0.02


def test_models_measures_what_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a checkpoint with initial weights it is what the start has; at another size its positions are interpolated."""
    path = tmp_path / "model.ckpt"
    save_checkpoint(path, create_model("vit_micro", attention="linear", seed=0))
    rows = []
    for arguments in (["--trained", str(path)], ["--trained", str(path), "--image-size", "64"]):
        assert main(["models", *arguments, "--json"]) == 0
        rows += json.loads(capsys.readouterr().out)
    assert main(["models", "vit_micro", "--attention", "linear", "--start", "--json"]) == 0
    assert rows[0] == json.loads(capsys.readouterr().out)[0] | {"run": str(path)}
    assert rows[1]["image_tokens"] == 65
    assert rows[1]["start"]["residual_last"] > 2 * rows[0]["start"]["residual_last"]
    # Two runs of one preset and attention are told apart in the table.
    other = tmp_path / "other.ckpt"
    save_checkpoint(other, create_model("vit_micro", attention="linear", seed=1))
    assert main(["models", "--trained", str(path), str(other)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[-1] == "run"
    assert [line.split()[-1] for line in lines] == [str(path), str(other)]


def model_parameters(name: str) -> dict[str, int]:
    return num_parameters(model_spec(name))


def test_models_lists_kinds_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--kinds", "--json"]) == 0
    rows = {row["kind"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list_attention()
    assert rows["rala"]["options"]["conv"] == "5 of 0|3|5|dynamic"
    assert not rows["ttt"]["causal"]
    assert main(["models", "--kinds"]) == 0
    said = capsys.readouterr().out
    assert "\n    eps=1e-06, temperature=fixed (fixed|learned), conv=5 (0|3|5|dynamic), gate=linear (" in said
    assert "{" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attention", "ttt"], "'ttt' has no causal form"),
        (["--speed", "0"], "--speed 0: give the number of pairs"),
        (["vit_b"], "unknown model 'vit_b'"),
        (["--attention", "linaer"], "unknown attention kind 'linaer'; did you mean linear"),
        (["--attention", "linear*3"], "is for 3 layers, this tower has 12"),
        (["--attention", "linear(a=2,a=3)"], "the option 'a' is given twice"),
        (["--attention", "mhla(blocks=1000)"], "option 'blocks': 1000 is not a whole number >= 1 and <= 32"),
        (["--attention", "flatten(temperature=learned)"], "unknown option of attention 'flatten' 'temperature'"),
        (["vit_b16", "--trained", "x"], "--trained has models of its own: leave out names"),
        (["--trained", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--kinds", "--attention", "rala"], "--kinds lists all kinds, whatever the model: leave out attention"),
        (["--image-size", "100"], "image_size 100 is no multiple of patch_size 16"),
        (["--image-sise", "64"], "did you mean --image-size"),
    ],
)
def test_models_refuses_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", *arguments]) == 2
    assert message in error_line(capsys)


def test_export_takes_the_last_checkpoint_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for samples in (128, 1280):
        model = create_model("vit_pico", seed=samples)
        save_checkpoint(tmp_path / f"run/checkpoints/samples={samples:09d}.ckpt", model, samples_seen=samples)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out.pt"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["weights"] == str(tmp_path / "out.pt")
    assert f"wrote {tmp_path / 'out.pt'} and {tmp_path / 'out.json'}" in err.splitlines()[-1]
    exported = torch.load(tmp_path / "out.pt", weights_only=True)["state_dict"]
    assert torch.equal(exported["visual.proj"], model.image.projection.weight.T)


def test_export_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linear, out = tmp_path / "linear.pt", tmp_path / "out.pt"
    save_checkpoint(linear, create_model("vit_pico", attention="linear"))
    assert main(["export", str(linear), str(out)]) == 2
    assert "open_clip has softmax only" in error_line(capsys)
    assert main(["export", str(linear), str(tmp_path / "out")]) == 2
    assert "should end in .pt" in error_line(capsys)
    assert main(["export", str(tmp_path / "none.ckpt"), str(out)]) == 2
    assert "no checkpoint at" in error_line(capsys)
    out.write_bytes(b"mine")
    assert main(["export", str(linear), str(out)]) == 2
    assert "is there already; --force writes over it" in error_line(capsys)
    assert out.read_bytes() == b"mine"
