"""Laws that are linear in some parameters: power with offset and floor, and L(N, D). Fitted by variable projection.

For given exponents the other parameters follow by non-negative linear least squares, exactly; what is searched is the
exponents alone (Golub and Pereyra 1973; for scaling laws arXiv 2603.22339), from a grid and then from its best places
on. Arrays in, numbers out; numpy and scipy only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize

from clip_la.errors import UserError, unknown

Inputs = Float[np.ndarray, "points inputs"]
Theta = Float[np.ndarray, " nonlinear"]
# Places of the grid from which the search goes on.
NUM_STARTS = 4
# Hoffmann et al. 2022, section 3.3.
HUBER_DELTA = 1e-3
LOSSES = ("squares", "relative", "huber")


@dataclass(frozen=True)
class Form:
    """A law E = sum over k of linear_k * columns_k(inputs; nonlinear), all linear parameters at least 0.

    `columns` sees inputs divided by `scales` (so that powers stay near 1); `unscale` turns its parameters, linear then
    nonlinear, into those of the law as it is written.
    """

    text: str
    inputs: tuple[str, ...]
    linear: tuple[str, ...]
    nonlinear: tuple[str, ...]
    grid: tuple[tuple[float, ...], ...]
    bounds: tuple[tuple[float, float], ...]
    columns: Callable[[Theta, Inputs], Float[np.ndarray, "points linear"]]
    unscale: Callable[[list[float], Float[np.ndarray, " inputs"]], list[float]]

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, linear ones first."""
        return (*self.linear, *self.nonlinear)

    def allows(self, theta: Theta) -> bool:
        """Whether the nonlinear parameters lie within their bounds."""
        return all(low <= value <= high for value, (low, high) in zip(theta, self.bounds, strict=True))

    def check(self, inputs: Inputs, error: Float[np.ndarray, " points"]) -> None:
        """Raises UserError where there are fewer points than parameters and one, or an input does not vary."""
        num = len(self.names)
        if len(error) <= num:
            raise UserError(f"{len(error)} points, {self.text} needs at least {num + 1}")
        if not (np.isfinite(inputs).all() and (inputs > 0).all() and np.isfinite(error).all() and (error > 0).all()):
            raise UserError(f"{self.text} needs positive finite {', '.join(self.inputs)} and errors")
        for name, column in zip(self.inputs, inputs.T, strict=True):
            if len(np.unique(column)) < 3:
                raise UserError(f"{len(np.unique(column))} different values of {name}, {self.text} needs at least 3")

    def at_bound(self, theta: Theta) -> list[str]:
        """The nonlinear parameters at the end of their search range: the points do not determine them."""
        ends = zip(self.nonlinear, theta, self.bounds, strict=True)
        return [name for name, value, (low, high) in ends if min(value - low, high - value) < 1e-3 * (high - low)]


def saturating() -> Form:
    """E = a (C + b)^c + d of the compute C, as LAION's notebook has it."""

    def columns(theta: Theta, x: Inputs) -> Float[np.ndarray, "points 2"]:
        # The square keeps b at 0 or above and lets the search reach 0.
        return np.stack([(x[:, 0] + theta[1] ** 2) ** theta[0], np.ones(len(x))], axis=1)

    def unscale(found: list[float], scales: Float[np.ndarray, " inputs"]) -> list[float]:
        a, d, c, root = found
        return [a * float(scales[0]) ** -c, d, c, root**2 * float(scales[0])]

    return Form(
        text="E = a (C + b)^c + d",
        inputs=("compute",),
        linear=("a", "d"),
        nonlinear=("c", "b"),
        grid=(tuple(np.linspace(-1.5, -0.02, 25).tolist()), (0.0, *np.geomspace(0.01, 3, 7).tolist())),
        bounds=((-3.0, -1e-3), (-1e3, 1e3)),
        columns=columns,
        unscale=unscale,
    )


def parametric() -> Form:
    """L(N, D) of parameters N and samples D (Hoffmann et al. 2022, arXiv 2203.15556, eq. 2)."""

    def columns(theta: Theta, x: Inputs) -> Float[np.ndarray, "points 3"]:
        return np.stack([np.ones(len(x)), x[:, 0] ** -theta[0], x[:, 1] ** -theta[1]], axis=1)

    def unscale(found: list[float], scales: Float[np.ndarray, " inputs"]) -> list[float]:
        floor, a, b, alpha, beta = found
        return [floor, a * float(scales[0]) ** alpha, b * float(scales[1]) ** beta, alpha, beta]

    exponents = tuple(np.linspace(0.02, 1.5, 24).tolist())
    return Form(
        text="L(N, D) = E0 + A N^-alpha + B D^-beta",
        inputs=("parameters", "samples_seen"),
        linear=("E0", "A", "B"),
        nonlinear=("alpha", "beta"),
        grid=(exponents, exponents),
        bounds=((1e-3, 3.0), (1e-3, 3.0)),
        columns=columns,
        unscale=unscale,
    )


SATURATING, PARAMETRIC = saturating(), parametric()
FORMS = {"saturating": SATURATING, "parametric": PARAMETRIC}


@dataclass(frozen=True)
class FormFit:
    """A fitted law.

    Attributes:
        parameters: by name, as the law is written.
        scales: what the inputs were divided by.
        linear, theta: the parameters that the search saw, of scaled inputs.
        objective: the loss at them.
    """

    form: Form
    parameters: Mapping[str, float]
    scales: Float[np.ndarray, " inputs"]
    linear: Float[np.ndarray, " linear"]
    theta: Theta
    objective: float

    def predict(self, inputs: Inputs) -> Float[np.ndarray, " points"]:
        """The errors that the law gives."""
        return np.asarray(self.form.columns(self.theta, inputs / self.scales) @ self.linear)


def project(
    columns: Float[np.ndarray, "points linear"], response: Float[np.ndarray, " points"]
) -> tuple[Float[np.ndarray, " linear"], float]:
    """The non-negative linear parameters for given columns, and the sum of squares that is left."""
    # Columns differ by orders of magnitude at steep exponents: equal norms keep the solver exact.
    norms = np.linalg.norm(columns, axis=0)
    norms[norms == 0] = 1
    found, left = optimize.nnls(columns / norms, response)
    return found / norms, float(left) ** 2


def polish(objective: Callable[[Theta], float], start: Theta) -> tuple[Theta, float]:
    """A local minimum by Nelder and Mead, begun again from its own end until that changes nothing.

    The objective after the projection has kinks where a linear parameter reaches 0: no gradient is relied on.
    """
    best, value = np.asarray(start, float), objective(start)
    for _ in range(8):
        close = {"xatol": 1e-8, "fatol": 1e-15 + 1e-12 * abs(value), "maxiter": 400 * len(best)}
        found = optimize.minimize(objective, best, method="Nelder-Mead", options=close)
        gained = value - found.fun
        best, value = found.x, float(found.fun)
        if gained <= 1e-10 * abs(value):
            break
    return best, value


def fit_form(
    form: Form,
    inputs: Inputs,
    error: Float[np.ndarray, " points"],
    *,
    loss: str = "squares",
    weights: Float[np.ndarray, " points"] | None = None,
    delta: float = HUBER_DELTA,
    begin: Theta | None = None,
) -> FormFit:
    """Fits a law.

    Args:
        inputs: a column for each of `form.inputs`, positive.
        error: fractions or losses above 0.
        loss: "squares" of E - law, as curve_fit has it; "relative", those of (E - law) / E; or "huber" of log E - log
            law (Hoffmann et al. 2022).
        weights: how often each point counts; once if None.
        delta: where Huber's loss turns from squares to absolute values.
        begin: exponents to begin from instead of the grid (in the form's own, scaled terms).

    Raises:
        UserError: too few points, an input that does not vary, an unknown loss.
    """
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    form.check(inputs, error)
    # The geometric mean of each input: powers of what is left stay near 1.
    scales = np.exp(np.log(inputs).mean(axis=0))
    x = inputs / scales
    root = np.ones(len(error)) if weights is None else np.sqrt(weights)
    unit = root if loss == "squares" else root / error
    response = unit * error

    def objective(theta: Theta) -> float:
        if not form.allows(theta):
            return np.inf
        with np.errstate(over="ignore", invalid="ignore"):
            columns = form.columns(theta, x) * unit[:, None]
        return project(columns, response)[1] if np.isfinite(columns).all() else np.inf

    begun = [] if begin is None else [begin]
    if not begun:
        places = [np.array(place) for place in product(*form.grid)]
        best = np.argsort([objective(place) for place in places], kind="stable")
        begun = [places[i] for i in best[:NUM_STARTS]]
    ends = [polish(objective, place) for place in begun]
    found: list[tuple[float, Theta, Any]] = [
        (value, theta, project(form.columns(theta, x) * unit[:, None], response)[0]) for theta, value in ends
    ]
    if loss == "huber":
        found = [_huber(form, x, np.log(error), root, delta, theta, linear) for _, theta, linear in found]
    value, theta, linear = min(found, key=lambda each: each[0])
    parameters = form.unscale([*linear.tolist(), *theta.tolist()], scales)
    return FormFit(form, dict(zip(form.names, parameters, strict=True)), scales, linear, theta, value)


def _huber(
    form: Form,
    x: Inputs,
    log_error: Float[np.ndarray, " points"],
    root: Float[np.ndarray, " points"],
    delta: float,
    theta: Theta,
    linear: Float[np.ndarray, " linear"],
) -> tuple[float, Theta, Float[np.ndarray, " linear"]]:
    """The minimum of Huber's loss over all parameters from the solution in squares on.

    Linear parameters are searched as logarithms, so they stay positive; one that squares put to 0 begins near it.
    """
    num = len(form.linear)
    tiny = 1e-6 * float(linear.max())

    def residuals(values: Float[np.ndarray, " all"]) -> Float[np.ndarray, " points"]:
        with np.errstate(over="ignore", invalid="ignore"):
            law = form.columns(values[num:], x) @ np.exp(np.minimum(values[:num], 700))
            residual = root * (log_error - np.log(np.maximum(law, 1e-300)))
        return np.nan_to_num(residual, nan=1e6, posinf=1e6, neginf=-1e6)

    def objective(values: Float[np.ndarray, " all"]) -> float:
        if not form.allows(values[num:]):
            return np.inf
        size = np.abs(residuals(values))
        return float(np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).sum())

    begun = np.concatenate([np.log(np.maximum(linear, tiny)), theta])
    near = optimize.least_squares(
        residuals, begun, loss="huber", f_scale=delta, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=500
    ).x
    # Least squares knows no bounds: where it left them, the search goes on from where it began.
    best, value = polish(objective, near if form.allows(near[num:]) else begun)
    return value, best[num:], np.exp(best[:num])
