"""Each kind is compared at its best learning rate, chosen over seeds that the rates share; other rates are left out."""

import csv
import json
from pathlib import Path

import pytest

from clip_la.cli import main
from clip_la.errors import UserError
from clip_la.scaling.analysis import analyse
from clip_la.scaling.points_table import table_points, write_points
from clip_la.scaling.rates import NOT_COMPARED, WORSE, at_rate, rate_choices

FLOPS = {"vit_w64": 2e8, "vit_w128": 7e8, "vit_w256": 3e9}
BUDGETS = (40_960, 131_072, 409_600)
# Errors at a rate over those at the best one.
WORSE_BY = {0.001: 1.0, 0.002: 1.3, 0.004: 2.0}


def rows_of(kind: str, beta: float, rates: dict[float, tuple[int, ...]]) -> list[dict]:
    """Points on beta C^-.1, worse by `WORSE_BY` at other rates and by 2 % a seed; rates -> their seeds."""
    return [
        {
            "run": f"{model}-{kind}-{rate}-{seed}",
            "source": f"{model}-{kind}-{rate}-{seed}-{samples}",
            "model": model,
            "attention": kind,
            "seed": seed,
            "learning_rate": rate,
            "samples_seen": samples,
            "flops_per_sample": flops,
            "dataset": "scenes",
            "metric": "contrastive_loss",
            "value": beta * (flops * samples) ** -0.1 * WORSE_BY[rate] * 1.02**seed,
        }
        for rate, seeds in rates.items()
        for seed in seeds
        for model, flops in FLOPS.items()
        for samples in BUDGETS
    ]


@pytest.fixture
def write(tmp_path: Path):
    """Writes rows as a table and returns its path."""

    def table(rows: list[dict], name: str = "points.csv") -> Path:
        with (tmp_path / name).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return tmp_path / name

    return table


def test_kinds_are_compared_at_their_best_rates(write, capsys) -> None:
    """Softmax at its best rate and at one twice worse: fitted to all of them, its law lies too high."""
    rows = rows_of("softmax", 30, {0.001: (0,), 0.004: (0,)}) + rows_of("rala", 30 * 0.8, {0.001: (0,)})
    path = str(write(rows))
    assert main(["scaling", "fit", path, "--format", "points", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    softmax, rala = data["fits"]
    assert (softmax["n"], rala["n"]) == (9, 9)
    assert softmax["beta"] == pytest.approx(30)
    # .8 times the error along C^-.1 is .8^10 times the compute.
    assert data["comparisons"][0]["compute_multipliers"][0]["value"] == pytest.approx(0.8**10)
    assert data["comparisons"][0]["n_best_of_several"] == 0
    assert [item["reason"] for item in data["left_out"]] == [WORSE] * 9
    assert data["left_out"][0]["what"] == "vit_w64-softmax-0.004-0-40960 (learning rate 0.004)"
    assert data["notes"][-2:] == [
        "the best learning rate of softmax is the lowest or highest tried at 9 of 9 places with several: a better one "
        "may lie beyond",
        "one learning rate for each model of rala: whether it is the best one is not known",
    ]
    assert main(["scaling", "fit", path, "--format", "points", "--json", "--rate", "all"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["fits"][0]["n"] == 18
    assert data["fits"][0]["beta"] == pytest.approx(30 * 2**0.5)
    assert "9 places of softmax with several learning rates, all of them fitted: --rate best" in " ".join(data["notes"])
    assert main(["scaling", "fit", path, "--format", "points", "--rate", "bets"]) == 2
    assert "unknown rate 'bets'; did you mean best" in capsys.readouterr().err


def test_rates_are_compared_over_the_seeds_they_share(write) -> None:
    """The rate .001 has the two worse seeds alone: its mean is above that of .002, and seed by seed it is below."""
    rows = rows_of("softmax", 30, {0.001: (1, 2), 0.002: (0, 1, 2), 0.004: (5,)})
    for row in rows:
        row["value"] *= 10 ** (row["seed"] > 0)
    points = table_points([write(rows)]).points
    choice = rate_choices(points)[0]
    own = {(p.learning_rate, p.seed): p.error for p in choice.points}
    assert sum(own[0.001, seed] for seed in (1, 2)) / 2 > sum(own[0.002, seed] for seed in (0, 1, 2)) / 3
    assert choice.best == 0.001
    # The lonely seed of .004 says nothing of its rate.
    less = sum(own[0.001, seed] - own[0.002, seed] for seed in (1, 2)) / 2
    assert choice.behind == {0.001: (pytest.approx(less), 2), 0.002: (0.0, 3)}
    assert choice.fullest == 0.002
    assert choice.is_at_edge
    selection = at_rate(table_points([write(rows)]), "best")
    assert {point.learning_rate for point in selection.points} == {0.001}
    assert {point.learning_rate for point in selection.tried} == {0.002, 0.004}
    assert at_rate(selection, "best") == selection


def test_rates_of_one_model_with_other_patches_are_not_compared(write) -> None:
    """At 4 pixels a patch (257 tokens) a rate is tried that the model of 8 pixels (65 tokens) was not trained at."""
    coarse = [{**row, "tokens": 65, "image_size": 64} for row in rows_of("softmax", 30, {0.001: (0,)})]
    fine = [
        {**row, "tokens": 257, "image_size": 64, "run": row["run"] + "-p4", "source": row["source"] + "-p4"}
        for row in rows_of("softmax", 30, {0.004: (0,)})
    ]
    selection = at_rate(table_points([write(coarse + fine)]), "best")
    assert len(selection.points) == len(coarse) + len(fine)
    assert rate_choices(selection.points) == []


def test_a_rate_that_shares_no_seed_is_not_called_worse(write) -> None:
    """It may have the lower errors, of another seed: it was not compared."""
    rows = rows_of("softmax", 30, {0.002: (1, 2), 0.001: (0,), 0.004: (1,)})
    selection = at_rate(table_points([write(rows)]), "best")
    reasons = {(item.what.split("learning rate ")[1], item.reason) for item in selection.left_out}
    assert reasons == {("0.001)", NOT_COMPARED), ("0.004)", WORSE)}
    assert {point.learning_rate for point in selection.points} == {0.002}


def test_rates_may_differ_from_budget_to_budget_and_a_middle_one_is_no_edge(write) -> None:
    rows = rows_of("softmax", 30, dict.fromkeys(WORSE_BY, (0,)))
    for row in rows:
        # At the largest budget the rate in the middle is the best.
        if row["samples_seen"] == BUDGETS[-1] and row["learning_rate"] == 0.002:
            row["value"] /= 2
    selection = at_rate(table_points([write(rows)]), "best")
    best = {(point.model, point.samples_seen): point.learning_rate for point in selection.points}
    assert len(best) == len(selection.points) == 9
    assert {rate for (_, samples), rate in best.items() if samples == BUDGETS[-1]} == {0.002}
    assert {rate for (_, samples), rate in best.items() if samples != BUDGETS[-1]} == {0.001}
    assert "at 6 of 9 places with several: a better one may lie beyond" in analyse(selection).notes[-1]


def test_a_rate_at_which_nothing_was_right_is_the_worst(write) -> None:
    """Its error of 1 is on no law, and still counts against the rate."""
    rows = rows_of("softmax", 3, {0.001: (0, 1), 0.002: (0, 1)})
    for row in rows:
        row["metric"], row["value"] = "top1", 1 - row["value"]
        if row["learning_rate"] == 0.001 and row["seed"] == 0:
            row["value"] = 0.0
    selection = at_rate(table_points([write(rows)]), "best")
    assert {(point.learning_rate, point.seed) for point in selection.points} == {(0.002, 0), (0.002, 1)}


def test_what_was_not_fitted_stays_in_the_table(write, tmp_path) -> None:
    path = write(rows_of("softmax", 30, {0.001: (0,), 0.004: (0,)}))
    out = tmp_path / "again.csv"
    assert write_points([at_rate(table_points([path]), "best")], out) == 18
    again = at_rate(table_points([out]), "best")
    assert (len(again.points), len(again.tried)) == (9, 9)


def test_a_run_in_two_tables_counts_once(write, capsys) -> None:
    rows = rows_of("softmax", 30, {0.001: (0,)})
    first, second = write(rows), write(rows[:2], "second.csv")
    selection = table_points([first, second])
    assert len(selection.points) == 9
    assert selection.reasons() == [("the same run as in an earlier table", 2)]
    changed = write([{**rows[1], "value": 2.0}], "changed.csv")
    with pytest.raises(UserError, match=r"changed.csv:2: the same run, .*points.csv:3 with another value \(2.0, not "):
        table_points([first, changed])
    assert main(["scaling", "fit", str(first), str(changed), "--format", "points"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("recorded", [True, False])
def test_rates_of_runs_with_other_flops_are_not_compared(write, recorded) -> None:
    rows = [{**row, "patch_dropout": ""} for row in rows_of("softmax", 30, {0.001: (0,)})]
    halved = [
        {**row, "patch_dropout": 0.5 if recorded else "", "flops_per_sample": 0.6 * row["flops_per_sample"]}
        for row in rows_of("softmax", 30, {0.002: (0,)})
    ]
    selection = table_points([write([*rows, *halved])])
    assert rate_choices(selection.points) == []
    assert len(at_rate(selection, "best").points) == 18
