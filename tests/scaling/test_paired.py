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


def with_options(lines: list[dict], *, recorded: bool) -> list[dict]:
    """Each run once more with half of its patches: 0.6 of the FLOPs, and lucky by a tenth of its error."""
    halved = []
    for line in lines:
        error = 0.9 * (1 - line["metrics"]["top1"]["value"])
        changes = {"run_id": f"{line['run_id']}-halved", "flops_per_sample": 0.6 * line["flops_per_sample"]}
        halved.append({**line, **changes, "metrics": {"top1": {"value": 1 - error}}})
        halved[-1] |= {"patch_dropout": 0.5} if recorded else {}
    return [*lines, *halved]


def test_runs_of_other_flops_are_pairs_of_their_own(write_lines, two_laws) -> None:
    (plain,) = analyse(result_points([write_lines(two_laws)])).comparisons
    analysis = analyse(result_points([write_lines(with_options(two_laws, recorded=True))]))
    (found,) = analysis.comparisons
    assert (found.num_pairs, found.num_runs, found.num_repeated) == (24, 24, 0)
    # Each kind's halved runs are as lucky: the kinds' ratio is that of the runs on all patches.
    assert found.error_ratio == pytest.approx(plain.error_ratio)
    said = "runs of softmax differ in patch_dropout (0.5, or none set): one law is fitted to all of them"
    assert said in analysis.notes


def test_where_no_column_tells_runs_of_other_flops_apart_they_are_in_no_pair(write_lines, two_laws) -> None:
    lines = with_options(two_laws, recorded=False)
    # Of one place of softmax alone there is no second run; what rounding leaves is a repeat.
    alone = [line for line in lines if line["run_id"] != "vit_nano-softmax-0-30011-halved"]
    analysis = analyse(result_points([write_lines(alone)]))
    assert analysis.comparisons == ()
    why = "runs of several FLOPs a pair, by what no column says: they are in no pair"
    assert f"11 places of softmax hold {why}" in analysis.notes
    assert f"12 places of linear hold {why}" in analysis.notes
    near = [{**line, "flops_per_sample": line["flops_per_sample"] * (1 + 1e-9)} for line in two_laws]
    again = [{**line, "run_id": f"{line['run_id']}-again"} for line in near]
    (found,) = analyse(result_points([write_lines([*two_laws, *again])])).comparisons
    assert (found.num_pairs, found.num_repeated) == (12, 24)
