"""Claims that kinds differ, over simulated studies: how often of kinds that are alike, and of one that is not."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from clip_la.scaling.analysis import analyse
from clip_la.scaling.bootstrap import Pairs
from clip_la.scaling.paired import ERROR, EXPONENT, METHODS, MULTIPLIER, How, PairedIntervals, confidence_of_each
from clip_la.scaling.results import result_points

NUM_RUNS, NUM_KINDS = 12, 4
QUANTITIES = {EXPONENT, MULTIPLIER, ERROR}
BY_T = How.of("all", 5, "t", 2000, 0)


def studies(num: int, *, exponent: float = 0.0, error: float = 0.0) -> Iterator[list[Pairs]]:
    """Pairs of each kind with the baseline, all on E = beta C^-0.1; the last kind with what is planted in log10 E.

    Noise as runs of one recipe have it: 1.4 % of the error that all runs of a seed share, 0.7 % of each run.
    """
    rng = np.random.default_rng(5)
    x = np.resize(np.linspace(12, 14.5, 4), NUM_RUNS)
    planted = error + exponent * (x - x.mean())
    for _ in range(num):
        shared = -0.2 - 0.1 * (x - x.mean()) + rng.normal(0, 0.006, NUM_RUNS)
        first, *others = shared + rng.normal(0, 0.003, (NUM_KINDS + 1, NUM_RUNS))
        others[-1] = others[-1] + planted
        compute = 10 ** np.stack([x, x], axis=1)
        yield [Pairs(compute, 10 ** np.stack([first, own], axis=1), np.arange(NUM_RUNS)) for own in others]


def shares(num_compared: int, num_studies: int) -> dict[str, float]:
    """In which share of studies of kinds that are alike one at least is said to differ, by quantity."""
    claims: Counter[str] = Counter()
    for pairs in studies(num_studies):
        claims.update({name for own in pairs for name in PairedIntervals(own, BY_T).differ_in(num_compared)})
    return {name: claims[name] / num_studies for name in QUANTITIES}


def test_four_kinds_that_are_alike_differ_in_5_of_100_studies_for_each_quantity() -> None:
    corrected, alone = shares(NUM_KINDS, 500), shares(1, 150)
    for name in QUANTITIES:
        assert 0.01 < corrected[name] < 0.06, corrected
        # What the correction is for.
        assert alone[name] > 0.1, alone


def test_a_planted_difference_is_found_among_four_kinds() -> None:
    for planted, names in (({"error": 0.008}, {MULTIPLIER, ERROR}), ({"exponent": 0.01}, {EXPONENT})):
        found: Counter[str] = Counter()
        for pairs in studies(100, **planted):
            found.update(PairedIntervals(pairs[-1], BY_T).differ_in(NUM_KINDS))
        assert {name for name in QUANTITIES if found[name] > 80} == names, found


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_corrected_alike(method: str) -> None:
    how = How.of("all", 5, method, 4000, 0)
    for found in (PairedIntervals(pairs[-1], how) for pairs in studies(3)):
        for own in (found.difference, found.error_ratio, lambda level, of=found: of.multiplier(of.middle, level)):
            narrow, wide = own(0.95), own(confidence_of_each(NUM_KINDS))
            assert narrow
            assert wide
            assert wide[0] < narrow[0] < narrow[1] < wide[1]
    small = [PairedIntervals(pairs[-1], how) for pairs in studies(25, error=0.0025, exponent=0.003)]
    alone, corrected = (Counter(name for found in small for name in found.differ_in(num)) for num in (1, NUM_KINDS))
    for name in QUANTITIES:
        assert 0 < corrected[name] < alone[name], (alone, corrected)


def test_a_level_beyond_the_resamples_claims_nothing() -> None:
    (pairs,) = studies(1, error=0.05, exponent=0.05)
    for num_resamples, names in ((2000, set()), (40_000, QUANTITIES)):
        how = How.of("all", 5, "percentile", num_resamples, 0)
        assert set(PairedIntervals(pairs[-1], how).differ_in(10)) == names


def test_too_few_resamples_are_said(write_lines, two_laws) -> None:
    points = result_points([write_lines(two_laws)])
    for num_resamples, num_notes in ((20, 1), (2000, 0)):
        notes = analyse(points, method="percentile", num_resamples=num_resamples).notes
        said = f"{num_resamples} resamples are too few to judge the differences of 1 kind: give more"
        assert notes.count(said) == num_notes
