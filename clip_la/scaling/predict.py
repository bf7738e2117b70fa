"""What the laws say of a run before it is made, with an interval for one new run."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from clip_la.errors import UserError
from clip_la.models.flops import flops, num_parameters
from clip_la.models.registry import model_spec
from clip_la.scaling.analysis import Analysis
from clip_la.scaling.bootstrap import Interval, interval
from clip_la.scaling.comparison import numbered, power_bounds
from clip_la.scaling.fit import SAME_COMPUTE_LOG10
from clip_la.scaling.form_analysis import FormAnalysis, FormSeries, inputs_of
from clip_la.scaling.forms import Form
from clip_la.scaling.intervals import MIN_RUNS, UPPER, Regression, as_interval
from clip_la.scaling.points import OPTIONS, SAME_FLOPS, Point, by_flops
from clip_la.scaling.series_fit import SeriesFit
from clip_la.scaling.table import with_suffix


@dataclass(frozen=True)
class Run:
    """A run that was not made yet: its model and samples, None where it is given by its compute alone.

    `compute` is in the unit of the points; `parameters` are the model's, needed by L(N, D) alone.
    """

    compute: float
    model: str | None = None
    samples_seen: int | None = None
    parameters: int | None = None

    def among(self, points: Iterable[Point]) -> list[Point]:
        """The points of its model, samples and compute; without a model those within a few per cent of its compute."""
        if self.model is not None:
            own = [point for point in points if (point.model, point.samples_seen) == (self.model, self.samples_seen)]
            # Runs of other FLOPs a pair had other options, such as patches left out.
            return [point for point in own if math.isclose(point.compute, self.compute, rel_tol=SAME_FLOPS)]
        return [point for point in points if abs(math.log10(point.compute / self.compute)) < SAME_COMPUTE_LOG10]


@dataclass(frozen=True)
class Prediction:
    """What a kind's law says of one run.

    Attributes:
        error: the law's; `interval` holds a new run's in 95 of 100 cases if the law goes on, None from too few runs.
        parameters: of the law, from `num_points` points of `num_runs` runs.
    """

    kind: str
    run: Run
    error: float
    interval: Interval | None
    num_points: int
    num_runs: int
    parameters: Mapping[str, float]

    @classmethod
    def by_power(cls, fit: SeriesFit, run: Run) -> "Prediction":
        """The power law's; its interval is that of all points, by Student's t.

        Two variances add: that of the law at the run, clustered by run, and that of a point about the law; the degrees
        of freedom of their sum are Welch and Satterthwaite's, two fewer than runs at most. None from two runs.
        """
        x = math.log10(run.compute)
        places, errors = (np.log10([getattr(point, name) for point in fit.points]) for name in ("compute", "error"))
        regression = Regression.of_line(places, numbered([point.run for point in fit.points]))
        weights = np.array([1.0, x])
        value = regression.coefficients(errors) @ weights
        residual = errors - regression.design @ regression.coefficients(errors)
        bounds = None
        # What a frontier picks hangs on the errors themselves, and t knows no law for that.
        if fit.num_runs >= MIN_RUNS and len(fit.fitted) == len(fit.points):
            of_law = float(weights @ regression.covariance(errors) @ weights)
            of_point = float(residual @ residual) / (len(errors) - 2)
            # The points of a run are alike by chance: its branches tell of one run's scatter, not of several.
            parts = of_law**2 / float(regression.degrees_of_freedom(weights)) + of_point**2 / (fit.num_runs - 2)
            # Both come from the same residuals, so their sum is known no better than a residual variance is.
            degrees = min((of_law + of_point) ** 2 / max(parts, 1e-300), fit.num_runs - 2)
            half = stdtrit(degrees, UPPER) * math.sqrt(of_law + of_point)
            bounds = as_interval(value + np.array([-half, half]))
        error = float(fit.law.error_at(np.array([run.compute]))[0])
        law = {"beta": fit.law.beta, "alpha": fit.law.alpha}
        return cls(fit.name, run, error, power_bounds(bounds), len(fit.points), fit.num_runs, law)

    @classmethod
    def by_form(cls, series: FormSeries, form: Form, run: Run, seed: int) -> "Prediction":
        """That of another law; its interval is of percentiles over resampled runs, each with a point's residual."""
        lacking = [name for name in form.inputs if getattr(run, name) is None]
        if lacking:
            raise UserError(f"{form.text} needs {' and '.join(lacking)} of the run: give --model and --samples")
        at = np.array([[float(getattr(run, name)) for name in form.inputs]])
        errors = np.array([point.error for point in series.points])
        residuals = np.log10(errors / series.fit.predict(inputs_of(form, series.points)))
        drawn = np.random.default_rng(seed).choice(residuals, len(series.refits))
        laws = np.array([np.log10(each.predict(at)[0]) if each else np.nan for each in series.refits])
        bounds = interval(laws + drawn, series.num_runs) if series.refits else None
        error = float(series.fit.predict(at)[0])
        counts = (series.num_points, series.num_runs)
        return cls(series.name, run, error, power_bounds(bounds), *counts, dict(series.fit.parameters))


def runs_of(
    model: str, samples: Sequence[int], points: Sequence[Point], axis: str, context_length: int | None = None
) -> list[Run]:
    """The runs of a preset with the attention, image size and patches of some points of one kind.

    Args:
        axis: what the points' compute counts, "compute" or "samples".
        context_length: most tokens of a caption in the points' runs, if not the presets'.

    Raises:
        UserError: an unknown model; points without their image size, with several values of an option, or whose own
            FLOPs are counted otherwise: their runs had other sizes than are known here.
    """

    def counted_of(name: str, like: Point) -> tuple[float, int]:
        if like.image_size is None or like.tokens is None:
            raise UserError(f"{like.where}: 'image_size' or 'tokens' is not recorded: give --compute, not --model")
        side = math.isqrt(like.tokens - 1)
        # Without the class token there are (size / patch)^2.
        if not side or side**2 != like.tokens - 1 or like.image_size % side:
            shape = f"{like.tokens} tokens are no patches of {like.image_size} pixels and a class token"
            raise UserError(f"{like.where}: {shape}: give --compute, not --model")
        spec = model_spec(
            name,
            attention=like.attention,
            image_attention=like.image_attention,
            text_attention=like.text_attention,
            image_size=like.image_size,
            patch_size=like.image_size // side,
            context_length=like.context_length if context_length is None else context_length,
        )
        return float(flops(spec, like.patch_dropout or 0.0)["total"]), num_parameters(spec)["total"]

    known = next((point for point in points if point.model == model), None)
    alike = [point for point in points if point.model == model] if known else list(points)
    for option in OPTIONS:
        if len(values := {getattr(point, option) for point in alike}) > 1:
            give = next(value for value in values if value is not None)
            several = f"runs with several {option}: which one is predicted? Give --where {option}={give:g}, for one"
            raise UserError(f"{alike[0].where}: {alike[0].attention} has {several}")
    if known is not None and len(by_flops(alike)) > 1:
        raise UserError(f"{known.where}: runs of {model} have several FLOPs a pair: give --compute, not --model")
    if known is not None:
        of_pair, parameters = known.flops_per_sample, known.parameters
    else:
        of_pair, parameters = counted_of(model, points[0])
        for point in {(point.model, point.flops_per_sample): point for point in points}.values():
            own, _ = counted_of(point.model, point)
            if not math.isclose(own, point.flops_per_sample, rel_tol=1e-6):
                give = "--context-length as of its run" if context_length is None else "--compute, not --model"
                raise UserError(
                    f"{point.where}: {with_suffix(point.flops_per_sample)} FLOPs a pair, where {point.model} with "
                    f"{point.attention} counts {with_suffix(own)}: give {give}"
                )
    unit = of_pair if axis == "compute" else 1.0
    return [Run(unit * each, model, each, parameters) for each in samples]


def predict(
    analysis: Analysis | FormAnalysis,
    *,
    model: str | None = None,
    samples: Sequence[int] = (),
    compute: float | None = None,
    context_length: int | None = None,
) -> list[Prediction]:
    """What each kind's law says of a model at some numbers of samples seen, or of a run of some compute.

    Raises:
        UserError: as `runs_of`; kinds that are no attentions, or an axis that samples do not give; a law that needs a
            model, without one; a run that is among the points already.
    """
    selection, by = analysis.selection, analysis.by
    if model is not None and (by != "attention" or selection.axis == "gpu-seconds"):
        raise UserError("--model counts the compute of each attention: with another --by or --axis give --compute")
    found = []
    for fit in analysis.fits if isinstance(analysis, Analysis) else analysis.series:
        if model is not None:
            runs = runs_of(model, samples, fit.points, selection.axis, context_length)
        else:
            assert compute is not None
            runs = [Run(compute)]
        for run in runs:
            # A run named by its compute may lie beside others: it is another model, or sees other samples.
            if model is not None and (known := run.among(fit.points)):
                raise UserError(f"{known[0].where}: {fit.name} was measured there already: nothing to predict")
            if isinstance(fit, SeriesFit):
                found.append(Prediction.by_power(fit, run))
            else:
                assert isinstance(analysis, FormAnalysis)
                found.append(Prediction.by_form(fit, analysis.form, run, seed=0))
    return found
