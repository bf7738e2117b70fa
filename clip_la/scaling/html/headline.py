"""The answer in words: the compute multiplier and the exponents' difference, or what the data cannot carry."""

from clip_la.errors import counted
from clip_la.scaling.analysis import Analysis
from clip_la.scaling.comparison import Comparison
from clip_la.scaling.report import MULTIPLIED, number, sentence


def headlines(analysis: Analysis) -> list[str]:
    """A sentence for each comparison with the baseline; where there is none, one that says so and gives the exponent.

    Numbers and intervals are those of `Comparison`, 95 % each by itself (`verdict` judges all kinds together). A
    quantity without an interval is given as what the points alone say; an interval that includes the value of no
    difference (multiplier 1, exponents 0 apart) is pointed out.
    """
    axis = analysis.selection.axis
    if analysis.comparisons:
        return [_said(found, axis) + _at_equal_model(found, axis) for found in analysis.comparisons]
    fit = analysis.fits[0]
    exponent = number(fit.law.alpha, fit.alpha_interval, ".4f")
    return [f"The data compare no two kinds over paired runs; the exponent of {fit.name} is {exponent}."]


def _at_equal_model(found: Comparison, axis: str) -> str:
    if found.equal_model is None:
        return ""
    compute, samples = found.equal_model.compute, found.equal_model.samples
    times = f"{number(compute.value, compute.interval, '.3g')} times the {MULTIPLIED[axis]}"
    if axis != "samples":
        times += f" and {number(samples.value, samples.interval, '.3g')} times the samples"
    return f" At equal model and error it needs {times}."


def _said(found: Comparison, axis: str) -> str:
    quantity = MULTIPLIED[axis]
    multiplier = found.multipliers[0] if found.multipliers else None
    within = multiplier.interval if multiplier else None
    apart = found.alpha_difference_interval
    if within and apart:
        equal, parallel = within[0] <= 1 <= within[1], apart[0] <= 0 <= apart[1]
        if equal and parallel:
            verdict = "The intervals include 1 and 0: no difference is shown."
        else:
            ways = ["includes" if each else "excludes" for each in (equal, parallel)]
            verdict = f"The multiplier's interval {ways[0]} 1, the exponents' {ways[1]} 0."
        return f"{sentence(found, '.3g', axis)} {verdict}"
    known, lacking = [], []
    if multiplier and within:
        known.append(f"at equal error it needs {number(multiplier.value, within, '.3g')} times the {quantity}")
    elif multiplier:
        lacking.append(f"a {quantity} multiplier (the points alone say {multiplier.value:.3g})")
    if found.alpha_difference is not None and apart:
        known.append(f"its exponent differs by {number(found.alpha_difference, apart, '+.4f')}")
    elif found.alpha_difference is not None:
        lacking.append(f"a difference of exponents (the points alone say {found.alpha_difference:+.4f})")
    known.append(f"its error is {number(found.error_ratio, found.error_ratio_interval, '.3f')} times as large")
    points = counted(found.num_pairs, "pair of points", "pairs of points")
    runs = counted(found.num_runs, "pair of runs", "pairs of runs")
    text = f"{found.name} against {found.baseline}, over {points} of {runs}: {', '.join(known)}."
    if found.alpha_difference is None:
        return f"{text} The pairs are too few for a difference of exponents or a {quantity} multiplier."
    if not multiplier:
        text += f" There is no {quantity} multiplier: no error that both reach on a falling law."
    return f"{text} The data carry no interval for {' and for '.join(lacking)}." if lacking else text
