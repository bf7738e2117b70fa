"""Laws with a floor, and L(N, D), for each kind: parameters with intervals, what they predict, and what kinds share."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_la.errors import UserError, counted, unknown
from clip_la.scaling.analysis import group_points, no_fit
from clip_la.scaling.bootstrap import Interval, draw_counts, interval
from clip_la.scaling.cautions import carrying
from clip_la.scaling.comparison import numbered
from clip_la.scaling.fit import SAME_COMPUTE_LOG10, Frontier, HeldOut, choose_all, get_frontier
from clip_la.scaling.forms import FORMS, PARAMETRIC, Form, FormFit, Inputs, fit_form
from clip_la.scaling.joint import JointFit, best, shared_fits
from clip_la.scaling.points import Point, Selection
from clip_la.scaling.report import entered_lines, error_label, number
from clip_la.scaling.table import Table

FORM_RESAMPLES = 300
# As they were published: Hoffmann et al. 2022, and arXiv 2506.04598.
DEFAULT_LOSS = {"saturating": "squares", "parametric": "huber"}
# The parameters whose being one for all kinds is asked for: exponents and floor.
CANDIDATES = {"saturating": ("c", "d"), "parametric": ("alpha", "beta", "E0")}


def inputs_of(form: Form, points: Sequence[Point]) -> Inputs:
    """The form's inputs of each point. Raises UserError where a point lacks one."""
    for name in form.inputs:
        lacking = next((point for point in points if getattr(point, name) is None), None)
        if lacking is not None:
            raise UserError(f"{lacking.where}: '{name}' is not recorded, {form.text} needs it")
    return np.array([[float(getattr(point, name)) for name in form.inputs] for point in points])


def on_frontier(form: Form, points: Sequence[Point], frontier: Frontier) -> tuple[Inputs, Float[np.ndarray, " points"]]:
    """Inputs and errors of the points that the frontier picks, at the computes that it puts them at."""
    inputs, error = inputs_of(form, points), np.array([point.error for point in points])
    if frontier is choose_all:
        return inputs, error
    chosen = frontier(np.log10(inputs[:, 0]), np.log10(error))
    return 10 ** chosen.log10_compute[:, None], error[chosen.index]


@dataclass(frozen=True)
class FormSeries:
    """The law of one kind.

    Attributes:
        fit: the form's parameters.
        intervals: parameter -> its 95 % interval, None where runs are too few to resample.
        mean_absolute_error: mean of |error - law| over the points, in the error's own unit.
        held_out: the points of the largest compute, predicted from the others.
        points: those of the kind.
        refits: the law of each resample of runs, None where its search ran to the end of its range; empty for few runs.
    """

    name: str
    fit: FormFit
    intervals: Mapping[str, Interval | None]
    num_points: int
    num_runs: int
    mean_absolute_error: float
    held_out: HeldOut | None
    points: tuple[Point, ...] = field(repr=False)
    refits: tuple[FormFit | None, ...] = field(repr=False)

    @classmethod
    def of(
        cls,
        form: Form,
        name: str,
        points: Sequence[Point],
        frontier: Frontier,
        loss: str,
        num_resamples: int,
        seed: int,
    ) -> "FormSeries":
        """Fits the form to the points of one kind. Raises UserError as `fit_form` does."""
        inputs, error = on_frontier(form, points, frontier)
        runs = numbered([point.run for point in points])
        fit = fit_form(form, inputs, error, loss=loss)
        num_runs = int(runs.max()) + 1
        bounds: Mapping[str, Interval | None] = dict.fromkeys(form.names)
        refits: list[FormFit | None] = []
        # Where a frontier picks, the points in it hang on each other; few runs have no interval whatever they say.
        if frontier is choose_all and interval(np.zeros(1), num_runs) is not None:
            for counts in draw_counts(num_runs, num_resamples, seed):
                # Begun at the fit to all points: from the grid it would take a hundred times as long.
                again = fit_form(form, inputs, error, loss=loss, weights=counts[runs], begin=fit.theta)
                # A search that ran to the end of its range has found no law.
                lost = bool(form.at_bound(again.theta))
                refits.append(None if lost else again)
            unknown_law = dict.fromkeys(form.names, np.nan)
            found = [[(each.parameters if each else unknown_law)[name] for name in form.names] for each in refits]
            columns = zip(form.names, np.array(found).T, strict=True)
            bounds = {each: interval(column, num_runs) for each, column in columns}
        return cls(
            name=name,
            fit=fit,
            intervals=bounds,
            num_points=len(points),
            num_runs=num_runs,
            mean_absolute_error=float(np.abs(fit.predict(inputs) - error).mean()),
            held_out=cls.largest_held_out(form, points, frontier, loss),
            points=tuple(points),
            refits=tuple(refits),
        )

    @staticmethod
    def largest_held_out(form: Form, points: Sequence[Point], frontier: Frontier, loss: str) -> HeldOut | None:
        """The points of the largest compute, predicted from the others; None where too few would be left."""
        most = max(point.compute for point in points)
        largest = [point for point in points if np.log10(point.compute) > np.log10(most) - SAME_COMPUTE_LOG10]
        rest = [point for point in points if point not in largest]
        try:
            fit = fit_form(form, *on_frontier(form, rest, frontier), loss=loss) if rest else None
        except UserError:
            fit = None
        if fit is None:
            return None
        predicted = float(fit.predict(inputs_of(form, largest)).mean())
        return HeldOut(most, len(largest), predicted, float(np.mean([point.error for point in largest])))


@dataclass(frozen=True)
class FormAnalysis:
    """What `clip-la scaling fit --law` says.

    Attributes:
        by: the field of a point that tells the kinds apart.
        loss: what was minimised, one of forms.LOSSES.
        frontier: which points entered, for a person.
        joint: fits of all kinds with parameters in common, separate laws first; empty for a single kind.
        notes: what could not be fitted, and why.
    """

    selection: Selection
    by: str
    form: Form
    loss: str
    frontier: str
    num_resamples: int
    series: tuple[FormSeries, ...]
    joint: tuple[JointFit, ...]
    notes: tuple[str, ...]


def analyse_form(
    selection: Selection,
    law: str,
    *,
    by: str | None = None,
    frontier: str = "all",
    num_bins: int = 5,
    loss: str | None = None,
    num_resamples: int = FORM_RESAMPLES,
    seed: int = 0,
) -> FormAnalysis:
    """Fits a law of `FORMS` to the points of each kind, and with exponents and floor in common.

    Args:
        law: "saturating" or "parametric".
        frontier: which points enter a saturating law; "all", "pareto" or "bins" of `num_bins`.
        loss: one of `LOSSES`; that of the publication if None.
        num_resamples: of runs, for the intervals.

    Raises:
        UserError: unknown law or `by`, a point without what the law needs, or too few points of every kind.
    """
    if law not in FORMS:
        raise unknown("law", law, ("power", *FORMS))
    form, loss = FORMS[law], loss or DEFAULT_LOSS[law]
    if (by := by or selection.by_choices[0]) not in selection.by_choices:
        raise unknown("field to fit by", by, selection.by_choices)
    if form is PARAMETRIC and selection.axis != "compute":
        raise UserError(f"--axis {selection.axis} has no part in {form.text}")
    if form is PARAMETRIC and frontier != "all":
        raise UserError(f"--frontier {frontier} has no part in {form.text}: it is fitted to all points")
    choose = get_frontier(frontier, num_bins)
    selection.require_points()
    groups, tried = group_points(selection.points, by), group_points(selection.tried, by)
    series: list[FormSeries] = []
    notes: list[str] = []
    for name, points in groups.items():
        try:
            series.append(FormSeries.of(form, name, points, choose, loss, num_resamples, seed))
        except UserError as error:
            notes.append(f"no fit for {name}: {error}")
            continue
        if series[-1].intervals[form.names[0]] is None:
            why = f"too few ({counted(series[-1].num_runs, 'run')}), or they do not determine this law"
            why = why if choose is choose_all else f"what {frontier} picks hangs on the errors themselves"
            notes.append(f"no intervals for {name}: {why}")
        notes += [
            f"{each} of {name} is at the end of its range: the points do not determine it"
            for each in form.at_bound(series[-1].fit.theta)
        ]
        notes += carrying(name, points, tried.get(name, ()))
    if not series:
        raise no_fit(notes)
    kinds = [groups[each.name] for each in series]
    joint: list[JointFit] = []
    if len(kinds) > 1:
        inputs, errors = zip(*(on_frontier(form, points, choose) for points in kinds), strict=True)
        joint = shared_fits(form, inputs, errors, CANDIDATES[law])
    label = f"best of {num_bins} bins" if frontier == "bins" else frontier
    return FormAnalysis(selection, by, form, loss, label, num_resamples, tuple(series), tuple(joint), tuple(notes))


def form_data(analysis: FormAnalysis) -> dict[str, Any]:
    """The analysis as plain data."""
    return {
        "law": analysis.form.text,
        "target": analysis.selection.target,
        "metric": analysis.selection.metric,
        "by": analysis.by,
        "loss": analysis.loss,
        "frontier": analysis.frontier,
        "resamples": analysis.num_resamples,
        "fits": [
            {
                "name": each.name,
                "parameters": dict(each.fit.parameters),
                "intervals": {name: bounds and list(bounds) for name, bounds in each.intervals.items()},
                "n": each.num_points,
                "n_runs": each.num_runs,
                "mean_absolute_error": each.mean_absolute_error,
                "largest_held_out": each.held_out and each.held_out.data(),
            }
            for each in analysis.series
        ],
        "joint_fits": [
            {
                "shared": list(fit.shared),
                "parameters": [dict(own) for own in fit.parameters],
                "aicc": fit.aicc if np.isfinite(fit.aicc) else None,
                "p_value": fit.p_value,
            }
            for fit in analysis.joint
        ],
        "left_out": [asdict(item) for item in analysis.selection.left_out],
        "notes": list(analysis.notes),
    }


def form_text(analysis: FormAnalysis) -> str:
    """The analysis for a person."""
    header = ("", *analysis.form.names, "points", "runs", "mean abs. error", "largest: predicted, measured")
    rows = []
    for each in analysis.series:
        held = each.held_out
        cells = [number(each.fit.parameters[name], each.intervals[name], ".4g") for name in analysis.form.names]
        at_largest = "too few points" if held is None else held.text()
        tail = (str(each.num_points), str(each.num_runs), f"{each.mean_absolute_error:.2g}", at_largest)
        rows.append((each.name, *cells, *tail))
    lines = [
        f"{analysis.form.text} on {analysis.selection.target}, {error_label(analysis.selection)};",
        f"points: {analysis.frontier}; loss: {analysis.loss}; [95 % intervals from {analysis.num_resamples} resamples]",
        "",
        Table(header, tuple(rows)).text(),
        "",
    ]
    if analysis.joint:
        least = best(analysis.joint).aicc
        lines.append("in common to all kinds, by least squares (AICc over the best; p against separate laws):")
        for fit in analysis.joint:
            above = f"+{fit.aicc - least:.1f}" if np.isfinite(fit.aicc) else "too few points"
            chance = "" if fit.p_value is None else f"  p = {fit.p_value:.2g}"
            lines.append(f"  {', '.join(fit.shared) or 'nothing':<18}{above}{chance}")
        lines.append("")
    lines += entered_lines(analysis.selection)
    return "\n".join([*lines, *(f"note: {note}" for note in analysis.notes)])
