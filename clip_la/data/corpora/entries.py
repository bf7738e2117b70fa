"""One drawing of a corpus with its texts, before it is rendered."""

from typing import Any, NamedTuple

from clip_la.data.corpora.artists import Artist
from clip_la.data.corpora.captions import TEMPLATES, pick
from clip_la.data.corpora.concepts import Concept
from clip_la.data.corpora.render import Svg


class Entry(NamedTuple):
    """A drawing, its main caption, the JSON of its sample, and the identity that its place in the split depends on."""

    identity: str
    svg: Svg
    caption: str
    meta: dict[str, Any]

    def sample(self, png: bytes) -> dict[str, Any]:
        """The parts of the sample once the drawing is rendered."""
        return {".png": png, ".txt": self.caption, ".json": self.meta}


def drawing_entry(concept: Concept, artist: Artist, svg: Svg) -> Entry:
    """An artist's drawing of a concept, not yet rendered.

    Its texts: `caption` (the main one), `captions` (all of them, each once) and `tags`.
    """
    identity, name = f"{concept.id} {artist.name}", concept.name
    caption = pick(TEMPLATES, "caption", identity).format(name.phrase)
    others = sorted({template for template in TEMPLATES if template.format(name.phrase) != caption})
    tags = ", ".join(name.tags)
    # The second wording differs from the first, so that whoever draws from all of them has some variety.
    captions = [caption, pick(others, "other", identity).format(name.phrase), name.phrase]
    captions += [f"{name.name}: {tags}"] if tags else []
    meta = {
        "caption": caption,
        "captions": list(dict.fromkeys(captions)),
        "tags": tags,
        "name": name.name,
        "class": name.name,
        "artist": artist.name,
        "licence": artist.licence,
        "code_point": concept.id,
    }
    return Entry(identity, svg, caption, meta)
