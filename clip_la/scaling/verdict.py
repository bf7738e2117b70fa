"""What the points of a study show, and what they do not, in a sentence or two."""

from clip_la.scaling.analysis import Analysis
from clip_la.scaling.bootstrap import MIN_RUNS
from clip_la.scaling.cautions import MAX_REPEATS
from clip_la.scaling.comparison import Comparison
from clip_la.scaling.paired import ERROR, EXPONENT, MULTIPLIER
from clip_la.scaling.report import MULTIPLIED, error_label, number


def verdict(analysis: Analysis) -> str:
    """A sentence: whether errors fall, and whether exponents, compute or errors differ beyond chance.

    What counts as a difference is `PairedIntervals.differ_in`'s to say: corrected for the number of kinds compared, for
    exponents, multipliers and errors alike; where there are several kinds a second sentence says so. The correction is
    for this analysis: another metric, data set or baseline is another one, and gets a verdict of its own. Where nothing
    is shown it says how many runs a kind would be needed; where runs miss a law together (see `alike`) it says that
    intervals are too narrow. What was measured is left to the tables, so that seeds that agree say the same; where the
    compute differs at equal model, which needs no law, a sentence says how much.
    """

    def listed(names: list[str], last: str = "and") -> str:
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"

    def differences(found: Comparison) -> list[str]:
        words = {
            EXPONENT: "its exponent",
            MULTIPLIER: "the compute it needs for an equal error",
            ERROR: f"its error at equal model and samples ({'less' if found.error_ratio < 1 else 'more'})",
        }
        return [words[name] for name in found.differs_in]

    falling = [fit.name for fit in analysis.fits if fit.alpha_interval and fit.alpha_interval[1] < 0]
    unlike = [fit.name for fit in analysis.fits if fit.name not in falling]
    least, most = (pick(fit.num_runs for fit in analysis.fits) for pick in (min, max))
    counts = f"{least}" if least == most else f"{least} to {most}"
    runs = f"{counts} run{'' if most == 1 else 's'}" + (" of each kind" if len(analysis.fits) > 1 else "")
    falls = f"that {error_label(analysis.selection)} falls with compute"
    if falling:
        rest = f", not for {listed(unlike)}" if unlike else ""
        shown = f"From {runs} it is shown {falls} for {listed(falling)}{rest}"
    else:
        shown = f"From {runs} it is not shown {falls}"
    # On pairs that were seen again and again a loss on others may rise while the model still learns.
    repeats = max((point.passes or 0.0 for fit in analysis.fits for point in fit.points), default=0.0)
    if repeats > MAX_REPEATS:
        shown += f" (on pairs seen up to {repeats:.0f} times)"
    ways = {found.name: differences(found) for found in analysis.comparisons}
    joint = ", and" if falling else "; it is shown"
    for found in analysis.comparisons:
        if ways[found.name]:
            shown += f"{joint} that {found.name} differs from {found.baseline} in {listed(ways[found.name])}"
            if found.misfits:
                together = f"runs of one {listed([*found.misfits], 'or')} miss the law together"
                shown += f" (by intervals that are too narrow: {together})"
            joint = ", and"
    equal = {c.name: c.equal_model.compute for c in analysis.comparisons if c.equal_model and c.equal_model.differs}
    alike = [name for name, own in ways.items() if not own and name not in equal]
    if alike:
        more = f": {MIN_RUNS} paired runs may tell" if least < MIN_RUNS else ""
        shown += (
            f"; it is not shown whether {listed(alike, 'or')} differs from {analysis.comparisons[0].baseline} in its "
            f"exponent, in the compute it needs for an equal error or in its error at equal model and samples{more}"
        )
    if equal:
        times = [f"{name} needs {number(own.value, own.interval, '.2f')}" for name, own in equal.items()]
        baseline, multiplied = analysis.comparisons[0].baseline, MULTIPLIED[analysis.selection.axis]
        shown += f". At equal model and error {listed(times)} times {baseline}'s {multiplied}"
    judged = f" Differences are judged at 95 % over the {len(ways)} kinds together." if len(ways) > 1 else ""
    return f"{shown}.{judged}"
