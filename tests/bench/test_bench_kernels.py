"""What `clip-la bench kernels` says to bad input, which it does before anything is measured; and its plot."""

import csv
import gc
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from clip_la.bench.kernel_plot import draw
from clip_la.bench.table import record
from clip_la.cli import main
from clip_la.errors import UserError

pytest.importorskip("triton", reason="Triton is not installed")
from clip_la.bench import contrastive, timing


@dataclass
class Line:
    number: int


def says(argv, capsys):
    """The one line on stderr of a call that ends with code 2."""
    assert main(["bench", "kernels", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--only", "clip_la", "nobody"], "no provider named nobody; known: clip_la, "),
        (["--only", "contrastive", "nobody"], "no provider named nobody"),
        (["--tokens", "197", "5"], "no shape has --tokens 5; there are 77, 197"),
        (["--only", "contrastive", "--tokens", "197"], "--only contrastive times none"),
        (["--plot-only", "--out", "absent.csv"], "absent.csv does not exist"),
    ],
)
def test_bad_input_is_one_line(argv, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert named in says(argv, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "timing,mode\n", "timing,provider,B\ngraph,clip_la,1\n"])
def test_a_file_that_is_no_table_is_named(text, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises(UserError, match=r"table\.csv"):
        draw(table)
    assert list(tmp_path.iterdir()) == [table]


def test_rows_survive_what_comes_after(tmp_path, capsys):
    def measured():
        yield Line(1)
        yield Line(2)
        raise RuntimeError("the machine went away")

    table = tmp_path / "table.csv"
    with pytest.raises(RuntimeError):
        record(measured(), lambda line: f"line {line.number}", table)
    assert table.read_text() == "number\n1\n2\n"
    assert capsys.readouterr().err == "line 1\nline 2\n"


def test_a_table_is_drawn(tmp_path):
    row = {
        "provider": "clip_la", "denominator": "none", "B": 2, "N": 197, "H": 3, "median_ms": 0.5, "timing": "graph",
        "mode": "forward_backward", "causal": False,
    }  # fmt: skip
    table = tmp_path / "table.csv"
    with open(table, "w", newline="") as stream:
        writer = csv.DictWriter(stream, row)
        writer.writeheader()
        writer.writerows([row, {**row, "provider": "sdpa default", "N": 577}, {**row, "causal": True}])
    written = draw(table)
    assert [path.name for path in written] == ["table.png", "table.svg"]
    assert all(path.stat().st_size > 1000 for path in written)


@pytest.mark.parametrize("way", [timing.GRAPH, timing.EAGER])
def test_no_garbage_is_collected_while_calls_are_timed(way, monkeypatch):
    states = []

    def elapsed(call, calls, device):
        states.append(gc.isenabled())
        return calls * 1.0

    monkeypatch.setattr(timing, "elapsed_ms", elapsed)
    monkeypatch.setattr(timing, "captured", lambda call, calls: SimpleNamespace(replay=call))
    median, p20, p80 = timing.quantiles(lambda: None, way, torch.device("cpu"))
    # The first look tells how many calls a sample takes.
    assert states == [True] + [False] * timing.SAMPLES
    assert gc.isenabled()
    # Four calls of 1 ms make a sample of SAMPLE_MS; a replayed graph is counted as one call of them.
    assert median == p20 == p80 == (1 / timing.SAMPLE_MS if way == timing.GRAPH else 1.0)


def test_a_call_on_a_cpu_is_timed_by_the_clock():
    median, p20, p80 = timing.quantiles(lambda: time.sleep(0.005), device=torch.device("cpu"), samples=3)
    assert 5.0 <= p20 <= median <= p80


@pytest.mark.parametrize("shape", [(8, 8, 4), (8, 24, 4)])
def test_the_timed_losses_agree(shape, monkeypatch):
    """With the pairs of other ranks a text's sum over their images is not in ours, so values are compared on one."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    leaves = contrastive.inputs(shape, torch.float32, torch.device("cpu"))
    values = {key: loss(*leaves).item() for key, loss in contrastive.losses().items()}
    assert values["sigmoid", "clip_la"] == pytest.approx(values["sigmoid", "matrix"], rel=1e-5)
    if shape[0] == shape[1]:
        assert values["contrastive", "clip_la"] == pytest.approx(values["contrastive", "matrix"], rel=1e-5)


def test_the_losses_are_timed_on_a_cpu_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contrastive, "CPU_SHAPES", ((8, 8, 4), (8, 16, 4)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "kernels", "--only", "contrastive", "--out", str(tmp_path / "kernels.csv")]) in (None, 0)
    with (tmp_path / "contrastive.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = {(row["loss"], row["provider"], row["mode"], row["columns"]) for row in rows}
    assert len(found) == len(rows) == 2 * 2 * 2 * 2
    assert all(float(row["median_ms"]) > 0 and row["peak_mib"] == "" for row in rows)
    assert "contrastive" in capsys.readouterr().err
