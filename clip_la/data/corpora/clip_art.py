"""Clip art with titles: the Open Clip Art Library 0.18 as Debian's openclipart-svg holds it, cleaned.

Of its 8,121 drawings most are icons of themes, flags, maps, playing cards and generated stars, under the title of their
series. What is kept has a title of its own that its tags or its folder bear out; titles in other languages do not pass.
"""

import base64
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from clip_la.data.corpora.captions import pick
from clip_la.data.corpora.debian import package_files
from clip_la.data.corpora.entries import Entry
from clip_la.data.corpora.names import with_article
from clip_la.errors import UserError

PACKAGE, DRAWINGS = "openclipart-svg", "usr/share/openclipart/svg"
ARTIST, LICENCE = "openclipart", "public domain"
CREDIT = {
    "title": "Open Clip Art Library 0.18",
    "licence": LICENCE,
    "attribution": "Open Clip Art Library, dedicated to the public domain by its contributors",
    "source": "https://openclipart.org",
    "package": f"{PACKAGE} (Debian)",
}
TEMPLATES = ("clip art of {}", "clip art of {}", "a drawing of {}", "an illustration of {}", "a picture of {}")
BLACK_AND_WHITE = "{} in black and white"
# Folders of icon themes, flags, maps, cards and patterns.
LEFT_OUT = (
    *("buttons", "computer", "decorations", "geography", "logos", "shapes", "signs_and_symbols", "special", "unsorted"),
    *("recreation/games", "transportation/aiga-symbols", "transportation/roadsigns"),
)
# A title that more drawings share is that of a series.
MAX_SHARED_TITLE = 4
MAX_WORDS = 6
# Longer files are tracings that take seconds to draw.
MAX_BYTES = 500_000
# Text would need fonts of the system; images inside are not drawings.
NOT_DRAWN = ("<text", "<image", ":text", ":image")
# Stems of words that name a collection, not a drawing.
OF_COLLECTIONS = frozenset(("art", "clip", "clipart", "collection", "exampl", "example", "icon", "part", "symbol"))
# Words of descriptions that are notes on the file.
OF_FILES = frozenset(
    ("converted", "created", "derivative", "drawn", "export", "file", "image", "inkscape", "my", "svg", "vector")
)
_TITLE = re.compile(r"[a-z][a-z' ,-]*[a-z]")
_SERIES = re.compile(r"^clipart by .* - ", re.IGNORECASE)
_NUMBER = re.compile(r"\s*#?\d+\s*$")
_BLACK_AND_WHITE = re.compile(r"\(b and w\)|\bbw\b|\bb&w\b", re.IGNORECASE)
_BLACK_AND_WHITE_FILE = re.compile(r"(?:^|_)bw(?:_|$)")
_WORD = re.compile(r"[a-z]{3,}")
_SENTENCE = re.compile(r"[A-Z][A-Za-z' ,-]*[a-z]\.?")
MIN_SENTENCE_WORDS = 4
_DC = "{http://purl.org/dc/elements/1.1/}"


class ClipArt(NamedTuple):
    """One drawing of the library: its file, title, tags, and description where there is a sentence."""

    path: Path
    origin: str
    title: str
    black_and_white: bool
    tags: tuple[str, ...]
    description: str

    @property
    def words(self) -> str:
        """Everything that is said of the drawing."""
        return " ".join((self.title, *self.tags, self.description)).lower()

    def entry(self) -> Entry:
        """The drawing as one of a corpus."""
        phrase = with_article(self.title)
        phrase = BLACK_AND_WHITE.format(phrase) if self.black_and_white else phrase
        caption = pick(TEMPLATES, "clip art", self.origin).format(phrase)
        captions = dict.fromkeys(text for text in (caption, self.description, phrase) if text)
        meta = {
            "caption": caption,
            "captions": list(captions),
            "tags": ", ".join(self.tags),
            "name": self.title,
            "artist": ARTIST,
            "licence": LICENCE,
            "origin": self.origin,
        }
        # As an image within a square it is centred, whatever its own size and units.
        text = base64.b64encode(self.path.read_bytes()).decode()
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1">'
            f'<image width="1" height="1" href="data:image/svg+xml;base64,{text}"/></svg>'
        )
        return Entry(f"{self.origin} {ARTIST}", svg, caption, meta)


class _Raw(NamedTuple):
    path: Path
    title: str
    tags: tuple[str, ...]
    description: str


def clip_art(given: Path | None = None) -> list[ClipArt]:
    """The drawings that have a title of their own, in the order of their paths.

    Args:
        given: the unpacked package, where it is neither installed nor to be downloaded.

    Raises:
        UserError: the package is not to be had, or holds no drawings.
    """
    folder = package_files(PACKAGE, DRAWINGS, given, option="--clip-art")
    raw = []
    for path in sorted(folder.rglob("*.svg")):
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError:
            continue
        work = next((e for e in root.iter() if e.tag.endswith("}Work")), None)
        if work is not None:
            said = [" ".join((work.findtext(_DC + name) or "").split()) for name in ("title", "description")]
            tags = [" ".join((e.text or "").lower().split()) for e in work.iter() if e.tag.endswith("}li")]
            # Broken exports have tags such as "hash(0x8a393fc)" and numbers.
            named = tuple(tag for tag in tags if re.fullmatch(r"[a-z][a-z' -]+", tag) and tag != "hash")
            raw.append(_Raw(path, said[0], named, said[1]))
    if not raw:
        raise UserError(f"{folder} holds no SVG drawings with titles; name the folder that {PACKAGE} was unpacked to")
    shared = Counter(each.title for each in raw)
    cleaned = (_cleaned(each, folder) for each in raw if shared[each.title] <= MAX_SHARED_TITLE)
    return [art for art in cleaned if art is not None]


def _cleaned(raw: _Raw, root: Path) -> ClipArt | None:
    """The drawing under a tidy title; None where the title, the folder or the file speaks against it."""
    origin = raw.path.relative_to(root).as_posix()
    folder = origin.rpartition("/")[0]
    title = _BLACK_AND_WHITE.sub("", _SERIES.sub("", raw.title)).replace("_", " ")
    title = " ".join(_NUMBER.sub("", title).lower().split())
    if any(f"{folder}/".startswith(f"{each}/") for each in LEFT_OUT) or not _TITLE.fullmatch(title):
        return None
    # Tags or folder must bear the title out: most titles in other languages fail here.
    words = _stems(title)
    if len(title.split()) > MAX_WORDS or words & OF_COLLECTIONS or not words & _stems(" ".join((*raw.tags, folder))):
        return None
    text = raw.path.read_text(encoding="utf-8", errors="replace")
    if len(text) > MAX_BYTES or any(tag in text for tag in NOT_DRAWN):
        return None
    # The description where it is a plain sentence about what is seen, not the title again or a note on the file.
    said = raw.description.lower().split()
    is_sentence = bool(_SENTENCE.fullmatch(raw.description)) and len(said) >= MIN_SENTENCE_WORDS
    is_about = bool(words & _stems(raw.description)) and not OF_FILES & set(said)
    description = raw.description.rstrip(".") if is_sentence and is_about else ""
    black_and_white = bool(_BLACK_AND_WHITE.search(raw.title) or _BLACK_AND_WHITE_FILE.search(raw.path.stem))
    tags = tuple(dict.fromkeys(tag for tag in raw.tags if tag != title))
    return ClipArt(raw.path, origin, title, black_and_white, tags, description)


def _stems(text: str) -> set[str]:
    return {re.sub("(?:es|s)$", "", word) for word in _WORD.findall(text.lower())}
