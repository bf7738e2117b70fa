"""How a run of a sweep is called, and which runs can share compiled layers."""

from pathlib import Path

import pytest

from clip_la.sweep.plan import expand
from clip_la.sweep.planned_run import layers_of
from clip_la.train.cli import parse

from .runs import BATCH, BUDGETS, OPTIONS


def test_a_run_is_given_all_digits_of_a_number() -> None:
    (run,) = expand({**OPTIONS, "budget_samples": BATCH}, {"model.lr": [0.00123456789]})
    assert "--model.lr=0.00123456789" in run.arguments(Path("x"))


@pytest.mark.parametrize("shards", [["{0..9}.tar", "b.tar"], ["a, b.tar"], ["1", "true"], ["s3: x.tar"], ["#1.tar"]])
def test_texts_in_a_list_reach_training_as_they_are(shards: list[str]) -> None:
    (run,) = expand({**OPTIONS, "budget_samples": BATCH, "data.shards": shards}, {})
    assert parse(run.arguments(Path("x"))).data.shards == shards


def test_rate_and_schedule_leave_the_layers_as_they_are() -> None:
    runs = expand({**OPTIONS, **BUDGETS}, {"model.lr": [0.001, 0.002], "model.patch_size": [4, 8]})
    assert len({run.layers for run in runs}) == 2
    assert runs[0].layers == layers_of(runs[0].arguments(Path("out")))


@pytest.mark.parametrize(
    ("option", "is_shared"),
    [
        ("model.weight-decay", True),
        ("model.loss", True),
        ("model.init_from", True),
        ("seed", True),
        ("data.shards", True),
        ("model.freeze", False),
        ("model.patch_dropout", False),
        ("model.narrow_residual", False),
        ("model", False),
        ("config", False),
        ("precision", False),
        ("strategy", False),
    ],
)
def test_which_options_runs_of_the_same_layers_may_differ_in(option: str, is_shared: bool) -> None:
    assert (layers_of([f"--{option}=1"]) == layers_of([f"--{option}=2"])) == is_shared
