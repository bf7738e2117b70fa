"""One drawing of a corpus with its texts, before it is rendered; and the order of a split."""

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from clip_la.data.corpora.artists import Artist
from clip_la.data.corpora.captions import caption_fields
from clip_la.data.corpora.concepts import Concept
from clip_la.data.corpora.render import Svg


class Entry(NamedTuple):
    """A drawing, its main caption, the JSON of its sample, and what its place in the split hangs on."""

    identity: str
    svg: Svg
    caption: str
    meta: dict[str, Any]

    def sample(self, png: bytes) -> dict[str, Any]:
        """The parts of the sample once the drawing is rendered."""
        return {".png": png, ".txt": self.caption, ".json": self.meta}


def drawing_entry(concept: Concept, artist: Artist, svg: Svg) -> Entry:
    """An artist's drawing of a concept."""
    identity = f"{concept.id} {artist.name}"
    texts = caption_fields(concept.name, identity)
    meta = {
        **texts,
        "name": concept.name.name,
        "class": concept.name.name,
        "artist": artist.name,
        "licence": artist.licence,
        "code_point": concept.id,
    }
    return Entry(identity, svg, texts["caption"], meta)


def mixed(entries: Iterable[Entry]) -> list[Entry]:
    """The entries in the order of a hash, which mixes concepts and artists."""
    return sorted(entries, key=lambda entry: hashlib.sha256(f"order {entry.identity}".encode()).digest())
