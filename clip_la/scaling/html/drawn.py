"""The plots of the page drawn by matplotlib, as PNG, SVG and PDF for a paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_la.atomic import atomic_write
from clip_la.errors import UserError
from clip_la.scaling.html.plots import Plot, short
from clip_la.scaling.palette import COLOURS, look_of
from clip_la.scaling.plot import DPI, FONT_SIZE_PT, LINE_WIDTH_PT, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES, HEIGHT_INCHES, ROW_INCHES, LINE_INCHES = 5.2, 3.6, 0.36, 0.17
# No date: equal input gives equal bytes.
METADATA: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
# Area of the smallest marker.
MARKER_AREA_PT2 = 20.0
MAX_TICKS_X, MAX_TICKS_Y = 6, 7
# Of a kind's name; the page has longer ones whole.
MAX_NAME = 28
# The legend's columns are as many as fit side by side: the figure's width in letters, what handle and gap take of it.
WIDTH_LETTERS, HANDLE_LETTERS = 84, 10


def require_matplotlib() -> None:
    """Raises UserError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("the figures need matplotlib: pip install 'clip_la[plot]'") from None


def plain(text: str, most: int | None = None) -> str:
    """A text from a file as matplotlib may get it: a dollar sign would begin a formula; cut to `most` letters."""
    return (text if most is None else short(text, most)).replace("$", r"\$")


def _draw_values(axes: "Axes", plot: Plot) -> None:
    """Bands below, then lines and bars, markers on top."""
    for band in plot.bands:
        axes.fill_between(
            band.x, band.low, band.high, color=COLOURS[look_of(band.kind).colour], alpha=0.13, linewidth=0, zorder=1
        )
    for line in plot.lines:
        own = look_of(line.kind)
        dashes: Any = "-" if line.thin or not own.dashes else (0, own.dashes)
        width = 0.6 if line.thin else LINE_WIDTH_PT
        axes.plot(line.x, line.y, color=COLOURS[own.colour], linestyle=dashes, linewidth=width, zorder=3)
    # One call for all alike: hundreds of points are drawn in a second.
    for kind, filled in sorted({(mark.kind, mark.filled) for mark in plot.marks}):
        alike = [mark for mark in plot.marks if (mark.kind, mark.filled) == (kind, filled)]
        own = look_of(kind)
        colour = COLOURS[own.colour]
        # A marker that is shifted: on a log axis by a factor.
        x = [m.x * (plot.x.high / plot.x.low) ** m.shift if plot.x.log else m.x for m in alike]
        thin: dict[str, Any] = {"color": colour, "linewidth": 0.8, "alpha": 0.6, "zorder": 2}
        across = [(mark.y, *mark.x_ends) for mark in alike if mark.x_ends is not None]
        axes.hlines(*(zip(*across, strict=True) if across else ((), (), ())), **thin)
        up = [(place, *mark.y_ends) for place, mark in zip(x, alike, strict=True) if mark.y_ends is not None]
        axes.vlines(*(zip(*up, strict=True) if up else ((), (), ())), **thin)
        face, edge = (colour, "white") if filled else ("white", colour)
        areas = [MARKER_AREA_PT2 * mark.size**2 for mark in alike]
        y = [mark.y for mark in alike]
        axes.scatter(x, y, s=areas, marker=own.marker, facecolor=face, edgecolor=edge, linewidth=0.6, zorder=4)


def draw_plot(plot: Plot, kinds: Sequence[str]) -> "Figure":
    """The plot as a figure of matplotlib with a legend of the kinds in it; values, marks and bands are the page's."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    drawn = [] if plot.rows else sorted({mark.kind for mark in plot.marks if mark.kind >= 0})
    longest = max((min(len(kinds[kind]), MAX_NAME) for kind in drawn), default=0)
    columns = max(1, WIDTH_LETTERS // (longest + HANDLE_LETTERS))
    # Rows of names, or the plot with the rows of its legend below.
    height = ROW_INCHES * (len(plot.rows) + 2) if plot.rows else HEIGHT_INCHES + LINE_INCHES * (len(drawn) // columns)
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    _draw_values(axes, plot)
    for axis, which, most in ((plot.x, "x", MAX_TICKS_X), (plot.y, "y", MAX_TICKS_Y)):
        getattr(axes, f"set_{which}scale")("log" if axis.log else "linear")
        getattr(axes, f"set_{which}lim")(axis.low, axis.high)
        getattr(axes, f"set_{which}label")(plain(axis.title))
        ticks = axis.ticks(most) if which == "x" or not plot.rows else list(enumerate(plot.rows))
        getattr(axes, f"set_{which}ticks")(
            [v for v, _ in ticks], [plain(label, MAX_NAME) for _, label in ticks], minor=False
        )
        getattr(axes, f"set_{which}ticks")([], minor=True)
    if plot.rule is not None:
        (axes.axhline if plot.rule_of == "y" else axes.axvline)(
            plot.rule, color="#888888", linewidth=0.7, dashes=(4, 3)
        )
    axes.grid(color="#e4e4e4", linewidth=0.5, zorder=0)
    axes.set_axisbelow(True)
    axes.set_title(plain(plot.title), loc="left", fontsize=FONT_SIZE_PT + 1)
    handles = []
    for kind in drawn:
        own = look_of(kind)
        style: Any = (0, own.dashes) if own.dashes else "-"
        look: dict[str, Any] = {"color": COLOURS[own.colour], "marker": own.marker, "linestyle": style}
        handles.append(Line2D([], [], label=plain(kinds[kind], MAX_NAME), **look))
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=columns, handlelength=3.2)
    return figure


def save_figures(plots: Sequence[Plot], kinds: Sequence[str], folder: Path) -> list[Path]:
    """Writes NAME.png, NAME.svg and NAME.pdf of every plot that has something to draw; returns the paths.

    Raises:
        UserError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    written = []
    # From matplotlib's own defaults, so that nobody's matplotlibrc changes a figure.
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE}
    with matplotlib.rc_context(settings):
        for plot in plots:
            if plot.missing:
                continue
            figure = draw_plot(plot, kinds)
            # Laid out once, not anew for each format: quicker, and all three are alike.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            for suffix, metadata in METADATA.items():
                path = folder / f"{plot.name}.{suffix}"
                with atomic_write(path) as stream:
                    figure.savefig(stream, format=suffix, metadata=metadata)
                written.append(path)
    return written
