"""Test sets in webdataset shards: KEY.jpg with KEY.cls or KEY.json, as CLIP_benchmark and `clip-la data` write them."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_la.data.shards.formats import CLASS_PART, JSON_PART, image_part
from clip_la.data.shards.problems import BadSample, Problem
from clip_la.data.shards.reader import expand_urls, read_samples
from clip_la.data.shards.sources import shards_in
from clip_la.data.text.captions import every_caption, json_object
from clip_la.errors import UserError, one_line
from clip_la.zeroshot.datasets import layout
from clip_la.zeroshot.datasets.label_values import Labels, Where, number_in, numbers_in
from clip_la.zeroshot.datasets.layout import own_classes, own_templates
from clip_la.zeroshot.datasets.records import NO_CLASSES, NO_IMAGE, NO_LABEL, Content, EvalDataset, Record, Skipped
from clip_la.zeroshot.labels.classes import ClassSet
from clip_la.zeroshot.options import SKIP

# Where CLIP_benchmark's data sets keep their shards.
SPLIT_FOLDERS = ("test", "val")
TRAINING_FOLDER = "train"
# In the json of a sample: WordNet ids first, since they mean the same everywhere; a list accepts each of its classes.
# "starter" is what `clip-la data photos` calls the starter corpus's name of the same thing.
LABEL_FIELDS = ("wnids", "wnid", "starter", "classes", "class", "label", "labels", "cls")


@dataclass(frozen=True)
class ShardRecords:
    """One shard. `has_list` says that a class list lies beside it."""

    url: str
    labels: Labels
    has_list: bool

    def records(self) -> Iterator[Record | Skipped]:
        problems: list[Problem] = []
        for sample in read_samples(self.url, on_problem=problems.append):
            key = sample["__key__"]
            image = sample.get(image_part(sample) or "")
            if image is None:
                yield Skipped(key, NO_IMAGE)
                continue
            try:
                yield Record(key, self._labels(sample, (self.url, f"sample {key}")), functools.partial(bytes, image))
            except BadSample as bad:
                yield Skipped(key, bad.reason)
        # At the end: what is damaged has no place among the samples.
        for problem in problems:
            yield Skipped(problem.key or self.url, problem.reason)

    def _labels(self, sample: dict[str, Any], where: Where) -> tuple[int, ...]:
        """The names that the json gives come first, then the number of .cls, then numbers in the json."""
        values, numbers = self._fields(sample), []
        if CLASS_PART in sample:
            # A number where it looks like one, since that is what webdataset has there, else text.
            text = sample[CLASS_PART].decode("utf-8-sig", errors="replace").strip()
            numbers = [text if (number := number_in(text)) is None else number]
        lists = [(value, value if isinstance(value, list) else [value]) for value in values]
        # Given by names or ids, not by numbers.
        named = [
            (value, texts)
            for value, texts in lists
            if texts and all(isinstance(each, str) and number_in(each) is None for each in texts)
        ]
        # The first field of which the set has any: LABEL_FIELDS puts the surest first.
        positions = next((own for _, texts in named if (own := self.labels.of_names(texts))), ())
        if positions:
            self._check_agreement(positions, numbers, where)
            return positions
        if numbers and (self.labels.numbers is not None or not named):
            return self.labels.of_value(numbers[0], where)
        if values and not named and not numbers:
            return self.labels.of_value(values[0], where)
        if named:
            raise self.labels.lacking(named[0][0], where)
        raise BadSample(NO_LABEL)

    def _fields(self, sample: dict[str, Any]) -> list[Any]:
        """What the json says of the sample's class, field by field; where it is damaged, .cls may still say it."""
        if JSON_PART not in sample:
            return []
        try:
            fields = json_object(sample[JSON_PART])
        except BadSample:
            if CLASS_PART in sample:
                return []
            raise
        return [fields[name] for name in LABEL_FIELDS if fields.get(name) not in (None, "", [])]

    def _check_agreement(self, found: tuple[int, ...], numbers: list[Any], where: Where) -> None:
        """Raises UserError where .cls, by the set's own list, says another class than the json does."""
        if not (self.has_list and self.labels.numbers and numbers and isinstance(numbers[0], int)):
            return
        names, number = self.labels.classes.names, numbers[0]
        if 0 <= number < len(names) and self.labels.numbers[number] not in found:
            by_json, by_number = one_line(names[found[0]][0]), one_line(names[number][0])
            raise UserError(
                f"{where[0]}: the json of {where[1]} says '{by_json}', its .cls says {number} ('{by_number}'); take "
                "one of them out"
            )


@dataclass(frozen=True)
class CaptionRecords:
    """One shard of images with captions: what training reads too, but all of them, each line of .txt by itself."""

    url: str

    def records(self) -> Iterator[Record | Skipped]:
        problems: list[Problem] = []
        for sample in read_samples(self.url, on_problem=problems.append):
            key = sample["__key__"]
            image = sample.get(image_part(sample) or "")
            try:
                if image is None:
                    raise BadSample(NO_IMAGE)
                yield Record(key, (), functools.partial(bytes, image), every_caption(sample))
            except BadSample as bad:
                yield Skipped(key, bad.reason)
        for problem in problems:
            yield Skipped(problem.key or self.url, problem.reason)


def open_caption_shards(data: str, name: str) -> EvalDataset:
    """A retrieval set of shards: all captions of a sample count, each line of .txt as one, as CLIP_benchmark has it."""
    urls, _, notes = find_shards(data)
    sources = tuple(CaptionRecords(url) for url in urls)
    return EvalDataset(name, NO_CLASSES, sources, Content(urls, None), data=data, notes=notes)


def find_shards(data: str, training: bool = False) -> tuple[list[str], Path | None, tuple[str, ...]]:
    """The shards of a folder, a tar, a brace range or a glob; the folder whose class and template files are theirs;
    and what is to be said of the choice where the folder holds several parts of a data set."""
    folder = Path(data)
    if folder.is_dir():
        with_shards = places_with_shards(folder, training)
        inside = with_shards[0] if with_shards else folder
        notes: tuple[str, ...] = ()
        # Where a person named the folder that holds the shards, there was nothing to choose.
        if inside != folder and (len(with_shards) > 1 or training != (inside.name == TRAINING_FOLDER)):
            notes = (f"{folder} holds shards in {' and '.join(p.name for p in with_shards)}; taken is {inside}",)
        urls, said = layout.one_part(expand_urls(str(inside)), inside, training)
        return urls, folder, notes + said
    urls = expand_urls(data)
    first = Path(urls[0]).parent
    return urls, first if first.is_dir() else None, ()


def places_with_shards(folder: Path, training: bool = False) -> list[Path]:
    """The folder and its parts, of which each holds shards; the one for training first, or not at all."""
    parts = (TRAINING_FOLDER,) * training + SPLIT_FOLDERS
    return [place for place in (folder, *(folder / part for part in parts)) if shards_in(place)]


def open_shards(
    data: str, classes: ClassSet | None, name: str, unknown: str = SKIP, training: bool = False
) -> EvalDataset:
    """The test set of shards; classes from `classes`, else from classes.json or classnames.txt beside the shards.

    Raises:
        UserError: no shards, or no classes.
    """
    urls, folder, notes = find_shards(data, training)
    own = own_classes(folder)
    chosen = classes or own
    if chosen is None:
        raise UserError(f"{data} has no classes.json or classnames.txt beside its shards; name the classes: --classes")
    # Numbers count in the set's own list; with another list only names and WordNet ids mean anything.
    labels = Labels(chosen, numbers_in(own, chosen), unknown)
    fits = labels.numbers is not None
    sources = tuple(ShardRecords(url, labels, own is not None) for url in urls)
    content = Content(urls, [fits, own.hash if own else None])
    return EvalDataset(name, chosen, sources, content, None, own_templates(folder), notes)
