"""The plots of an analysis: laws with bands, residuals, exponents, compute multipliers, seconds, tokens, curves."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from clip_la.scaling.analysis import Analysis, group_points
from clip_la.scaling.html.curves import Curve, curves_plot
from clip_la.scaling.html.plots import (
    MAX_TITLE_BELOW,
    Axis,
    Band,
    Line,
    Mark,
    Plot,
    absent,
    intervals_plot,
    limits,
    short,
)
from clip_la.scaling.plot import LINE_POINTS, READABLE_METRICS, marker_areas, widened
from clip_la.scaling.points import Point, Selection
from clip_la.scaling.report import MULTIPLIED, number
from clip_la.scaling.rows import is_loss

# More points than these are drawn with smaller markers.
FEW_POINTS = 60
# Kinds at one number of tokens stand this share of the axis apart, all of them within the second.
KIND_SHIFT, MAX_SHIFT = 0.018, 0.12
AXIS_TITLES = {"compute": "compute C", "samples": "samples seen", "gpu-seconds": "GPU-seconds of training"}
NO_MULTIPLIER = (
    "It takes three pairs of runs that differ in the kind alone, at two computes, and an error that both reach."
)
NO_SECONDS = (
    "No point has measured GPU-seconds: they come from metrics.csv in a run's folder, beside its results.jsonl."
)
NO_TOKENS = "No point says how many image tokens its model has: result lines and tables of points carry it as 'tokens'."


@dataclass(frozen=True)
class Figures:
    """The plots of one analysis; `kinds` are all its kinds, those with a fit first; a kind's place is its number."""

    analysis: Analysis
    curves: tuple[Curve, ...] = ()

    @property
    def selection(self) -> Selection:
        return self.analysis.selection

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Those with a fit in the order of the fits, as on paper; then those without."""
        fitted = [fit.name for fit in self.analysis.fits]
        groups = group_points(self.selection.points, self.analysis.by)
        return (*fitted, *(name for name in groups if name not in fitted))

    def _markers(self) -> dict[str, float]:
        """Marker width of each model over the smallest one's; all smaller where there are many points."""
        areas = marker_areas(self.selection.points)
        least = min(areas.values())
        crowd = min(1.0, max(0.6, math.sqrt(FEW_POINTS / len(self.selection.points))))
        return {model: crowd * math.sqrt(area / least) for model, area in areas.items()}

    def all(self) -> tuple[Plot, ...]:
        """Every plot, in the order of the page; those that the data cannot fill say why."""
        return (
            *(self.error(), self.multiplier_curve(), self.residuals(), self.exponents(), self.multipliers()),
            self.against("gpu_seconds", "seconds", "GPU-seconds of training", NO_SECONDS),
            self.against("tokens", "tokens", "image tokens", NO_TOKENS),
            curves_plot(self.curves, self.kinds),
        )

    def _kind(self, point: Point) -> int:
        return self.kinds.index(str(getattr(point, self.analysis.by)))

    @property
    def _multiplied(self) -> str:
        return MULTIPLIED[self.selection.axis]

    def _multiplier_title(self) -> str:
        return f"{self._multiplied[0].upper()}{self._multiplied[1:]} multiplier"

    def _error_title(self) -> str:
        metric = self.selection.metric
        name = READABLE_METRICS.get(metric, metric.replace("_", " "))
        return short(name if is_loss(metric) else f"error: 1 − {name}")

    def _compute_axis(self) -> Axis:
        unit = self.selection.compute_unit
        title = AXIS_TITLES[self.selection.axis]
        return Axis(f"{title} ({unit})" if title == "compute C" else title, *widened(self.selection.points), log=True)

    def _text(self, point: Point) -> str:
        """What a tooltip says of a point: who it is, what was measured, where it comes from."""
        bounds = ""
        if point.error_low is not None and point.error_high is not None:
            bounds = f" [{point.error_low:.4g}, {point.error_high:.4g}]"
        seed = "" if point.seed is None else f", seed {point.seed}"
        return (
            f"{point.model}, {point.attention}{seed}\nerror {point.error:.4g}{bounds}\n"
            f"{AXIS_TITLES[self.selection.axis]} {point.compute:.4g}\n{point.samples_seen:,} samples seen\n"
            f"run {point.run}{'' if point.source == point.run else f' ({point.source})'}\n{point.where}"
        )

    def error(self) -> Plot:
        """Error against compute, with each kind's law and its band."""
        points = self.selection.points
        sizes = self._markers()
        fitted = {id(point) for fit in self.analysis.fits for point in fit.fitted}
        marks = tuple(
            Mark(
                point.compute,
                point.error,
                self._kind(point),
                self._text(point),
                id(point) in fitted,
                sizes[point.model],
                y_ends=None
                if point.error_low is None or point.error_high is None
                else (point.error_low, point.error_high),
            )
            for point in points
        )
        lines, bands = [], []
        for kind, fit in enumerate(self.analysis.fits):
            grid = np.geomspace(*widened(fit.points), LINE_POINTS)
            lines.append(Line(grid.tolist(), fit.law.error_at(grid).tolist(), kind))
            if fit.band is not None:
                low, high = 10 ** fit.band(np.log10(grid))
                bands.append(Band(grid.tolist(), low.tolist(), high.tolist(), kind))
        # Around points and error bars, not around bands: those of few runs would squeeze the points together.
        reach = limits([each for mark in marks for each in (mark.y, *(mark.y_ends or ())) if each > 1e-6], log=True)
        without = [fit.name for fit in self.analysis.fits if fit.band is None]
        caption = (
            f"Lines: E = β Cᵅ. Shaded: 95 % band of the law. Filled: fitted ({self.analysis.frontier}); hollow: not."
        )
        if without:
            caption += f" No band where the runs are too few: {', '.join(without)}."
        return Plot(
            "error",
            f"Error against {AXIS_TITLES[self.selection.axis].removesuffix(' C')}",
            caption,
            self._compute_axis(),
            Axis(self._error_title(), *reach, log=True),
            marks,
            tuple(lines),
            tuple(bands),
        )

    def residuals(self) -> Plot:
        """How far each point lies above its kind's law, in per cent of the law."""
        marks = []
        for kind, fit in enumerate(self.analysis.fits):
            fitted = {id(point) for point in fit.fitted}
            for point in fit.points:
                above = 100 * (point.error / float(fit.law.error_at(np.array([point.compute]))[0]) - 1)
                text = f"{above:+.2f} % from the law of {fit.name}\n{self._text(point)}"
                marks.append(Mark(point.compute, above, kind, text, id(point) in fitted))
        reach = max(abs(mark.y) for mark in marks) * 1.1 or 1.0
        return Plot(
            "residuals",
            "Residuals",
            "Measured error over the law's, less one. A bend means that a power law does not fit.",
            self._compute_axis(),
            Axis("error over the law − 1 (%)", -reach, reach),
            tuple(marks),
            rule=0.0,
        )

    def exponents(self) -> Plot:
        """Each kind's exponent with its interval."""
        rows = [(fit.name, kind, fit.law.alpha, fit.alpha_interval) for kind, fit in enumerate(self.analysis.fits)]
        reach = [each for _, _, alpha, ends in rows for each in (alpha, *(ends or ()))]
        # Far from 0 the line would squeeze the exponents together.
        rule = 0.0 if max(reach) > 0 else None
        caption = "95 % intervals; hollow: the runs are too few for one."
        caption += "" if rule is None else " At 0 compute does not lower the error."
        return intervals_plot("exponents", "Exponents", caption, "exponent α", rows, ".4f", rule=rule, log=False)

    def multipliers(self) -> Plot:
        """Each kind's compute multiplier at the middle of the baseline's runs, with its interval."""
        name, title = "multipliers", self._multiplier_title()
        found = [each for each in self.analysis.comparisons if each.multipliers]
        if not found:
            return absent(name, title, NO_MULTIPLIER)
        rows = [(c.name, self.kinds.index(c.name), c.multipliers[0].value, c.multipliers[0].interval) for c in found]
        return intervals_plot(
            name,
            title,
            "At the middle of the paired runs; 95 % intervals; hollow: the runs are too few for one.",
            short(f"times {found[0].baseline}'s {self._multiplied} at equal error", MAX_TITLE_BELOW),
            rows,
            ".3g",
            rule=1.0,
            log=True,
        )

    def multiplier_curve(self) -> Plot:
        """The compute multiplier against the baseline's error, with its band where the data carry one."""
        name, title = "multiplier-error", f"{self._multiplier_title()} against error"
        found = [each for each in self.analysis.comparisons if each.curve]
        if not found:
            return absent(name, title, NO_MULTIPLIER)
        marks, lines, bands = [], [], []
        for each in found:
            kind = self.kinds.index(each.name)
            for place in each.curve:
                times = number(place.value, place.interval, ".3g")
                text = (
                    f"{each.name}: {times} times {each.baseline}'s {self._multiplied}\n"
                    f"at an error of {place.error:.4g}, which {each.baseline} reaches with {place.compute:.3g}"
                )
                marks.append(Mark(place.error, place.value, kind, text, place.interval is not None, 0.6))
            lines.append(Line([p.error for p in each.curve], [p.value for p in each.curve], kind))
            known = [(p.error, p.interval) for p in each.curve if p.interval is not None]
            if known:
                low, high = ([ends[side] for _, ends in known] for side in (0, 1))
                bands.append(Band([error for error, _ in known], low, high, kind))
        inner = [mark.y for mark in marks] + [
            place.interval[i] for c in found for place in c.multipliers for i in (0, 1) if place.interval
        ]
        without = [each.name for each in found if all(place.interval is None for place in each.curve)]
        caption = f"Below 1 a kind needs less than {found[0].baseline}. Shaded: 95 % band, over the paired runs."
        if without:
            caption += f" No band where the data carry none: {', '.join(without)}."
        return Plot(
            name,
            title,
            caption,
            Axis(
                short(f"{found[0].baseline}'s {self._error_title()}", MAX_TITLE_BELOW),
                *limits((m.x for m in marks), log=True),
                log=True,
            ),
            Axis(f"{self._multiplied} multiplier", *limits([1.0, *inner], log=True), log=True),
            tuple(marks),
            tuple(lines),
            tuple(bands),
            rule=1.0,
        )

    def against(self, field: str, name: str, unit: str, why: str) -> Plot:
        """What was measured, accuracy or a loss, against a field of the points on a log axis."""
        selection = self.selection
        loss = is_loss(selection.metric)
        held = [point for point in selection.points if getattr(point, field)]
        quantity = READABLE_METRICS.get(selection.metric, selection.metric.replace("_", " "))
        title = f"{'Loss' if loss else 'Accuracy'} against {unit.removesuffix(' of training')}"
        if not held:
            return absent(name, title, why)
        marks = []
        sizes = self._markers()
        # Models share a few numbers of tokens: the kinds stand side by side there.
        step = min(KIND_SHIFT, MAX_SHIFT / len(self.kinds)) if field == "tokens" else 0.0
        for point in held:
            value = float(getattr(point, field))
            kind = self._kind(point)
            ends = None
            if point.error_low is not None and point.error_high is not None:
                ends = (point.error_low, point.error_high) if loss else (1 - point.error_high, 1 - point.error_low)
            text = f"{value:.5g} {unit}\n{self._text(point)}"
            marks.append(
                Mark(
                    value,
                    point.error if loss else 1 - point.error,
                    kind,
                    text,
                    size=sizes[point.model],
                    shift=step * (kind - (len(self.kinds) - 1) / 2),
                    y_ends=ends,
                )
            )
        lacking = len(selection.points) - len(held)
        return Plot(
            name,
            title,
            ("Larger marks: larger models." if len(sizes) > 1 else "")
            + (" At one value the kinds stand side by side." if step else "")
            + (f" {lacking} points do not record it." if lacking else ""),
            Axis(unit, *limits((mark.x for mark in marks), log=True, margin=0.1 if step else 0.06), log=True),
            Axis(short(quantity), *limits((v for m in marks for v in (m.y, *(m.y_ends or ()))), log=False)),
            tuple(marks),
        )
