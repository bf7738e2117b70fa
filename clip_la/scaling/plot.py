"""The figure: error against compute on log axes, a colour and marker a kind, fit lines with their bootstrap bands."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_la.atomic import atomic_write
from clip_la.errors import UserError, counted
from clip_la.scaling.analysis import Analysis
from clip_la.scaling.palette import COLOURS, look_of
from clip_la.scaling.points import Point, Selection
from clip_la.scaling.report import compute_label
from clip_la.scaling.rows import is_loss
from clip_la.scaling.series_fit import SeriesFit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Two columns of a paper's page; text at 8 pt is then readable in print.
SIZE_INCHES = (6.6, 4.2)
DPI = 200
FONT_SIZE_PT = 8
LINE_WIDTH_PT = 1.3
# Areas of the smallest and the largest model's marker.
MARKER_AREA_PT2 = (18.0, 80.0)
# More models than this in a legend of sizes cannot be told apart.
MAX_SIZES = 6
LINE_POINTS = 100
# The line is drawn beyond the points by this share of their range.
LINE_MARGIN = 0.06
STYLE: dict[str, Any] = {
    "font.size": FONT_SIZE_PT,
    "axes.labelsize": FONT_SIZE_PT + 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    # Letters are drawn as shapes, alike on machines without the font; equal input gives equal bytes.
    "svg.fonttype": "path",
    "svg.hashsalt": "clip_la",
}
READABLE_METRICS = {
    "top1": "top-1 accuracy",
    "acc1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
    "image_retrieval_recall@1": "image retrieval recall@1",
    "text_retrieval_recall@1": "text retrieval recall@1",
    "image_retrieval_recall@5": "image retrieval recall@5",
    "text_retrieval_recall@5": "text retrieval recall@5",
    "mean_average_precision": "mean average precision",
}
REFUSED_SUFFIXES = (".jpg", ".jpeg", ".pdf", ".eps", ".gif", ".webp")


def output_paths(out: Path) -> tuple[Path, Path]:
    """The PNG and the SVG that `out` stands for, with or without a suffix; UserError for another format."""
    if out.suffix.lower() in REFUSED_SUFFIXES:
        raise UserError(f"the plot is written as PNG and SVG, not {out.suffix}: give --out {out.with_suffix('')}")
    if out.is_dir() or not out.name:
        raise UserError(f"--out is a folder: give a file name, for example {out / 'scaling'}")
    stem = out.with_suffix("") if out.suffix.lower() in (".png", ".svg") else out
    return stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")


def marker_areas(points: Sequence[Point]) -> dict[str, float]:
    """Marker area (pt^2) of each model, growing with the logarithm of its FLOPs a pair; smallest model first."""
    flops = {point.model: point.flops_per_sample for point in sorted(points, key=lambda point: point.flops_per_sample)}
    if len(flops) == 1:
        return {model: sum(MARKER_AREA_PT2) / 2 for model in flops}
    logs = np.log([*flops.values()])
    share = (logs - logs.min()) / max(float(np.ptp(logs)), 1e-9)
    low, high = MARKER_AREA_PT2
    return {model: float(low + (high - low) * each) for model, each in zip(flops, share, strict=True)}


def _legend_label(fit: SeriesFit) -> str:
    """The law in mathtext, the exponent with its interval."""
    exponent = math.floor(math.log10(fit.law.beta)) if fit.law.beta >= 1e3 else 0
    mantissa = fit.law.beta / 10**exponent
    beta = f"{mantissa:.3g}" + (rf" \cdot 10^{{{exponent}}}" if exponent else "")
    bounds = fit.alpha_interval
    # In mathtext, so that a minus is a minus and not a hyphen.
    spread = rf" $[{{{bounds[0]:.3f}}},\, {{{bounds[1]:.3f}}}]$" if bounds else ""
    law = rf"$E = {beta}\, C^{{\,{fit.law.alpha:.3f}}}$"
    runs = "" if fit.num_runs == len(fit.points) else f" of {counted(fit.num_runs, 'run')}"
    return f"{fit.name}: {law}{spread}, {counted(len(fit.points), 'point')}{runs}"


def _draw_series(axes: "Axes", fit: SeriesFit, areas: dict[str, float], colour: str, marker: str, dashes: Any) -> None:
    """The fit line over the range of its own points, its band where there is an interval, and the points."""
    grid = np.geomspace(*widened(fit.points), LINE_POINTS)
    if fit.band is not None:
        low, high = 10 ** fit.band(np.log10(grid))
        axes.fill_between(grid, low, high, color=colour, alpha=0.13, linewidth=0, zorder=1)
    axes.plot(grid, fit.law.error_at(grid), color=colour, linestyle=dashes, linewidth=LINE_WIDTH_PT, zorder=3)
    fitted = set(fit.fitted)
    for point in fit.points:
        entered = point in fitted
        if point.error_low is not None and point.error_high is not None:
            bars = np.array([[point.error - point.error_low], [point.error_high - point.error]]).clip(min=0)
            faint: dict[str, Any] = {"elinewidth": 0.5, "alpha": 0.45 if entered else 0.2}
            axes.errorbar([point.compute], [point.error], yerr=bars, fmt="none", ecolor=colour, zorder=2, **faint)
        axes.scatter(
            [point.compute],
            [point.error],
            s=areas[point.model],
            marker=marker,
            facecolor=colour if entered else "none",
            edgecolor="white" if entered else colour,
            linewidth=0.5,
            alpha=1.0 if entered else 0.55,
            zorder=4 if entered else 3,
        )


def widened(points: Sequence[Point]) -> tuple[float, float]:
    """The range of compute of the points, a little wider at both ends."""
    logs = np.log10([point.compute for point in points])
    margin = LINE_MARGIN * max(float(np.ptp(logs)), 0.1)
    return float(10 ** (logs.min() - margin)), float(10 ** (logs.max() + margin))


def _error_axis(axes: "Axes", points: Sequence[Point], metric: str) -> None:
    from matplotlib import ticker

    # Limits around points and error bars, not around bands: those of few runs would squeeze the points together.
    lows = [point.error if point.error_low is None else point.error_low for point in points]
    highs = [point.error if point.error_high is None else point.error_high for point in points]
    low, high = max(min(lows), 1e-6), max(highs)
    # Equal errors without bars still need an axis of some height.
    margin = max((high / low) ** 0.08, 1.01)
    low, high = low / margin, high * margin
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    # Over less than a decade powers of ten leave the axis empty: round steps on the log axis instead.
    if high / low < 10:
        steps = ticker.MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        axes.yaxis.set_major_locator(ticker.FixedLocator([each for each in steps if low <= each <= high]))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.4g}"))
    name = READABLE_METRICS.get(metric, metric.replace("_", " "))
    kind = "error" if "retrieval" in metric else "zero-shot error"
    axes.set_ylabel(f"{name} $E$" if is_loss(metric) else rf"{kind} $E$ = 1 $-$ {name}")


def _compute_axis(axes: "Axes", points: Sequence[Point], selection: Selection) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*widened(points))
    label = compute_label(selection).replace(" x ", r" $\times$ ")
    axes.set_xlabel(rf"compute $C$ = {label} ({selection.compute_unit})")


def draw(analysis: Analysis) -> "Figure":
    """The figure of an analysis; needs matplotlib. Filled markers entered the fit, hollow ones are off the frontier."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    points = [point for fit in analysis.fits for point in fit.points]
    areas = marker_areas(points)
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    handles = []
    for number, fit in enumerate(analysis.fits):
        own = look_of(number)
        colour, marker = COLOURS[own.colour], own.marker
        dashes: Any = (0, own.dashes) if own.dashes else "-"
        _draw_series(axes, fit, areas, colour, marker, dashes)
        look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": dashes, "linewidth": LINE_WIDTH_PT}
        handles.append(Line2D([], [], label=_legend_label(fit), markersize=5, **look))
    _compute_axis(axes, points, analysis.selection)
    _error_axis(axes, points, analysis.selection.metric)
    axes.grid(which="major", color="#e4e4e4", linewidth=0.5, zorder=0)
    axes.set_axisbelow(True)
    axes.set_title(analysis.selection.target, loc="left", fontsize=FONT_SIZE_PT + 1)
    if any(len(fit.fitted) < len(fit.points) for fit in analysis.fits):
        grey: dict[str, Any] = {"loc": "right", "fontsize": FONT_SIZE_PT - 1, "color": "#666666"}
        axes.set_title(f"filled: fitted ({analysis.frontier}); hollow: not", **grey)
    if 1 < len(areas) <= MAX_SIZES:
        look = {"linestyle": "none", "marker": "o", "color": "#888888"}
        sizes = [Line2D([], [], markersize=math.sqrt(area), label=model, **look) for model, area in areas.items()]
        # Beside the axes: inside them it hides points of large models.
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        axes.legend(handles=sizes, title="model", labelspacing=0.7, **beside)
    figure.legend(handles=handles, loc="outside lower left", handlelength=3.2)
    return figure


def save_plot(analysis: Analysis, out: Path) -> tuple[Path, Path]:
    """Draws the analysis and writes it as PNG and SVG; returns both paths.

    Raises:
        UserError: matplotlib is not installed, or `out` names a folder or another format.
    """
    png, svg = output_paths(out)
    try:
        import matplotlib
    except ImportError:
        raise UserError("the plot needs matplotlib: pip install 'clip_la[plot]'") from None
    # From matplotlib's own defaults, so that nobody's matplotlibrc changes the figure.
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE}
    with matplotlib.rc_context(settings):
        figure = draw(analysis)
        for path, metadata in ((png, {}), (svg, {"Date": None})):
            with atomic_write(path) as stream:
                figure.savefig(stream, format=path.suffix[1:], metadata=metadata)
    return png, svg
