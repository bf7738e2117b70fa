"""More drawings for training: four further artists of the same concepts, single-colour icons, and clip art.

What the starter corpus holds out stays held out: no drawing of a held-out concept, no icon or clip art that is called
like one, no image that coincides with one of the test splits.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from clip_la.data.corpora.artists import Artist
from clip_la.data.corpora.captions import pick
from clip_la.data.corpora.clip_art import ARTIST as CLIP_ART
from clip_la.data.corpora.clip_art import CREDIT as CLIP_ART_CREDIT
from clip_la.data.corpora.clip_art import clip_art
from clip_la.data.corpora.concepts import Concept, Deal
from clip_la.data.corpora.entries import Entry, drawing_entry
from clip_la.data.corpora.names import SKIN_TONES, VARIATION_SELECTOR, CodePoint, parse_code_point, plain, with_article
from clip_la.data.corpora.npm import IconSet
from clip_la.data.corpora.render import Svg, pixel_hash, render_all

# As in the starter corpus: images that coincide at this size are one.
MARK_SIZE_PX = 64
GAME_ICONS = "@iconify-json/game-icons"
ICON_LICENCE = "CC-BY-3.0"
ICON_CREDIT = {
    "title": "Game-icons.net",
    "licence": ICON_LICENCE,
    "attribution": "Icons by Lorc, Delapouite and contributors of game-icons.net, CC BY 3.0",
    "source": "https://game-icons.net",
    "package": f"{GAME_ICONS} (npm)",
}
ICON_COLORS = {"black": "#101010", "dark blue": "#14286e", "dark red": "#8c1420", "dark green": "#125a30"}
ICON_TEMPLATES = ("a {color} icon of {thing}", "a {color} silhouette of {thing}", "{thing}, a {color} symbol")
# Clip art is drawn on pages; where less of one is covered, a small image would show next to nothing.
MIN_COVERED = 0.03
_NUMBERED = re.compile(r"\d")


def _by_names(icons: IconSet, joint: str) -> dict[CodePoint, Svg]:
    """Drawings of a set that knows no code points: found by the emoji's name, else by another name of several words.

    Other names of one word mislead: ":wave:" is a hand to some and water to others. `joint` stands between words.
    """
    import emoji

    def slug(text: str) -> str:
        return joint.join(re.findall(r"[a-z0-9]+", plain(text).lower().replace("'", "")))

    entries = [
        (tuple(v for v in map(ord, text) if v != VARIATION_SELECTOR), entry)
        for text, entry in sorted(emoji.EMOJI_DATA.items(), key=lambda item: (item[1]["status"], item[0]))
    ]
    own = {slug(entry["en"]) for _, entry in entries}
    found: dict[CodePoint, Svg] = {}
    for code_point, entry in entries:
        others = [slug(alias) for alias in entry.get("alias", ()) if " " in plain(alias)]
        # Another emoji's own name is not an alias of this one.
        for name in [slug(entry["en"]), *(other for other in others if other not in own)]:
            svg = icons.svg(name)
            if svg is not None and code_point not in found and not any(v in SKIN_TONES for v in code_point):
                found[code_point] = svg
    return found


def wide_artists(modules: Path) -> tuple[Artist, ...]:
    """The further artists, each independent of the others and of the starter's two."""

    # `joint` is what stands between the words of a drawing's name, None for sets that know code points.
    def artist(name: str, title: str, licence: str, attribution: str, source: str, joint: str | None) -> Artist:
        package = f"@iconify-json/{name}"

        def drawings() -> Mapping[CodePoint, Svg]:
            icons = IconSet(modules, package)
            if joint is not None:
                return _by_names(icons, joint)
            found: dict[CodePoint, Svg] = {}
            for stem, drawing in sorted(icons.chars.items()):
                if (svg := icons.svg(drawing)) is not None:
                    found.setdefault(parse_code_point(stem), svg)
            return found

        return Artist(name, title, licence, attribution, source, f"{package} (npm)", drawings)

    return (
        artist(
            "noto",
            "Noto Emoji",
            "Apache-2.0",
            "Noto Emoji, copyright Google LLC",
            "https://github.com/googlefonts/noto-emoji",
            None,
        ),
        artist(
            "fluent-emoji-flat",
            "Fluent Emoji Flat",
            "MIT",
            "Fluent Emoji, copyright Microsoft Corporation",
            "https://github.com/microsoft/fluentui-emoji",
            None,
        ),
        artist(
            # The last open set of EmojiOne; later ones have another licence.
            "emojione",
            "EmojiOne (EmojiTwo)",
            "CC-BY-4.0",
            "EmojiOne 2 as kept by EmojiTwo, CC BY 4.0",
            "https://github.com/EmojiTwo/emojitwo",
            "-",
        ),
        artist(
            "fxemoji",
            "FxEmojis",
            "Apache-2.0",
            "FxEmojis, copyright Mozilla Foundation",
            "https://github.com/mozilla/fxemoji",
            "",
        ),
    )


class Wide(NamedTuple):
    """What is added to training, and whom to credit for it."""

    entries: list[Entry]
    credits: dict[str, dict[str, str]]


def wide_entries(
    modules: Path,
    art: Path | None,
    concepts: Sequence[Concept],
    dealt: Deal,
    tests: set[str],
    *,
    workers: int = 1,
    quiet: bool = False,
) -> Wide:
    """All further drawings that training may see.

    Args:
        modules: the folder `node_modules` with the packages.
        art: the unpacked package of the clip art; None looks for it as `package_files` does.
        tests: pixel hashes, at MARK_SIZE_PX, of the images of the test splits.
    """
    added = _Additions(tests, workers, quiet)
    artists = wide_artists(modules)
    for artist in artists:
        drawings = artist.drawings()
        held = [drawings[c.code_point] for c in concepts if c.id in dealt.concepts and c.code_point in drawings]
        own = [
            drawing_entry(concept, artist, drawings[concept.code_point])
            for concept in concepts
            if concept.id not in dealt.concepts and concept.code_point in drawings
        ]
        # An artist may draw a held-out concept and another one alike.
        hidden = {pixel_hash(png) for png in added.drawn(held, f"{artist.name}, held out")}
        added.take(own, artist.name, hidden=hidden)
    # Any name of a held-out concept as whole words, or its plural.
    held_names = [concept.name for concept in concepts if concept.id in dealt.concepts]
    words = sorted({re.escape(text.lower()) for name in held_names for text in (name.name, *name.tags)})
    named = re.compile(rf"\b(?:{'|'.join(words)})(?:s|es)?\b")
    added.take(game_icons(modules, named), "game-icons")
    clip_art_entries = [drawing.entry() for drawing in clip_art(art) if not named.search(drawing.words)]
    added.take(clip_art_entries, CLIP_ART, least_covered=MIN_COVERED)
    credits = {artist.name: artist.credit() for artist in artists}
    return Wide(added.entries, {**credits, "game-icons": ICON_CREDIT, CLIP_ART: CLIP_ART_CREDIT})


class _Additions:
    """Collects entries whose image, at MARK_SIZE_PX, is none of the tests'."""

    def __init__(self, tests: set[str], workers: int, quiet: bool) -> None:
        self.entries: list[Entry] = []
        self._tests, self._workers, self._quiet = tests, workers, quiet

    def drawn(self, svgs: Sequence[Svg], title: str) -> Iterator[bytes]:
        """PNGs of the drawings, with a progress bar."""
        pngs = render_all(svgs, MARK_SIZE_PX, self._workers)
        yield from tqdm(pngs, title, total=len(svgs), unit="img", disable=self._quiet or None)

    def take(
        self, entries: Sequence[Entry], title: str, *, hidden: Iterable[str] = (), least_covered: float = 0.0
    ) -> None:
        """Adds one source's entries: a drawing once, none that is `hidden`, none with less than this share drawn on."""
        seen = self._tests | set(hidden)
        for entry, png in zip(entries, self.drawn([entry.svg for entry in entries], title), strict=True):
            mark = pixel_hash(png)
            with Image.open(BytesIO(png)) as image:
                histogram = image.convert("L").histogram()
            covered = 1 - histogram[-1] / sum(histogram)
            if mark not in seen and covered >= least_covered:
                seen.add(mark)
                self.entries.append(entry)


def game_icons(modules: Path, forbidden: re.Pattern[str]) -> list[Entry]:
    """The single-colour icons whose names have words, and in them nothing forbidden."""
    icons = IconSet(modules, GAME_ICONS)
    found = []
    for slug in icons.names:
        name = slug.replace("-", " ")
        if _NUMBERED.search(name) or forbidden.search(name):
            continue
        color = pick(tuple(ICON_COLORS), "icon color", slug)
        caption = pick(ICON_TEMPLATES, "icon", slug).format(color=color, thing=with_article(name))
        svg = icons.svg(slug, ICON_COLORS[color])
        if svg is None:
            continue
        meta = {
            "caption": caption,
            "captions": [caption, with_article(name)],
            "tags": "",
            "name": name,
            "artist": "game-icons",
            "licence": ICON_LICENCE,
        }
        found.append(Entry(f"{name} game-icons", svg, caption, meta))
    return found
