"""What the points of a study show, and what they do not, in one sentence without a number."""

from clip_la.scaling.analysis import Analysis
from clip_la.scaling.bootstrap import MIN_RUNS
from clip_la.scaling.comparison import Comparison
from clip_la.scaling.report import error_label

LEVEL = 0.05


def verdict(analysis: Analysis) -> str:
    """The sentence: whether errors fall, and whether exponents or compute at equal error are told apart.

    A difference counts as shown where its 95 % interval leaves out that there is none; where several kinds are compared
    the p-value of the exponents has to be below 5 % over their number (Bonferroni). Where nothing is shown it says how
    many runs a kind would be needed. Numbers are left to the tables, so that seeds that agree say the same.
    """
    falling = [fit.name for fit in analysis.fits if fit.alpha_interval and fit.alpha_interval[1] < 0]
    what = error_label(analysis.selection)
    least = min(fit.num_runs for fit in analysis.fits)
    runs = f"{least} run{'' if least == 1 else 's'} of each kind" if len(analysis.fits) > 1 else f"{least} runs"
    if not falling:
        shown = f"From {runs} nothing is shown, not even that {what} falls with compute"
    else:
        unlike = [fit.name for fit in analysis.fits if fit.name not in falling]
        rest = f", not for {_listed(unlike)}" if unlike else ""
        shown = f"From {runs} it is shown that {what} falls with compute for {_listed(falling)}{rest}"
    apart, alike = [], []
    for found in analysis.comparisons:
        ways = _differences(found, len(analysis.comparisons))
        if ways:
            apart.append(f"that {found.name} differs from {found.baseline} in {' and '.join(ways)}")
        else:
            alike.append(found.name)
    shown += "".join(f", and {each}" for each in apart)
    if not alike:
        return f"{shown}."
    baseline = analysis.comparisons[0].baseline
    more = f": {MIN_RUNS} paired runs may tell" if least < MIN_RUNS else ""
    return (
        f"{shown}; it is not shown whether {_listed(alike, 'or')} differs from {baseline} in its exponent or in the "
        f"compute it needs for an equal error{more}."
    )


def _listed(names: list[str], last: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def _differences(found: Comparison, num_comparisons: int) -> list[str]:
    """In what two kinds differ by more than chance."""
    ways = []
    bounds, p_value = found.alpha_difference_interval, found.difference_p_value
    if bounds and not bounds[0] <= 0 <= bounds[1] and (p_value is None or p_value < LEVEL / num_comparisons):
        ways.append("its exponent")
    multiplier = found.multipliers[0].interval if found.multipliers else None
    if multiplier and not multiplier[0] <= 1 <= multiplier[1]:
        ways.append("the compute it needs for an equal error")
    return ways
