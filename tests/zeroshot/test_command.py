"""`clip-la eval` from the command line's point of view."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from clip_la import results
from clip_la.cli import main
from clip_la.models.checkpoint import load_checkpoint, save_checkpoint
from clip_la.models.clip import CLIP
from clip_la.models.interop import to_open_clip
from clip_la.models.resize import at_image_size
from clip_la.zeroshot.labels.classes import class_set
from clip_la.zeroshot.options import read_suite

SUITES = Path(__file__).parents[2] / "configs" / "eval"


@pytest.fixture
def run_folder(tiny_model: CLIP, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for samples in (100, 2000):
        origin = {"samples_seen": samples, "budget_samples": 2000, "schedule": "cosine", "run_id": "r", "seed": 0}
        save_checkpoint(folder / "checkpoints" / f"samples={samples:09d}.ckpt", tiny_model, **origin)
        tiny_model.image.projection.weight.data.mul_(-1)
    return folder


@pytest.fixture
def evaluate(capsys, monkeypatch, tmp_path: Path):
    """Runs the command in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        common = ["--workers", "0", "--cache", str(tmp_path / "cache"), "--batch-size", "5"]
        code = main(["eval", *common, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_run_is_evaluated_written_and_then_skipped(evaluate, run_folder: Path, shard_folder: Path):
    code, out, _ = evaluate(run_folder, "--data", shard_folder, "--contact-sheet", "sheets/x", "--per-class")
    assert code == 0
    (line,) = results.read(run_folder / "results.jsonl")
    assert (line["samples_seen"], line["dataset"], line["num_samples"]) == (2000, "things", 18)
    assert f"{100 * line['metrics']['top1']['value']:.2f} %" in out
    assert str(run_folder / "results.jsonl") in out
    with Image.open("sheets/x.png") as sheet:
        assert sheet.format == "PNG"
    page = Path("sheets/x.html").read_text()
    assert page.count("<figure>") == 18
    assert page.count("<li") == 90
    rows = list(csv.DictReader((run_folder / "predictions" / f"{line['evaluation']}.classes.csv").open()))
    assert sum(int(row["pictures"]) for row in rows) == 18
    recalls = [float(row["recall"]) for row in rows]
    assert recalls == sorted(recalls)
    assert sum(recalls) / len(recalls) == pytest.approx(line["metrics"]["mean_per_class_recall"]["value"], abs=1e-5)

    code, out, _ = evaluate(run_folder, "--data", shard_folder)
    assert code == 0
    assert "already in" in out
    assert len(list(results.read(run_folder / "results.jsonl"))) == 1
    evaluate(run_folder, "--data", shard_folder, "--again")
    assert len(list(results.read(run_folder / "results.jsonl"))) == 2


def test_evaluation_at_another_image_size(evaluate, tiny_model: CLIP, run_folder: Path, shard_folder: Path):
    """The same as evaluating the resized model itself, but for what training cost."""
    code, out, _ = evaluate(run_folder, "--data", shard_folder)
    code, out, _ = evaluate(run_folder, "--data", shard_folder, "--image-size", "64")
    assert code == 0
    assert "positions interpolated from 32 to 64 pixels (5 to 17 tokens)" in out
    assert "samples=000002000.ckpt at 64 px on things" in out
    usual, resized = results.read(run_folder / "results.jsonl")
    assert resized["eval_image_size"] == 64
    assert "eval_image_size" not in usual
    assert resized["flops_per_sample"] == usual["flops_per_sample"]
    assert resized["evaluation"] != usual["evaluation"]
    trained, _ = load_checkpoint(run_folder / "checkpoints" / "samples=000002000.ckpt")
    save_checkpoint("large.ckpt", at_image_size(trained, 64))
    assert evaluate("large.ckpt", "--data", shard_folder)[0] == 0
    (itself,) = results.read("results.jsonl")
    assert itself["metrics"] == resized["metrics"]
    assert itself["flops_per_sample"] > usual["flops_per_sample"]
    # Its own size is no other size: the result is there already.
    assert "already in" in evaluate(run_folder, "--data", shard_folder, "--image-size", "32")[1]
    code, _, err = evaluate(run_folder, "--data", shard_folder, "--image-size", "40")
    assert (code, err.count("\n")) == (2, 1)
    assert "image_size 40 is no multiple of patch_size 16" in err
    # A ResNet is evaluated by open_clip's own module, which no position embedding of ours can resize.
    code, _, err = evaluate("RN50:openai", "--data", shard_folder, "--image-size", "64")
    assert (code, err.count("\n")) == (2, 1)
    assert "leave out --image-size" in err


def test_lost_predictions_are_made_again(evaluate, run_folder: Path, shard_folder: Path):
    evaluate(run_folder, "--data", shard_folder)
    (path,) = (run_folder / "predictions").glob("*.npz")
    path.write_bytes(path.read_bytes()[:50])
    code, _, err = evaluate(run_folder, "--data", shard_folder)
    assert code == 0
    assert "evaluating again" in err
    assert len(list(results.read(run_folder / "results.jsonl"))) == 2


def test_all_checkpoints_compared_as_json(evaluate, run_folder: Path, shard_folder: Path):
    code, out, err = evaluate(
        run_folder, "--data", shard_folder, "--checkpoints", "all", "--compare", "--json", "--clip-benchmark", "cb"
    )
    assert code == 0
    first, second, comparison = map(json.loads, out.splitlines())
    assert (first["samples_seen"], second["samples_seen"]) == (100, 2000)
    difference = second["metrics"]["top1"]["value"] - first["metrics"]["top1"]["value"]
    assert comparison["difference"]["value"] == pytest.approx(difference, abs=1e-12)
    assert comparison["only_b"] - comparison["only_a"] == pytest.approx(18 * difference)
    assert "McNemar" in err
    assert len(list(Path("cb").glob("*.json"))) == 2


def test_suite(evaluate, run_folder: Path, shard_folder: Path, image_folder: Path, tmp_path: Path):
    suite = {
        "models": [str(run_folder)],
        "datasets": [
            {"data": str(shard_folder), "templates": "plain"},
            {"data": str(shard_folder / "test"), "task": "knn", "train": str(shard_folder), "shots": 1, "name": "near"},
            {"data": str(image_folder), "templates": "name", "name": "colours"},
        ],
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    code, out, _ = evaluate("--config", "suite.yaml", "--out", "all.jsonl", "--json")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["dataset"], line["task"]) for line in lines] == [
        ("things", "zeroshot_classification"),
        ("near", "knn"),
        ("colours", "zeroshot_classification"),
    ]
    assert lines[0]["templates"] == "plain"
    assert [line["evaluation"] for line in results.read("all.jsonl")] == [line["evaluation"] for line in lines]
    code, _, err = evaluate("--config", "suite.yaml", "--out", "all.jsonl", "--json")
    assert err.count("already in") == 3


def test_missing_and_empty_classes_are_told(evaluate, run_folder: Path, image_folder: Path):
    """Seven of the thousand classes have folders, one of which is empty."""
    (image_folder / "n07753592" / "0.png").unlink()
    code, out, _ = evaluate(run_folder, "--data", image_folder, "--templates", "name", "--per-class")
    assert code == 0
    assert f"{image_folder}: class folders without images: n07753592" in out
    assert "1000 classes of imagenet1k/curated of which 6 have images, templates name" in out
    (line,) = results.read(run_folder / "results.jsonl")
    assert line["classes_with_pictures"] == 6
    recalls = csv.DictReader((run_folder / "predictions" / f"{line['evaluation']}.classes.csv").open())
    assert len(list(recalls)) == 6


def test_results_that_differ_in_their_prompts_alone_are_files_of_their_own(evaluate, run_folder, shard_folder):
    for templates in ("name", "plain"):
        evaluate(run_folder, "--data", shard_folder, "--templates", templates, "--clip-benchmark", "cb")
    assert len(list(Path("cb").glob("things_*_zeroshot_classification_*.json"))) == 2


def test_open_clip_weights_by_file(evaluate, tiny_model: CLIP, image_folder: Path, tmp_path: Path):
    import torch

    torch.save(to_open_clip(tiny_model), tmp_path / "weights.pt")
    code, _, err = evaluate(f"ViT-B-32:{tmp_path / 'weights.pt'}", "--data", image_folder)
    assert code == 2
    assert "ViT-B-32" in err
    assert "weights.pt" in err


@pytest.mark.parametrize("name", sorted(path.name for path in SUITES.glob("*.yaml")))
def test_every_suite_of_the_repository_is_read(name: str):
    _, found = read_suite(SUITES / name, data="/some/where")
    assert found
    for entry in found:
        if entry.classes:
            class_set(entry.classes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "--data PATH or --config FILE"),
        (["--data", "DATA"], "no model"),
        (["nowhere/x.ckpt", "--data", "DATA"], "no run or checkpoint at nowhere/x.ckpt"),
        (["vit_bb16", "--data", "DATA"], "unknown model 'vit_bb16'"),
        (["ViT-B-32", "--data", "DATA"], "name its weights"),
        (["ViT-B-32:laion400m_e31x", "--data", "DATA"], "laion400m_e31x"),
        (["RN50:nothing.pt", "--data", "DATA"], "nothing.pt"),
        (["RUN", "--data", "gone"], "gone"),
        (["RUN", "--data", "DATA", "--classes", "imagenet1"], "did you mean"),
        (["RUN", "--data", "DATA", "--templates", "openai8"], "did you mean"),
        (["RUN", "--data", "DATA", "--precision", "fp8"], "unknown precision 'fp8'"),
        (["RUN", "--data", "DATA", "--checkpoints", "first"], "unknown choice"),
        (["RUN", "--data", "DATA", "--device", "cuda:77"], "no device 'cuda:77' here"),
        (["RUN", "--data", "DATA", "--task", "knn"], "needs images to learn from"),
        (["RUN", "--data", "DATA", "--compare"], "nothing to compare"),
        (["RUN", "--data", "DATA", "--workers", "-1"], "--workers must be at least 0, not -1"),
        (["RUN", "--data", "DATA", "--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["RUN", "--data", "DATA", "--tempaltes", "plain"], "--templates"),
        (["RUN", "--config", "gone.yaml"], "no suite at gone.yaml"),
        (["EMPTY", "--data", "DATA"], "is no run"),
    ],
)
def test_wrong_input_is_one_line(
    evaluate, run_folder: Path, shard_folder: Path, tmp_path: Path, arguments: list[str], message: str
):
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(run_folder), "DATA": str(shard_folder), "EMPTY": str(tmp_path / "empty")}
    code, _, err = evaluate(*(places.get(argument, argument) for argument in arguments))
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("clip-la: error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err


def test_benchmark_of_a_model_that_open_clip_lacks_is_one_line(capsys):
    assert main(["bench", "zeroshot", "--model", "vit_pico"]) == 2
    shown = capsys.readouterr()
    assert "unknown model that open_clip has too 'vit_pico'; did you mean vit_" in shown.err
    assert not shown.out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("datasets: [", "not valid YAML"),
        ("data: x", "expected 'datasets:'"),
        ("datasets: [{data: x}]\nmodel: y", "did you mean models"),
        ("datasets: [{data: x, class: y}]", "did you mean classes"),
        ("datasets: [{name: x}]", "says not where its data is"),
        ("datasets: [x]", "is no entry"),
        ("datasets: [{data: 3}]", "suite.yaml: data is 3, not text; put it in quotes"),
        ("datasets: [{data: [a, b]}]", "suite.yaml: data is ['a', 'b'], not text"),
        ("datasets: [{data: x, name: 2017}]", "suite.yaml: name is 2017, not text; put it in quotes"),
        ("datasets: [{data: x, labels: null}]", "suite.yaml: labels is None, not text"),
        ("datasets: [{data: x, task: [knn], train: y}]", "suite.yaml: task is ['knn'], not text"),
        ("datasets: [{data: x, task: knn, train: y, shots: few}]", "suite.yaml: shots is 'few', not a whole number"),
        ("datasets: [{data: x, task: knn, train: y, shots: 1.5}]", "suite.yaml: shots is 1.5, not a whole number"),
        ("datasets: [{data: x, task: knn}]", "suite.yaml: task knn needs images to learn from"),
        ("datasets: [{data: x}]\nmodels: run", "suite.yaml: models is 'run', not a list of names"),
        ("datasets: [{data: x}]\nmodels: [1]", "suite.yaml: models is [1], not a list of names"),
    ],
)
def test_wrong_suites(evaluate, tmp_path: Path, content: str, message: str):
    (tmp_path / "suite.yaml").write_text(content)
    code, _, err = evaluate("--config", "suite.yaml", "model")
    assert code == 2
    assert message in err


@pytest.mark.parametrize("name", ["a\u2028b", "a\x85b", os.fsdecode(b"caf\xe9")])
def test_any_name_of_a_data_set_can_be_written_and_read(evaluate, run_folder, shard_folder, tmp_path: Path, name: str):
    data = tmp_path / name
    shutil.copytree(shard_folder, data)
    code, out, _ = evaluate(run_folder, "--data", data, "--json", "--out", "r.jsonl")
    assert (code, json.loads(out)["dataset"]) == (0, name)
    code, _, err = evaluate(run_folder, "--data", data, "--json", "--out", "r.jsonl")
    assert code == 0
    assert "already in" in err
    assert [line["dataset"] for line in results.read("r.jsonl")] == [name]
    # What earlier versions wrote has these signs as they are.
    Path("r.jsonl").write_text(json.dumps({"dataset": name}, ensure_ascii=False) + "\n", errors="replace")
    assert len(list(results.read("r.jsonl"))) == 1


def test_results_that_are_not_utf8_are_one_line(evaluate, run_folder, shard_folder):
    Path("r.jsonl").write_bytes(b'{"dataset": "caf\xe9"}\n')
    code, _, err = evaluate(run_folder, "--data", shard_folder, "--out", "r.jsonl")
    assert (code, err) == (2, "clip-la: error: r.jsonl:1: not UTF-8; one result a line is expected\n")
