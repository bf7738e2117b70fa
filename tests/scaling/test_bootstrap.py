"""Resampling: what is drawn, how wide an interval is, and that pairs cancel what both kinds share."""

import numpy as np
import pytest

from clip_la.scaling.bootstrap import (
    Pairs,
    draw_runs,
    interval,
    log10_compute_multiplier,
    log10_error_ratio,
    members_of,
    resampled_laws,
    resampled_pairs,
)
from clip_la.scaling.fit import choose_all


def test_a_run_is_drawn_whole() -> None:
    runs = np.array([0, 1, 1, 2, 2, 2, 3])
    rng = np.random.default_rng(5)
    for _ in range(50):
        drawn = draw_runs(members_of(runs), rng)
        counts = np.bincount(drawn, minlength=len(runs))
        # All points of a run are drawn equally often, and as many runs are drawn as there are.
        assert all(len(set(counts[runs == run])) == 1 for run in range(4))
        assert sum(counts[np.flatnonzero(runs == run)[0]] for run in range(4)) == 4


def test_the_interval_of_a_slope_agrees_with_the_normal_theory() -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(9, 13, 60)
    noise = 0.02
    y = 0.5 - 0.1 * x + rng.normal(0, noise, 60)
    laws = resampled_laws(10**x, 10**y, np.arange(60), frontier=choose_all, num_resamples=800, seed=1)
    bounds = interval(laws[:, 1], num_runs=60)
    assert bounds is not None
    # The standard error of a least-squares slope: sigma / sqrt(sum (x - mean)^2).
    expected_width = 2 * 1.96 * noise / np.sqrt(((x - x.mean()) ** 2).sum())
    assert bounds[1] - bounds[0] == pytest.approx(expected_width, rel=0.25)
    assert bounds[0] < -0.1 < bounds[1]


def test_branches_of_one_run_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)
    x = np.repeat(np.linspace(9, 13, 40), 5)
    y = 0.5 - 0.1 * x + np.repeat(rng.normal(0, 0.03, 40), 5)
    as_runs, as_points = (
        resampled_laws(10**x, 10**y, runs, frontier=choose_all, num_resamples=400, seed=0)[:, 1].std()
        for runs in (np.repeat(np.arange(40), 5), np.arange(200))
    )
    # Five copies of the same forty errors know no more than the forty: sqrt(5) wider than they pretend.
    assert as_runs / as_points == pytest.approx(5**0.5, rel=0.2)


def test_the_same_seed_gives_the_same_digits() -> None:
    compute, error = np.array([1e9, 1e10, 1e11, 1e12]), np.array([0.5, 0.41, 0.33, 0.24])
    runs = np.arange(4)
    first, again, other = (
        resampled_laws(compute, error, runs, frontier=choose_all, num_resamples=50, seed=seed) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_interval_where_it_would_mislead() -> None:
    values = np.linspace(0, 1, 201)
    low, high = interval(values, num_runs=12) or (None, None)
    assert (low, high) == pytest.approx((0.025, 0.975))
    assert interval(values, num_runs=2) is None
    values[:10] = np.nan
    assert interval(values, num_runs=12) is None


def paired(alpha: tuple[float, float], shared_noise: float, own_noise: float) -> Pairs:
    rng = np.random.default_rng(4)
    x = np.repeat(np.linspace(9, 13, 20), 2).reshape(20, 2)
    shared = rng.normal(0, shared_noise, (20, 1))
    y = 0.5 + np.array(alpha) * x + shared + rng.normal(0, own_noise, (20, 2))
    return Pairs(10**x, 10**y, np.arange(20))


def test_what_both_kinds_share_cancels_in_the_difference() -> None:
    pairs = paired((-0.10, -0.12), shared_noise=0.2, own_noise=0.005)
    resamples = resampled_pairs(pairs, frontier=choose_all, num_resamples=400, seed=0)
    alpha = resamples.laws[..., 1]
    bounds = interval(alpha[:, 1] - alpha[:, 0], pairs.num_units)
    assert bounds is not None
    assert bounds[0] < -0.02 < bounds[1]
    # Alone, each exponent is known 20 times worse than their difference.
    assert alpha[:, 0].std() > 10 * (alpha[:, 1] - alpha[:, 0]).std()


def test_compute_multiplier_at_equal_error_by_hand() -> None:
    # E = C^-0.5 reaches 0.1 at C = 100; E = 2 C^-0.5 at C = 400.
    laws = np.array([[0.0, -0.5], [np.log10(2), -0.5]])
    assert 10 ** log10_compute_multiplier(laws, 0.1) == pytest.approx(4.0)
    rising = np.array([[0.0, -0.5], [0.0, 0.1]])
    assert np.isnan(log10_compute_multiplier(rising, 0.1))


def test_the_error_ratio_is_a_geometric_mean() -> None:
    compute = np.full((2, 2), 1e9)
    pairs = Pairs(compute, np.array([[0.1, 0.2], [0.4, 0.2]]), np.arange(2))
    assert 10 ** log10_error_ratio(pairs) == pytest.approx(1.0)
