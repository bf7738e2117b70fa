"""A test set as the engine sees it: classes, and sources of records that are read lazily."""

import functools
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from clip_la import distributed as ranks
from clip_la.data.shards.shard_state import is_elsewhere, shard_hashes
from clip_la.zeroshot.labels.classes import ClassSet, content_hash

NO_LABEL = "no label"
NOT_IN_SET = "class not in the class set"
NO_IMAGE = "no image"


UNKNOWN, REMOTE = "unknown", "remote"
# What a retrieval set has for a class set.
NO_CLASSES = ClassSet("none", "none", ("none",), (("none",),), ("",))


@dataclass(frozen=True)
class Record:
    """One image: `labels` are positions in the class set, the first one its own class, the others accepted too.

    In a retrieval set there are no classes; there an image has captions.
    """

    key: str
    labels: tuple[int, ...]
    read: Callable[[], bytes]
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """One image that cannot be used, and why."""

    key: str
    reason: str


class RecordSource(Protocol):
    """A part of a test set, such as one shard; the same records in the same order every time, and it pickles.

    `records` may raise UserError, for input that only a person can put right.
    """

    def records(self) -> Iterator[Record | Skipped]: ...


@dataclass(frozen=True)
class Content:
    """What the digits of a test set depend on: the content of its files, and plain facts beside them (labels, names).

    Calling it looks at the files, shared by all ranks, and gives every rank a hash: of content and facts alone where
    all files are here, so that it is the same wherever they lie. "remote-" before it says that servers report the
    state of some; "unknown-", that some cannot tell (a pipe): then no other object has the same.
    """

    urls: Sequence[str]
    facts: Any
    _once: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __call__(self) -> str:
        rank, world = ranks.rank(), ranks.world_size()
        # Each rank its share: none waits long for another, and a large set is read once.
        found = ranks.all_gather(lambda: (shard_hashes(self.urls[rank::world]), self._once))
        states = [found[number % world][0][number // world] for number in range(len(self.urls))]
        if None in states:
            return f"{UNKNOWN}-{content_hash([states, self.facts, found[0][1]])}"
        prefix = f"{REMOTE}-" if any(is_elsewhere(url) for url in self.urls) else ""
        return prefix + content_hash([states, self.facts])


@dataclass(frozen=True)
class EvalDataset:
    """Images with classes.

    Attributes:
        name: as it stands in results.
        content: gives a hash of the images' and labels' content as they are when it is called.
        num_records: how many images there are, where that is known without reading all.
        templates: the set's own prompts, if it brings some.
        notes: what a person should know of the data, a line each.
        data: what a person named it by: a path, an address, a range.
        found: what `content` gave when all ranks last looked together.
    """

    __test__ = False  # not a test, whatever pytest thinks of the name

    name: str
    classes: ClassSet
    sources: tuple[RecordSource, ...]
    content: Callable[[], str]
    num_records: int | None = None
    templates: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    data: str = ""
    found: str | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hash of the content as all ranks last saw it, else as it is when first asked for."""
        return self.content() if self.found is None else self.found
