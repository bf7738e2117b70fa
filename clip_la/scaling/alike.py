"""Whether runs of one size, or of one seed, miss a law together: its intervals take runs for independent of each other.

A rate that suits one size better, or a law that is no power law, moves all runs of a size; with four sizes and five
seeds that is four errors, not twenty. Intervals clustered by run then hold the truth in 70 to 90 of 100 studies, not 95
(results/scaling_coverage.csv). Arrays in, numbers out; numpy and scipy only.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.special import fdtrc

from clip_la.scaling.points import Point

# One study in twenty without such an effect is warned of as well.
LEVEL = 0.05


def shared_misfit(
    log10_compute: Float[np.ndarray, " points"],
    response: Float[np.ndarray, " points"],
    runs: Int[np.ndarray, " points"],
    groups: Sequence[object],
    beside: Sequence[object] = (),
) -> float | None:
    """The p-value of no error in common to the runs of a group, by an F test against a line with a step a group.

    Args:
        response: log10 error, or the log10 ratio of two kinds' errors.
        runs: each point's run; a run counts once, by the mean of its points.
        groups: what each point's run shares with others: its model, or its seed.
        beside: what else it shares, of which each value may have a step of its own; not asked about.

    Returns None where the runs cannot tell: no group has several, or too few are left over.
    """
    names, first, own = np.unique(runs, return_index=True, return_inverse=True)
    sizes = np.bincount(own)
    x, y = np.bincount(own, log10_compute) / sizes, np.bincount(own, response) / sizes

    def steps_of(values: Sequence[object]) -> Float[np.ndarray, "runs values"]:
        labels = [values[i] for i in first]
        return np.array([[label == each for each in dict.fromkeys(labels)] for label in labels], float)

    steps = steps_of(groups)
    line = np.stack([np.ones(len(names)), x - x.mean()], axis=1)
    if beside:
        line = np.concatenate([line, steps_of(beside)], axis=1)
    left = []
    for design in (line, np.concatenate([line, steps], axis=1)):
        # Without scales the rank hangs on rounding: runs of a size have the same compute, or nearly.
        solved, _, rank, _ = np.linalg.lstsq(design, y, rcond=1e-6)
        left.append((float(((y - design @ solved) ** 2).sum()), int(rank)))
    (before, few), (after, many) = left
    if many == few or len(names) - many < 2:
        return None
    within = max(after / (len(names) - many), 1e-30)
    return float(fdtrc(many - few, len(names) - many, max(before - after, 0.0) / (many - few) / within))


def groups_of(points: Sequence[Point]) -> dict[str, list[object]]:
    """What runs may have in common, name -> its value for each point: model, tokens and options, and the seed."""
    # Runs whose seed nobody wrote down share none.
    seeds: list[object] = [point.run if point.seed is None else point.seed for point in points]
    return {"model": [(point.model, point.tokens, point.options) for point in points], "seed": seeds}


def alike_groups(
    log10_compute: Float[np.ndarray, " points"],
    response: Float[np.ndarray, " points"],
    runs: Int[np.ndarray, " points"],
    groups: Mapping[str, Sequence[object]],
) -> dict[str, float]:
    """The names of `groups` whose runs miss the law together, with the p-value of `shared_misfit` below LEVEL."""
    found = {name: shared_misfit(log10_compute, response, runs, values) for name, values in groups.items()}
    return {name: p_value for name, p_value in found.items() if p_value is not None and p_value < LEVEL}


def misfit_notes(subject: str, misfits: Mapping[str, float]) -> list[str]:
    """A warning for a person for each of `misfits`."""
    return [
        f"{subject}: runs of one {name} miss the law together (p = {p_value:.2g}); its intervals, which take runs for "
        "independent, are too narrow"
        for name, p_value in misfits.items()
    ]
