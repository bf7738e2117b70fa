"""What a conversion asks for and refuses before its first stage, and whose folders it leaves alone."""

import json
import shutil

import pytest
import torch

from clip_la.cli import main as command
from clip_la.convert.cli import main, make_parser
from clip_la.convert.options import STAGES, ConvertOptions
from clip_la.convert.run import SHARES
from clip_la.errors import UserError
from clip_la.models import create_model, load_checkpoint
from clip_la.models.interop import to_open_clip
from clip_la.runs import RunFolder
from clip_la.scaling.results import result_points
from clip_la.zeroshot.model.load import expand_models

from .stages import BATCH, SAMPLES, end, of_stages


def test_stages_without_numbers_take_a_tenth_of_the_teachers_samples(teacher, data, tmp_path):
    assert sum(SHARES[name] for name in ConvertOptions.stages) == pytest.approx(0.1)
    options = ["--attention", "linear", "--stages", "features", "--features.batch_size", "2"]
    assert main([str(teacher), *data, *options, "--out", str(tmp_path / "out")]) == 0
    assert load_checkpoint(end(tmp_path / "out", "features"))[1]["budget_samples"] == 26  # 8 % of 320, whole batches


def test_a_teacher_of_unknown_samples_needs_numbers(data, tmp_path):
    torch.save(to_open_clip(create_model("vit_nano", seed=0)), tmp_path / "nano.pt")
    with pytest.raises(UserError, match=r"does not say how many samples it saw: give layers\.samples"):
        main([f"vit_nano:{tmp_path / 'nano.pt'}", *data, "--attention", "linear", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_help_tells_the_defaults():
    shown = " ".join(make_parser().format_help().split())
    shares = [f"{100 * share:g}" for share in SHARES.values()]
    assert f"{shares[0]}, {shares[1]} and {shares[2]} % of the teacher's own for {', '.join(STAGES[:2])}" in shown
    for name in STAGES:
        entries = shown[shown.index(f"--{name}.samples") : shown.index(f"--{name}.batch_size")]
        stage = getattr(ConvertOptions, name)
        assert f"--{name}.lr LR" in entries
        assert f"default: {stage.lr})" in entries
        assert f"default: {stage.weight_decay})" in entries
    assert "--data.shards" in shown
    assert "--data.tokenizer" not in shown


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--attention", "liner"], "did you mean linear"),
        (["--attention", "linear*5"], "is for 5 layers, this tower has 2"),
        (["--stages", "layers,layers"], "name each that is wanted once"),
        (["--stages", "[]"], "name each that is wanted once, of layers, features, tune"),
        (["--strategy", "fsdp"], "leave it out"),
        (["--stages", "heads"], "heads is not one of 'layers', 'features', 'tune'"),
        (["--layers.samples", "0"], "layers.samples must be at least 1, not 0"),
        (["--layers.batch_size", "0"], "batch_size must be at least 2"),
        (["--layers.lr", "-1"], "stage layers: lr must be positive"),
        (["--layers.lrr", "1"], "did you mean layers.lr"),
        (["--seed", "-1"], "seed must be from 0 to 4294967295, not -1"),
        (["--data", "nowhere/0.tar"], "nowhere/0.tar"),
        (["--data.batch_size", "1"], "batch_size must be at least 2"),
        (["--data.tokenizer", "clip"], "unknown option --data.tokenizer"),
    ],
)
def test_wrong_options_are_one_line(wrong, says, shared, tmp_path, capsys):
    assert command(["convert", *shared, "--out", str(tmp_path / "out"), *wrong]) == 2
    shown = capsys.readouterr().err
    assert says in shown.splitlines()[-1]
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_run_is_left_alone(teacher, shared, capsys):
    """With stages in it, neither the teacher nor the conversion could be found by that folder."""
    before = sorted(teacher.rglob("*"))
    assert command(["convert", *shared, "--out", str(teacher)]) == 2
    assert f"{teacher} holds a run: give the conversion an --out of its own" in capsys.readouterr().err
    assert sorted(teacher.rglob("*")) == before


@pytest.mark.parametrize("wrong", [["--tune.lr", "-1"], ["--tune.batch_size", "1"], ["--tune.weight_decay", "-1"]])
def test_numbers_of_a_later_stage_are_checked_before_the_first(wrong, shared, tmp_path, capsys):
    assert command(["convert", *shared, "--out", str(tmp_path / "out"), *wrong]) == 2
    assert "stage tune: " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_later_stage_with_another_beginning_is_refused_before_the_first_trains(shared, tmp_path):
    arguments = [*shared, *of_stages(dict.fromkeys(SAMPLES, BATCH)), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--stages", "tune"]) == 0
    begun = (
        r"tune/config\.yaml has begins_with copied/\S+, not layers/checkpoints/samples=000000016\.ckpt: give the same"
    )
    with pytest.raises(UserError, match=begun):
        main([*arguments, "--stages", "layers,tune"])
    assert not (tmp_path / "out/layers").exists()


def test_a_conversion_below_its_teachers_run_goes_on(teacher, shared, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(teacher, run)
    for stages in ("layers", "layers,features"):
        arguments = [str(run), *shared[1:], *of_stages(dict.fromkeys(SAMPLES, BATCH)), "--stages", stages]
        assert main([*arguments, "--out", str(run / "converted")]) == 0
    assert expand_models([str(run)]) == [str(end(run, "."))]
    assert len(expand_models([str(run)], "all")) == len(RunFolder(run).saved_checkpoints())
    with pytest.raises(UserError, match="holds 3 runs; name one of them"):
        expand_models([str(run / "converted")])


def test_another_conversions_folder_is_left_alone(converted, shared, teacher, data, tmp_path):
    with pytest.raises(
        UserError, match=r"is of another architecture: image_attention linear_mean \(not linear\).*: give another --out"
    ):
        main([*shared, "--attention", "linear", "--out", str(converted)])
    with pytest.raises(UserError, match=r"layers/config\.yaml has lr 0\.001, not 0\.5: give the same"):
        main([*shared, "--layers.lr", "0.5", "--out", str(converted)])
    other = torch.load(end(teacher, "."), weights_only=True)
    other["clip_la"]["run_id"] = "another"
    torch.save(other, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"holds a conversion of .*teacher/"):
        main([str(tmp_path / "other.ckpt"), *shared[1:], "--out", str(converted)])


def test_teacher_and_folder_may_have_moved_meanwhile(converted, shared, teacher, tmp_path, capsys):
    shutil.copytree(teacher, tmp_path / "teacher")
    shutil.copytree(converted, tmp_path / "out")
    assert main([str(tmp_path / "teacher"), *shared[1:], "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.count("nothing to do") == 3


def test_a_later_stage_wants_the_earlier_ones_finished(converted, shared, tmp_path):
    (tmp_path / "out").mkdir()
    for part in ("copied", "layers"):
        shutil.copytree(converted / part, tmp_path / "out" / part)
    end(tmp_path / "out", "layers").unlink()
    with pytest.raises(UserError, match="layers is not finished: add layers to the stages, or remove it"):
        main([*shared, "--stages", "features", "--out", str(tmp_path / "out")])
    (tmp_path / "out" / "layers" / "config.yaml").write_text("{")
    with pytest.raises(UserError, match=r"layers/config\.yaml is no YAML"):
        main([*shared, "--out", str(tmp_path / "out")])


def test_a_run_without_checkpoints_is_one_line(data, tmp_path, capsys):
    options = ["--attention", "linear", *data, "--out", str(tmp_path / "out")]
    assert command(["convert", str(tmp_path), *options]) == 2
    assert "is no run: no checkpoints/samples=NUMBER.ckpt in it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_several_runs_is_no_run(converted, capsys):
    assert command(["eval", str(converted), "--data", "x"]) == 2
    shown = capsys.readouterr().err
    assert "holds 4 runs; name one of them" in shown
    assert str(converted / "tune" / "checkpoints") in shown


def test_result_lines_name_the_teacher_and_stay_out_of_scaling_laws(converted, shards, tmp_path, capsys):
    results = tmp_path / "results.jsonl"
    task = ["--task", "zeroshot_retrieval", "--cache", "none", "--workers", "0", "--device", "cpu"]
    models = [str(converted / "tune"), str(converted / "copied")]
    assert command(["eval", *models, "--data", shards, *task, "--out", str(results)]) == 0
    tuned, copied = map(json.loads, results.read_text().splitlines())
    assert [line["samples_seen"] for line in tuned["lineage"]] == [20 * BATCH, 0, *list(SAMPLES.values())[:2]]
    assert (tuned["samples_seen"], copied["samples_seen"], len(copied["lineage"])) == (SAMPLES["tune"], 0, 1)
    metric = next(iter(tuned["metrics"]))
    with pytest.raises(UserError, match="began with weights that were trained before"):
        result_points([results], metric=metric)
