"""Captions for drawings: varied, chosen by a hash of what they describe, so that every build gives the same ones."""

import hashlib
from collections.abc import Sequence

from clip_la.data.corpora.names import Name

# The first is the most frequent one; `{}` takes the noun phrase ("a red apple").
TEMPLATES = (
    "a drawing of {}",
    "a drawing of {}",
    "a drawing of {}",
    "a picture of {}",
    "an icon of {}",
    "an emoji of {}",
    "a simple drawing of {}",
    "a colorful picture of {}",
    "a small illustration of {}",
    "{}",
)
# What zero-shot classification fills with plain class names ("red apple", "grapes"), CLIP_benchmark's placeholder.
ZEROSHOT_TEMPLATES = ("a drawing of a {c}", "a drawing of {c}", "a picture of a {c}", "an icon of a {c}", "{c}")


def pick(choices: Sequence[str], *identity: object) -> str:
    """One of the choices by a hash of the identity; the same on every machine."""
    digest = hashlib.sha256(" ".join(map(str, identity)).encode()).digest()
    return choices[int.from_bytes(digest[:8], "big") % len(choices)]


def caption_fields(name: Name, identity: str) -> dict[str, str]:
    """Texts of one drawing: `caption` (the main one), `caption_other` (another template), `caption_tags`, `tags`."""
    caption = pick(TEMPLATES, "caption", identity).format(name.phrase)
    others = sorted({template for template in TEMPLATES if template.format(name.phrase) != caption})
    tags = ", ".join(name.tags)
    return {
        "caption": caption,
        "caption_other": pick(others, "other", identity).format(name.phrase),
        "caption_tags": f"{name.name}: {tags}" if tags else name.name,
        "tags": tags,
    }
