"""One scene: what it shows and says, read off hashed numbers, and its pixels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clip_la.data.corpora.render import Svg, render
from clip_la.data.corpora.scene_words import BACKGROUNDS, COLOR_NAMES, COLORS, LAYOUTS, Color, article, sized

# How many numbers a scene may take.
NUM_DRAWS = 64
# A thing fills this share of its cell's shorter side.
LEAST_FILL, MOST_FILL = 0.62, 0.98
# Where the caption names sizes, the small one is this much smaller.
SMALL, SIZES_NAMED = 0.5, 0.25
# Two colours closer than this (Euclidean, of 441) are hard to tell apart.
MIN_CONTRAST = 90.0
STRIPES = 8
T = TypeVar("T")
_PALETTE = np.array(list(COLORS.values()), np.int64)


class Actor(NamedTuple):
    """A drawing that may appear: what it is called, who drew it, where it lies."""

    name: str
    phrase: str
    artist: str
    code_point: str
    svg: Svg


class Thing(NamedTuple):
    """A drawing in its place: left, top and side in pixels."""

    actor: Actor
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Scene:
    """What a scene shows and says."""

    things: tuple[Thing, ...]
    layout: str
    background: str
    colors: tuple[str, str]
    caption: str

    def meta(self) -> dict[str, Any]:
        """The JSON of the scene's sample: layout, background, and each drawing with its box in pixels."""
        return {
            "layout": self.layout,
            "background": self.background,
            "colors": list(self.colors if self.background != "plain" else self.colors[:1]),
            "objects": [
                {
                    "name": thing.actor.name,
                    "artist": thing.actor.artist,
                    "code_point": thing.actor.code_point,
                    "box_px": [thing.left, thing.top, thing.left + thing.side, thing.top + thing.side],
                }
                for thing in self.things
            ],
        }


class _Draws:
    """Hashed numbers in [0, 1), taken one after another."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._numbers = iter(numbers)

    def number(self) -> float:
        return next(self._numbers)

    # Each call takes one number, whatever comes of it: scenes stay as they are when a rule looks at one more or less.
    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.number()

    def choice(self, options: Sequence[T]) -> T:
        return options[int(self.number() * len(options))]

    def weighted(self, shares: Iterable[tuple[str, float]]) -> str:
        table = list(shares)
        left = self.number() * sum(share for _, share in table)
        for name, share in table:
            left -= share
            if left < 0:
                return name
        return table[-1][0]


class SceneMaker:
    """Makes scenes of one size: keeps each drawing's image once it has been drawn.

    Raises:
        ValueError: the cast has fewer names than a scene may have things.
    """

    def __init__(self, cast: Sequence[Actor], size_px: int) -> None:
        needed = max(len(layout.cells) for layout in LAYOUTS.values())
        if len({actor.name for actor in cast}) < needed:
            raise ValueError(f"scenes need drawings of at least {needed} names")
        self._cast = cast
        self._size_px = size_px
        self._master_px = round(size_px * MOST_FILL)
        self._masters: dict[Svg, tuple[Image.Image, Color]] = {}

    def scene(self, numbers: Sequence[float]) -> Scene:
        """The scene that `NUM_DRAWS` numbers in [0, 1) describe."""
        # The order of what follows is part of the corpus: another one draws other scenes from the same numbers.
        draws = _Draws(numbers)
        name = draws.weighted((name, layout.share) for name, layout in LAYOUTS.items())
        layout = LAYOUTS[name]
        actors = self._actors(draws, len(layout.cells))
        words = self._size_words(draws, len(actors))
        things = tuple(
            self._place(draws, actor, cell, word) for actor, cell, word in zip(actors, layout.cells, words, strict=True)
        )
        phrases = [sized(a.phrase, word) if word else a.phrase for a, word in zip(actors, words, strict=True)]
        background = draws.weighted((kind, share) for kind, (share, _) in BACKGROUNDS.items())
        colors = self._colors(draws, actors)
        behind = draws.choice(BACKGROUNDS[background][1]).format(*colors, a0=article(colors[0]))
        caption = f"{draws.choice(layout.captions).format(*phrases)} {behind}"
        return Scene(things, name, background, colors, caption)

    def _actors(self, draws: _Draws, count: int) -> list[Actor]:
        chosen: list[Actor] = []
        while len(chosen) < count:
            place = int(draws.number() * len(self._cast))
            # Two things of one name in one scene could not be told apart by words.
            while any(self._cast[place].name == other.name for other in chosen):
                place = (place + 1) % len(self._cast)
            chosen.append(self._cast[place])
        return chosen

    def _size_words(self, draws: _Draws, count: int) -> list[str]:
        # Of two things alone a size can be named: among three, "small" would want a comparison.
        names_sizes, first = draws.number() < SIZES_NAMED, draws.number() < 0.5
        if count != 2 or not names_sizes:
            return [""] * count
        return ["big", "small"] if first else ["small", "big"]

    def _place(self, draws: _Draws, actor: Actor, cell: tuple[float, float, float, float], word: str) -> Thing:
        left, top, right, bottom = (edge * self._size_px for edge in cell)
        low, high = {"": (LEAST_FILL, MOST_FILL), "big": (0.85, MOST_FILL), "small": (SMALL * 0.8, SMALL)}[word]
        side = max(1, int(draws.between(low, high) * min(right - left, bottom - top)))
        return Thing(actor, int(draws.between(left, right - side)), int(draws.between(top, bottom - side)), side)

    def _colors(self, draws: _Draws, actors: Sequence[Actor]) -> tuple[str, str]:
        """Two colours from which the things stand out: the first that do from a drawn place in the list on."""
        means = [self._master(actor.svg)[1] for actor in actors]
        first = self._visible(int(draws.number() * len(COLORS)), means)
        return first, self._visible(int(draws.number() * len(COLORS)), [*means, COLORS[first]])

    def _visible(self, start: int, others: Sequence[Color]) -> str:
        # Whole numbers throughout: squares of floats may round otherwise on another machine.
        gaps = _PALETTE[:, None] - np.array(others, np.int64)
        contrast = np.roll((gaps * gaps).sum(2).min(1), -start)
        # argmax of a truth value: the first that is far enough; without any, the farthest.
        enough = contrast >= MIN_CONTRAST**2
        step = int(enough.argmax() if enough.any() else contrast.argmax())
        return COLOR_NAMES[(start + step) % len(COLOR_NAMES)]

    def _master(self, svg: Svg) -> tuple[Image.Image, Color]:
        if svg not in self._masters:
            image = Image.open(BytesIO(render(svg, self._master_px, background=None))).convert("RGBA")
            pixels = np.asarray(image).reshape(-1, 4).astype(np.int64)
            # The mean colour of what is drawn: transparent pixels count by their opacity. Whole numbers, so that no
            # machine rounds otherwise.
            weight = max(int(pixels[:, 3].sum()), 1)
            red, green, blue = ((pixels[:, :3] * pixels[:, 3:]).sum(0) // weight).tolist()
            self._masters[svg] = (image, (red, green, blue))
        return self._masters[svg]

    def draw(self, scene: Scene) -> UInt8[np.ndarray, "size size 3"]:
        """The pixels of a scene."""
        canvas = Image.fromarray(background_pixels(scene.background, scene.colors, self._size_px))
        for thing in scene.things:
            image = self._master(thing.actor.svg)[0].resize((thing.side, thing.side), Image.Resampling.BICUBIC)
            canvas.paste(image, (thing.left, thing.top), image)
        return np.asarray(canvas)


def background_pixels(kind: str, colors: tuple[str, str], size_px: int) -> UInt8[np.ndarray, "size size 3"]:
    """A background of one of the kinds in BACKGROUNDS."""
    if kind == "plain":
        return np.full((size_px, size_px, 3), COLORS[colors[0]], np.uint8)
    first, second = (np.array(COLORS[name], np.int64) for name in colors)
    line = np.arange(size_px)
    across, down = line[None, :], line[:, None]
    band = max(size_px // STRIPES, 1)
    # How much of the second colour there is, in 255ths.
    share = {
        "fading down": lambda: down * 255 // max(size_px - 1, 1) + across * 0,
        "fading across": lambda: across * 255 // max(size_px - 1, 1) + down * 0,
        "horizontal stripes": lambda: 255 * (down // band % 2) + across * 0,
        "vertical stripes": lambda: 255 * (across // band % 2) + down * 0,
        "checks": lambda: 255 * ((across // band + down // band) % 2),
        "dots": lambda: 255 * ((across % band * 2 - band) ** 2 + (down % band * 2 - band) ** 2 < band * band // 3),
    }[kind]()
    # Few shares occur: mix them once and look them up.
    steps = np.arange(256)[:, None]
    return ((first * (255 - steps) + second * steps) // 255).astype(np.uint8)[share]
