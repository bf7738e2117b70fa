"""What a sweep file may say, the runs that it stands for, and what is written down of them."""

import json
from pathlib import Path

import pytest

from clip_la.errors import UserError
from clip_la.sweep.plan import expand, keep_manifest, read_plan

from .runs import BATCH, BUDGETS, OPTIONS

SHORT = {**OPTIONS, "budget_samples": BATCH}
ARMS = {
    "softmax": {"model.attention": "softmax"},
    "image-linear": {"model.image_attention": "linear_mean", "model.text_attention": "softmax"},
}


def test_the_grid_is_the_product_of_its_axes_and_names_are_safe() -> None:
    runs = expand(SHORT, {"arm": ARMS, "model.lr": [5e-4, 1e-3], "data.caption_fields": [["txt", "json.name"]]})
    assert [run.name for run in runs] == [
        f"{arm}-lr{lr}-caption_fields_txt_json.name" for arm in ARMS for lr in ("0.0005", "0.001")
    ]
    assert runs[1].options["model.lr"] == 1e-3
    assert '--data.caption_fields=["txt", "json.name"]' in runs[0].arguments(Path("x"))
    assert "--tensorboard=false" in runs[0].arguments(Path("x"))


def test_a_list_of_grids_gives_more_seeds_to_some_sizes() -> None:
    runs = expand(
        SHORT,
        [
            {"size": {"a": {"model.name": "vit_pico"}, "b": {"model.name": "vit_nano"}}, "seed": [0]},
            {"size": {"a": {"model.name": "vit_pico"}}, "seed": [1, 2]},
        ],
    )
    assert [run.name for run in runs] == ["a-seed0", "b-seed0", "a-seed1", "a-seed2"]
    with pytest.raises(UserError, match="two runs of the grid would be called seed0"):
        expand(SHORT, [{"seed": [0]}, {"seed": [0]}])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("grid: [", "not valid YAML"),
        ("- a", "expected the sections options and grid"),
        ("optoins: {}", "did you mean options"),
        ("options: {budget_samples: 1}\ngrid: {seed: 3}", "grid.seed must be a list of values"),
        ("options: {budget_samples: 1}\ngrid: {seed: [1, 1]}", "a value stands twice"),
        ("options: {budget_samples: 1}\ngrid: {arm: {a: 3}}", "grid.arm.a must hold options"),
        ("options: {budget_samples: 1}\ngrid: {arm: {a: {3: 1}}}", "grid.arm.a must hold options"),
        ("options: {out: x, budget_samples: 1}", "set by the sweep itself"),
        ("options: {model.name: vit_pico}", "budget_samples is missing"),
        ("options: {budget_samples: -5}", "budget_samples is missing or no whole number from 1"),
        ("options: {budget_samples: true}", "budget_samples is missing or no whole number from 1"),
        ("options: 3", "'options' must hold lines"),
        ("options: {budget_samples: 1}\ngrid: {seed: [0], seed: [1]}", "the key 'seed' stands twice"),
        ("options: {budget_samples: 1, model: {name: vit_pico}}", "its whole name, as 'model.name: VALUE'"),
        ("options: {budget_samples: 1}\ngrid: {arm: {ä: {seed: 0}, ö: {seed: 1}}}", "differ only in signs"),
        ("options: {budgets: [9]}\ngrid: {budget_samples: {a: {seed: 0}}}", "budget_samples is set by"),
        ("[" * 3000, "nested too deeply"),
        ("options: {data.batch-size: 8, data.batch_size: 9, budget_samples: 1}", "are one option: give it once"),
        ("options: {budget_samples: 1}\ngrid: {seed: [0], a: {b: {seed: 1}}}", "grid.a sets seed to 1, where runs are"),
        (
            "options: {budget_samples: 1}\ngrid: {data.batch-size: [1], data.batch_size: [2]}",
            "sets data.batch_size to 2",
        ),
        (f"options: {{budget_samples: 1}}\ngrid: {{run_name: [{'a' * 255}]}}", "a name of 263 characters, where a"),
        ("options: {1: 2, budget_samples: 1}", "'options' holds 1, which is no name"),
        ("options: {budget_samples: 1}\ngrid: {1: [2]}", "'grid' holds 1, which is no name"),
    ],
)
def test_what_is_wrong_in_a_sweep_file_is_one_line_that_names_it(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as error:
        read_plan(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_keeps_its_options_for_good(tmp_path: Path) -> None:
    keep_manifest(tmp_path, expand(SHORT, {"arm": ARMS}))
    keep_manifest(tmp_path, expand(SHORT, {"arm": {"other": {"seed": 1}}}))
    with pytest.raises(UserError, match=r"run softmax with other options \(model.weight_decay\)"):
        keep_manifest(tmp_path, expand(SHORT | {"model.weight_decay": 0.1}, {"arm": ARMS}))
    assert set(json.loads((tmp_path / "sweep.json").read_text())) == {*ARMS, "other"}


def test_an_option_is_the_same_with_dashes() -> None:
    grid = {"arm": {"a": BUDGETS}}
    suite = {"zeroshot_suite": "s.yaml"}
    dashed = {key.replace("_", "-"): value for key, value in {**OPTIONS, **suite}.items()}
    assert expand(dashed, grid) == expand({**OPTIONS, **suite}, grid)
    with pytest.raises(UserError, match="branch_from is set by the sweep itself"):
        expand({**SHORT, "branch-from": "x.ckpt"}, {})


def test_a_later_axis_overrides_what_an_earlier_name_stands_for() -> None:
    """A size brings its rate, and an axis of rates overrides it: the run's name has the rate that it trains with."""
    sizes = {"a": {"model.name": "vit_pico", "model.lr": 1e-3}}
    runs = expand(SHORT | {"model.lr": 1.0}, {"size": sizes, "model.lr": [2e-3, 4e-3]})
    assert [(run.name, run.options["model.lr"]) for run in runs] == [("a-lr0.002", 2e-3), ("a-lr0.004", 4e-3)]
    # A value that stands in a name may be said again, not changed.
    assert expand(SHORT, {"seed": [1], "arm": {"a": {"seed": 1}}})[0].options["seed"] == 1
    names = {"a" * 255: {"seed": 0}}
    assert len(expand(SHORT, {"arm": names})[0].name) == 255
