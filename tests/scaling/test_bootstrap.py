"""Resampling: what is drawn, how wide an interval is, and that pairs cancel what both kinds share."""

import numpy as np
import pytest
from scipy import stats

from clip_la.scaling.bootstrap import (
    PairedBootstrap,
    Pairs,
    bca_interval,
    draw_counts,
    interval,
    laws_by_counts,
    log10_multiplier_at,
    widened_ends,
    without_each,
)
from clip_la.scaling.fit import Chosen, choose_all


def test_as_many_runs_are_drawn_as_there_are() -> None:
    counts = draw_counts(7, 400, seed=1)
    assert counts.shape == (400, 7)
    assert (counts.sum(1) == 7).all()
    # Each run is drawn once on average; with replacement, so (1 - 1/7)^7 of the time not at all.
    assert counts.mean(0) == pytest.approx(np.ones(7), abs=0.15)
    assert (counts == 0).mean() == pytest.approx((6 / 7) ** 7, abs=0.02)


def test_laws_by_counts_are_least_squares_on_repeated_points() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.uniform(9, 13, 9), rng.normal(-0.3, 0.1, 9)
    runs = np.array([0, 0, 1, 2, 2, 3, 4, 4, 5])
    counts = draw_counts(6, 50, seed=2)
    for row, (beta, alpha) in zip(counts, laws_by_counts(x, y, runs, counts, choose_all), strict=True):
        index = np.repeat(np.arange(9), row[runs])
        slope, intercept = np.polyfit(x[index], y[index], 1)
        assert (beta, alpha) == pytest.approx((intercept, slope), rel=1e-8)
    # A frontier is chosen anew in each resample: the same numbers when it keeps all.
    falling = np.sort(y)[::-1]
    order = np.sort(x)
    np.testing.assert_allclose(
        laws_by_counts(order, falling, np.arange(9), without_each(9), Chosen.pareto),
        laws_by_counts(order, falling, np.arange(9), without_each(9), choose_all),
        rtol=1e-9,
    )
    single = laws_by_counts(np.array([1.0, 1.001, 3.0]), y[:3], np.arange(3), np.array([[2, 1, 0]]), choose_all)
    assert np.isnan(single[0, 1])


def test_the_interval_of_a_slope_agrees_with_the_normal_theory() -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(9, 13, 60)
    noise = 0.02
    y = 0.5 - 0.1 * x + rng.normal(0, noise, 60)
    laws = laws_by_counts(x, y, np.arange(60), draw_counts(60, 800, seed=1), choose_all)
    bounds = interval(laws[:, 1], num_runs=60)
    assert bounds is not None
    # The standard error of a least-squares slope: sigma / sqrt(sum (x - mean)^2).
    expected_width = 2 * 2.0 * noise / np.sqrt(((x - x.mean()) ** 2).sum())
    assert bounds[1] - bounds[0] == pytest.approx(expected_width, rel=0.25)
    assert bounds[0] < -0.1 < bounds[1]


def test_branches_of_one_run_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)
    x = np.repeat(np.linspace(9, 13, 40), 5)
    y = 0.5 - 0.1 * x + np.repeat(rng.normal(0, 0.03, 40), 5)
    as_runs, as_points = (
        laws_by_counts(x, y, runs, draw_counts(runs.max() + 1, 400, seed=0), choose_all)[:, 1].std()
        for runs in (np.repeat(np.arange(40), 5), np.arange(200))
    )
    # Five copies of the same forty errors know no more than the forty: sqrt(5) wider than they pretend.
    assert as_runs / as_points == pytest.approx(5**0.5, rel=0.2)


def test_the_same_seed_gives_the_same_digits() -> None:
    compute, error = np.array([1e9, 1e10, 1e11, 1e12]), np.array([0.5, 0.41, 0.33, 0.24])
    first, again, other = (
        laws_by_counts(np.log10(compute), np.log10(error), np.arange(4), draw_counts(4, 50, seed=seed), choose_all)
        for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_intervals_are_wider_of_few_runs_and_none_of_fewer() -> None:
    values = np.linspace(0, 1, 100001)
    # Percentiles at the levels of Student's t, a little apart: 2.23 sqrt(12 / 10) deviations instead of 1.96.
    level = stats.norm.cdf(stats.t.ppf(0.975, 10) * 1.2**0.5)
    assert interval(values, num_runs=12) == pytest.approx((1 - level, level), abs=1e-4)
    assert interval(values, num_runs=10**6) == pytest.approx((0.025, 0.975), abs=1e-4)
    assert interval(values, num_runs=11) is None
    values[: len(values) // 25] = np.nan
    assert interval(values, num_runs=12) is None


def test_bca_agrees_with_scipy() -> None:
    """scipy's own BCa of a mean of skewed data, but for the widening."""
    data = np.random.default_rng(0).lognormal(0, 1, 400)
    num = len(data)
    counts = draw_counts(num, 4000, seed=5)
    found = bca_interval(counts @ data / num, float(data.mean()), without_each(num) @ data / (num - 1), num)
    expected = stats.bootstrap((data,), np.mean, n_resamples=4000, rng=np.random.default_rng(5), method="BCa")
    low, high = expected.confidence_interval
    assert found == pytest.approx((low, high), abs=0.04 * (high - low))
    # Skewed to the right: the interval reaches further up than down.
    assert found is not None
    assert found[1] - data.mean() > 1.15 * (data.mean() - found[0])


def test_bca_without_bias_or_skewness_is_the_percentile_interval() -> None:
    values = np.linspace(-1, 1, 4001)
    left_out = np.concatenate([np.linspace(-1, 1, 20)])
    assert bca_interval(values, 0.0, left_out, 20) == pytest.approx(interval(values, 20) or (0, 0), abs=1e-3)
    assert bca_interval(values, 0.0, np.zeros(20), 20) == interval(values, 20)
    assert bca_interval(values, 0.0, np.full(20, np.nan), 20) is None


def test_the_ends_of_too_few_runs_are_infinite() -> None:
    assert widened_ends(2).tolist() == [-np.inf, np.inf]


def paired(alpha: tuple[float, float], shared_noise: float, own_noise: float) -> Pairs:
    rng = np.random.default_rng(6)
    x = np.repeat(np.linspace(9, 13, 20), 2).reshape(20, 2)
    shared = rng.normal(0, shared_noise, (20, 1))
    y = 0.5 + np.array(alpha) * x + shared + rng.normal(0, own_noise, (20, 2))
    return Pairs(10**x, 10**y, np.arange(20))


def test_what_both_kinds_share_cancels_in_the_difference() -> None:
    pairs = paired((-0.10, -0.12), shared_noise=0.2, own_noise=0.005)
    found = PairedBootstrap.of(pairs, frontier=choose_all, num_resamples=400, seed=0)
    alpha = found.resampled[..., 1]
    for method in ("percentile", "bca"):
        bounds = found.bounds(lambda laws: laws[:, 1, 1] - laws[:, 0, 1], method)
        assert bounds is not None
        assert bounds[0] < -0.02 < bounds[1]
    # Alone, each exponent is known 20 times worse than their difference.
    assert alpha[:, 0].std() > 10 * (alpha[:, 1] - alpha[:, 0]).std()


def test_compute_multiplier_at_equal_error_by_hand() -> None:
    # E = C^-0.5 reaches 0.1 at C = 100; E = 2 C^-0.5 at C = 400.
    laws = np.array([[0.0, -0.5], [np.log10(2), -0.5]])
    assert 10 ** log10_multiplier_at(laws, 2.0) == pytest.approx(4.0)
    rising = np.array([[0.0, -0.5], [0.0, 0.1]])
    assert np.isnan(log10_multiplier_at(rising, 2.0))


def test_the_error_ratio_is_a_geometric_mean_over_runs() -> None:
    pairs = Pairs(np.full((3, 2), 1e9), np.array([[0.1, 0.2], [0.4, 0.2], [0.1, 0.05]]), np.array([0, 1, 1]))
    assert 10 ** pairs.log10_error_ratios() == pytest.approx([2.0, 0.5])
