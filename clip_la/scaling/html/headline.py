"""The answer in words: the compute multiplier and the exponents' difference, or what the data cannot carry."""

from clip_la.scaling.analysis import Analysis
from clip_la.scaling.bootstrap import Interval
from clip_la.scaling.comparison import Comparison
from clip_la.scaling.report import MULTIPLIED, number, sentence


def headlines(analysis: Analysis) -> list[str]:
    """A sentence for each comparison with the baseline; where there is none, one that says why.

    Numbers and intervals are those of `Comparison`. A quantity without an interval is called a guess, never given a
    band; an interval that holds "no difference" is said to.
    """
    if analysis.comparisons:
        return [_said(found, analysis.selection.axis) for found in analysis.comparisons]
    fit = analysis.fits[0]
    law = f"error falls as C^{number(fit.law.alpha, fit.alpha_interval, '.4f')} for {fit.name}"
    return [f"The data compare no two kinds over paired runs; {law}."]


def _said(found: Comparison, axis: str) -> str:
    runs = f"{found.num_runs} {'pair' if found.num_runs == 1 else 'pairs'} of runs"
    over = f"over {found.num_pairs} pairs of points of {runs}"
    ratio = f"its error is {number(found.error_ratio, found.error_ratio_interval, '.3f')} times as large"
    if found.alpha_difference is None:
        return (
            f"{found.name} against {found.baseline}, {over}: {ratio}. The pairs are too few for a difference of "
            "exponents or a compute multiplier."
        )
    if not found.multipliers:
        exponent = number(found.alpha_difference, found.alpha_difference_interval, "+.4f")
        return (
            f"{found.name} against {found.baseline}, {over}: {ratio}, and its exponent differs by {exponent}. There is "
            "no compute multiplier: no error that both reach on a falling law."
        )
    middle = found.multipliers[0]
    if middle.interval is not None and found.alpha_difference_interval is not None:
        verdict = _verdict({"the multiplier": middle.interval, "the exponents": found.alpha_difference_interval})
        return f"{sentence(found, '.3g', axis)} {verdict}"
    parts = [
        f"a compute multiplier (the points alone say {middle.value:.3g})" if middle.interval is None else "",
        f"a difference of exponents (the points alone say {found.alpha_difference:+.4f})"
        if found.alpha_difference_interval is None
        else "",
    ]
    lacking = " and for ".join(part for part in parts if part)
    carried = [
        f"at equal error it needs {number(middle.value, middle.interval, '.3g')} times the {MULTIPLIED[axis]}"
        if middle.interval
        else "",
        f"its exponent differs by {number(found.alpha_difference, found.alpha_difference_interval, '+.4f')}"
        if found.alpha_difference_interval
        else "",
        ratio,
    ]
    known = ", ".join(part for part in carried if part)
    return f"{found.name} against {found.baseline}, {over}: {known}. The data carry no interval for {lacking}."


def _verdict(bounds: dict[str, Interval]) -> str:
    """Which differences are significant at 5 %: the interval does not hold the value of none (1 of a ratio, else 0)."""
    holds = {what: ends[0] <= (1.0 if "multiplier" in what else 0.0) <= ends[1] for what, ends in bounds.items()}
    if all(holds.values()):
        return "Neither differs significantly (95 % intervals)."
    apart = " and ".join(what for what, held in holds.items() if not held)
    alike = "".join(f"; {what} not" for what, held in holds.items() if held)
    return f"Significant at 5 %: {apart}{alike}."
