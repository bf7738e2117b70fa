"""Concepts: names with one drawing by each artist, merged where drawings coincide, dealt to splits by a hash."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from clip_la.data.corpora.names import (
    SKIN_TONES,
    VARIATION_SELECTOR,
    CodePoint,
    Name,
    describe,
    format_code_point,
    is_convention,
)
from clip_la.data.corpora.render import Svg

# Of the starter's 1,858: enough for an interval of a few points, few enough to leave training nearly whole.
NUM_HELD_OUT_CONCEPTS = 150
NUM_HELD_OUT_RENDITIONS = 760
# Changing it deals all concepts anew: results before and after would not compare.
_DEAL = "clip_la starter 1"


@dataclass(frozen=True)
class Concept:
    """What a drawing shows. `drawings`: the artist's name -> the SVG; `merged`: names that fell into this one."""

    code_point: CodePoint
    name: Name
    drawings: Mapping[str, Svg]
    merged: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The code point as text: "1F34E"."""
        return format_code_point(self.code_point)


@dataclass(frozen=True)
class Deal:
    """What training must not see, by concept id: `concepts` at all, `renditions` by one artist (id -> artist)."""

    concepts: frozenset[str]
    renditions: Mapping[str, str]

    def allows(self, concept_id: str, artist: str) -> bool:
        """Whether training may see this artist's drawing of this concept."""
        return concept_id not in self.concepts and self.renditions.get(concept_id) != artist


def all_names() -> dict[CodePoint, Name]:
    """The names of all emoji without skin tones, by code point, from the `emoji` package."""
    import emoji

    names: dict[CodePoint, Name] = {}
    # Sorted by status: fully qualified spellings (2) come before their shorter variants (3, 4).
    for text, entry in sorted(emoji.EMOJI_DATA.items(), key=lambda item: (item[1]["status"] != 2, item[0])):
        code_point = tuple(value for value in map(ord, text) if value != VARIATION_SELECTOR)
        if code_point not in names and not any(value in SKIN_TONES for value in code_point):
            names[code_point] = describe(code_point, entry["en"], tuple(entry.get("alias", ())))
    return names


def merge(concepts: Sequence[Concept], marks: Sequence[Iterable[str]]) -> list[Concept]:
    """Merges concepts that share a mark (a pixel hash for an artist, or a name), directly or through others.

    Each group keeps the member with the fewest code points, then the shortest name, and its drawings alone: "flag of
    France" swallows "flag of Clipperton Island", whose drawing is the same image. The others' names become tags.
    """
    parents = list(range(len(concepts)))

    def root(index: int) -> int:
        # Union-find with path halving: concepts that share a mark hang below one root.
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    owner: dict[str, int] = {}
    for index, own in enumerate(marks):
        for mark in own:
            parents[root(index)] = root(owner.setdefault(mark, index))
    groups: dict[int, list[Concept]] = {}
    for index, concept in enumerate(concepts):
        groups.setdefault(root(index), []).append(concept)
    merged = []
    for group in groups.values():
        kept, *others = sorted(group, key=lambda c: (len(c.code_point), len(c.name.name), c.name.name))
        names = tuple(other.name.name for other in others)
        tags = tuple(dict.fromkeys(kept.name.tags + names))
        merged.append(replace(kept, name=replace(kept.name, tags=tags), merged=names))
    return sorted(merged, key=lambda concept: concept.code_point)


def deal(
    concepts: Sequence[Concept],
    artists: Sequence[str],
    num_concepts: int = NUM_HELD_OUT_CONCEPTS,
    num_renditions: int = NUM_HELD_OUT_RENDITIONS,
) -> Deal:
    """Holds out concepts and renditions in the order of a hash of their ids, each artist for an equal share.

    The order is that of SHA-256, so it hangs neither on the platform nor on Python's own hashing, and a concept keeps
    its place when others come or go.

    Held-out concepts are such as their words can describe: no flags, clocks, keycaps, lettered buttons, zodiac signs.
    """
    order = sorted(concepts, key=lambda c: hashlib.sha256(f"{_DEAL} {c.id}".encode()).digest())
    held = [c.id for c in order if not is_convention(c.code_point)][:num_concepts]
    rest = [c.id for c in order if c.id not in set(held)][:num_renditions]
    return Deal(frozenset(held), {name: artists[i % len(artists)] for i, name in enumerate(rest)})
