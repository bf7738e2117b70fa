"""Simulated studies with known laws: how often the intervals hold the truth, by method and number of runs.

A study is two kinds trained in pairs (same size, seed, data order) on E = beta C^alpha with errors in log10 E: one that
both runs of a pair share, one of each run, and one of each of its points where a run has several (branches).
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from clip_la.atomic import atomic_write
from clip_la.scaling.bootstrap import PairedBootstrap, Pairs, Statistic, log10_multiplier_at
from clip_la.scaling.fit import choose_all
from clip_la.scaling.intervals import Regression, contrast_interval, root_interval
from clip_la.scaling.paired import METHODS, MIN_MULTIPLIER_DEGREES, T

QUANTITIES = ("exponent", "difference", "multiplier")
# Kind 2 needs fewer FLOPs a pair, the more so the larger the run; log10.
CHEAPER = -0.03
SCALES, DECADES = 4, 2.5
BRANCHES_LOG10 = (0.0, -0.3, -0.6)
MIDDLE_LOG10_ERROR = -0.2


@dataclass(frozen=True)
class World:
    """The truth of a study: exponents, compute multiplier at the middle, standard deviations in log10 E."""

    alpha: tuple[float, float] = (-0.10, -0.105)
    multiplier: float = 1.15
    shared_noise: float = 0.006
    # 0.7 % of the error, as runs of one recipe differ by their seeds.
    own_noise: float = 0.003
    point_noise: float = 0.002
    branches: int = 1
    # How much more noise the smallest scale has than the largest, as a factor.
    uneven: float = 1.0
    # Degrees of freedom of Student's t, from which all noise is drawn with the spread above; None: normal.
    tails: float | None = None
    # What all runs of a scale, or of a seed (those at each scale once), have in common for each kind.
    scale_noise: float = 0.0
    seed_noise: float = 0.0

    @property
    def truths(self) -> dict[str, float]:
        """What the intervals should hold; the multiplier as its log10."""
        return {
            "exponent": self.alpha[1],
            "difference": self.alpha[1] - self.alpha[0],
            "multiplier": float(np.log10(self.multiplier)),
        }


# Quantity -> the interval that each study gives it; NaN where it gives none.
Coverage = dict[str, Float[np.ndarray, "studies 2"]]


@dataclass(frozen=True)
class Design:
    """Where the runs of a study lie: log10 compute, the pair of runs of each row, and the middle of the first kind."""

    log10_compute: Float[np.ndarray, "pairs 2"]
    units: Int[np.ndarray, " pairs"]
    middle: float

    @classmethod
    def of(cls, num_runs: int, world: World) -> "Design":
        """`num_runs` pairs of runs at four scales (or as many as there are runs) over two and a half decades."""
        scales = np.linspace(0, DECADES, min(num_runs, SCALES))
        start = np.repeat(np.resize(scales, num_runs), world.branches)
        x = start + np.tile(BRANCHES_LOG10[: world.branches], num_runs)
        both = np.stack([x, x + CHEAPER * (1 + start / DECADES)], axis=1)
        return cls(both, np.repeat(np.arange(num_runs), world.branches), float(x.mean()))

    def simulate(
        self, world: World, num_studies: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "studies pairs 2"]:
        """log10 errors of studies of this design."""
        x, num_runs = self.log10_compute, int(self.units.max()) + 1
        first = MIDDLE_LOG10_ERROR + world.alpha[0] * (x[:, 0] - self.middle)
        # At the middle both reach the same error with `multiplier` times the compute.
        second = MIDDLE_LOG10_ERROR + world.alpha[1] * (x[:, 1] - self.middle - np.log10(world.multiplier))
        larger = world.uneven ** (1 - (x[:, 0] - x[:, 0].min()) / np.ptp(x[:, 0]))

        def draw(spread: float, num: int, kinds: int = 2) -> np.ndarray:
            shape = (num_studies, num, kinds)
            if world.tails is None:
                return rng.normal(0, spread, shape)
            return rng.standard_t(world.tails, shape) * spread * np.sqrt(1 - 2 / world.tails)

        of_run = draw(world.shared_noise, num_runs, 1) + draw(world.own_noise, num_runs)
        point = draw(world.point_noise, len(x))
        # Runs go round the scales, one of each seed at each.
        seed, scale = np.divmod(np.arange(num_runs), SCALES)
        for spread, number in ((world.scale_noise, scale), (world.seed_noise, seed)):
            of_run = of_run + (draw(spread, int(number.max()) + 1)[:, number] if spread else 0.0)
        noise = of_run[:, self.units] + point
        return np.stack([first, second], axis=-1) + larger[:, None] * noise

    def t_bounds(self, log10_error: Float[np.ndarray, "studies pairs 2"]) -> Coverage:
        """Student's t intervals of all studies.

        They are of the second kind's exponent, the difference of exponents, and the log10 multiplier at the middle.
        """
        regression = Regression.of_pairs(self.log10_compute, self.units)
        response = np.concatenate([log10_error[..., 0], log10_error[..., 1]], axis=-1)
        constant, slope = (-1, -self.middle, 1, self.middle), (0, 0, 0, 1)
        root, multiplier = root_interval(regression, response, constant, slope)
        degrees = regression.degrees_of_freedom(np.array(constant) + root[:, None] * np.array(slope))
        return {
            "exponent": contrast_interval(regression, response, (0, 0, 0, 1)),
            "difference": contrast_interval(regression, response, (0, -1, 0, 1)),
            "multiplier": np.where((degrees >= MIN_MULTIPLIER_DEGREES)[:, None], multiplier, np.nan),
        }

    def resampled_bounds(
        self, log10_error: Float[np.ndarray, "studies pairs 2"], method: str, num_resamples: int
    ) -> Coverage:
        """The same by resampling pairs of runs, study by study."""
        statistics: dict[str, Statistic] = {
            "exponent": lambda laws: laws[:, 1, 1],
            "difference": lambda laws: laws[:, 1, 1] - laws[:, 0, 1],
            "multiplier": lambda laws: log10_multiplier_at(laws, self.middle),
        }
        bounds: dict[str, list[tuple[float, float]]] = {name: [] for name in QUANTITIES}
        for seed, errors in enumerate(log10_error):
            pairs = Pairs(10**self.log10_compute, 10**errors, self.units)
            found = PairedBootstrap.of(pairs, frontier=choose_all, num_resamples=num_resamples, seed=seed)
            for name in QUANTITIES:
                bounds[name].append(found.bounds(statistics[name], method) or (np.nan, np.nan))
        return {name: np.array(own) for name, own in bounds.items()}


@dataclass(frozen=True)
class CoverageRow:
    """One line of the table: how many studies got an interval, and which share of these held the truth.

    `median_width` is that of the interval, log10 for the multiplier; `found` the share of all studies whose interval
    leaves out that the kinds are alike (0, or a multiplier of 1).
    """

    world: str
    method: str
    runs: int
    quantity: str
    studies: int
    with_interval: int
    coverage: float | None
    median_width: float | None
    found: float | None

    @classmethod
    def of(cls, world_name: str, world: World, method: str, num_runs: int, bounds: Coverage) -> "Iterator[CoverageRow]":
        """The lines of one world, method and number of runs, one a quantity."""
        for name, true in world.truths.items():
            low, high = bounds[name].T
            known = np.isfinite(low)
            own = (world_name, method, num_runs, name, len(low), int(known.sum()))
            away = None if name == "exponent" else float(((low > 0) | (high < 0)).mean())
            if not known.any():
                yield cls(*own, None, None, away)
                continue
            held = (low[known] <= true) & (true <= high[known])
            yield cls(*own, float(held.mean()), float(np.median((high - low)[known])), away)


WORLDS = {
    "one point a run": World(),
    "three branches a run": World(branches=3),
    "noise three times larger at the small end": World(uneven=3.0),
    "much shared noise": World(shared_noise=0.02),
    "heavy tails, three branches a run": World(tails=3.0, branches=3),
}
# Where runs are not independent, which every method takes them for; `alike` warns of it.
DEPENDENT = {
    "runs of a scale share an error": World(scale_noise=0.003),
    "runs of a seed share an error": World(seed_noise=0.003),
}
RUNS = (3, 4, 8, 12, 20)


def study(
    worlds: Mapping[str, World] = WORLDS | DEPENDENT,
    runs: Sequence[int] = RUNS,
    methods: Sequence[str] = METHODS,
    *,
    num_studies: int = 500,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Iterator[CoverageRow]:
    """All lines of the table, each number of runs on studies of its own, the same ones for every method."""
    for (name, world), num_runs in product(worlds.items(), runs):
        design = Design.of(num_runs, world)
        errors = design.simulate(world, num_studies, np.random.default_rng([seed, num_runs]))
        for method in methods:
            by_t = method == T
            bounds = design.t_bounds(errors) if by_t else design.resampled_bounds(errors, method, num_resamples)
            yield from CoverageRow.of(name, world, method, num_runs, bounds)


def write_table(rows: Iterable[CoverageRow], path: Path) -> int:
    """Writes the lines as CSV; returns how many there are."""
    count = 0
    names = [each.name for each in fields(CoverageRow)]
    with atomic_write(path, "w") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            values = (getattr(row, name) for name in names)
            writer.writerow(["" if v is None else f"{v:.4g}" if isinstance(v, float) else v for v in values])
            count += 1
    return count
