"""Whole conversions on a small corpus: closer to the teacher, nothing twice, cut and joined to the same bits."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml

from clip_la.convert import run
from clip_la.convert.cli import main
from clip_la.convert.matching import FeatureMatching, LayerMatching
from clip_la.convert.options import STAGES
from clip_la.errors import UserError
from clip_la.models import load_checkpoint
from clip_la.runs import RunFolder, checkpoint_name
from clip_la.train.cli import main as train
from clip_la.train.compiled import uncompiled
from clip_la.train.graphed import GraphedTower
from clip_la.train.task import SIGMOID_INIT_BIAS
from tests.train.tapes import record_on_the_cpu

from .stages import BATCH, PATIENCE_S, SAMPLES, distances, end, of_stages, rows, weights


def test_losses_fall_and_features_approach_the_teachers(converted, teacher, unseen):
    for stage, num_parts in (("layers", 4), ("features", 2)):
        table = rows(converted, stage)
        assert [int(row["samples_seen"]) for row in table] == list(range(2 * BATCH, SAMPLES[stage] + 1, 2 * BATCH))
        assert float(table[-1]["loss"]) < 0.8 * float(table[0]["loss"])
        parts = [name for name in table[0] if name.startswith(("image", "text"))]
        assert len(parts) == num_parts
        assert all(float(row[part]) > 0 for row in table for part in parts)
    trained = end(teacher, ".")
    start, layers, final = (
        distances(end(converted, stage), trained, unseen) for stage in ("copied", "layers", "features")
    )
    assert min(start) > 1e-4
    assert all(now < 0.8 * before for now, before in zip(final, start, strict=True))
    assert sum(layers) < sum(start)


def test_only_attention_moves_in_the_first_stage(converted):
    before, after = weights(end(converted, "copied")), weights(end(converted, "layers"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".attn." in name for name in moved)
    assert {name.split(".attn.")[0] for name in moved} == {
        *(f"model.image.trunk.blocks.{depth}" for depth in range(2)),
        *(f"model.text.blocks.{depth}" for depth in range(2)),
    }


def test_every_stage_says_where_it_comes_from(converted, teacher):
    _, meta = load_checkpoint(end(converted, "tune"))
    lineage = meta["lineage"]
    assert [line["loss"] for line in lineage] == ["contrastive", "copy", "layers", "features"]
    assert [line["samples_seen"] for line in lineage] == [20 * BATCH, 0, SAMPLES["layers"], SAMPLES["features"]]
    assert lineage[0]["checkpoint"] == str(end(teacher, "."))
    assert [line["attention"] for line in lineage] == ["softmax", *["linear_mean"] * 3]
    assert (meta["samples_seen"], meta["loss"], meta["seed"]) == (SAMPLES["tune"], "contrastive", 0)


def test_the_control_stays_where_the_teacher_is(teacher, data, tmp_path):
    """By default, whatever the samples: no stage may take from a model that has nothing to learn."""
    options = ["--attention", "softmax", *of_stages()]
    assert main([str(teacher), *data, *options, "--out", str(tmp_path / "out")]) == 0
    trained = weights(end(teacher, "."))
    for stage in ("copied", "layers", "features"):
        own = weights(end(tmp_path / "out", stage))
        assert own.keys() == trained.keys()
        assert all(torch.equal(own[name], trained[name]) for name in trained)
        assert stage == "copied" or {float(row["loss"]) for row in rows(tmp_path / "out", stage)} == {0.0}
    # Another loss would find something to change; it is for who asks for it.
    assert not (tmp_path / "out" / "tune").exists()


def test_a_stage_alone_begins_with_the_copy(teacher, data, tmp_path, capsys):
    out = tmp_path / "out"
    options = [str(teacher), *data, "--image_attention", "linear(gate=sigmoid)", *of_stages(), "--out", str(out)]
    options += ["--features.batch_size", "32"]
    assert main([*options, "--stages", "features"]) == 0
    assert "at initial values: image.trunk.blocks.*.attn.gate.linear.weight (2 layers)" in capsys.readouterr().err
    _, meta = load_checkpoint(end(out, "features"))
    assert [line["loss"] for line in meta["lineage"]] == ["contrastive", "copy"]
    assert meta["batch_size"] == 2 * BATCH
    assert not (out / "layers").exists()
    text = {name: tensor for name, tensor in weights(end(out, "features")).items() if ".text." in name}
    assert all(torch.equal(tensor, weights(end(teacher, "."))[name]) for name, tensor in text.items())
    # It is what it began with, whatever is done afterwards.
    assert main([*options, "--stages", "layers"]) == 0
    with pytest.raises(UserError, match=r"features/config\.yaml has begins_with .*copied.*, not .*layers"):
        main([*options, "--stages", "features"])


def test_the_tune_is_the_trainer_on_the_converted_checkpoint(converted, data, tmp_path):
    start, plain = end(converted, "features"), ["--tensorboard", "false", "--data.seed", "2"]
    options = ["--model.name", "vit_nano", "--model.attention", "linear_mean", "--model.init_from", str(start)]
    options += ["--model.lr", "0.00001", "--model.warmup_samples", str(int(0.05 * SAMPLES["tune"]))]
    budget = ["--budget_samples", str(SAMPLES["tune"])]
    with pytest.raises(UserError, match=r'"data\.seed" must be given via "seed"'):
        train([*options, *data, *plain, *budget, "--out", str(tmp_path / "run")])
    assert train([*options, *data, *plain[:2], *budget, "--seed", "2", "--out", str(tmp_path / "run")]) == 0
    one, other = weights(end(converted, "tune")), weights(end(tmp_path / "run", "."))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_second_call_does_nothing_twice(converted, shared, capsys):
    before = {path: path.read_bytes() for path in converted.rglob("*") if path.is_file()}
    assert main([*shared, "--log_every_samples", str(2 * BATCH), "--out", str(converted)]) == 0
    assert capsys.readouterr().err.count("nothing to do") == 3
    assert {path: path.read_bytes() for path in converted.rglob("*") if path.is_file()} == before


def test_killed_and_called_again_it_ends_in_the_same_bits(converted, shared, tmp_path):
    out = tmp_path / "out"
    options = [*shared, "--log_every_samples", str(2 * BATCH), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "clip_la", "convert", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE_S
    while not (out / "features" / "checkpoints" / checkpoint_name(3 * BATCH)).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "tune").exists()
    assert main(options) == 0
    for stage in ("layers", "features", "tune"):
        one, other = (torch.load(end(each, stage), weights_only=True) for each in (converted, out))
        assert all(torch.equal(one["state_dict"][n], other["state_dict"][n]) for n in one["state_dict"])
        assert one["ShardDataModule"] == other["ShardDataModule"]
        assert [(r["samples_seen"], r["loss"]) for r in rows(converted, stage)] == [
            (r["samples_seen"], r["loss"]) for r in rows(out, stage)
        ]


def test_recorded_stages_broken_off_and_begun_again_end_in_the_same_bits(shared, tmp_path, monkeypatch):
    """A stage that goes on records anew, in the middle of its weights' way; kernel by kernel it ends nearly there."""
    record_on_the_cpu(monkeypatch)
    record, recordings = GraphedTower._record, []
    monkeypatch.setattr(GraphedTower, "_record", lambda *given: recordings.append(record(*given)) or recordings[-1])
    two = ["--stages", "layers,features"]

    def ends(name, *more):
        out = tmp_path / name
        # Compiling is not what is tested, and takes a minute.
        with uncompiled():
            assert main([*shared, *two, *more, "--out", str(out)]) == 0
        return [weights(end(out, stage)) for stage in ("layers", "features")]

    plain = ends("plain", "--compile", "false")
    assert not recordings
    whole = ends("whole", "--compile", "true")
    # Layers of two towers; two towers of the student and of the teacher.
    assert len(recordings) == 6
    for kind in (LayerMatching, FeatureMatching):
        step, steps_left = kind.training_step, iter(range(5))

        def broken(self, batch, batch_idx, step=step, steps_left=steps_left):
            if next(steps_left, None) is None:
                raise RuntimeError("broken off")
            return step(self, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(kind, "training_step", broken)
            with pytest.raises(RuntimeError, match="broken off"):
                ends("cut", "--compile", "true")
    # Nothing says again that it is to be recorded: it has begun so.
    cut = ends("cut")
    for ours, theirs, unrecorded in zip(cut, whole, plain, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        torch.testing.assert_close(theirs, unrecorded, rtol=1e-3, atol=1e-4)


def test_a_control_compares_uncompiled_features(teacher, data, tmp_path, monkeypatch):
    """With gradients and without, compiled passes round differently; AdamW would make whole steps of it."""
    # As on a GPU.
    monkeypatch.setattr(
        run, "decided", lambda options, accelerator: replace(options, compile=options.compile is not False)
    )
    for plan, stages in (("softmax*2", {"layers": True, "features": False}), ("linear_mean", {"features": True})):
        out = tmp_path / plan
        options = ["--attention", plan, "--stages", ",".join(stages), *of_stages(dict.fromkeys(SAMPLES, BATCH))]
        with uncompiled():
            assert main([str(teacher), *data, *options, "--out", str(out)]) == 0
        for stage, compiles in stages.items():
            assert yaml.safe_load((out / stage / "config.yaml").read_text())["compile"] is compiles


def test_a_stage_goes_on_as_it_began_compiled_or_not(converted, shared, tmp_path):
    """auto decides once: on other hardware a stage would otherwise end by other arithmetic without a word."""
    shutil.copytree(converted, tmp_path / "out")
    config = tmp_path / "out/tune/config.yaml"
    assert yaml.safe_load(config.read_text())["compile"] is False
    shutil.rmtree(tmp_path / "out/tune/checkpoints")
    for begun, goes_on in (("compile: true\n", True), ("", False)):
        config.write_text(config.read_text().replace("compile: false\n", begun))
        # Compiling is not what is tested, and takes a minute.
        with uncompiled():
            assert main([*shared, "--out", str(tmp_path / "out")]) == 0
        assert yaml.safe_load(config.read_text())["compile"] is goes_on
        shutil.rmtree(tmp_path / "out/tune/checkpoints")
        config.write_text(config.read_text().replace("compile: true\n", "compile: false\n"))


def test_a_teacher_of_the_sigmoid_loss_keeps_its_bias_and_its_loss(data, tmp_path):
    budget = ["--budget_samples", str(6 * BATCH), "--tensorboard", "false", "--out", str(tmp_path / "teacher")]
    assert train(["--model.name", "vit_nano", "--model.loss", "sigmoid", "--model.lr", "0.01", *data, *budget]) == 0
    options = ["--text_attention", "linear_mean", *of_stages(dict.fromkeys(SAMPLES, BATCH))]
    options += ["--stages", ",".join(STAGES), "--tune.lr", "1e-20"]
    assert main([str(tmp_path / "teacher"), *data, *options, "--out", str(tmp_path / "out")]) == 0
    bias = weights(end(tmp_path / "teacher", "."))["logit_bias"]
    assert bias != SIGMOID_INIT_BIAS
    for stage in ("layers", "features", "tune"):
        assert torch.equal(weights(end(tmp_path / "out", stage))["logit_bias"], bias)
    assert load_checkpoint(end(tmp_path / "out", "tune"))[1]["loss"] == "sigmoid"


def test_matching_takes_small_batches_and_the_tune_the_datas(teacher, data, tmp_path):
    numbers = of_stages(dict.fromkeys(SAMPLES, 128))
    options = ["--attention", "linear", "--stages", ",".join(STAGES), "--data.batch_size", "100", *numbers]
    assert main([str(teacher), *data, *options, "--out", str(tmp_path / "out")]) == 0
    sizes = {name: RunFolder(tmp_path / "out" / name).read_config()["batch_size"] for name in STAGES}
    assert sizes == {"layers": 64, "features": 64, "tune": 100}
