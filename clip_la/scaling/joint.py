"""One law for several kinds with some parameters in common, against one for each: do the kinds share them?

Compared are fits to the same points under normal errors of equal spread: Akaike's criterion with the correction for few
points (AICc; less is better), and the likelihood ratio against separate laws, referred to F, which for power laws is
exact (chi-squared rejects 7 of 100 true laws at 5 % with 24 points). Both take points for independent; where runs have
several points, or pairs share noise, the clustered t test of the difference of exponents is the better judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import fdtrc

from clip_la.errors import UserError, unknown
from clip_la.scaling.fit import MIN_POINTS, num_scales
from clip_la.scaling.forms import SATURATING, Form, FormFit, Inputs, Theta, fit_form, polish, project

Errors = Float[np.ndarray, " points"]
TOO_FEW_KINDS = "{} kind of model: a joint fit compares at least two"


@dataclass(frozen=True)
class JointFit:
    """Laws of several kinds with some parameters in common.

    Attributes:
        text: the law as it is written.
        shared: the parameters in common; the others are each kind's own.
        parameters: of each kind, the shared ones repeated.
        squares: the sum of squared residuals of E, or of log10 E for the power law.
        num_parameters: free ones over all kinds, a shared one counted once.
        p_value: of the likelihood-ratio test against separate laws, None for these themselves.
    """

    text: str
    shared: tuple[str, ...]
    parameters: tuple[Mapping[str, float], ...]
    squares: float
    num_points: int
    num_parameters: int
    p_value: float | None = None

    @property
    def log_likelihood(self) -> float:
        """Twice the log-likelihood, at the best spread, up to a constant of the points."""
        return -self.num_points * float(np.log(max(self.squares, 1e-300) / self.num_points))

    @property
    def aicc(self) -> float:
        """AICc; infinite where the points are too few for it. The spread of the errors counts as a parameter."""
        num = self.num_parameters + 1
        left = self.num_points - num - 1
        return -self.log_likelihood + 2 * num + (2 * num * (num + 1) / left if left > 0 else np.inf)

    def against(self, separate: "JointFit") -> "JointFit":
        """Itself with the p-value of the likelihood-ratio test against separate laws."""
        more, free = separate.num_parameters - self.num_parameters, self.num_points - separate.num_parameters
        ratio = (self.squares - separate.squares) / more / max(separate.squares / free, 1e-300) if free > 0 else np.nan
        p_value = float(fdtrc(more, free, max(ratio, 0.0)))
        return JointFit(
            self.text, self.shared, self.parameters, self.squares, self.num_points, self.num_parameters, p_value
        )


def best(fits: Sequence[JointFit]) -> JointFit:
    """The fit of the lowest AICc; of equals the one with fewer parameters."""
    return min(fits, key=lambda fit: (fit.aicc, fit.num_parameters))


def power_fits(log10_compute: Sequence[Errors], log10_error: Sequence[Errors]) -> list[JointFit]:
    """E = beta C^alpha for each kind: separate laws first, then with one exponent, then one law for all.

    Raises:
        UserError: fewer than two kinds, or a kind with fewer than three points or at a single compute.
    """
    if len(log10_compute) < 2:
        raise UserError(TOO_FEW_KINDS.format(len(log10_compute)))
    for x in log10_compute:
        if len(x) < MIN_POINTS or num_scales(x) < 2:
            raise UserError(f"{len(x)} points of a kind at {num_scales(x)} computes: a joint fit needs three at two")
    designs = [np.stack([np.ones(len(x)), x], axis=1) for x in log10_compute]
    y = np.concatenate(log10_error)
    fits = []
    for shared in ((), ("alpha",), ("alpha", "log10_beta")):
        design, places = _stacked(designs, ("log10_beta", "alpha"), shared)
        found, *_ = np.linalg.lstsq(design, y, rcond=None)
        values = tuple({name: float(found[place]) for name, place in own.items()} for own in places)
        squares = float(((design @ found - y) ** 2).sum())
        fits.append(JointFit("E = beta C^alpha", shared, values, squares, len(y), design.shape[1]))
    return [fits[0], *(fit.against(fits[0]) for fit in fits[1:])]


def _stacked(
    columns: Sequence[Float[np.ndarray, "points linear"]], names: Sequence[str], shared: Sequence[str]
) -> tuple[Float[np.ndarray, "points linear"], list[dict[str, int]]]:
    """The columns of all kinds below each other, those of shared parameters in one column, and each kind's places."""
    places: list[dict[str, int]] = []
    taken: dict[Any, int] = {}
    for kind in range(len(columns)):
        keys = [name if name in shared else (name, kind) for name in names]
        places.append({name: taken.setdefault(key, len(taken)) for name, key in zip(names, keys, strict=True)})
    design = np.zeros((sum(map(len, columns)), len(taken)))
    start = 0
    for own, at in zip(columns, places, strict=True):
        design[start : start + len(own), [at[name] for name in names]] = own
        start += len(own)
    return design, places


@dataclass(frozen=True)
class _Problem:
    """Several kinds' points of a form with shared parameters, as one search over their exponents."""

    form: Form
    inputs: tuple[Inputs, ...]
    errors: tuple[Errors, ...]
    shared: tuple[str, ...]

    def thetas(self, packed: Theta) -> list[Theta]:
        """Each kind's exponents from the packed ones: shared first, then those of each kind."""
        names = self.form.nonlinear
        common = [name for name in names if name in self.shared]
        own = [name for name in names if name not in self.shared]
        values = []
        for kind in range(len(self.errors)):
            found = dict(zip(common, packed[: len(common)], strict=True))
            start = len(common) + kind * len(own)
            found |= dict(zip(own, packed[start : start + len(own)], strict=True))
            values.append(np.array([found[name] for name in names]))
        return values

    def pack(self, thetas: Sequence[Theta], lead: int | None) -> Theta:
        """The reverse of `thetas`; what is shared is taken from the kind `lead`, or averaged where it is None."""
        names = self.form.nonlinear
        table = np.array(thetas)
        common = table.mean(0) if lead is None else table[lead]
        head = [common[i] for i, name in enumerate(names) if name in self.shared]
        tail = [own[i] for own in table for i, name in enumerate(names) if name not in self.shared]
        return np.array([*head, *tail])

    def stacked(self, packed: Theta) -> tuple[Float[np.ndarray, "points linear"], list[dict[str, int]]]:
        """The columns of all kinds, one kind below the other."""
        own = [self.form.columns(theta, x) for theta, x in zip(self.thetas(packed), self.inputs, strict=True)]
        return _stacked(own, self.form.linear, self.shared)

    def objective(self, packed: Theta) -> float:
        if not all(self.form.allows(theta) for theta in self.thetas(packed)):
            return np.inf
        with np.errstate(over="ignore", invalid="ignore"):
            columns, _ = self.stacked(packed)
        return project(columns, np.concatenate(self.errors))[1] if np.isfinite(columns).all() else np.inf


def fit_joint(form: Form, inputs: Sequence[Inputs], errors: Sequence[Errors], shared: Sequence[str] = ()) -> JointFit:
    """A form for several kinds, the parameters `shared` in common; by least squares.

    Raises:
        UserError: fewer than two kinds, a name that is no parameter, or a kind that `fit_form` refuses.
    """
    if len(errors) < 2:
        raise UserError(TOO_FEW_KINDS.format(len(errors)))
    for name in shared:
        if name not in form.names:
            raise unknown("parameter to share", name, form.names)
    scales = np.exp(np.log(np.concatenate(inputs)).mean(axis=0))
    for x, error in zip(inputs, errors, strict=True):
        form.check(x, error)
    problem = _Problem(form, tuple(x / scales for x in inputs), tuple(errors), tuple(shared))
    alone: list[FormFit] = [fit_form(form, x, error) for x, error in zip(problem.inputs, errors, strict=True)]
    # Each kind was scaled by its own mean: b, the one nonlinear parameter with a unit, is put on the common scale.
    units = [np.array([1.0, float(np.sqrt(fit.scales[0]))]) if form is SATURATING else np.ones(2) for fit in alone]
    thetas = [fit.theta * unit for fit, unit in zip(alone, units, strict=True)]
    # Where no exponent is shared, all of these are one place.
    leads = (None, *range(len(errors))) if set(shared) & set(form.nonlinear) else (None,)
    packed, squares = min(
        (polish(problem.objective, problem.pack(thetas, lead)) for lead in leads), key=lambda each: each[1]
    )
    columns, places = problem.stacked(packed)
    linear, _ = project(columns, np.concatenate(errors))
    parameters = tuple(
        dict(
            zip(
                form.names,
                form.unscale([*(float(linear[at[name]]) for name in form.linear), *theta.tolist()], scales),
                strict=True,
            )
        )
        for at, theta in zip(places, problem.thetas(packed), strict=True)
    )
    return JointFit(form.text, tuple(shared), parameters, squares, len(columns), len(linear) + len(packed))


def shared_fits(
    form: Form, inputs: Sequence[Inputs], errors: Sequence[Errors], candidates: Sequence[str]
) -> list[JointFit]:
    """Separate laws first, then every choice of the candidates in common, each tested against the separate ones."""
    separate = fit_joint(form, inputs, errors)
    choices = [c for num in range(1, len(candidates) + 1) for c in combinations(candidates, num)]
    return [separate, *(fit_joint(form, inputs, errors, shared).against(separate) for shared in choices)]
