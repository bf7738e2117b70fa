"""What a plot holds, in data's own units: the page draws it as SVG, matplotlib as PNG, SVG and PDF for a paper."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from clip_la.scaling.report import number

# A law that hardly falls puts multipliers and bounds anywhere up to 1e300: limits leave out what is further from 1.
MAX_DECADES = 36.0
# Letters of an axis title: longer names of metrics are cut, the top of the page has them whole. One below is longer.
MAX_TITLE, MAX_TITLE_BELOW = 34, 50
# A bar that reaches further than this many times the spread of the values squeezes the others together: it is cut.
MAX_BAR = 3.0
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# What stands before a power of ten on a logarithmic axis: the first of these that gives neither too few nor too many.
MANTISSAS = ((1, 2, 5), (1, 3), (1,))
ROUND_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Axis:
    """One axis: its title with the unit, its limits in data's units, and whether it is logarithmic."""

    title: str
    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 at `low` and 1 at `high`; what lies far outside is held a little outside."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            place = (math.log(value) - low) / (high - low) if value > 0 else -math.inf
        else:
            place = (value - self.low) / (self.high - self.low)
        return min(max(place, -0.5), 1.5)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """At most `most` round values within the limits, ascending, with their labels."""
        if self.log:
            first, last = math.floor(math.log10(self.low) + 1e-9), math.ceil(math.log10(self.high) - 1e-9)
            for mantissas in MANTISSAS:
                values = [mantissa * 10.0**power for power in range(first, last + 1) for mantissa in mantissas]
                inside = [value for value in values if self.low * 0.999999 <= value <= self.high * 1.000001]
                # Fewer than three leave the axis bare: it is short, and even steps are as readable there.
                if 3 <= len(inside) <= most:
                    return [(value, number_text(value)) for value in inside]
            if last - first > 3:
                step = -(-(last - first + 1) // most)
                return [
                    (10.0**power, number_text(10.0**power)) for power in range(first + 1, last) if power % step == 0
                ]
        # Multiples of the smallest round step that gives no more.
        size = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        for apart in (size * each for each in (*ROUND_STEPS, 20, 25, 50)):
            first, last = math.ceil(self.low / apart - 1e-9), math.floor(self.high / apart + 1e-9)
            if last - first + 1 <= most:
                return [(number * apart, number_text(number * apart)) for number in range(first, last + 1)]
        raise AssertionError(f"no step between {self.low} and {self.high}")


def number_text(value: float) -> str:
    """Four digits at most, with a power of ten outside 0.001 to 9999; a minus sign, no hyphen."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}".replace("-", "−")
    power = math.floor(math.log10(abs(value)) + 1e-12)
    mantissa = f"{value / 10.0**power:.3g}".replace("-", "−")
    return ("" if mantissa == "1" else f"{mantissa}·") + "10" + str(power).translate(SUPERSCRIPTS)


def limits(values: Iterable[float], *, log: bool, margin: float = 0.06) -> tuple[float, float]:
    """Limits a little wider than the values, a share `margin` of their range at both ends.

    Values that are not finite, on a log axis also those of 0 and below or beyond `MAX_DECADES`, do not count.
    """
    if log:
        known = [math.log10(v) for v in values if 0 < v < math.inf and abs(math.log10(v)) <= MAX_DECADES]
    else:
        known = [v for v in values if math.isfinite(v)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    # All values alike: an axis around them all the same.
    pad = margin * (high - low) or (0.1 if log else abs(high) * 0.1 or 1.0)
    return (10 ** (low - pad), 10 ** (high + pad)) if log else (low - pad, high + pad)


@dataclass(frozen=True)
class Mark:
    """One value: its place, its kind's number, its text for the tooltip, and the ends of its interval, where known.

    `shift` moves the marker aside by this share of the axis, so that markers at one x do not hide each other. `filled`
    says whether it entered a fit; `size` is the marker's width over the smallest one's.
    """

    x: float
    y: float
    kind: int
    text: str
    filled: bool = True
    size: float = 1.0
    shift: float = 0.0
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """A curve of one kind: a law (`dashed` as the kind is), or what was measured on the way (thin)."""

    x: Sequence[float]
    y: Sequence[float]
    kind: int
    thin: bool = False


@dataclass(frozen=True)
class Band:
    """The area between two curves of one kind: where its law lies with 95 % confidence."""

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    kind: int


@dataclass(frozen=True)
class Plot:
    """One plot. `name` is that of its files; `rule` a value of the reference line, across the axis that `rule_of` says.

    `rows` are names in place of the ticks of y, one at each whole number from the top down. Where `missing` says why
    there is nothing to draw, the page prints that instead.
    """

    name: str
    title: str
    caption: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...] = ()
    lines: tuple[Line, ...] = ()
    bands: tuple[Band, ...] = ()
    rule: float | None = None
    rule_of: str = "y"
    rows: tuple[str, ...] = ()
    missing: str = ""


def absent(name: str, title: str, why: str) -> Plot:
    """A plot that the data cannot fill, with the reason."""
    empty = Axis("", 0, 1)
    return Plot(name, title, "", empty, empty, missing=why)


Row = tuple[str, int, float, tuple[float, float] | None]


def intervals_plot(
    name: str,
    title: str,
    caption: str,
    quantity: str,
    rows: Sequence[Row],
    digits: str,
    *,
    rule: float | None,
    log: bool,
) -> Plot:
    """Values with intervals, a row each: (name, kind, value, interval); `digits` is the format of a value's text.

    Bars far longer than the others are cut at the edge, and `rule` marks the value of no effect.
    """
    to_axis: Callable[[float], float] = (lambda v: math.log10(max(v, 1e-300))) if log else float
    values = [to_axis(value) for _, _, value, _ in rows] + ([] if rule is None else [to_axis(rule)])
    widths = sorted(to_axis(ends[1]) - to_axis(ends[0]) for *_, ends in rows if ends)
    room = MAX_BAR * max(max(values) - min(values), widths[len(widths) // 2] if widths else 0.0)
    shown = [*values, *(to_axis(each) for *_, ends in rows for each in ends or ())]
    inside = [min(max(each, min(values) - room), max(values) + room) for each in shown]
    reach = limits([10**each for each in inside] if log else inside, log=log)
    marks = tuple(
        Mark(value, place, kind, f"{label}: {number(value, ends, digits)}", ends is not None, 1.3, x_ends=ends)
        for place, (label, kind, value, ends) in enumerate(rows)
    )
    # Row 0 is at the top.
    return Plot(
        name,
        title,
        caption,
        Axis(quantity, *reach, log=log),
        Axis("", len(rows) - 0.6, -0.8),
        marks,
        rule=rule,
        rule_of="x",
        rows=tuple(label for label, *_ in rows),
    )


def short(text: str, most: int = MAX_TITLE) -> str:
    """A text of at most so many letters; a longer one ends in dots."""
    return text if len(text) <= most else text[: most - 1] + "…"
