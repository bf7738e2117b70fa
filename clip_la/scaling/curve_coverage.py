"""Simulated studies of curves: how often the interval of the multiplier at equal model holds the truth.

A study is pairs of runs of several models, each run with five budgets. Errors hang on the samples by a curve of all
models, to which each model adds an intercept of its own, so that no law of all models in compute alone carries. Beside
the curves (`equal_model`) stands the law that they replace: log E = a of the model + b of the kind + alpha log C.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float

from clip_la.scaling.bootstrap import FLAT
from clip_la.scaling.coverage import CoverageRow
from clip_la.scaling.equal_model import Curve, CurvePair, EqualModel
from clip_la.scaling.intervals import Regression, as_interval, root_interval

CURVES, LINE = "curves", "line within models"
QUANTITY = "multiplier at equal model"
MODELS = 4
# Four times the FLOPs a pair from one model to the next; the second kind's against the first's, log10, by model.
MODEL_LOG10 = 0.6
CHEAPER_LOG10 = (-0.06, -0.05, -0.04, -0.03)
BUDGETS_LOG10 = np.linspace(0, 1.2, 5)


@dataclass(frozen=True)
class CurveWorld:
    """The truth of a study of curves; standard deviations in log10 E.

    Attributes:
        multiplier: of compute at equal model and error.
        slope: of log10 E over log10 samples, at many samples.
        bend: the log10 samples, from the smallest budget on, above which errors fall, chance below; None: a power law.
        model_noise: of a model, common to both kinds.
        pair_noise: of a pair of runs, common to both.
        own_noise: of a run, in all its budgets alike, as they share a trunk; `point_noise` of each budget.
        seed_noise: of a kind and seed, in all models alike.
        model_multipliers: standard deviation of the log10 multiplier between models.
    """

    multiplier: float = 1.15
    slope: float = -0.1
    bend: float | None = None
    model_noise: float = 0.05
    pair_noise: float = 0.006
    own_noise: float = 0.003
    point_noise: float = 0.002
    seed_noise: float = 0.0
    model_multipliers: float = 0.0

    def simulate(self, num_pairs: int, rng: np.random.Generator) -> list[CurvePair]:
        """The pairs of curves of a study; they go round the models, one of each seed at each."""
        seed, model = np.divmod(np.arange(num_pairs), MODELS)
        away = np.log10(self.multiplier) + rng.normal(0, self.model_multipliers, MODELS)
        of_model = rng.normal(0, self.model_noise, MODELS)
        of_pair = rng.normal(0, self.pair_noise, num_pairs)
        of_seed = rng.normal(0, self.seed_noise, (int(seed.max()) + 1, 2))
        own = rng.normal(0, self.own_noise, (num_pairs, 2, 1))
        noise = own + rng.normal(0, self.point_noise, (num_pairs, 2, len(BUDGETS_LOG10)))
        pairs = []
        for i, (m, s) in enumerate(zip(model.tolist(), seed.tolist(), strict=True)):
            curves = []
            for kind, flops in enumerate((0.0, CHEAPER_LOG10[m])):
                # At equal compute a kind that needs more of it is where the first was with less.
                past = BUDGETS_LOG10 + (flops - away[m]) * kind
                error = of_model[m] + of_pair[i] + of_seed[s, kind] + noise[i, kind] + self._error(past)
                curves.append(Curve(BUDGETS_LOG10 + MODEL_LOG10 * m + flops, BUDGETS_LOG10, error))
            pairs.append(CurvePair(m, s, *curves))
        return pairs

    def _error(self, log10_samples: Float[np.ndarray, " budgets"]) -> Float[np.ndarray, " budgets"]:
        if self.bend is None:
            return self.slope * log10_samples
        return -np.log10(1 + 10 ** (-self.slope * (log10_samples - self.bend)))


def line_bounds(pairs: Sequence[CurvePair]) -> tuple[float, float] | None:
    """Fieller's interval of the log10 compute multiplier by one slope, an intercept a model and a step of the kind."""
    models = list(dict.fromkeys(pair.model for pair in pairs))
    rows, errors, runs = [], [], []
    for i, pair in enumerate(pairs):
        for kind, curve in enumerate((pair.baseline, pair.other)):
            for x, y in zip(curve.log10_compute, curve.log10_error, strict=True):
                rows.append([*(float(pair.model == model) for model in models), float(kind), x])
                errors.append(y)
                runs.append(i)
    regression = Regression(np.array(rows), np.array(runs))
    step, slope = (np.eye(len(models) + 2)[len(models) + place].tolist() for place in (0, 1))
    return as_interval(root_interval(regression, np.array(errors), step, slope)[1])


# Of runs of one recipe (0.7 % of a loss), of recalls near chance (2 %), and what models and seeds may have in common.
CURVE_WORLDS = {
    "intercepts of models": CurveWorld(),
    "curves that leave chance": CurveWorld(slope=-1.5, bend=0.6, pair_noise=0.02, own_noise=0.01, point_noise=0.006),
    "steep curves, multiplier of 0.55": CurveWorld(
        multiplier=0.55, slope=-2.5, bend=0.6, pair_noise=0.02, own_noise=0.015, point_noise=0.01
    ),
    "curves of kinds alike": CurveWorld(
        multiplier=1.0, slope=-1.5, bend=0.6, pair_noise=0.02, own_noise=0.01, point_noise=0.006
    ),
    "kinds alike, by intercepts of models": CurveWorld(multiplier=1.0),
    "multipliers that differ between models": CurveWorld(model_multipliers=0.05),
    "curves of a seed share an error": CurveWorld(seed_noise=0.003),
}
PAIRS = (3, 4, 8, 12, 20)


def curve_study(
    worlds: Mapping[str, CurveWorld] = CURVE_WORLDS,
    pairs: Sequence[int] = PAIRS,
    methods: Sequence[str] = (CURVES, LINE),
    *,
    num_studies: int = 500,
    seed: int = 0,
) -> Iterator[CoverageRow]:
    """The lines of the table, each number of pairs of runs on studies of its own, the same ones for both methods."""
    for (name, world), num_pairs in product(worlds.items(), pairs):
        rng = np.random.default_rng([seed, num_pairs])
        studies = [world.simulate(num_pairs, rng) for _ in range(num_studies)]
        for method in methods:
            bounds = [_curve_bounds(own) if method == CURVES else line_bounds(own) for own in studies]
            low, high = np.array([each or (np.nan, np.nan) for each in bounds]).T
            known = np.isfinite(low)
            true = float(np.log10(world.multiplier))
            held = float(((low <= true) & (true <= high))[known].mean()) if known.any() else None
            width = float(np.median((high - low)[known])) if known.any() else None
            found = float(((low > FLAT) | (high < -FLAT)).mean())
            yield CoverageRow(name, method, num_pairs, QUANTITY, num_studies, int(known.sum()), held, width, found)


def _curve_bounds(pairs: Sequence[CurvePair]) -> tuple[float, float] | None:
    found = EqualModel.of(pairs)
    if found is None or found.compute.interval is None:
        return None
    low, high = np.log10(found.compute.interval).tolist()
    return low, high
