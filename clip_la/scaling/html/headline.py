"""The answer in words: the compute multiplier and the exponents' difference, or what the data cannot carry."""

from clip_la.scaling.analysis import Analysis
from clip_la.scaling.bootstrap import Interval
from clip_la.scaling.comparison import Comparison
from clip_la.scaling.report import number, sentence


def headlines(analysis: Analysis) -> list[str]:
    """A sentence for each comparison with the baseline; where there is none, one that says why.

    Numbers and intervals are those of `Comparison`. A quantity without an interval is called a guess, never given a
    band; an interval that holds "no difference" is said to.
    """
    if analysis.comparisons:
        return [_said(found) for found in analysis.comparisons]
    fit = analysis.fits[0]
    law = f"error falls as C^{number(fit.law.alpha, fit.alpha_interval, '.4f')} for {fit.name}"
    return [f"The data compare no two kinds over paired runs; {law}."]


def _said(found: Comparison) -> str:
    over = f"over {found.num_pairs} pairs of points of {found.num_runs} pairs of runs"
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
        verdicts = [_verdict("multiplier", middle.interval, 1.0), _verdict("difference", found.alpha_difference_interval, 0.0)]
        told = "; ".join(each for each in verdicts if each)
        return f"{sentence(found, '.3g')} {told[0].upper() + told[1:]}."
    parts = [
        f"a compute multiplier (the points alone say {middle.value:.3g})" if middle.interval is None else "",
        f"a difference of exponents (the points alone say {found.alpha_difference:+.4f})"
        if found.alpha_difference_interval is None
        else "",
    ]
    lacking = " and for ".join(part for part in parts if part)
    carried = [
        f"at equal error it needs {number(middle.value, middle.interval, '.3g')} times the compute" if middle.interval else "",
        f"its exponent differs by {number(found.alpha_difference, found.alpha_difference_interval, '+.4f')}"
        if found.alpha_difference_interval
        else "",
        ratio,
    ]
    known = ", ".join(part for part in carried if part)
    return f"{found.name} against {found.baseline}, {over}: {known}. The data carry no interval for {lacking}."


def _verdict(what: str, bounds: Interval, none: float) -> str:
    """Whether an interval holds the value of no difference."""
    if bounds[0] <= none <= bounds[1]:
        return f"the data do not tell the {what} from {none:g}"
    return f"the {what} is told from {none:g}"
