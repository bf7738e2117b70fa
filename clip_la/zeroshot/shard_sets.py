"""Test sets in webdataset shards: KEY.jpg with KEY.cls or KEY.json, as CLIP_benchmark and `clip-la data` write them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_la.data.problems import Problem
from clip_la.data.shards import expand_urls, read_samples
from clip_la.errors import UserError
from clip_la.zeroshot import classes as class_sets
from clip_la.zeroshot.classes import ClassSet, content_hash
from clip_la.zeroshot.records import NO_LABEL, Record, Skipped, TestSet

PICTURE_PARTS = (".jpg", ".jpeg", ".png", ".webp")
CLASS_PART = ".cls"
JSON_PART = ".json"
# In the json of a sample: WordNet ids first, since they mean the same everywhere; a list accepts each of its classes.
LABEL_FIELDS = ("wnids", "wnid", "classes", "class")
CLASS_FILES = ("classes.json", "classnames.txt")
TEMPLATE_FILE = "zeroshot_classification_templates.txt"
NO_PICTURE = "no image"


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
            picture = next((sample[part] for part in PICTURE_PARTS if part in sample), None)
            if picture is None:
                yield Skipped(key, NO_PICTURE)
            else:
                labels = self._labels(key, sample)
                yield Record(key, labels, _Held(picture)) if labels else Skipped(key, NO_LABEL)
        for problem in problems:
            yield Skipped(problem.key or self.url, problem.reason)

    def _labels(self, key: str, sample: dict[str, Any]) -> tuple[int, ...]:
        named = self._named(sample[JSON_PART], key) if JSON_PART in sample else []
        if named:
            positions = self.classes.positions(named)
            known = tuple(dict.fromkeys(position for position in positions if position >= 0))
            if known:
                return known
            if not (CLASS_PART in sample and self.numbers_fit):
                raise UserError(f"{self.url}: sample {key} is of class '{named[0]}', no class of {self.classes.label}")
        if CLASS_PART not in sample:
            return ()
        return (self._numbered(sample[CLASS_PART], key),)

    def _named(self, data: bytes, key: str) -> list[str]:
        try:
            fields = json.loads(data)
        except ValueError:
            raise UserError(f"{self.url}: the json of sample {key} is damaged") from None
        for name in LABEL_FIELDS:
            value = fields.get(name) if isinstance(fields, dict) else None
            if value:
                return [value] if isinstance(value, str) else [str(each) for each in value]
        return []

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
class _Held:
    """Bytes behind the face of a file that is read when called."""

    data: bytes

    def __call__(self) -> bytes:
        return self.data


def find_shards(data: str) -> tuple[list[str], Path | None]:
    """(shards, the folder whose class and template files are theirs) of a folder, a tar, a brace range or a glob."""
    folder = Path(data)
    if folder.is_dir():
        inside = next((f for f in (folder, folder / "test", folder / "val") if any(f.glob("*.tar"))), folder)
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
    sizes = [(url, Path(url).stat().st_size if Path(url).is_file() else None) for url in urls]
    return TestSet(name, chosen, sources, content_hash([sizes, fits]), None, own_templates(folder))
