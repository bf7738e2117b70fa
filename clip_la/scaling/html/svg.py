"""A plot as SVG, written by hand: a few dozen shapes a plot need no library in the page.

Colours are classes (`k0`, `k1` ... of the palette), so that the page's light and dark styles decide them. Every mark
carries its values as `aria-label`; the page's script shows that text by pointer and keyboard.
"""

import math
from collections.abc import Sequence
from html import escape

from clip_la.scaling.html.plots import Line, Mark, Plot, short
from clip_la.scaling.palette import look_of

# Units of the view box; a page shows it 330 to 640 px wide.
WIDTH, HEIGHT = 480.0, 330.0
MIN_LEFT, RIGHT, TOP, BOTTOM = 56.0, 16.0, 10.0, 54.0
MAX_TICKS_X, MAX_TICKS_Y = 6, 7
# Width of a letter of the tick labels where the window is narrow and the text large.
LETTER = 8.8
# Left of the tick labels: the title of y, and the gaps around it.
TITLE_WIDTH = 28.0
# Half the width of the smallest marker.
RADIUS = 3.4
LINE_WIDTH = 1.6
# Few rows stand further apart, so that the plot is as high as its neighbours.
ROW_HEIGHT, MAX_ROW_HEIGHT, ROOM = 36.0, 70.0, 260.0
# From the row's bar up to the foot of its name.
ROW_TEXT = 9.0
# Of a row's name: a longer one runs out of the plot; the tooltip has it whole.
MAX_ROW_NAME = 48


def svg(plot: Plot) -> str:
    """The plot as an <svg> element in a view box of `WIDTH` units; all text is escaped."""
    return _Canvas(plot).text()


class _Canvas:
    """One plot's drawing area: data's units to the view box's, and the parts of the drawing."""

    def __init__(self, plot: Plot) -> None:
        self.plot = plot
        self.y_ticks = [] if plot.rows else plot.y.ticks(MAX_TICKS_Y)
        longest = max((len(label) for _, label in self.y_ticks), default=0)
        self.left = 14.0 if plot.rows else max(MIN_LEFT, TITLE_WIDTH + LETTER * longest)
        self.height = (
            TOP + BOTTOM + max(ROW_HEIGHT, min(ROOM / max(len(plot.rows), 1), MAX_ROW_HEIGHT)) * len(plot.rows)
            if plot.rows
            else HEIGHT
        )
        self.bottom = self.height - BOTTOM

    def x(self, value: float) -> float:
        return round(self.left + self.plot.x.share(value) * (WIDTH - RIGHT - self.left), 1)

    def y(self, value: float) -> float:
        return round(self.bottom - self.plot.y.share(value) * (self.bottom - TOP), 1)

    def mark_x(self, mark: Mark) -> float:
        return round(self.x(mark.x) + mark.shift * (WIDTH - RIGHT - self.left), 1)

    def text(self) -> str:
        plot = self.plot
        clip = f"clip-{plot.name}"
        area = f'x="{self.left:g}" y="{TOP:g}" width="{WIDTH - RIGHT - self.left:g}" height="{self.bottom - TOP:g}"'
        curves = "".join(
            [*(self._area(band.x, band.low, band.high, band.kind) for band in plot.bands), *map(self._line, plot.lines)]
        )
        return (
            f'<svg viewBox="0 0 {WIDTH:g} {self.height:g}" role="group" aria-label="{escape(plot.title)}: '
            f'{len(plot.marks)} values, arrow keys go from one to the next">'
            f'<defs><clipPath id="{clip}"><rect {area}/></clipPath></defs>'
            f'<g class="axes" aria-hidden="true">{self._axes()}</g>'
            f'<g clip-path="url(#{clip})"><g aria-hidden="true">{curves}</g>'
            # Bars first: no bar lies over another value's marker.
            f'<g aria-hidden="true">{"".join(map(self._bars, plot.marks))}</g></g>'
            f"<g>{''.join(map(self._mark, plot.marks))}</g></svg>"
        )

    def _axes(self) -> str:
        plot, right = self.plot, WIDTH - RIGHT
        parts = []
        for value, label in plot.x.ticks(MAX_TICKS_X):
            x = self.x(value)
            parts.append(f'<path class="grid" d="M{x} {TOP:g}V{self.bottom:g}"/>')
            # A label near the edge moves inwards, or it would leave the drawing.
            half = LETTER * len(label) / 2
            x = min(max(x, half), WIDTH - half)
            parts.append(f'<text x="{x}" y="{self.bottom + 20:g}" text-anchor="middle">{escape(label)}</text>')
        for value, label in self.y_ticks:
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{self.left:g} {y}H{right:g}"/>')
            parts.append(f'<text x="{self.left - 6:g}" y="{y + 4:g}" text-anchor="end">{escape(label)}</text>')
        if plot.rule is not None:
            across = f"M{self.left:g} {self.y(plot.rule)}H{right:g}"
            up = f"M{self.x(plot.rule)} {TOP:g}V{self.bottom:g}"
            parts.append(f'<path class="rule" d="{across if plot.rule_of == "y" else up}"/>')
        for number, name in enumerate(plot.rows):
            y = self.y(number) - ROW_TEXT
            parts.append(
                f'<text class="row" x="{self.left + 4:g}" y="{y:g}">{escape(short(name, MAX_ROW_NAME))}</text>'
            )
        parts.append(f'<path class="frame" d="M{self.left:g} {TOP:g}V{self.bottom:g}H{right:g}"/>')
        titles = [(plot.x, f'x="{(self.left + right) / 2:g}" y="{self.bottom + 44:g}"')]
        if not plot.rows:
            titles.append((plot.y, f'x="{-(TOP + self.bottom) / 2:g}" y="13" transform="rotate(-90)"'))
        for axis, place in titles:
            parts.append(f'<text class="title" {place} text-anchor="middle">{escape(axis.title)}</text>')
        return "".join(parts)

    def _path(self, x: Sequence[float], y: Sequence[float]) -> str:
        return "L".join(f"{self.x(a)} {self.y(b)}" for a, b in zip(x, y, strict=True))

    def _line(self, line: Line) -> str:
        width = 1.0 if line.thin else LINE_WIDTH
        dashes = "" if line.thin else ",".join(f"{each * width:g}" for each in look_of(line.kind).dashes)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        thin = " thin" if line.thin else ""
        return (
            f'<path class="line{thin} {colour_class(line.kind)}" data-kind="{line.kind}" stroke-width="{width}"{dashed}'
            f' d="M{self._path(line.x, line.y)}"/>'
        )

    def _area(self, x: Sequence[float], low: Sequence[float], high: Sequence[float], kind: int) -> str:
        around = self._path([*x, *reversed(x)], [*low, *reversed(high)])
        return f'<path class="band {colour_class(kind)}" data-kind="{kind}" d="M{around}Z"/>'

    def _bars(self, mark: Mark) -> str:
        """The interval of a mark, cut at the edge of the plot."""
        if mark.x_ends is not None:
            d = f"M{self.x(mark.x_ends[0])} {self.y(mark.y)}H{self.x(mark.x_ends[1])}"
        elif mark.y_ends is not None:
            d = f"M{self.mark_x(mark)} {self.y(mark.y_ends[0])}V{self.y(mark.y_ends[1])}"
        else:
            return ""
        return f'<path class="bar {colour_class(mark.kind)}" data-kind="{mark.kind}" d="{d}"/>'

    def _mark(self, mark: Mark) -> str:
        x, y = self.mark_x(mark), self.y(mark.y)
        if not (self.left - 1 <= x <= WIDTH - RIGHT + 1 and TOP - 1 <= y <= self.bottom + 1):
            return ""
        hollow = "" if mark.filled else " hollow"
        shape = marker_path(look_of(mark.kind).marker, RADIUS * mark.size)
        return (
            f'<path class="mark{hollow} {colour_class(mark.kind)}" data-kind="{mark.kind}" role="img" '
            f'aria-label="{escape(mark.text)}" transform="translate({x} {y})" d="{shape}"/>'
        )


def colour_class(kind: int) -> str:
    """The class that gives a kind its colour."""
    return f"k{look_of(kind).colour}"


def marker_path(marker: str, radius: float) -> str:
    """The outline of one of matplotlib's markers around (0, 0), all of about the same area."""
    r = radius

    def polygon(points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points) + "Z"

    if marker == "o":
        return f"M{-r:.1f} 0A{r:.1f} {r:.1f} 0 1 0 {r:.1f} 0A{r:.1f} {r:.1f} 0 1 0 {-r:.1f} 0Z"
    if marker in "^v":
        up = -1 if marker == "^" else 1
        return polygon([(-1.2 * r, -up * 0.8 * r), (1.2 * r, -up * 0.8 * r), (0, up * 1.2 * r)])
    if marker == "D":
        return polygon([(0, -1.3 * r), (1.3 * r, 0), (0, 1.3 * r), (-1.3 * r, 0)])
    if marker in "PX":
        a, b = 1.2 * r, 0.45 * r
        corners = [
            (-b, -a),
            (b, -a),
            (b, -b),
            (a, -b),
            (a, b),
            (b, b),
            (b, a),
            (-b, a),
            (-b, b),
            (-a, b),
            (-a, -b),
            (-b, -b),
        ]
        turn = math.pi / 4 if marker == "X" else 0.0
        c, s = math.cos(turn), math.sin(turn)
        return polygon([(x * c - y * s, x * s + y * c) for x, y in corners])
    s = 0.9 * r
    return polygon([(-s, -s), (s, -s), (s, s), (-s, s)])
