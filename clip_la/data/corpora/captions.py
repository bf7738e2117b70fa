"""Captions for drawings: varied, chosen by a hash of what they describe, so that every build gives the same ones."""

import hashlib
from collections.abc import Sequence

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
DRAWING_TEMPLATES = ("a drawing of a {c}", "a drawing of {c}", "a picture of a {c}", "an icon of a {c}", "{c}")
PHOTO_TEMPLATES = ("a photo of a {c}", "a photo of {c}", "a picture of a {c}", "a picture of {c}", "{c}")


def pick(choices: Sequence[str], *identity: object) -> str:
    """One of the choices by a hash of the identity; the same on every machine.

    Python's own `hash` would differ from process to process, and a random generator would make each choice depend on
    how many came before it.
    """
    digest = hashlib.sha256(" ".join(map(str, identity)).encode()).digest()
    return choices[int.from_bytes(digest[:8], "big") % len(choices)]
