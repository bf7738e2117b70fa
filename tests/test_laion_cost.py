"""The cost of the study on LAION-400M: the table that is shown, against sums by hand."""

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from clip_la.errors import UserError
from clip_la.sweep.planned_run import PlannedRun

REPO = Path(__file__).parents[1]
RATES = [
    {"provider": provider, "model": "vit_b16", "attention": kind, "image_size": side, "gpus": gpus, "text": text}
    | {"micro_batches": parts, "pairs_per_s": rate, "patch_dropout": "0.0000", "checkpointing": "False"}
    for provider, kind, side, gpus, text, parts, rate in [
        ("graphs", "softmax", "224", "1", "full", "1", "100"),
        ("graphs", "softmax", "224", "1", "full", "1", "140"),
        ("graphs", "linear", "224", "1", "full", "1", "200"),
        ("graphs", "linear", "224", "1", "full", "16", "150"),
        # Others than what a run takes.
        ("open_clip", "softmax", "224", "1", "full", "1", "7"),
        ("graphs", "softmax", "512", "1", "full", "1", "7"),
        ("graphs", "softmax", "224", "2", "full", "1", "7"),
        ("graphs", "softmax", "224", "1", "laion", "1", "7"),
    ]
]
RATES += [
    RATES[0] | {"patch_dropout": "0.5000", "pairs_per_s": "7"},
    RATES[0] | {"checkpointing": "selective", "pairs_per_s": "7"},
]
SPEEDS = [
    {"what": what, "attention": "rala", "training_ratio": ratio}
    for what, ratio in [("tower", "0.5"), ("tower", "0.8"), ("block", "0.1"), ("tower", "")]
]


@pytest.fixture(scope="module")
def cost() -> ModuleType:
    spec = importlib.util.spec_from_file_location("laion_cost", REPO / "scripts" / "laion_cost.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(attention: str, parts: int = 1, lr: float = 1e-3, samples: int = 360_000) -> PlannedRun:
    options = {"model.name": "vit_b16", "model.attention": attention, "model.lr": lr, "model.micro_batches": parts}
    return PlannedRun("run", {}, {**options, "budget_samples": samples})


def test_rates_are_means_of_what_was_measured_and_parts_cost_what_they_did(cost: ModuleType) -> None:
    rates = cost.Rates(RATES, SPEEDS)
    assert rates.of(run("softmax")) == 120
    assert rates.of(run("softmax", parts=4)) == pytest.approx(120 * 0.75)
    assert rates.of(run("rala")) == pytest.approx(60)
    with pytest.raises(UserError, match="no rate of vit_b16 with mala"):
        rates.of(run("mala"))


def test_hours_are_samples_over_rates_and_other_learning_rates_stand_apart(cost: ModuleType) -> None:
    runs = [run("softmax", samples=432_000), run("softmax", samples=864_000), run("softmax", lr=2e-3, samples=432_000)]
    lines = cost.table(runs, cost.Rates(RATES, SPEEDS)).splitlines()
    assert lines[2] == "| vit_b16 | `softmax` | 120 | 3 | 1 | 4 |"
    assert lines[3] == "| all | | | 3 | 1 | 4 |"


def test_the_table_of_the_study_is_this_one(cost: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert cost.main([]) == 0
    assert capsys.readouterr().out in (REPO / "results" / "study" / "README.md").read_text(encoding="utf-8")


def without(column: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != column} for row in rows]


@pytest.mark.parametrize(
    ("steps", "speeds", "says"),
    [
        (without("patch_dropout", RATES), SPEEDS, "train.csv has no column patch_dropout"),
        (RATES, without("training_ratio", SPEEDS), "attention_speed.csv has no column training_ratio"),
        ([RATES[0] | {"pairs_per_s": "fast"}], SPEEDS, "pairs_per_s of vit_b16 softmax is 'fast', not a speed above 0"),
        ([RATES[0] | {"pairs_per_s": "nan"}], SPEEDS, "is 'nan', not a speed above 0"),
        ([RATES[0] | {"pairs_per_s": "0"}], SPEEDS, "is '0', not a speed above 0"),
        ([RATES[0] | {"patch_dropout": ""}], SPEEDS, "patch_dropout of vit_b16 softmax is '', not a number from 0 on"),
        (RATES, [SPEEDS[0] | {"training_ratio": "slow"}], "training_ratio of rala is 'slow', not a speed above 0"),
        (RATES[:2], SPEEDS, "train.csv: no step of vit_b16 with linear at 224 px in one part"),
        (RATES[:3], SPEEDS, "train.csv: no step of vit_b16 with linear at 224 px in several"),
        ([], SPEEDS, "train.csv has no rows"),
    ],
)
def test_damaged_tables_give_one_line(cost, monkeypatch, tmp_path, capsys, steps, speeds, says) -> None:
    (tmp_path / "results").mkdir()
    for name, rows in (("train.csv", steps), ("attention_speed.csv", speeds)):
        with (tmp_path / "results" / name).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]) if rows else ["provider"])
            writer.writeheader()
            writer.writerows(rows)
    monkeypatch.setattr(cost, "REPO", tmp_path)
    assert cost.main([]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.startswith("laion_cost: error: ")
    assert said.count("\n") == 1
