"""Saturating and parametric laws: known ones come back, shared parts are told from separate ones."""

import numpy as np
import pytest
from scipy import optimize

from clip_la.errors import UserError
from clip_la.scaling.forms import PARAMETRIC, SATURATING, fit_form, project
from clip_la.scaling.joint import best, fit_joint, power_fits, shared_fits

# Hoffmann et al. 2022 refitted by Besiroglu et al. 2024 (arXiv 2404.10102): E, A, B, alpha, beta.
REFITTED = {"E0": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


def chinchilla_like(num: int = 240, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Models of 44 M to 16 B parameters at compute from 1e18 to 1e22 FLOPs, D = C / 6 N."""
    rng = np.random.default_rng(seed)
    parameters = 10 ** rng.uniform(7.64, 10.2, num)
    tokens = 10 ** rng.uniform(18, 22, num) / (6 * parameters)
    law = REFITTED
    loss = law["E0"] + law["A"] * parameters ** -law["alpha"] + law["B"] * tokens ** -law["beta"]
    return np.stack([parameters, tokens], axis=1), loss * np.exp(rng.normal(0, noise, num))


@pytest.mark.parametrize("loss", ["squares", "relative", "huber"])
def test_the_refitted_chinchilla_law_comes_back_to_its_digits(loss: str) -> None:
    fit = fit_form(PARAMETRIC, *chinchilla_like(), loss=loss)
    assert dict(fit.parameters) == pytest.approx(REFITTED, rel=1e-5)


def test_hubers_loss_shrugs_off_outliers() -> None:
    inputs, loss = chinchilla_like(noise=0.002)
    loss[:12] *= 1.3
    huber = fit_form(PARAMETRIC, inputs, loss, loss="huber").parameters
    squares = fit_form(PARAMETRIC, inputs, loss, loss="squares").parameters
    assert huber["E0"] == pytest.approx(REFITTED["E0"], abs=0.03)
    assert huber["alpha"] == pytest.approx(REFITTED["alpha"], abs=0.02)
    assert abs(squares["alpha"] - REFITTED["alpha"]) > 3 * abs(huber["alpha"] - REFITTED["alpha"])


def test_no_search_over_all_parameters_ends_lower() -> None:
    """L-BFGS over all five parameters, from many starts as Hoffmann et al. do it, finds nothing better."""
    inputs, loss = chinchilla_like(60, noise=0.01)
    fit = fit_form(PARAMETRIC, inputs, loss, loss="huber")
    log_n, log_d, log_l = np.log(inputs[:, 0]), np.log(inputs[:, 1]), np.log(loss)

    def objective(values: np.ndarray) -> float:
        a, b, e, alpha, beta = values
        law = np.logaddexp(np.logaddexp(a - alpha * log_n, b - beta * log_d), e)
        size = np.abs(log_l - law)
        return float(np.where(size <= 1e-3, 0.5 * size**2, 1e-3 * (size - 0.5e-3)).sum())

    starts = [(a, b, e, 0.35, 0.35) for a in (5, 8) for b in (5, 9) for e in (0.3, 0.6)]
    others = [optimize.minimize(objective, start, method="L-BFGS-B").fun for start in starts]
    assert fit.objective <= min(others) * (1 + 1e-9)


def saturating(a: float, b: float, c: float, d: float, noise: float = 0.0, seed: int = 0) -> tuple:
    compute = np.geomspace(1e9, 1e13, 20)
    error = a * (compute + b) ** c + d
    return compute[:, None], error * np.exp(np.random.default_rng(seed).normal(0, noise, 20))


@pytest.mark.parametrize("law", [(15.0, 1e9, -0.2, 0.2), (60.0, 0.0, -0.25, 0.15), (4.0, 3e10, -0.1, 0.0)])
def test_a_saturating_law_comes_back(law: tuple) -> None:
    fit = fit_form(SATURATING, *saturating(*law))
    a, b, c, d = law
    assert fit.parameters["c"] == pytest.approx(c, rel=1e-3)
    assert fit.parameters["a"] == pytest.approx(a, rel=1e-2)
    assert fit.parameters["d"] == pytest.approx(d, abs=2e-3)
    assert fit.parameters["b"] == pytest.approx(b, rel=0.02, abs=1e7)
    compute, error = saturating(*law)
    np.testing.assert_allclose(fit.predict(compute), error, rtol=1e-5)


def test_plain_squares_are_those_of_curve_fit() -> None:
    """As arXiv 2506.04598 fits it: scipy's curve_fit of a (C + b)^c + d, all bounded."""
    compute, error = saturating(57.86, 18.39, -0.2266, 0.1112, 0.02, seed=3)
    compute = compute / 1e3
    error = 5.0 * (compute[:, 0] + 1e6) ** -0.15 + 0.1 + (error - error.mean()) * 0.01

    def law(x: np.ndarray, a: float, b: float, c: float, d: float) -> np.ndarray:
        return a * (x + b) ** c + d

    fit = fit_form(SATURATING, compute, error)
    start = [fit.parameters[name] for name in "abcd"]
    bounds = ([0, 0, -np.inf, 0], [np.inf, np.inf, 0, np.inf])
    found, _ = optimize.curve_fit(law, compute[:, 0], error, start, bounds=bounds, x_scale=np.maximum(np.abs(start), 1))
    theirs = ((law(compute[:, 0], *found) - error) ** 2).sum()
    assert fit.objective == pytest.approx(float(((fit.predict(compute) - error) ** 2).sum()))
    assert fit.objective <= theirs * (1 + 1e-6)


def test_projection_is_scipys_bounded_least_squares() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        columns = rng.normal(size=(12, 3)) * [1, 1e-6, 1e5]
        response = rng.normal(size=12)
        found, squares = project(columns, response)
        expected = optimize.lsq_linear(columns / [1, 1e-6, 1e5], response, (0, np.inf), method="bvls")
        assert found * [1, 1e-6, 1e5] == pytest.approx(expected.x, abs=1e-8)
        assert squares == pytest.approx(2 * expected.cost)


def test_weights_are_repeated_points() -> None:
    compute, error = saturating(60, 0, -0.25, 0.15, noise=0.01)
    counts = np.random.default_rng(1).integers(0, 4, 20)
    weighted = fit_form(SATURATING, compute, error, weights=counts)
    # The scale of the inputs differs, so the search's path does too.
    repeated = fit_form(SATURATING, np.repeat(compute, counts, 0), np.repeat(error, counts))
    assert weighted.objective == pytest.approx(repeated.objective, rel=1e-5)
    assert weighted.parameters["c"] == pytest.approx(repeated.parameters["c"], rel=1e-2)


@pytest.mark.parametrize(
    ("inputs", "error", "says"),
    [
        (np.geomspace(1, 9, 4)[:, None], np.full(4, 0.5), "4 points, E = a .* needs at least 5"),
        (np.repeat([1.0, 2.0], 5)[:, None], np.full(10, 0.5), "2 different values of compute"),
        (np.geomspace(1, 9, 6)[:, None], np.array([0.5, 0.4, 0.3, 0.2, 0.1, np.nan]), "positive finite"),
        (np.linspace(0, 9, 6)[:, None], np.full(6, 0.5), "positive finite"),
    ],
)
def test_what_cannot_be_fitted(inputs: np.ndarray, error: np.ndarray, says: str) -> None:
    with pytest.raises(UserError, match=says):
        fit_form(SATURATING, inputs, error)


def test_unknown_losses_and_parameters() -> None:
    with pytest.raises(UserError, match="unknown loss 'hubber'; did you mean huber"):
        fit_form(SATURATING, *saturating(60, 0, -0.25, 0.15), loss="hubber")
    one = saturating(60, 0, -0.25, 0.15)
    with pytest.raises(UserError, match="unknown parameter to share 'e'"):
        fit_joint(SATURATING, [one[0]] * 2, [one[1]] * 2, ["e"])
    with pytest.raises(UserError, match="1 kind of model"):
        fit_joint(SATURATING, [one[0]], [one[1]])


def test_shared_exponent_and_floor_are_told_from_separate_ones() -> None:
    first, alike = saturating(60, 0, -0.25, 0.15, 0.004, 1), saturating(66, 0, -0.25, 0.15, 0.004, 2)
    steeper, lower = saturating(900, 0, -0.35, 0.15, 0.004, 3), saturating(60, 0, -0.25, 0.05, 0.004, 4)

    def fits(other: tuple) -> list:
        return shared_fits(SATURATING, [first[0], other[0]], [first[1], other[1]], ("c", "d"))

    found = fits(alike)
    assert [fit.shared for fit in found] == [(), ("c",), ("d",), ("c", "d")]
    assert best(found).shared == ("c", "d")
    assert min(fit.p_value for fit in found[1:]) > 0.05
    one = found[-1].parameters
    assert one[0]["c"] == one[1]["c"] == pytest.approx(-0.25, abs=0.01)
    assert one[0]["d"] == one[1]["d"] == pytest.approx(0.15, abs=0.01)
    assert one[1]["a"] / one[0]["a"] == pytest.approx(1.1, abs=0.02)
    # Freedom never makes a fit worse.
    assert all(fit.squares >= found[0].squares * (1 - 1e-9) for fit in found)
    assert fits(steeper)[-1].p_value < 1e-3
    assert fits(lower)[-1].p_value < 1e-3


def test_power_laws_with_one_exponent_against_numpy() -> None:
    rng = np.random.default_rng(5)
    x = [np.linspace(9, 12, 9), np.linspace(9.1, 12.3, 7)]
    y = [0.5 - 0.1 * x[0] + rng.normal(0, 0.01, 9), 0.55 - 0.1 * x[1] + rng.normal(0, 0.01, 7)]
    separate, exponent, single = power_fits(x, y)
    own = sum(float(np.polyfit(a, b, 1, full=True)[1][0]) for a, b in zip(x, y, strict=True))
    assert separate.squares == pytest.approx(own)
    pooled = float(np.polyfit(np.concatenate(x), np.concatenate(y), 1, full=True)[1][0])
    assert single.squares == pytest.approx(pooled)
    assert exponent.parameters[0]["alpha"] == exponent.parameters[1]["alpha"]
    # The F test of one slope, and AICc by its definition: 16 points; 3 coefficients and the spread.
    free = 16 - 4
    ratio = (exponent.squares - own) / (own / free)
    from scipy import stats

    assert exponent.p_value == pytest.approx(stats.f.sf(ratio, 1, free))
    assert exponent.aicc == pytest.approx(16 * np.log(exponent.squares / 16) + 8 + 2 * 4 * 5 / 11)


def test_the_f_test_rejects_a_true_law_in_5_of_100() -> None:
    rng = np.random.default_rng(7)
    x = np.tile(np.linspace(0, 2.5, 4), 3)
    p_values = [
        power_fits([x, x], [-0.1 * x + rng.normal(0, 0.004, 12) for _ in range(2)])[1].p_value for _ in range(1000)
    ]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.02)


def test_parametric_laws_of_two_kinds_share_their_exponents() -> None:
    inputs, loss = chinchilla_like(60, noise=0.002, seed=8)
    _, other = chinchilla_like(60, noise=0.002, seed=9)
    inputs2, _ = chinchilla_like(60, seed=9)
    found = fit_joint(PARAMETRIC, [inputs, inputs2], [loss, other], ("E0", "alpha", "beta"))
    assert found.num_parameters == 7
    assert found.parameters[0]["alpha"] == found.parameters[1]["alpha"] == pytest.approx(0.3478, abs=0.03)
    assert found.parameters[0]["E0"] == found.parameters[1]["E0"]
