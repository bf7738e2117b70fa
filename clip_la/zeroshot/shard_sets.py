"""Test sets in webdataset shards: KEY.jpg with KEY.cls or KEY.json, as CLIP_benchmark and `clip-la data` write them."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_la.data.captions import Captions
from clip_la.data.formats import CLASS_PART, JSON_PART, TEXT_PART, picture_part
from clip_la.data.problems import NO_CAPTION, BadSample, Problem
from clip_la.data.shards import expand_urls, read_samples
from clip_la.data.sources import shards_in
from clip_la.errors import UserError
from clip_la.zeroshot import classes as class_sets
from clip_la.zeroshot.classes import ClassSet
from clip_la.zeroshot.records import (
    NO_CLASSES,
    NO_LABEL,
    NO_PICTURE,
    NOT_IN_SET,
    Content,
    Record,
    Skipped,
    TestSet,
)

# Where CLIP_benchmark's data sets keep their shards.
SPLIT_FOLDERS = ("test", "val")
# In the json of a sample: WordNet ids first, since they mean the same everywhere; a list accepts each of its classes.
# "starter" is what `clip-la data photos` calls the starter corpus's name of the same thing.
LABEL_FIELDS = ("wnids", "wnid", "starter", "classes", "class")
CLASS_FILES = ("classes.json", "classnames.txt")
TEMPLATE_FILE = "zeroshot_classification_templates.txt"


@dataclass(frozen=True)
class ShardSource:
    """One shard. `numbers_fit` says that .cls numbers count in `classes`, not in another list of the set's own."""

    url: str
    classes: ClassSet
    numbers_fit: bool

    def records(self) -> Iterator[Record | Skipped]:
        problems: list[Problem] = []
        for sample in read_samples(self.url, on_problem=problems.append):
            key = sample["__key__"]
            picture = sample.get(picture_part(sample) or "")
            if picture is None:
                yield Skipped(key, NO_PICTURE)
                continue
            named = self._named(sample[JSON_PART], key) if JSON_PART in sample else []
            labels = next((found for own in named if (found := self._known(own))), ())
            if not labels and CLASS_PART in sample and (self.numbers_fit or not named):
                labels = (self._numbered(sample[CLASS_PART], key),)
            if labels:
                yield Record(key, labels, Held(picture))
            else:
                yield Skipped(key, NOT_IN_SET if named else NO_LABEL)
        for problem in problems:
            yield Skipped(problem.key or self.url, problem.reason)

    def _named(self, data: bytes, key: str) -> list[list[str]]:
        """The names that the json gives the sample's class, field by field."""
        try:
            fields = json.loads(data)
        except ValueError:
            raise UserError(f"{self.url}: the json of sample {key} is damaged") from None
        values = [fields.get(name) for name in LABEL_FIELDS] if isinstance(fields, dict) else []
        return [[value] if isinstance(value, str) else [str(each) for each in value] for value in values if value]

    def _known(self, named: list[str]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(position for position in self.classes.positions(named) if position >= 0))

    def _numbered(self, data: bytes, key: str) -> int:
        text = data.decode(errors="replace").strip()
        if not self.numbers_fit:
            raise UserError(
                f"{self.url}: sample {key} has only a class number, which counts in the set's own list, "
                f"not in {self.classes.label}; leave out --classes, or give samples a json with 'wnid' or 'class'"
            )
        if not text.isdecimal() or int(text) >= len(self.classes):
            raise UserError(f"{self.url}: label '{text}' of sample {key} is outside the {len(self.classes)} classes")
        return int(text)


@dataclass(frozen=True)
class Held:
    """Bytes behind the face of a file that is read when called."""

    data: bytes

    def __call__(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class CaptionSource:
    """One shard of pictures with captions: "captions" in the json, else the lines of .txt."""

    url: str

    def records(self) -> Iterator[Record | Skipped]:
        problems: list[Problem] = []
        for sample in read_samples(self.url, on_problem=problems.append):
            key = sample["__key__"]
            picture = sample.get(picture_part(sample) or "")
            captions = self._captions(sample, key)
            if picture is None or not captions:
                yield Skipped(key, NO_CAPTION if picture else NO_PICTURE)
            else:
                yield Record(key, (), Held(picture), captions)
        for problem in problems:
            yield Skipped(problem.key or self.url, problem.reason)

    def _captions(self, sample: dict[str, Any], key: str) -> tuple[str, ...]:
        # A list in the json comes first: beside it, the text that `data pack` writes is only one of them.
        with suppress(BadSample):
            return tuple(Captions(("json.captions",)).read(sample)[0])
        if TEXT_PART in sample:
            lines = sample[TEXT_PART].decode(errors="replace").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
        try:
            fields = json.loads(sample.get(JSON_PART, b"{}"))
        except ValueError:
            raise UserError(f"{self.url}: the json of sample {key} is damaged") from None
        return tuple(map(str, fields.get("captions", ()))) if isinstance(fields, dict) else ()


def open_caption_shards(data: str, name: str) -> TestSet:
    """A retrieval set of shards: each line of .txt is a caption, as CLIP_benchmark has it."""
    urls, _ = find_shards(data)
    return TestSet(name, NO_CLASSES, tuple(CaptionSource(url) for url in urls), Content(urls, None), data=data)


def find_shards(data: str) -> tuple[list[str], Path | None]:
    """(shards, the folder whose class and template files are theirs) of a folder, a tar, a brace range or a glob."""
    folder = Path(data)
    if folder.is_dir():
        places = (folder, *(folder / split for split in SPLIT_FOLDERS))
        inside = next((place for place in places if shards_in(place)), folder)
        return expand_urls(str(inside)), folder
    urls = expand_urls(data)
    first = Path(urls[0]).parent
    return urls, first if first.is_dir() else None


def own_classes(folder: Path | None) -> ClassSet | None:
    """The class list that lies beside the shards (or, in a split's folder, one above), if there is one."""
    folders = [] if folder is None else [folder, folder.resolve().parent]
    path = next((f / name for f in folders for name in CLASS_FILES if (f / name).is_file()), None)
    return None if path is None else class_sets.from_file(path)


def own_templates(folder: Path | None) -> tuple[str, ...] | None:
    """The prompts that lie beside the shards, in CLIP_benchmark's form, if there are any."""
    folders = [] if folder is None else [folder, folder.resolve().parent]
    path = next((f / TEMPLATE_FILE for f in folders if (f / TEMPLATE_FILE).is_file()), None)
    if path is None:
        return None
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def open_shards(data: str, classes: ClassSet | None, name: str) -> TestSet:
    """The test set of shards; classes from `classes`, else from classes.json or classnames.txt beside the shards.

    Raises:
        UserError: no shards, or no classes.
    """
    urls, folder = find_shards(data)
    own = own_classes(folder)
    chosen = classes or own
    if chosen is None:
        raise UserError(f"{data} has no classes.json or classnames.txt beside its shards; name the classes: --classes")
    # Numbers count in the set's own list; with another list only names and WordNet ids mean anything.
    fits = own is None or own.ids == chosen.ids or (len(own) == len(chosen) and own.names == chosen.names)
    sources = tuple(ShardSource(url, chosen, fits) for url in urls)
    content = Content(urls, [fits, own.hash if own else None])
    return TestSet(name, chosen, sources, content, None, own_templates(folder))
