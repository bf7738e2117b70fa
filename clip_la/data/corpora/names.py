"""From a code point and its short Unicode name to words a caption can use.

The `emoji` package spells names as `:man_red_hair:`, `:France:`, `:seven-thirty:`. A caption wants "a man with red
hair", "the flag of France", "a clock showing seven-thirty". Rules go by code point or by whole names; only articles
look at the ends of words.
"""

import re
from dataclasses import dataclass

from clip_la.data.corpora import words

CodePoint = tuple[int, ...]

# Asks for the coloured form of a sign that also has a plain one; file names leave it out as often as not.
VARIATION_SELECTOR = 0xFE0F
SKIN_TONES = range(0x1F3FB, 0x1F400)
# Flags of countries are pairs of letters of a kind of their own; those of regions are spelt in tags.
_REGIONAL = range(0x1F1E6, 0x1F200)
_TAGS = range(0xE0020, 0xE0080)
_KEYCAP = 0x20E3
_CLOCKS = range(0x1F550, 0x1F568)
_ZODIAC = (*range(0x2648, 0x2654), 0x26CE)
_ENCLOSED = range(0x1F100, 0x1F300)

_PEOPLE = frozenset(("man", "woman", "person", "child"))
_FAMILY = _PEOPLE | {"girl", "boy", "adult"}
# "grapes" but not "cactus", "glass" or "tennis"; what it gets wrong stands in words.SINGULAR.
_PLURAL = re.compile(r"[a-z](?<![sui])s$")
# What follows the noun that decides on the article: "a man | with red hair".
_AFTER_HEAD = re.compile(r" (?:with|without|in|of|on|at|showing|lifting|facing|pointing|and) ")


@dataclass(frozen=True)
class Name:
    """A concept's name ("red apple"), the same as a noun phrase ("a red apple") and other words for it."""

    name: str
    phrase: str
    tags: tuple[str, ...] = ()


def parse_code_point(stem: str) -> CodePoint:
    """Code points of a file stem such as "1F468-200D-1F373" or "a9", without variation selectors.

    Raises ValueError for a stem that is no such name.
    """
    return tuple(value for part in re.split("[-_]", stem) if (value := int(part, 16)) != VARIATION_SELECTOR)


def format_code_point(code_point: CodePoint) -> str:
    """Code points as "1F468-200D-1F373": capitals, at least four digits."""
    return "-".join(f"{value:04X}" for value in code_point)


def is_flag(code_point: CodePoint) -> bool:
    """Whether this is the flag of a country or region."""
    return all(value in _REGIONAL for value in code_point) or any(value in _TAGS for value in code_point)


def is_convention(code_point: CodePoint) -> bool:
    """Whether this is a flag, clock, keycap, lettered button or zodiac sign: no other concept's words describe it."""
    single = code_point[0] if len(code_point) == 1 else 0
    return is_flag(code_point) or _KEYCAP in code_point or single in _CLOCKS or single in _ENCLOSED or single in _ZODIAC


def plain(raw: str) -> str:
    """The words of a raw name: no colons, spaces for underscores, plain apostrophes."""
    return raw.strip(":").replace("_", " ").replace("\u2019", "'").strip()


def with_article(text: str) -> str:
    """`text` with "a", "an" or "the" before it, or alone where English has none ("grapes", "thumbs up")."""
    if text in words.WITH_THE:
        return f"the {text}"
    first = text.split()[0]
    head = _AFTER_HEAD.split(text)[0].split()[-1].lower()
    plural = bool(_PLURAL.search(head)) and head not in words.SINGULAR
    bare = text in words.ALONE or head in words.UNCOUNTED or plural or first in ("two", "men", "women", "people")
    if bare and first not in _PEOPLE | {"face"}:
        return text
    # The sound decides, not the letter: "a unicorn", "an hourglass".
    vowel = text[0].lower() in "aeiou" and not text.lower().startswith(words.SOUNDS_LIKE_CONSONANT)
    return f"{'an' if vowel or text.startswith(words.SOUNDS_LIKE_VOWEL) else 'a'} {text}"


def describe(code_point: CodePoint, raw: str, aliases: tuple[str, ...] = ()) -> Name:
    """The name of a concept from the `emoji` package's raw name and aliases.

    Flags, clocks and zodiac signs get the word that the raw name leaves out, groups of people their "of" and "and".
    Aliases without a word of three letters (":u5408:", ":-1:") are dropped.
    """
    text = plain(raw)
    if is_flag(code_point):
        place = f"the {text}" if text in words.PLACES_WITH_THE else text
        return Name(f"flag of {place}", f"the flag of {place}", ("flag", text))
    if len(code_point) == 1 and code_point[0] in _CLOCKS:
        return Name(f"clock showing {text}", f"a clock showing {text}", ("clock", text))
    if len(code_point) == 1 and code_point[0] in _ZODIAC:
        return Name(f"zodiac sign {text}", f"the zodiac sign {text}", ("zodiac", text))
    # "man red hair" is "man with red hair", "family man girl boy" is "family of man, girl and boy".
    who, _, what = text.partition(" ")
    couple, heart, members = text.partition(" with heart ")
    is_group = who in ("family", "kiss") and what and set(what.split()) <= _FAMILY
    if text in words.RENAMED:
        name = words.RENAMED[text]
    elif who in _PEOPLE and what in words.HAIR:
        name = words.HAIR[what].format(who)
    elif is_group or heart:
        *most, last = (what if is_group else members).split()
        together = f"{', '.join(most)} and {last}" if most else last
        name = f"{who} of {together}" if is_group else f"{couple} of {together} with heart"
    else:
        name = text
    known = {name.lower(), text.lower()}
    tags = [tag for tag in map(plain, aliases) if re.search("[a-z]{3}", tag) and not known & {tag.lower()}]
    return Name(name, with_article(name), tuple(dict.fromkeys(tags)))
