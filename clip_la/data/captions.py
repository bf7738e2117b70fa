"""The caption of a sample: from its text parts, chosen among several with given probabilities."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_la.data import problems
from clip_la.data.problems import BadSample
from clip_la.errors import UserError

JSON_PART = ".json"
# In the order in which retrieval looks for them; "caption" is what img2dataset writes.
ALL_CAPTION_FIELDS = ("txt", "json.captions", "json.caption")


@dataclass(frozen=True)
class Captions:
    """Where captions are found.

    `fields` are part names (`"txt"` is the member KEY.txt) or keys of the JSON part (`"json.caption"`; a list there
    holds alternatives). Each sample draws one field by `weights`; where the drawn one is absent or empty, the others
    follow in their order, so a sample is only skipped when all are. Whether it is skipped hangs on no draw.
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

    def choose(self, sample: dict[str, Any], draws: Sequence[float]) -> str:
        """`read`, then `pick`."""
        return self.pick(self.read(sample), draws)

    def pick(self, captions: list[list[str]], draws: Sequence[float]) -> str:
        """One of what `read` gave, by two numbers in [0, 1): the first picks the field, the second one of its texts."""
        texts = captions[self._drawn(draws[0])] or next(filter(None, captions))
        return texts[int(draws[1] * len(texts))]

    def _drawn(self, draw: float) -> int:
        if len(self.fields) == 1:
            return 0
        edges = np.cumsum(self.weights or (1.0,) * len(self.fields))
        return min(int(np.searchsorted(edges, draw * edges[-1], side="right")), len(edges) - 1)


def every_caption(sample: dict[str, Any]) -> tuple[str, ...]:
    """All captions of a sample, read as in training: the lines of .txt, else "captions", else "caption" of .json.

    Raises:
        BadSample: there are none, or the first part that should have some is no text or no JSON.
    """
    reason = problems.NO_CAPTION
    for field in ALL_CAPTION_FIELDS:
        texts = _texts(sample, field)
        if texts is None:
            continue
        reason = problems.EMPTY_CAPTION
        lines = [line.strip() for line in texts[0].split("\n")] if field == "txt" else texts
        if found := tuple(line for line in lines if line):
            return found
    raise BadSample(reason)


def _texts(sample: dict[str, Any], field: str) -> list[str] | None:
    part, _, key = field.partition(".")
    raw = sample.get(f".{part}")
    if raw is None:
        return None
    if not key:
        return [_decoded(raw)]
    value = json_object(raw).get(key)
    if value is None:
        return None
    return [_clean(text) for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


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


def _decoded(raw: bytes) -> str:
    try:
        return _clean(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadSample(problems.CAPTION_NOT_TEXT) from error


def _clean(text: str) -> str:
    """Spaces trimmed; zero bytes, which C libraries below take for an end, and lone surrogates are left out."""
    return text.replace("\0", "").encode("utf-8", "ignore").decode().strip()
