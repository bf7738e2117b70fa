"""Colours, markers and dashes of the kinds of model: one place for the figures on paper and the page of HTML."""

from dataclasses import dataclass

# Okabe and Ito's palette, told apart by every common kind of colour blindness; yellow is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# The same hues on a dark ground: lighter ones keep a contrast of 4.5 to it, and black becomes white.
DARK_COLOURS = ("#3D9BE0", "#F0803C", "#1FC29A", "#E59AC6", "#F2C230", "#9AD8FF", "#FFFFFF")
LIGHT_GROUND, DARK_GROUND = "#ffffff", "#15181d"
# matplotlib's names.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Lengths of stroke and gap in widths of the line; () is a whole line. The first are matplotlib's own "--", "-.", ":".
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (3.7, 1.6),
    (6.4, 1.6, 1, 1.6),
    (1, 1.65),
    (5, 1, 1, 1, 1, 1),
    (1, 2),
    (8, 3),
)


@dataclass(frozen=True)
class Look:
    """How one kind is drawn: the index of its colour in both palettes, a marker and a dash."""

    colour: int
    marker: str
    dashes: tuple[float, ...]


def look_of(number: int) -> Look:
    """The look of the kind `number` (from 0 on); forty-nine kinds look different, after that they repeat.

    The eighth kind has the first one's colour with another marker and dash.
    """
    turn, place = divmod(number, len(COLOURS))
    other = (place + turn) % len(MARKERS)
    return Look(place, MARKERS[other], DASHES[other])
