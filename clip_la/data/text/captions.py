"""The caption of a sample: from its text parts, chosen among several with given probabilities."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from clip_la.data.shards import problems
from clip_la.data.shards.formats import TEXT_PART
from clip_la.data.shards.problems import BadSample
from clip_la.errors import UserError

# In the order in which retrieval looks for them. A list in the json comes first: beside it, the text that `data pack`
# writes is only one of them. "caption" is what img2dataset writes.
ALL_CAPTION_FIELDS = ("json.captions", "txt", "json.caption")


@dataclass(frozen=True)
class Captions:
    """Where captions are found.

    `fields` are part names (`"txt"` is the member KEY.txt) or keys of the JSON part (`"json.caption"`; a list there
    holds alternatives). Each sample draws one field by `weights`; where the drawn one is absent or empty, the others
    follow in their order. So a sample is skipped only when all are, whatever was drawn.
    """

    fields: tuple[str, ...] = ("txt",)
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.fields:
            raise UserError("caption_fields is empty; name at least one, such as 'txt'")
        if self.weights and len(self.weights) != len(self.fields):
            raise UserError(f"caption_weights has {len(self.weights)} numbers for {len(self.fields)} caption_fields")
        if self.weights and (min(self.weights) < 0 or sum(self.weights) <= 0):
            raise UserError(f"caption_weights {list(self.weights)} must not be negative nor all zero")

    def read(self, sample: dict[str, Any]) -> list[list[str]]:
        """The captions under each field, empty ones left out.

        Raises:
            BadSample: no field is there, all are empty, text is not UTF-8, or the JSON does not parse.
        """
        found = [_texts(sample, field) for field in self.fields]
        if all(texts is None for texts in found):
            raise BadSample(problems.NO_CAPTION)
        filled = [[text for text in texts or [] if text] for texts in found]
        if not any(filled):
            raise BadSample(problems.EMPTY_CAPTION)
        return filled

    def choose(self, sample: dict[str, Any], uniforms: Sequence[float]) -> str:
        """`read`, then `pick`."""
        return self.pick(self.read(sample), uniforms)

    def pick(self, captions: list[list[str]], uniforms: Sequence[float]) -> str:
        """One of what `read` gave, by two numbers in [0, 1): the first picks the field, the second one of its texts."""
        # CaptionTable.batch draws by the same rule for many samples at once.
        drawn = int(self.drawn_fields(np.array(uniforms[:1]))[0]) if len(self.fields) > 1 else 0
        texts = captions[drawn] or next(filter(None, captions))
        return texts[int(uniforms[1] * len(texts))]

    def drawn_fields(self, uniforms: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The place of the field that each number in [0, 1) draws."""
        edges = np.cumsum(self.weights or (1.0,) * len(self.fields))
        return np.minimum(np.searchsorted(edges, uniforms * edges[-1], side="right"), len(edges) - 1)


def every_caption(sample: dict[str, Any]) -> tuple[str, ...]:
    """All captions of a sample, read as in training: "captions" of .json, else the lines of .txt, else "caption".

    Raises:
        BadSample: there are none, or the first part that should have some is no text or no JSON.
    """
    reason = problems.NO_CAPTION
    for field in ALL_CAPTION_FIELDS:
        try:
            texts = _texts(sample, field)
        except BadSample:
            if field == ALL_CAPTION_FIELDS[0] and TEXT_PART in sample:
                continue  # what is wrong with the json costs no caption that stands in .txt
            raise
        if texts is None:
            continue
        reason = problems.EMPTY_CAPTION
        lines = [line.strip() for line in texts[0].split("\n")] if field == "txt" else texts
        if found := tuple(line for line in lines if line):
            return found
    raise BadSample(reason)


def _texts(sample: dict[str, Any], field: str) -> list[str] | None:
    part, _, key = field.partition(".")
    raw = sample.get(part)
    if raw is None:
        return None
    if not key:
        try:
            return [clean(raw.decode("utf-8-sig"))]
        except UnicodeDecodeError as error:
            raise BadSample(problems.CAPTION_NOT_TEXT) from error
    value = json_object(raw).get(key)
    if value is None:
        return None
    # What is no text, such as a number among them, is no caption.
    return [clean(text) for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def json_object(raw: bytes) -> dict[str, Any]:
    """The object of a sample's JSON part; raises BadSample where it does not parse or is none."""
    try:
        value = json.loads(raw)
    # RecursionError: brackets nested thousands deep
    except (ValueError, RecursionError) as error:
        raise BadSample(problems.JSON_DAMAGED) from error
    if not isinstance(value, dict):
        raise BadSample(problems.JSON_DAMAGED)
    return value


def clean(text: str) -> str:
    """A caption as it is used: spaces around it trimmed; zero bytes, which C libraries take for an end, and lone
    surrogates left out."""
    return text.replace("\0", "").encode("utf-8", "ignore").decode().strip()
