"""The study's tables of laws: kinds at equal error, the largest scale by the smaller ones, predictions and outcomes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study_part import PAIRS, SOFTMAX, Part

from clip_la.errors import UserError
from clip_la.scaling.analysis import group_points
from clip_la.scaling.bootstrap import Interval
from clip_la.scaling.fit import SAME_COMPUTE_LOG10, HeldOut, get_frontier
from clip_la.scaling.form_analysis import DEFAULT_LOSS, FormSeries
from clip_la.scaling.forms import FORMS
from clip_la.scaling.prediction_record import Outcome, outcome_text, outcomes, read_record
from clip_la.scaling.report import number
from clip_la.scaling.table import Table, with_suffix

NONE = "–"


def multiplier_text(value: float, bounds: Interval | None) -> str:
    """A compute multiplier with its interval; in powers of ten where the slope may be nearly 0 and its end is huge."""
    return number(value, bounds, ".2f" if max((value, *(bounds or ()))) < 1000 else ".3g")


def comparisons_table(parts: Sequence[Part]) -> Table:
    """How many times its baseline's samples and compute each kind needs at equal error: at equal model, and by laws."""
    rows = []
    for part in parts:
        for found in (found for analysis in part.analyses for found in analysis.comparisons):
            # Against the control only what it controls.
            if found.baseline != SOFTMAX and (found.name, found.baseline) not in PAIRS:
                continue
            apart, equal = found.alpha_difference, found.equal_model
            middle = found.multipliers[0] if found.multipliers else None
            rows.append(
                (
                    part.title,
                    f"`{found.name}` / `{found.baseline}`",
                    f"{found.num_pairs} ({found.num_runs})",
                    number(found.error_ratio, found.error_ratio_interval, ".2f"),
                    multiplier_text(equal.samples.value, equal.samples.interval) if equal else NONE,
                    multiplier_text(equal.compute.value, equal.compute.interval) if equal else NONE,
                    f"{equal.num_pairs} ({equal.num_models})" if equal else NONE,
                    multiplier_text(middle.value, middle.interval) if middle else NONE,
                    NONE if apart is None else number(apart, found.alpha_difference_interval, "+.3f"),
                )
            )
    header = (
        *("error of", "kind / baseline", "pairs (of runs)", "error ratio"),
        *("samples, equal model", "compute, equal model", "pairs of curves (models)"),
        *("compute, one law of all models", "difference of exponents"),
    )
    return Table(header, tuple(rows))


def held_out_table(parts: Sequence[Part]) -> Table:
    """The error at the largest compute of each kind, and what three laws fitted to all smaller ones say of it."""
    form, choose_all = FORMS["parametric"], get_frontier("all")
    rows = []
    for part in parts:
        for kind, points in group_points(part.selection.points, "attention").items():
            compute, error = (np.array([getattr(point, name) for point in points]) for name in ("compute", "error"))
            found = [HeldOut.of(compute, error, get_frontier(name)) for name in ("all", "pareto")]
            # Tables of before have no number of parameters.
            if all(point.parameters for point in points):
                found.append(FormSeries.largest_held_out(form, points, choose_all, DEFAULT_LOSS["parametric"]))
            if not any(found):
                # A kind of a few points has no law, and nothing to predict from.
                continue
            said = [
                f"{each.predicted_error:.3g} ({round(100 * each.relative_error):+d} %)" if each else NONE
                for each in found
            ]
            largest = max(points, key=lambda point: point.compute)
            place = f"{largest.model}, {largest.samples_seen:,}"
            at_largest = error[np.log10(compute) > np.log10(compute.max()) - SAME_COMPUTE_LOG10]
            measured_there = f"{at_largest.mean():.3g} ({len(at_largest)})"
            rows.append((part.title, f"`{kind}`", place, measured_there, *said, *[NONE] * (3 - len(said))))
    header = (
        *("error of", "kind", "largest scale", "measured (runs)", "C^alpha, all points (off by)"),
        *("C^alpha, frontier (off by)", "L(N, D) (off by)"),
    )
    return Table(header, tuple(rows))


def predictions(parts: Sequence[Part]) -> str:
    """The records of predictions against what was measured since, as Markdown: a table for each data set and metric.

    Empty where there is no record. Raises UserError for a record of what no table holds.
    """
    by_title = {(part.selection.target, part.selection.metric): part for part in parts}
    grouped: dict[tuple[str, str], list[tuple[Path, dict[str, Any], list[Outcome]]]] = defaultdict(list)
    for path in sorted(Path().glob("prediction*.json")):
        made = read_record(path)
        key = made["target"], made["metric"]
        if key not in by_title:
            raise UserError(f"{path}: no table has {made['metric']} on {made['target']}")
        selection = by_title[key].selection
        try:
            # Points with an error of 0 or 1 lie on no law: where there are no others, nothing was measured for it.
            if selection.points:
                selection = selection.along(made["axis"])
            found = outcomes(made["predictions"], selection, made["by"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        print(f"{path}: {outcome_text(made, found)}")
        grouped[key].append((path, made, found))
    # In the order of the parts, as everywhere.
    return "\n\n".join(outcomes_text(by_title[key].title, grouped[key]) for key in by_title if key in grouped)


def outcomes_text(title: str, records: Sequence[tuple[Path, Mapping[str, Any], Sequence[Outcome]]]) -> str:
    """Records (file, record, outcomes) of one data set and metric: where from; a table, a row a run, a column a law."""
    laws: list[str] = []
    for path, made, _ in records:
        left, _, right = str(made.get("law", "an unnamed law")).partition(" = ")
        # "L(N, D) = ..." is known by its left side, "E = beta C^alpha" by its right.
        name = left if "(" in left or not right else right
        name += "" if made["axis"] == "compute" else f", C in {made['axis']}"
        frontier = made.get("frontier", "all")
        name += ", all points" if frontier == "all" else f", frontier {frontier}"
        # Two records of one law differ in what they were made from, and in the date.
        laws.append(f"{name} ({path.stem})" if name in laws else name)
    cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    measured: dict[tuple[str, str], str] = {}
    for law, (_, _, found) in zip(laws, records, strict=True):
        for each in found:
            run, bounds = each.prediction.run, each.prediction.interval
            place = f"{run.model}, {run.samples_seen:,}" if run.samples_seen else f"C = {with_suffix(run.compute)}"
            key = f"`{each.prediction.kind}`", place
            text = number(each.prediction.error, bounds, ".3g") if bounds else f"{each.prediction.error:.3g}"
            if each.measured is None or each.relative_error is None:
                measured[key] = "not yet"
            else:
                measured[key] = f"{each.measured:.3g} ({each.num_measured})"
                is_inside = bounds is None or bounds[0] <= each.measured <= bounds[1]
                text += f" ({round(100 * each.relative_error):+d} %{'' if is_inside else ', outside'})"
            cells[key][law] = text
    rows = [(*key, measured[key], *(own.get(law, NONE) for law in laws)) for key, own in cells.items()]
    lines = [f"{title}: the error that was predicted [95 % for one run] (off by; outside, if the interval misses it)."]
    for law, (path, made, _) in zip(laws, records, strict=True):
        tables = ", ".join(f"{each['file']} ({each['sha256'][:12]})" for each in made["tables"])
        lines.append(f"- {law}: [{path}]({path}), written at {made['date']} from {tables}")
    header = ("kind", "run", "measured (runs)", *laws)
    return "\n".join([lines[0], "", *lines[1:], "", Table(header, tuple(rows)).markdown()])
