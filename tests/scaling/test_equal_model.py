"""The multiplier between curves of one model: against planted shifts, areas by quadrature, and simulated studies."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import isotonic_regression

from clip_la.cli import main
from clip_la.scaling.analysis import Analysis, analyse
from clip_la.scaling.curve_coverage import CURVE_WORLDS, CURVES, LINE, CurveWorld, curve_study
from clip_la.scaling.equal_model import Curve, CurvePair, EqualModel, falling, mean_distance
from clip_la.scaling.html.page import render
from clip_la.scaling.report import comparison_data, to_text
from clip_la.scaling.results import result_points
from clip_la.scaling.verdict import verdict

BUDGETS = [40_000, 80_000, 160_000, 320_000, 640_000]
SIZES = {"vit_nano": 1.5e7, "vit_micro": 7e7, "vit_mini": 2e8}


def leaving_chance(log10_samples: np.ndarray) -> np.ndarray:
    """log10 E flat at first, then falling by two decades a decade: no power law."""
    return -np.log10(1 + 10 ** (2 * (log10_samples - 5.2)))


def pair(model: object, seed: object, away: float, *, budgets: list[int] = BUDGETS, top: float = 0.0) -> CurvePair:
    """Two curves of which the second needs 10 ** `away` times the samples, at twice the FLOPs a pair."""
    x = np.log10(budgets)
    first, second = Curve(x, x, leaving_chance(x)), Curve(x + np.log10(2), x, leaving_chance(x - away) + top)
    return CurvePair(model, seed, first, second)


def test_a_curve_moved_is_as_far_as_it_was_moved_whatever_its_shape() -> None:
    error, place = np.array([-1.3, -0.9, -0.2, -0.15, 0.0]), np.array([6.0, 5.5, 5.3, 4.7, 4.5])
    axes = np.stack([place, 2 * place], axis=1)
    apart, errors = mean_distance((error, axes), (error, axes + np.array([0.37, -1.0]))) or (None, None)
    assert apart == pytest.approx([0.37, -1])
    assert errors == (-1.3, 0.0)


def test_the_distance_is_the_area_between_the_curves_over_their_height() -> None:
    rng = np.random.default_rng(0)
    curves = []
    for num in (5, 7):
        curves.append((np.sort(rng.normal(0, 1, num)), -np.sort(rng.normal(0, 2, num))[:, None]))
    apart, (low, high) = mean_distance(*curves) or (0.0, (0.0, 0.0))
    assert (low, high) == (max(own[0][0] for own in curves), min(own[0][-1] for own in curves))
    grid = np.linspace(low, high, 200_001)
    expected = np.mean(
        np.interp(grid, curves[1][0], curves[1][1][:, 0]) - np.interp(grid, curves[0][0], curves[0][1][:, 0])
    )
    assert apart == pytest.approx(expected, abs=1e-4)


def test_curves_that_share_no_error_have_no_distance() -> None:
    place = np.array([[1.0], [0.0]])
    assert mean_distance((np.array([0.0, 1.0]), place), (np.array([1.0, 2.0]), place)) is None


def test_neighbours_that_rise_become_one_point() -> None:
    """As isotonic regression (scipy's) has it; the order of the points says nothing."""
    rng = np.random.default_rng(1)
    x = np.arange(12.0)
    y = -0.1 * x + rng.normal(0, 0.2, 12)
    error, places = falling(np.stack([x, -x], axis=1), y)
    assert (np.diff(error) > 0).all()
    assert (np.diff(places[:, 0]) < 0).all()
    expected = isotonic_regression(y, increasing=False).x
    levels, level_of = np.unique(expected, return_inverse=True)
    assert levels == pytest.approx(error)
    assert places[:, 0] == pytest.approx(np.bincount(level_of, x) / np.bincount(level_of))
    assert places[:, 1] == pytest.approx(-places[:, 0])
    mixed = rng.permutation(12)
    again = falling(np.stack([x, -x], axis=1)[mixed], y[mixed])
    assert again[0] == pytest.approx(error)
    assert again[1] == pytest.approx(places)


def test_bent_curves_of_five_budgets_give_the_planted_multiplier() -> None:
    for away in (-0.26, -0.05, 0.0, 0.06, 0.26):
        found = EqualModel.of([pair("a", 0, away)])
        assert found is not None
        assert np.log10(found.samples.value) == pytest.approx(away, abs=0.006)
        assert np.log10(found.compute.value) == pytest.approx(away + np.log10(2), abs=0.006)
        assert (found.compute.interval, found.differs) == (None, False)
        assert found.why_no_interval == "1 pair of curves is too few (at least 3)"


def test_a_model_is_one_voice_however_many_seeds_it_has() -> None:
    pairs = [*(pair("a", seed, 0.3) for seed in range(5)), pair("b", 0, 0.1), pair("c", 0, 0.05)]
    found = EqualModel.of(pairs)
    assert found is not None
    own = [np.log10((EqualModel.of([each]) or found).samples.value) for each in pairs[4:]]
    assert np.log10(found.samples.value) == pytest.approx(np.mean(own))
    half = stats.t.ppf(0.975, 2) * np.std(own, ddof=1) / 3**0.5
    assert found.samples.interval is not None
    assert np.log10(found.samples.interval) == pytest.approx([np.mean(own) - half, np.mean(own) + half])
    assert (found.num_models, found.num_pairs, found.num_apart) == (3, 7, 0)


def test_of_two_models_the_pairs_are_the_voices() -> None:
    pairs = [*(pair("a", seed, 0.3 - 0.01 * seed) for seed in range(3)), pair("b", 0, 0.1)]
    found = EqualModel.of(pairs)
    assert found is not None
    own = np.log10([(EqualModel.of([each]) or found).samples.value for each in pairs])
    half = stats.t.ppf(0.975, 3) * own.std(ddof=1) / 2
    assert found.samples.interval is not None
    assert np.log10([found.samples.value, *found.samples.interval]) == pytest.approx(
        own.mean() + np.array([0, -half, half])
    )


def test_where_an_interval_would_mislead_there_is_none_and_it_says_why() -> None:
    alike = [pair(model, 0, 0.1) for model in "abc"]
    far = EqualModel.of([*alike, pair("d", 0, 0.1, top=3.0)])
    assert far is not None
    assert (far.compute.interval, far.num_apart) == (None, 1)
    assert far.why_no_interval == "1 pair of curves shares no error, and the others alone would mislead"
    seeds = [pair(m, s, 0.1 + 0.1 * s + 0.001 * (m == "b") * s) for m in "abc" for s in (0, 1)]
    together = EqualModel.of(seeds)
    assert together is not None
    assert together.compute.interval is None
    assert "runs of one seed differ from the others together in all models" in (together.why_no_interval or "")
    # A model that differs is no seed that does.
    models = EqualModel.of([pair(m, s, 0.1 * "abc".index(m) + 0.001 * (m == "b") * s) for m in "abc" for s in (0, 1)])
    assert models is not None
    assert models.compute.interval is not None


def test_two_budgets_or_a_wide_gap_are_no_curve() -> None:
    """Of a chord over a bent curve the distance is that of the chord."""
    for budgets in (BUDGETS[:2], [BUDGETS[0], *BUDGETS[3:]]):
        assert EqualModel.of([pair(model, 0, 0.1, budgets=budgets) for model in "abc"]) is None
    found = EqualModel.of([pair(model, 0, 0.1, budgets=BUDGETS[::2]) for model in "abc"])
    assert found is not None
    assert np.log10(found.samples.value) == pytest.approx(0.1, abs=0.01)


# 300 studies: the share that holds the truth is known to 1.3 %; 93 to 97 % is asked for, two of these beside it.
INDEPENDENT = [name for name in CURVE_WORLDS if "seed" not in name]


@pytest.mark.parametrize("world", INDEPENDENT)
def test_intervals_hold_the_truth_in_95_of_100_studies(world: str) -> None:
    for row in curve_study({world: CURVE_WORLDS[world]}, [3, 8, 20], [CURVES], num_studies=300, seed=11):
        # Of studies without an error of their seeds 5 in 100 look as if they had one.
        assert row.with_interval > 0.9 * row.studies
        assert row.coverage is not None
        assert 0.93 - 0.026 < row.coverage < 0.97 + 0.026, row
        if CURVE_WORLDS[world].multiplier == 1:
            assert row.found <= 0.07 + 0.026, row


def test_a_multiplier_of_1_15_is_found_with_twelve_pairs() -> None:
    (row,) = curve_study({"": CurveWorld()}, [12], [CURVES], num_studies=300, seed=4)
    assert row.found > 0.75
    assert row.found / (row.with_interval / row.studies) > 0.82


def test_a_line_within_models_misses_steep_bent_curves() -> None:
    world = {"": CURVE_WORLDS["steep curves, multiplier of 0.55"]}
    curves, line = curve_study(world, [20], num_studies=150, seed=2)
    assert (curves.method, line.method) == (CURVES, LINE)
    assert (curves.coverage or 0) > 0.9
    assert (line.coverage or 1) < 0.7


@pytest.fixture
def bent_study(result_line) -> Callable[..., list[dict]]:
    """Result lines of trunks with five branches; `kinds`: name -> times softmax's samples that it needs."""

    def make(kinds: dict[str, float], sizes: dict[str, float] = SIZES, noise: float = 0.004) -> list[dict]:
        rng = np.random.default_rng(3)
        lines = []
        for model, flops in sizes.items():
            intercept = rng.normal(0, 0.1)
            for kind, times in kinds.items():
                own = rng.normal(0, noise)
                for samples in BUDGETS:
                    error = leaving_chance(np.log10(samples / times)) + intercept + own + rng.normal(0, noise)
                    fields = {"model": model, "attention": kind, "flops_per_sample": flops * (1 + (kind != "softmax"))}
                    run = {"run_id": f"{model}{kind}{samples}", "parent_run_id": f"{model}{kind}"}
                    seen = {"samples_seen": samples, "budget_samples": samples, "schedule": "cooldown"}
                    loss = {"metrics": {"contrastive_loss": {"value": 3 * 10**error}}}
                    lines.append(result_line(0.5, **fields, **run, **seen, **loss))
        return lines

    return make


def of(write_lines, lines: list[dict], **options: object) -> Analysis:
    axis = options.pop("axis", "compute")
    return analyse(result_points([write_lines(lines)], metric="contrastive_loss", axis=str(axis)), **options)  # type: ignore[arg-type]


def test_a_study_says_what_a_kind_needs_at_equal_model(bent_study, write_lines) -> None:
    lines = bent_study({"softmax": 1.0, "rala": 0.55, "alike": 1.0})
    analysis = of(write_lines, lines)
    found = {each.name: each.equal_model for each in analysis.comparisons}
    rala = found["rala"]
    assert rala is not None
    assert rala.samples.value == pytest.approx(0.55, abs=0.02)
    assert rala.samples.interval[0] < rala.samples.value < rala.samples.interval[1] < 0.6
    assert rala.compute.value == pytest.approx(2 * rala.samples.value)
    assert rala.differs
    # Its pooled law carries no multiplier that narrow: sizes have intercepts, and curves bend.
    said = verdict(analysis)
    low, high = rala.samples.interval
    assert "At equal model and error alike needs 2.0" in said
    assert f"rala needs {2 * rala.samples.value:.2f} [{2 * low:.2f}, {2 * high:.2f}] times softmax's compute." in said
    text = to_text(analysis)
    assert f"  at equal model        {2 * rala.samples.value:.3f} [" in text
    assert "3 pairs of curves of 3 models)" in text
    page = render(analysis)
    assert f"At equal model and error it needs {2 * rala.samples.value:.3g} [" in page
    assert f'data-value="{rala.compute.value!r}">{rala.compute.value:.3g} [' in page
    along = of(write_lines, lines, axis="samples")
    by_samples = {each.name: each.equal_model for each in along.comparisons}
    assert by_samples["rala"].compute == by_samples["rala"].samples == rala.samples
    assert not by_samples["alike"].differs
    assert "alike needs" not in verdict(along)
    data = comparison_data(analysis.comparisons[1])["at_equal_model"]
    assert json.loads(json.dumps(data))["samples"]["interval"] == pytest.approx([low, high])


def test_models_as_kinds_and_few_curves(bent_study, write_lines) -> None:
    """Of models against each other nothing is at equal model; of one model there is a value and a reason."""
    lines = bent_study({"softmax": 1.0, "rala": 0.55})
    assert all(each.equal_model is None for each in of(write_lines, lines, by="model").comparisons)
    one = of(write_lines, [line for line in lines if line["model"] == "vit_nano"])
    assert "no interval for rala at equal model: 1 pair of curves is too few (at least 3)" in one.notes
    away = bent_study({"softmax": 1.0, "rala": 1e-4})
    assert "no multiplier of rala at equal model: 3 pairs of curves share no error" in of(write_lines, away).notes


def test_the_command_prints_it(bent_study, write_lines, capsys) -> None:
    path = str(write_lines(bent_study({"softmax": 1.0, "rala": 0.55})))
    assert main(["scaling", "fit", path, "--metric", "contrastive_loss", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert found["at_equal_model"]["num_pairs"] == 3
    assert found["at_equal_model"]["samples"]["value"] == pytest.approx(0.55, abs=0.04)


def test_budgets_of_other_flops_are_no_curve(bent_study, write_lines) -> None:
    """Two of vit_w64's five budgets with fewer FLOPs a pair: as an option, or by what no column says."""
    sizes = {"vit_w64": 2e8, "vit_w128": 7e8, "vit_w256": 3e9, "vit_w512": 9e9}
    lines = bent_study({"softmax": 1.0, "rala": 0.5}, sizes)
    changed = [
        {**line, "flops_per_sample": 0.6 * line["flops_per_sample"]}
        if line["model"] == "vit_w64" and line["samples_seen"] in BUDGETS[:2]
        else line
        for line in lines
    ]
    (whole,), (found,) = (of(write_lines, each).comparisons for each in (lines, changed))
    assert (whole.equal_model.num_pairs, found.equal_model.num_pairs) == (4, 3)
    # Each value of an option has curves of its own, which are models of their own.
    twice = [*lines, *({**line, "run_id": f"{line['run_id']}h", "patch_dropout": 0.5} for line in lines)]
    (both,) = of(write_lines, twice).comparisons
    assert (both.equal_model.num_pairs, both.equal_model.num_models) == (8, 8)
    assert both.equal_model.samples.value == pytest.approx(whole.equal_model.samples.value)
