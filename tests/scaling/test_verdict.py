"""The sentence of a study, on laws that are known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from clip_la.scaling.analysis import Analysis, analyse
from clip_la.scaling.results import result_points
from clip_la.scaling.verdict import verdict


@pytest.fixture
def study(write_lines, result_line) -> Callable[..., Analysis]:
    """An analysis of losses on E = beta C^alpha with noise, of kinds {name: (alpha, factor of the loss)}."""

    def make(laws: dict[str, tuple[float, float]], num_runs: int, noise: float, seed: int = 0) -> Analysis:
        rng = np.random.default_rng(seed)
        lines = []
        for name, (alpha, factor) in laws.items():
            for run in range(num_runs):
                samples = round(20_000 * 10 ** (2 * run / max(num_runs - 1, 1)))
                loss = factor * 3 * (samples / 200_000) ** alpha * 10 ** rng.normal(0, noise)
                own = {"run_id": f"{name}{run}", "seed": run, "samples_seen": samples, "budget_samples": samples}
                lines.append(result_line(0.5, attention=name, metrics={"contrastive_loss": {"value": loss}}, **own))
        return analyse(result_points([write_lines(lines)], metric="contrastive_loss"))

    return make


def test_few_runs_show_the_fall_and_no_more(study) -> None:
    laws = {"softmax": (-0.1, 1.0), "linear": (-0.1, 1.001), "linear_mean": (-0.101, 1.0)}
    assert verdict(study(laws, 5, noise=0.002)) == (
        "From 5 runs of each kind it is shown that contrastive_loss falls with compute for softmax, linear and "
        "linear_mean; it is not shown whether linear or linear_mean differs from softmax in its exponent, in the "
        "compute it needs for an equal error or in its error at equal model and samples: 12 paired runs may tell. "
        "Differences are judged at 95 % over the 2 kinds together."
    )


def test_seeds_agree(study) -> None:
    laws = {"softmax": (-0.1, 1.0), "linear": (-0.1, 1.0)}
    assert len({verdict(study(laws, 5, noise=0.003, seed=seed)) for seed in range(3)}) == 1


def test_planted_differences_are_named_and_noise_shows_nothing(study) -> None:
    laws = {"softmax": (-0.1, 1.0), "worse": (-0.1, 1.1), "steeper": (-0.2, 1.0)}
    said = verdict(study(laws, 14, noise=0.002))
    assert "and that worse differs from softmax in the compute it needs for an equal error" in said
    assert "that steeper differs from softmax in its exponent" in said
    assert "its error at equal model and samples" in said
    assert "not shown" not in said
    assert verdict(study({"softmax": (0.0, 1.0), "linear": (0.0, 1.0)}, 14, noise=0.05)).startswith(
        "From 14 runs of each kind it is not shown that contrastive_loss falls with compute; it is not shown"
    )


def test_each_kind_is_judged_among_all_that_are_compared(study) -> None:
    """Of four kinds alike with the baseline one has intervals that leave out 0 and 1; among four that is chance."""
    kinds = {"softmax": (-0.1, 1.0), **{f"linear{number}": (-0.1, 1.0) for number in range(4)}}
    analysis = study(kinds, 12, noise=0.003)
    found = analysis.comparisons[2]
    assert found.multipliers[0].interval[0] > 1
    said = verdict(analysis)
    assert "differs from softmax in the compute" not in said
    assert "and the compute" not in said
    assert said.endswith("Differences are judged at 95 % over the 4 kinds together.")
    alone = study({"softmax": (-0.1, 1.0), "worse": (-0.1, 1.03)}, 12, noise=0.003)
    assert "that worse differs from softmax in its exponent, the compute it needs" in verdict(alone)
    assert "together" not in verdict(alone)


def test_differences_are_said_where_no_error_falls(study) -> None:
    """Errors that hang on something else than compute may differ in every pair."""
    said = verdict(study({"softmax": (0.0, 1.0), "linear": (0.0, 0.5)}, 14, noise=0.05))
    assert said.startswith(
        "From 14 runs of each kind it is not shown that contrastive_loss falls with compute; it is shown that linear "
        "differs from softmax in "
    )
    assert "its error at equal model and samples" in said


def test_a_difference_by_intervals_that_are_too_narrow_says_so(study) -> None:
    analysis = study({"softmax": (-0.1, 1.0), "worse": (-0.1, 1.1)}, 14, noise=0.002)
    (found,) = analysis.comparisons
    assert "too narrow" not in verdict(analysis)
    alike = replace(found, misfits={"model": 0.01, "seed": 0.02})
    said = verdict(replace(analysis, comparisons=(alike,)))
    assert "(by intervals that are too narrow: runs of one model or seed miss the law together)" in said


def test_repeated_pairs_are_said(write_lines, result_line) -> None:
    lines = []
    for run in range(3):
        samples = 10_000 * 3**run
        own = {"run_id": str(run), "samples_seen": samples, "budget_samples": samples, "train_pairs": 2_000}
        lines.append(result_line(0.5, metrics={"contrastive_loss": {"value": 3.0 + run % 2}}, **own))
    assert verdict(analyse(result_points([write_lines(lines)], metric="contrastive_loss"))) == (
        "From 3 runs it is not shown that contrastive_loss falls with compute (on pairs seen up to 45 times)."
    )


def test_one_kind_alone_is_compared_with_none(study) -> None:
    assert verdict(study({"softmax": (-0.1, 1.0)}, 4, noise=0.001)) == (
        "From 4 runs it is shown that contrastive_loss falls with compute for softmax."
    )
