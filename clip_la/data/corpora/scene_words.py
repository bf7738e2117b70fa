"""What a scene says of itself: colours, backgrounds, places, sizes."""

from typing import NamedTuple

Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "white": (255, 255, 255),
    "light gray": (211, 211, 211),
    "gray": (136, 136, 136),
    "black": (16, 16, 16),
    "red": (214, 40, 40),
    "dark red": (128, 12, 20),
    "pink": (255, 182, 203),
    "orange": (247, 140, 30),
    "yellow": (252, 221, 60),
    "beige": (240, 226, 196),
    "brown": (121, 80, 48),
    "light green": (168, 224, 148),
    "green": (60, 160, 70),
    "dark green": (14, 84, 44),
    "turquoise": (64, 200, 190),
    "light blue": (166, 212, 246),
    "blue": (46, 104, 216),
    "dark blue": (16, 34, 106),
    "light purple": (208, 184, 240),
    "purple": (122, 60, 168),
}
COLOR_NAMES = tuple(COLORS)

# `{0}` and `{1}` are two colours, each with its share of draws.
BACKGROUNDS: dict[str, tuple[float, tuple[str, ...]]] = {
    "plain": (0.4, ("on {a0} background", "in front of {a0} background")),
    "fading down": (0.12, ("on a background fading from {0} at the top to {1} at the bottom",)),
    "fading across": (0.12, ("on a background fading from {0} on the left to {1} on the right",)),
    "horizontal stripes": (0.09, ("on a background of {0} and {1} horizontal stripes",)),
    "vertical stripes": (0.09, ("on a background of {0} and {1} vertical stripes",)),
    "checks": (0.09, ("on {a0} and {1} checkered background",)),
    "dots": (0.09, ("on {a0} background with {1} dots",)),
}


class SceneLayout(NamedTuple):
    """Cells as (left, top, right, bottom) fractions of the image; captions, where `{0}` stands for the first cell."""

    share: float
    cells: tuple[tuple[float, float, float, float], ...]
    captions: tuple[str, ...]


_LEFT, _RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
_TOP, _BOTTOM = (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)
_QUARTERS = ((0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0))
_THIRDS = tuple((i / 3, 0.0, (i + 1) / 3, 1.0) for i in range(3))
_ROWS = tuple((0.0, i / 3, 1.0, (i + 1) / 3) for i in range(3))
_CORNERS = ("top left", "top right", "bottom left", "bottom right")

LAYOUTS: dict[str, SceneLayout] = {
    "one": SceneLayout(0.14, ((0.0, 0.0, 1.0, 1.0),), ("{0}", "a picture of {0}", "a drawing of {0}")),
    "side by side": SceneLayout(
        0.24,
        (_LEFT, _RIGHT),
        (
            "{0} left of {1}",
            "{0} to the left of {1}",
            "{1} right of {0}",
            "{1} to the right of {0}",
            "{0} on the left and {1} on the right",
        ),
    ),
    "stacked": SceneLayout(
        0.24,
        (_TOP, _BOTTOM),
        ("{0} above {1}", "{1} below {0}", "{0} at the top and {1} at the bottom", "{1} under {0}"),
    ),
    "row": SceneLayout(
        0.09, _THIRDS, ("{1} between {0} and {2}", "from left to right {0}, {1} and {2}", "{0}, {1} and {2} in a row")
    ),
    "column": SceneLayout(0.05, _ROWS, ("from top to bottom {0}, {1} and {2}", "{0} above {1} above {2}")),
    "one over two": SceneLayout(
        0.07,
        (_TOP, *_QUARTERS[2:]),
        ("{0} above {1} and {2}", "{0} at the top, {1} at the bottom left and {2} at the bottom right"),
    ),
    "two over one": SceneLayout(
        0.06,
        (*_QUARTERS[:2], _BOTTOM),
        ("{2} below {0} and {1}", "{0} at the top left, {1} at the top right and {2} at the bottom"),
    ),
    "four": SceneLayout(
        0.05,
        _QUARTERS,
        ("{0} at the top left, {1} at the top right, {2} at the bottom left and {3} at the bottom right",),
    ),
    **{f"one, {where}": SceneLayout(0.015, (cell,), (f"{{0}} at the {where}", f"{{0}} in the {where} corner"))
       for where, cell in zip(_CORNERS, _QUARTERS, strict=True)},
}  # fmt: skip


def sized(phrase: str, word: str) -> str:
    """ "a red apple" as "a small red apple", "grapes" as "small grapes"; what is said with "the" stays as it is."""
    first, _, rest = phrase.partition(" ")
    if first in ("a", "an"):
        return f"a {word} {rest}"
    return phrase if first == "the" else f"{word} {phrase}"


def article(text: str) -> str:
    """ "dark blue" as "a dark blue", "orange" as "an orange"."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
