"""Real runs on a small corpus: they learn, say what matters, and leave what they should."""

import math
import sys

import pytest
import torch
from tqdm import tqdm

from clip_la.errors import UserError
from clip_la.models import load_checkpoint
from clip_la.runs import RunFolder, checkpoint_name
from clip_la.train.cli import main
from tests.train.runs import BATCH, BUDGET, rows, train


def test_a_run_learns(run_options, tmp_path):
    budget = 80 * BATCH
    assert train(tmp_path / "run", run_options, "--budget_samples", budget, "--log_every_samples", 10 * BATCH) == 0
    table = rows(tmp_path / "run")
    assert [int(row["samples_seen"]) for row in table] == list(range(10 * BATCH, budget + 1, 10 * BATCH))
    assert float(table[0]["chance_loss"]) == pytest.approx(math.log(BATCH))
    assert float(table[-1]["loss"]) < math.log(BATCH) - 1
    assert all(float(row["pairs_per_s"]) > 0 and 0 <= float(row["data_wait_share"]) <= 1 for row in table)


def test_the_sigmoid_loss_learns(run_options, tmp_path):
    options = ["--model.loss", "sigmoid", "--budget_samples", 60 * BATCH, "--log_every_samples", 10 * BATCH]
    assert train(tmp_path / "run", run_options, *options) == 0
    table = rows(tmp_path / "run")
    assert float(table[-1]["loss"]) < 0.7 * float(table[0]["loss"])
    assert table[0]["chance_loss"] == ""


def test_what_a_run_leaves(uninterrupted, shared):
    assert {path.name for path in uninterrupted.iterdir()} == {"config.yaml", "metrics.csv", "checkpoints"}
    assert list(RunFolder(uninterrupted).saved_checkpoints()) == [4 * BATCH, 7 * BATCH, BUDGET]
    model, meta = load_checkpoint(uninterrupted / "checkpoints" / checkpoint_name(7 * BATCH))
    assert model.spec.name == "vit_pico"
    assert (meta["samples_seen"], meta["budget_samples"], meta["schedule"]) == (7 * BATCH, BUDGET, "cosine")
    assert (meta["batch_size"], meta["seed"], meta["train_data"]) == (
        BATCH,
        0,
        shared[shared.index("--data.shards") + 1],
    )
    assert (
        meta["versions"]["torch"] == torch.__version__.split("+")[0] or meta["versions"]["torch"] == torch.__version__
    )


def test_time_is_told_in_samples_alone(uninterrupted, capsys, run_options, tmp_path):
    train(tmp_path / "run", run_options, "--budget_samples", BATCH)
    shown = capsys.readouterr()
    written = (uninterrupted / "config.yaml").read_text() + (uninterrupted / "metrics.csv").read_text()
    names = " ".join(path.name for path in uninterrupted.rglob("*"))
    assert "epoch" not in (shown.out + shown.err + written + names).lower()


def test_progress_shows_what_matters(run_options, tmp_path, capsys):
    train(tmp_path / "run", run_options, "--budget_samples", 4 * BATCH, "--log_every_samples", BATCH)
    shown = capsys.readouterr()
    line = shown.err.replace("\r", "\n").strip().splitlines()[-1]
    for part in ("64.0/64.0 samples", "pairs/s", "(ln 16 = 2.77)", "lr ", "data wait ", " GiB", " left"):
        assert part in line
    assert (
        shown.out
        == f"64 samples seen; wrote {tmp_path}/run/metrics.csv and {tmp_path}/run/checkpoints/samples=000000064.ckpt\n"
    )


def test_progress_in_a_file_is_whole_lines(run_options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("clip_la.train.callbacks.FILE_INTERVAL_S", 0.0)
    train(tmp_path / "run", run_options, "--budget_samples", 3 * BATCH)
    shown = capsys.readouterr().err
    assert "\r" not in shown
    # A line for each batch and one for the end, after those that say what the run will do and warn of its batch size.
    heads = [line.split(" samples")[0] for line in shown.splitlines()[2:]]
    assert heads == [f"vit_pico: {seen}/48.0" for seen in ("16.0", "32.0", "48.0", "48.0")]


def test_progress_on_a_terminal_is_drawn_over(run_options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(tmp_path / "run", run_options, "--budget_samples", 3 * BATCH)
    shown = capsys.readouterr().err
    assert "\rvit_pico: 0.00/48.0 samples" in shown
    assert "\rvit_pico: 48.0/48.0 samples" in shown
    assert shown.count("\n") == 3


def test_a_finished_run_is_left_alone(uninterrupted, capsys):
    before = (uninterrupted / "metrics.csv").read_bytes()
    assert main(["--resume", "--out", str(uninterrupted)]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (uninterrupted / "metrics.csv").read_bytes() == before


def test_a_run_is_not_overwritten(uninterrupted, shared):
    with pytest.raises(UserError, match=r"holds a run already: add --resume"):
        train(uninterrupted, shared)


def test_a_start_that_failed_leaves_its_folder_to_the_corrected_command(run_options, shared, tmp_path, capsys):
    options = [*run_options, "--budget_samples", str(BATCH), "--tensorboard", "true"]
    with pytest.raises(UserError, match="no caption"):
        train(tmp_path / "run", options, "--data.caption_fields", "[nosuch]")
    assert (tmp_path / "run" / "config.yaml").exists()
    assert train(tmp_path / "run", options) == 0
    assert "nosuch" not in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        train(tmp_path / "run", options)


def test_a_loss_that_is_not_finite_stops_the_run(run_options, tmp_path):
    with pytest.raises(UserError, match=r"at \d+ samples the loss is "):
        train(
            tmp_path / "run",
            run_options,
            "--budget_samples",
            BUDGET,
            "--model.lr",
            "1e30",
            "--save_every_samples",
            BATCH,
        )
    for path in RunFolder(tmp_path / "run").saved_checkpoints().values():
        model, _ = load_checkpoint(path)
        assert all(p.isfinite().all() for p in model.parameters()), "weights that are not finite were saved"
    assert not any(bar.desc.startswith("vit_pico") for bar in tqdm._instances), "the progress line was left open"


def test_tensorboard_counts_samples_too(run_options, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    budget = 4 * BATCH
    options = ["--budget_samples", budget, "--log_every_samples", 2 * BATCH, "--tensorboard", "true"]
    assert train(tmp_path / "run", run_options, *options) == 0
    accumulator = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    accumulator.Reload()
    written = [(event.step, event.value) for event in accumulator.Scalars("loss")]
    expected = [(int(row["samples_seen"]), float(row["loss"])) for row in rows(tmp_path / "run")]
    assert written == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in expected]
