"""Fits against numpy's own least squares and laws known in advance."""

import numpy as np
import pytest

from clip_la.errors import UserError
from clip_la.scaling.fit import (
    Chosen,
    HeldOut,
    PowerLaw,
    fit_power_law,
    get_frontier,
    num_scales,
)


def noisy_points(num: int = 17, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    compute = 10 ** rng.uniform(9, 13, num)
    return compute, 5.86 * compute**-0.1114 * np.exp(rng.normal(0, 0.1, num))


def test_an_exact_law_is_found_to_the_last_digits() -> None:
    compute = np.array([3e9, 7e10, 4e11, 9e12])
    law, chosen = fit_power_law(compute, 5.86 * compute**-0.1114)
    assert law.beta == pytest.approx(5.86, rel=1e-10)
    assert law.alpha == pytest.approx(-0.1114, rel=1e-10)
    assert chosen.index.tolist() == [0, 1, 2, 3]


def test_noisy_points_give_numpys_least_squares() -> None:
    compute, error = noisy_points()
    law, _ = fit_power_law(compute, error)
    slope, intercept = np.polyfit(np.log10(compute), np.log10(error), 1)
    assert law.alpha == pytest.approx(slope, rel=1e-9)
    assert law.log10_beta == pytest.approx(intercept, rel=1e-9)


def test_pareto_keeps_what_no_cheaper_point_beats() -> None:
    log10_compute = np.array([3.0, 1.0, 2.0, 2.0, 5.0, 4.0])
    log10_error = np.array([-0.3, -0.1, -0.2, -0.4, -0.45, -0.4])
    # By compute: (1, -.1) yes; (2, -.4) yes; (2, -.2) no; (3, -.3) no; (4, -.4) a tie, no; (5, -.45) yes.
    assert Chosen.pareto(log10_compute, log10_error).index.tolist() == [1, 3, 4]


def test_bins_take_the_best_at_the_centre() -> None:
    log10_compute = np.array([0.0, 0.3, 1.0, 2.9, 2.0])
    log10_error = np.array([-0.1, -0.2, -0.15, -0.5, -0.3])
    # [0, 2.9 + 0.1] in three bins of width 1: {0, 0.3}, {1.0}, {2.9, 2.0}.
    chosen = Chosen.bins(log10_compute, log10_error, num_bins=3)
    np.testing.assert_allclose(chosen.log10_compute, [0.5, 1.5, 2.5])
    np.testing.assert_allclose(chosen.log10_error, [-0.2, -0.15, -0.5])
    assert chosen.index.tolist() == [1, 2, 3]


def test_an_empty_bin_is_no_point() -> None:
    chosen = Chosen.bins(np.array([0.0, 0.1, 3.9]), np.array([-0.1, -0.2, -0.4]), num_bins=4)
    np.testing.assert_allclose(chosen.log10_compute, [0.5, 3.5])


@pytest.mark.parametrize(
    ("compute", "says"),
    [
        ([1e9, 1e10], "2 points, a fit needs at least 3"),
        ([], "0 points"),
        ([1e9, 1.0001e9, 1e9], "3 points at a single compute"),
    ],
)
def test_too_few_points(compute: list[float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        fit_power_law(np.array(compute), np.full(len(compute), 0.5))


def test_too_few_points_on_the_frontier() -> None:
    compute = np.array([1e9, 1e10, 1e11, 1e12])
    with pytest.raises(UserError, match="1 of 4 points on the frontier"):
        fit_power_law(compute, np.array([0.1, 0.2, 0.3, 0.4]), get_frontier("pareto"))


def test_frontier_names_and_bins_are_checked() -> None:
    with pytest.raises(UserError, match="did you mean pareto"):
        get_frontier("parreto")
    with pytest.raises(UserError, match="at least 3 bins, not 2"):
        get_frontier("bins", num_bins=2)


def test_mean_absolute_error_is_of_errors_not_logarithms() -> None:
    law = PowerLaw(log10_beta=0.0, alpha=-0.5)
    compute = np.array([4.0, 16.0, 100.0])
    assert law.mean_absolute_error(compute, np.array([0.6, 0.2, 0.1])) == pytest.approx((0.1 + 0.05 + 0) / 3)


def test_the_largest_scale_is_predicted_from_the_others() -> None:
    compute = np.array([1e9, 1e10, 1e11, 1e12, 1.0001e12])
    error = 2 * compute**-0.1
    error[3:] = [0.3, 0.4]
    held_out = HeldOut.of(compute, error)
    assert held_out is not None
    assert held_out.num_points == 2
    assert held_out.predicted_error == pytest.approx(2 * 1e12**-0.1, rel=1e-4)
    assert held_out.measured_error == pytest.approx(0.35)
    assert HeldOut.of(compute[1:4], error[1:4]) is None


def test_scales_within_a_few_per_cent_count_once() -> None:
    assert num_scales(np.log10([1.00e9, 1.01e9, 2e9, 2.01e9, 5e9])) == 3
    assert num_scales(np.array([])) == 0


def test_a_steep_law_does_not_overflow() -> None:
    compute = np.array([1.00e12, 1.03e12, 1.06e12])
    law, _ = fit_power_law(compute, np.array([0.9, 0.1, 0.01]))
    assert law.log10_beta > 300
    assert law.beta == 1e300
