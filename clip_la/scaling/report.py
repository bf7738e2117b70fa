"""An analysis as text for a person and as plain data for a script."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from clip_la.errors import counted
from clip_la.scaling.analysis import Analysis
from clip_la.scaling.bootstrap import CONFIDENCE, Interval
from clip_la.scaling.comparison import Comparison
from clip_la.scaling.equal_model import EqualModel
from clip_la.scaling.joint import best
from clip_la.scaling.paired import T
from clip_la.scaling.points import AXES, Selection
from clip_la.scaling.rows import is_loss
from clip_la.scaling.series_fit import SeriesFit
from clip_la.scaling.table import Table

MAX_EXAMPLES = 3


def compute_label(selection: Selection) -> str:
    """What C is, with its unit; said wherever a compute stands."""
    if selection.axis == "compute":
        return f"forward {selection.compute_unit} a pair x samples seen"
    return AXES[selection.axis][1]


def error_label(selection: Selection) -> str:
    """What the error is: a loss itself, or 1 - metric."""
    return selection.metric if is_loss(selection.metric) else f"1 - {selection.metric}"


def _bounds(bounds: Interval | None) -> list[float] | None:
    return None if bounds is None else list(bounds)


def comparison_data(found: Comparison, axis: str = "compute") -> dict[str, Any]:
    """One paired comparison as plain data."""
    return {
        "name": found.name,
        "baseline": found.baseline,
        "n_pairs": found.num_pairs,
        "n_runs": found.num_runs,
        "n_best_of_several": found.num_repeated,
        "error_ratio": found.error_ratio,
        "error_ratio_interval": _bounds(found.error_ratio_interval),
        "alpha_difference": found.alpha_difference,
        "alpha_difference_interval": _bounds(found.alpha_difference_interval),
        "sentence": sentence(found, axis=axis),
        "difference_p_value": found.difference_p_value,
        "compute_multipliers": [each.data() for each in found.multipliers],
        "compute_multiplier_at_one_exponent": found.shared_multiplier.data() if found.shared_multiplier else None,
        "at_equal_model": found.equal_model.data() if found.equal_model else None,
        "joint_fits": [
            {
                "shared": list(fit.shared),
                "parameters": [dict(own) for own in fit.parameters],
                "aicc": fit.aicc if math.isfinite(fit.aicc) else None,
                "p_value": fit.p_value,
            }
            for fit in found.shared
        ],
    }


def to_data(analysis: Analysis) -> dict[str, Any]:
    """The analysis as plain data: what `clip-la scaling fit --json` prints."""
    selection = analysis.selection
    return {
        "law": "error = beta * compute ** alpha",
        "target": selection.target,
        "metric": selection.metric,
        "compute": compute_label(selection),
        "by": analysis.by,
        "frontier": analysis.frontier,
        "confidence": CONFIDENCE,
        "method": analysis.method,
        "resamples": analysis.num_resamples,
        "seed": analysis.seed,
        "fits": [fit.data() for fit in analysis.fits],
        "comparisons": [comparison_data(found, selection.axis) for found in analysis.comparisons],
        "left_out": [asdict(item) for item in selection.left_out],
        "notes": list(analysis.notes),
    }


def number(value: float, bounds: Interval | None, digits: str) -> str:
    """`value [low, high]`, or `value [no interval]`."""
    inside = "no interval" if bounds is None else f"{bounds[0]:{digits}}, {bounds[1]:{digits}}"
    return f"{value:{digits}} [{inside}]"


def _fits_table(fits: Sequence[SeriesFit], loss: bool) -> Table:
    header = ("", "alpha", "beta", "points", "fitted", "runs", "mean abs. error", "largest: predicted, measured")
    rows = []
    for fit in fits:
        held_out = fit.held_out
        rows.append(
            (
                fit.name,
                number(fit.law.alpha, fit.alpha_interval, ".4f"),
                number(fit.law.beta, fit.beta_interval, ".4g"),
                str(len(fit.points)),
                str(len(fit.fitted)),
                str(fit.num_runs),
                f"{fit.mean_absolute_error:.3g}" if loss else f"{100 * fit.mean_absolute_error:.2f} %",
                "too few points" if held_out is None else held_out.text(),
            )
        )
    return Table(header, tuple(rows))


# What a multiplier multiplies, by the axis that errors are fitted in.
MULTIPLIED = {"compute": "compute", "samples": "samples", "gpu-seconds": "GPU-seconds"}


def sentence(found: Comparison, digits: str = ".2f", axis: str = "compute") -> str | None:
    """The comparison in a sentence, None where there is neither a multiplier nor a difference."""
    if found.alpha_difference is None or not found.multipliers:
        return None
    middle = found.multipliers[0]
    compute = number(middle.value, middle.interval, digits)
    exponent = number(found.alpha_difference, found.alpha_difference_interval, "+.4f")
    return (
        f"At equal error {found.name} needs {compute} times {found.baseline}'s {MULTIPLIED[axis]}, and its "
        f"exponent differs by {exponent}."
    )


def equal_model_text(found: EqualModel, axis: str) -> str:
    """The multiplier at equal model with its interval, what it is of, and what it is made of."""
    times = f"{number(found.compute.value, found.compute.interval, '.3f')} times the {MULTIPLIED[axis]}"
    if axis != "samples":
        times += f", {number(found.samples.value, found.samples.interval, '.3f')} times the samples"
    low, high = found.errors
    pairs = counted(found.num_pairs, "pair of curves", "pairs of curves")
    return f"{times} (at errors from {low:.3g} to {high:.3g}; {pairs} of {counted(found.num_models, 'model')})"


def _comparison_lines(found: Comparison, axis: str) -> list[str]:
    said = sentence(found, axis=axis)
    pairs, runs = counted(found.num_pairs, "pair"), counted(found.num_runs, "pair of runs", "pairs of runs")
    lines = [
        *([said] if said else []),
        f"{found.name} against {found.baseline}: {pairs} of {runs}",
        f"  error ratio           {number(found.error_ratio, found.error_ratio_interval, '.4f')}",
    ]
    if found.num_repeated:
        lines.append(f"  several runs alike in {found.num_repeated} places: the best of each was taken")
    if found.equal_model is not None:
        lines.append(f"  at equal model        {equal_model_text(found.equal_model, axis)}")
    if found.alpha_difference is None:
        return [*lines, "  too few pairs for a difference of exponents"]
    difference = number(found.alpha_difference, found.alpha_difference_interval, "+.4f")
    chance = "" if found.difference_p_value is None else f", p = {found.difference_p_value:.3g}"
    lines.append(f"  difference of alpha   {difference}{chance}")
    for each in found.multipliers:
        multiplier = number(each.value, each.interval, ".3f")
        lines.append(f"  compute multiplier    {multiplier} at the baseline's error of {each.error:.3g}")
    if found.shared_multiplier is not None:
        multiplier = number(found.shared_multiplier.value, found.shared_multiplier.interval, ".3f")
        lines.append(f"  at one exponent       {multiplier} at any error")
    if found.shared:
        # AICc over the best one's, and what the likelihood ratio says against separate laws.
        least = best(found.shared).aicc
        parts = []
        for fit in found.shared:
            above = f"+{fit.aicc - least:.1f}" if math.isfinite(fit.aicc - least) else "too few points"
            chance = "" if fit.p_value is None else f", p = {fit.p_value:.2g}"
            parts.append(f"{JOINT_NAMES[fit.shared]} {above}{chance}")
        lines.append(f"  AICc over the best    {'; '.join(parts)}")
    if not found.multipliers:
        lines.append("  no compute multiplier: no error that both reach on a falling law")
    return lines


JOINT_NAMES = {(): "separate laws", ("alpha",): "one exponent", ("alpha", "log10_beta"): "one law"}


def how(analysis: Analysis) -> str:
    """By what means the intervals were made; none is corrected for the others beside it."""
    if analysis.method == T:
        return "[95 % intervals, each by itself, by Student's t, errors clustered by run]"
    return f"[95 % intervals, each by itself, from {analysis.num_resamples} resamples of runs, {analysis.method}]"


def to_text(analysis: Analysis) -> str:
    """The analysis for a person: fits, comparisons, which points entered, which did not and why."""
    selection = analysis.selection
    lines = [
        f"error = beta C^alpha on {selection.target}, error = {error_label(selection)},",
        f"C = {compute_label(selection)}; points: {analysis.frontier};",
        how(analysis),
        "",
        _fits_table(analysis.fits, is_loss(selection.metric)).text(),
        "",
    ]
    if analysis.comparisons:
        lines.append("paired runs (alike in all but the kind), kind over baseline:")
        for found in analysis.comparisons:
            lines += _comparison_lines(found, selection.axis)
        lines.append("")
    lines += entered_lines(selection)
    lines += [f"note: {note}" for note in analysis.notes]
    return "\n".join(lines)


def entered_lines(selection: Selection) -> list[str]:
    """How many points entered, and which records did not: a few of each reason."""
    lines = [f"{counted(len(selection.points), 'point')} entered, {len(selection.left_out)} left out"]
    for reason, count in selection.reasons():
        lines.append(f"  {count} x {reason}")
        alike = [item for item in selection.left_out if item.reason == reason]
        lines += [f"      {item.what}, {item.where}" for item in alike[:MAX_EXAMPLES]]
        if count > MAX_EXAMPLES:
            lines.append(f"      and {count - MAX_EXAMPLES} more (all with --json)")
    return lines
