"""What a source of `pack` gives: samples before checks, each with its origin; and what sources share in making them."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from clip_la.data.shards import problems
from clip_la.data.shards.formats import JSON_PART, TEXT_PART, image_part
from clip_la.data.shards.problems import BadSample
from clip_la.data.shards.tar import MAX_MEMBER_BYTES
from clip_la.data.text.captions import Captions, clean

# Samples in a piece of a folder or a table.
PIECE_SAMPLES = 1000
# The key under which alternative captions stand in a sample's JSON: `json.captions` as a caption field.
ALTERNATIVES = "captions"
# In these words tables of text say that a cell is empty.
NULL_WORDS = frozenset({"nan", "null", "none", "n/a", "#n/a", "<na>"})
_FIRST = (0.0, 0.0)


@dataclass
class Raw:
    """One sample before checks.

    `origin` says where it came from, `place` where a person finds it, if that is more; `problem`, of `problems`, why it
    has no image or caption.
    """

    origin: str
    image: bytes = b""
    suffix: str = ""
    caption: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    place: str = ""

    @classmethod
    def from_file(cls, origin: str, path: Path, caption: str, meta: dict[str, Any], place: str = "") -> "Raw":
        """The sample of an image file. Pipes and devices, which may have no end, are not read."""
        try:
            if not path.is_file():
                return cls(origin, problem=problems.NO_IMAGE, place=place)
            if path.stat().st_size > MAX_MEMBER_BYTES:
                return cls(origin, problem=problems.PART_TOO_LARGE, place=place)
            return cls(origin, path.read_bytes(), path.suffix.lower(), caption, meta, place=place)
        except OSError:
            return cls(origin, problem=problems.NO_IMAGE, place=place)

    @classmethod
    def from_parts(cls, origin: str, sample: Mapping[str, bytes]) -> "Raw":
        """The sample of parts such as `jpg`, `txt` and `json`: its caption is the text, else "caption", else the first
        of "captions" in the JSON."""
        part = image_part(sample)
        if part is None:
            return cls(origin, problem=problems.NO_IMAGE)
        fields = ("txt",) if TEXT_PART in sample else ("json.caption", "json.captions")
        try:
            caption = Captions(fields).choose(dict(sample), _FIRST)
        except BadSample as bad:
            return cls(origin, problem=bad.reason)
        # A caption that stands in the text is not lost for damaged JSON.
        try:
            meta = plain(json.loads(sample.get(JSON_PART, b"{}")))
        except (ValueError, RecursionError):
            meta = {}
        return cls(origin, sample[part], f".{part}", caption, meta if isinstance(meta, dict) else {})


class PackSource(Protocol):
    """Pieces of samples. `kind` and `names` say what was packed, for resuming; `note` is what a person should know of
    how the source is read, if anything."""

    kind: str
    note: str

    def names(self) -> Iterable[str]:
        """A line for each input, which changes when the input's content does."""

    def sizes(self) -> list[int]:
        """Samples in each piece."""

    def read(self, piece: int, start: int, stop: int) -> Iterator[Raw]:
        """The samples `start` to `stop` of a piece."""


def piece_sizes(total: int) -> list[int]:
    """Sizes of pieces of PIECE_SAMPLES."""
    return [min(PIECE_SAMPLES, total - first) for first in range(0, total, PIECE_SAMPLES)]


def with_alternatives(value: Any, meta: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(caption, JSON) of a cell of a table: a text, its bytes in UTF-8, or a list of these, less the empty ones.

    Of a list the first is the caption, and all stand in the JSON under "captions". So does a caption of several lines,
    because retrieval takes the lines of a text for captions of their own, and one beside which another column has that
    name.

    Raises:
        BadSample: there is no caption (null and NaN are none), or something else than text.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise BadSample(problems.NO_CAPTION)
    texts: list[str] = []
    for each in value if isinstance(value, list) else [value]:
        if each is None:
            continue
        if isinstance(each, bytes):
            try:
                each = each.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise BadSample(problems.CAPTION_NOT_TEXT) from error
        if not isinstance(each, str):
            raise BadSample(problems.CAPTION_NOT_TEXT)
        texts.append(clean(each))
    if not texts:
        raise BadSample(problems.NO_CAPTION)
    filled = [text for text in texts if text]
    if not filled:
        raise BadSample(problems.EMPTY_CAPTION)
    is_listed = isinstance(value, list) or len(filled[0].splitlines()) > 1
    return filled[0], {**meta, ALTERNATIVES: filled} if is_listed or ALTERNATIVES in meta else meta


def image_of(cell: Any) -> str | bytes:
    """The image in a cell of a table: a file's name or its bytes, alone in a list or not.

    Raises:
        BadSample: there is none, or there are several: which of them was meant cannot be known.
    """
    if isinstance(cell, list):
        if len(cell) > 1:
            raise BadSample(problems.SEVERAL_IMAGES)
        cell = cell[0] if cell else None
    if isinstance(cell, dict):  # Hugging Face's image type: {"bytes": ..., "path": ...}
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str):
        cell = cell.strip()
    if not cell or not isinstance(cell, str | bytes):
        raise BadSample(problems.NO_IMAGE)
    return cell


def file_named_by(cell: Any) -> str | None:
    """The file that a cell of a column of images names, or None where it holds bytes, or nothing of use."""
    try:
        image = image_of(cell)
    except BadSample:
        return None
    return image if isinstance(image, str) else None


def plain(value: Any) -> Any:
    """As `value`, with nothing that JSON has no form for: NaN, infinite numbers and objects of other kinds are null."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool) else None
