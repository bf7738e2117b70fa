"""clip_la from Python: the lines of docs/python.md run, and say what the command line says, to the bit."""

import csv
import doctest
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

import clip_la
from clip_la.cli import main
from clip_la.data.corpora.scenes import build_scenes
from clip_la.errors import UserError
from clip_la.models.interop import to_open_clip
from clip_la.scaling.points import Point
from clip_la.scaling.report import to_data

DOCS = Path(__file__).parents[1] / "docs"
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 61, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every line of docs/python.md was run as it stands."""
    folder = tmp_path_factory.mktemp("home")
    build_scenes(folder / "data/scenes", pairs=256, size_px=32, quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = doctest.testfile(str(DOCS / "python.md"), module_relative=False)
    assert done.attempted > 25
    assert done.failed == 0
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "checkpoints").glob("*.ckpt")
    return clip_la.load_checkpoint(file)[0].state_dict()


def losses(run: Path) -> list[str]:
    with (run / "metrics.csv").open(newline="") as stream:
        return [row["loss"] for row in csv.DictReader(stream)]


def test_training_is_that_of_the_command_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    options = "--budget_samples 512 --model.name vit_pico --model.attention linear_mean"
    options += " --data.shards data/scenes/train --data.batch_size 64 --data.workers 0"
    assert main(["train", "--out", "runs/cli", *options.split()]) == 0
    by_hand, by_python = weights(home / "runs/cli"), weights(home / "runs/linear")
    assert by_hand.keys() == by_python.keys()
    assert all(torch.equal(by_hand[name], by_python[name]) for name in by_hand)
    assert losses(home / "runs/cli") == losses(home / "runs/linear")
    configs = [(home / f"runs/{run}/config.yaml").read_text() for run in ("cli", "linear")]
    assert configs[0].replace("runs/cli", "runs/linear") == configs[1]


def test_a_run_goes_on_and_keeps_its_options(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    config = "budget_samples: 64\nmodel: {name: vit_pico, lr: 0.00123456789, schedule: constant, cooldown_samples: 0}\n"
    config += "data: {shards: data/scenes/train, batch_size: 32, workers: 0}\ntensorboard: false\n"
    (home / "two.yaml").write_text(config)
    run = clip_la.train(out=home / "runs/two", config="two.yaml")
    assert (run.samples_seen, run.is_finished) == (64, True)
    assert "0.00123456789" in (home / "runs/two/config.yaml").read_text()
    assert clip_la.train(out=home / "runs/two", resume=True, budget_samples=128).samples_seen == 128
    clip_la.train(out=home / "runs/one", config="two.yaml", budget_samples=128)
    one, two = weights(home / "runs/one"), dict(weights_of_last(home / "runs/two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def weights_of_last(run: Path) -> dict[str, torch.Tensor]:
    return clip_la.load_checkpoint(max((run / "checkpoints").glob("*.ckpt")))[0].state_dict()


def test_evaluation_is_that_of_the_command_line(home: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(home)
    options = "runs/linear --data data/scenes/train --task zeroshot_retrieval --workers 0 --json --out cli.jsonl"
    assert main(["eval", *options.split()]) == 0
    by_hand = json.loads(capsys.readouterr().out)
    by_python = json.loads((home / "runs/linear/results.jsonl").read_text())
    assert by_hand["metrics"] == by_python["metrics"]
    assert by_hand["evaluation"] == by_python["evaluation"]
    (again,) = clip_la.evaluate_zeroshot(
        Path("runs/linear"), data=Path("data/scenes/train"), task="zeroshot_retrieval", workers=0
    )
    assert again["evaluation"] == by_python["evaluation"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "already in" in captured.err


def test_a_loaded_model_shows_what_evaluation_sees(home: Path) -> None:
    from clip_la.zeroshot.model.load import load_eval_model

    model, preprocess, tokenizer = clip_la.load_model(home / "runs/linear")
    assert not model.training
    images = preprocess(NOISE)[None]
    assert images.dtype == torch.float32
    loaded = load_eval_model(str(max((home / "runs/linear/checkpoints").glob("*.ckpt"))))
    evaluated = loaded.encode_images(loaded.preprocess(NOISE)[None], "float32")
    assert torch.equal(model.encode_image(images, normalize=True), evaluated)
    assert torch.equal(tokenizer("a dog"), tokenizer(["a dog"]))
    expected = open_clip.get_tokenizer("ViT-B-16")(["a dog", "two cats"], context_length=32)
    assert torch.equal(tokenizer(("a dog", "two cats")), expected)
    theirs = image_transform_v2(PreprocessCfg(size=32), is_train=False)(NOISE)
    torch.testing.assert_close(images[0], theirs, rtol=0, atol=1e-6)


def test_open_clip_weights_give_open_clip_features(tmp_path: Path) -> None:
    ours = clip_la.create_model("vit_pico", seed=0)
    torch.save(to_open_clip(ours), tmp_path / "weights.pt")
    model, preprocess, _ = clip_la.load_model(f"vit_pico:{tmp_path / 'weights.pt'}")
    assert torch.equal(model.encode_image(preprocess(NOISE)[None]), ours.eval().encode_image(preprocess(NOISE)[None]))


POINTS = [
    Point("", f"{kind}{n}", kind, "m", None, "", n, None, None, 1e9, n, compute=1e9 * n, error=beta * n**alpha)
    for kind, beta, alpha in (("softmax", 0.9, -0.2), ("linear", 0.95, -0.25))
    for n in (10, 20, 41, 80, 163)
]


def test_a_law_of_files_is_that_of_the_command_line(tmp_path: Path, capsys) -> None:
    lines = [
        {
            **{"run_id": p.run, "seed": p.seed, "model": p.model, "attention": p.attention, "train_data": "t"},
            **{"flops_per_sample": p.flops_per_sample, "samples_seen": p.samples_seen, "dataset": "d"},
            **{"budget_samples": p.samples_seen, "task": "zeroshot_classification", "num_samples": 9},
            **{"schedule": "cosine", "batch_size": 8, "names_hash": "n", "templates_hash": "t", "num_classes": 3},
            "metrics": {"top1": {"value": 1 - p.error, "low": 1 - p.error, "high": 1 - p.error}},
        }
        for p in POINTS
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["scaling", "fit", str(path), "--json", "--interval", "bca", "--resamples", "50"]) == 0
    by_hand = json.loads(capsys.readouterr().out)
    by_python = clip_la.fit_scaling_law(path, interval="bca", resamples=50)
    assert json.loads(json.dumps(to_data(by_python))) == by_hand
    assert [fit.law.alpha for fit in clip_la.fit_scaling_law([path], where="attention=linear").fits] == [
        pytest.approx(-0.25)
    ]
    alphas = {fit.name: fit.law.alpha for fit in clip_la.fit_scaling_law(POINTS).fits}
    assert alphas == {"softmax": pytest.approx(-0.2), "linear": pytest.approx(-0.25)}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: clip_la.train(out="x", budgt_samples=3), "option --budgt_samples; did you mean budget_samples"),
        (lambda: clip_la.train(out="x", model={"nam": "a"}), "option --model.nam; did you mean model.name"),
        (lambda: clip_la.train(out="x", budget_samples="many"), "budget_samples: many is not of type int"),
        (
            lambda: clip_la.evaluate_zeroshot("x", dta="y"),
            "unknown option of evaluate_zeroshot 'dta'; did you mean data",
        ),
        (lambda: clip_la.evaluate_zeroshot("x"), "nothing to evaluate on"),
        (lambda: clip_la.load_model("absent/run"), "no run or checkpoint at absent/run"),
        (lambda: clip_la.load_model("vit_pico:x", device="gpu"), "no device 'gpu'"),
        (lambda: clip_la.fit_scaling_law("absent.jsonl"), "absent.jsonl"),
        (lambda: clip_la.fit_scaling_law([]), "no files and no points"),
        (lambda: clip_la.fit_scaling_law(POINTS, metric="top1"), "points are chosen already"),
        (lambda: clip_la.fit_scaling_law(POINTS, fronteir="all"), "did you mean frontier"),
    ],
)
def test_what_is_wrong_is_one_line(call, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        call()
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_importing_clip_la_imports_nothing_else() -> None:
    code = """
import sys, clip_la, clip_la.api
before = set(sys.modules)
heavy = {"torch", "numpy", "timm", "open_clip", "pytorch_lightning", "scipy", "PIL", "jaxtyping"}
assert not heavy & before, heavy & before
assert clip_la.list_models() and not heavy & set(sys.modules)
assert set(dir(clip_la)) >= set(clip_la.__all__)
try:
    clip_la.creat_model
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module 'clip_la' has no attribute 'creat_model'\n"


def test_every_name_is_there_and_train_stays_one() -> None:
    assert all(callable(getattr(clip_la, name)) for name in clip_la.__all__)
    # The package of the same name has been imported by then.
    assert clip_la.train.__name__ == "clip_la.train"
    assert "clip_la.train.run" in sys.modules
