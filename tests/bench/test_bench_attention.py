"""`bench attention` times every kind at every length beside softmax and writes what it measured."""

import csv
import json

import pytest
import torch

from clip_la.bench import attention
from clip_la.bench.attention import measure, specs_of
from clip_la.cli import main

SMALL = ["bench", "attention", "--model", "vit_pico", "--batch-tokens", "34"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Two samples of one call each."""
    monkeypatch.setattr(attention, "SAMPLES", 2)
    monkeypatch.setattr("clip_la.bench.timing.SAMPLE_MS", 0.0)


def test_each_kind_is_timed_beside_softmax(tmp_path, capsys):
    out = tmp_path / "attention.csv"
    plans = ["linear_mean", "linear_norm", "softmax(conv=3)"]
    argv = [*SMALL, "--attention", *plans, "--tokens", "17", "26", "--device", "cpu", "--out", str(out), "--json"]
    assert main(argv) in (None, 0)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(lines) == 2 * 4 * 2
    assert [(line["tokens"], line["attention"], line["what"]) for line in lines[:4]] == [
        *((17, "softmax", what) for what in ("block", "tower")),
        *((17, "linear_mean", what) for what in ("block", "tower")),
    ]
    assert {(line["tokens"], line["image_size"], line["batch_size"]) for line in lines} == {(17, 32, 2), (26, 40, 1)}
    softmax = {(line["tokens"], line["what"]): line for line in lines if line["attention"] == "softmax"}
    for line in lines:
        its = softmax[line["tokens"], line["what"]]
        for each in ("forward", "training"):
            assert line[f"{each}_ms"] > 0
            assert line[f"{each}_ratio"] == pytest.approx(its[f"{each}_ms"] / line[f"{each}_ms"])


def test_what_does_not_fit_into_memory_is_an_empty_cell(monkeypatch):
    """Softmax's training step fails: its forward pass still counts, and so do the others."""
    real = torch.autograd.grad

    def full(outputs, *args, **kwargs):
        if kinds[-1] == "softmax":
            raise torch.OutOfMemoryError("no room")
        return real(outputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", full)
    specs = specs_of("vit_pico", ["linear_mean"], [17])
    kinds, rows = [], []
    for spec in specs:
        kinds.append(spec.image_attention)
        rows += measure([spec], torch.device("cpu"), torch.float32, batch_tokens=17, compiled=False)
    softmax, linear = rows[0], rows[2]
    assert softmax.forward_ms > 0
    assert softmax.training_ms is softmax.training_ratio is None
    assert linear.training_ms > 0


def test_a_kind_that_a_length_does_not_fit_is_left_out_there(capsys):
    specs = specs_of("vit_pico", ["mhla", "linear"], [2, 17])
    found = {(spec.num_image_tokens, spec.image_attention.partition("(")[0]) for spec in specs}
    assert {(2, "softmax"), (2, "linear"), (17, "mhla")} <= found
    assert all(spec.text_layers == 1 for spec in specs)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "vit_z"], "unknown model 'vit_z'"),
        (["--attention", "linnear"], "did you mean"),
        (["--tokens", "18"], "--tokens 18: no square of patches and a class token; near it 17"),
        (["--tokens", "1"], "--tokens 1: no square"),
        (["--batch-tokens", "-3"], "--batch-tokens -3 must be at least 1"),
        pytest.param(
            ["--device", "cuda"],
            "finds no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_wrong_options_are_named(options, says, capsys):
    assert main([*SMALL, *options]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
