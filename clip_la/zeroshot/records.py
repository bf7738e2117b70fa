"""A test set as the engine sees it: classes, and sources of records that are read lazily."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from clip_la.zeroshot.classes import ClassSet

NO_LABEL = "no label"
NOT_IN_SET = "class not in the class set"
NO_PICTURE = "no image"


# What a retrieval set has for a class set.
NO_CLASSES = ClassSet("none", "none", ("none",), (("none",),), ("",))


@dataclass(frozen=True)
class Record:
    """One picture: `labels` are positions in the class set, the first one its own class, the others accepted too.

    In a retrieval set there are no classes; there a picture has captions.
    """

    key: str
    labels: tuple[int, ...]
    read: Callable[[], bytes]
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """One picture that cannot be used, and why."""

    key: str
    reason: str


class Source(Protocol):
    """A part of a test set, such as one shard; the same records in the same order every time, and it pickles.

    `records` may raise UserError, for input that only a person can put right.
    """

    def records(self) -> Iterator[Record | Skipped]: ...


@dataclass(frozen=True)
class TestSet:
    """Pictures with classes.

    Attributes:
        name: as it stands in results.
        fingerprint: changes when files, their sizes or their labels change.
        num_records: how many pictures there are, where that is known without reading all.
        templates: the set's own prompts, if it brings some.
        notes: what a person should know of the data, a line each.
    """

    __test__ = False  # not a test, whatever pytest thinks of the name

    name: str
    classes: ClassSet
    sources: tuple[Source, ...]
    fingerprint: str
    num_records: int | None = None
    templates: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def said(self) -> dict[str, list[str]]:
        """The notes as a result line has them: {"notes": [...]}, or nothing."""
        return {"notes": list(self.notes)} if self.notes else {}
