"""Test sets in Parquet files as the Hugging Face hub keeps them: a column of images, a column of class numbers."""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_la.data.corpora import imagenet_names as known
from clip_la.data.shards.problems import BadSample
from clip_la.data.shards.reader import expand_urls
from clip_la.errors import UserError, one_line
from clip_la.zeroshot.datasets import layout
from clip_la.zeroshot.datasets.label_values import Labels, numbers_in
from clip_la.zeroshot.datasets.layout import own_classes
from clip_la.zeroshot.datasets.records import NO_IMAGE, Content, EvalDataset, Record, Skipped
from clip_la.zeroshot.labels import class_files
from clip_la.zeroshot.labels import classes as class_sets
from clip_la.zeroshot.labels.classes import ClassSet
from clip_la.zeroshot.options import SKIP

PARQUET = ".parquet"
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "wnid", "cls")
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class ParquetRecords:
    """One file."""

    path: Path
    image_column: str
    label_column: str
    labels: Labels

    def records(self) -> Iterator[Record | Skipped]:
        import pyarrow

        try:
            yield from self._records()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: damaged ({one_line(error)})") from None

    def _records(self) -> Iterator[Record | Skipped]:
        import pyarrow.parquet

        number = 0
        # A few rows at a time: a row group may be the whole file, with all its images.
        with pyarrow.parquet.ParquetFile(self.path) as file:
            columns = [self.image_column, self.label_column]
            for rows in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                for image, label in zip(*(rows.column(name).to_pylist() for name in columns), strict=True):
                    yield self._record(f"{self.path.name}:{number}", image, label)
                    number += 1

    def _record(self, key: str, image: Any, label: Any) -> Record | Skipped:
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            return Skipped(key, NO_IMAGE)
        try:
            return Record(key, self.labels.of_value(label, (str(self.path), key)), functools.partial(bytes, data))
        except BadSample as bad:
            return Skipped(key, bad.reason)


def open_parquet(
    root: Path, classes: ClassSet | None, name: str, unknown: str = SKIP, training: bool = False
) -> EvalDataset:
    """The test set of a Parquet file, of all in a folder, of a glob or a brace range.

    Raises:
        UserError: pyarrow is not installed, the columns or the class names are missing, the classes do not fit.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading Parquet needs pyarrow: pip install 'clip_la[parquet]'") from None
    notes: tuple[str, ...] = ()
    if root.is_dir():
        found, notes = layout.one_part(sorted(map(str, layout.files_below(root, (PARQUET,)))), root, training)
    else:
        found = expand_urls(str(root))
    paths, files = [Path(file) for file in found], []
    for path in paths:
        try:
            files.append(pyarrow.parquet.ParquetFile(path))
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: a Parquet file is damaged or none ({one_line(error)})") from None
    schema = files[0].schema_arrow
    image, label = _column(schema, IMAGE_COLUMNS, paths[0]), _column(schema, LABEL_COLUMNS, paths[0])
    own = _class_names(schema, label, paths[0])
    # One label column for all: class numbers of one file must mean the same in every other.
    for path, file in zip(paths, files, strict=True):
        if {image, label} - {*file.schema_arrow.names} or _class_names(file.schema_arrow, label, path) != own:
            raise UserError(f"{path} has other columns or class names than {paths[0]}; evaluate them one by one")
    # Class numbers count in the file's own names, else in the list beside it.
    listed = None if own is not None else own_classes(paths[0].parent)
    chosen = classes or listed
    if own is not None:
        chosen = chosen or class_sets.from_entries(own, name=name, path=paths[0], numbered=True)
    if chosen is None:
        raise UserError(f"{paths[0]} does not name its classes; name them: --classes")
    numbers = numbers_in(listed, chosen) if own is None else _positions(own, chosen, paths[0])
    sources = tuple(ParquetRecords(path, image, label, Labels(chosen, numbers, unknown)) for path in paths)
    content = Content(list(map(str, paths)), [[path.name for path in paths], image, label, numbers])
    num_records = sum(file.metadata.num_rows for file in files)
    return EvalDataset(name, chosen, sources, content, num_records, notes=notes)


def _column(schema: Any, candidates: tuple[str, ...], path: Path) -> str:
    # Reversed, so that of "Image" and "image" the first column wins.
    lower = {name.lower(): name for name in reversed(schema.names)}
    found = next((lower[name] for name in candidates if name in lower), None)
    if found is None:
        raise UserError(f"{path} has no column {' or '.join(candidates)}; its columns: {', '.join(schema.names)}")
    return found


def _class_names(schema: Any, column: str, path: Path) -> list[str] | None:
    """The names of the class numbers, from what the hub's library writes into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    entries = [] if names is None else class_files.from_json(names, path)
    return [entry.id if known.is_wordnet_id(entry.id) else entry.names[0] for entry in entries] or None


def _positions(own: list[str], classes: ClassSet, path: Path) -> tuple[int, ...]:
    """For each class number its position in the class set: by id, by name, or by all lemmas, as the hub names them."""
    by_lemmas: dict[str, int] = {}
    lemmas = known.lemmas()
    for position, key in enumerate(classes.ids):
        text = ", ".join(lemmas.get(key, ()))
        # Lemmas that two classes share decide nothing; then the order decides, below.
        by_lemmas[text] = -1 if text in by_lemmas else position
    direct = classes.positions(own)
    found = [place if place >= 0 else by_lemmas.get(name, -1) for place, name in zip(direct, own, strict=True)]
    placed = [(number, place) for number, place in enumerate(found) if place >= 0]
    # Names that stand for two classes cannot be placed; where all others stand at their own numbers, so do these.
    if placed and len(own) == len(classes) and all(number == place for number, place in placed):
        return tuple(range(len(own)))
    if not placed:
        raise UserError(f"{path}: none of its {len(own)} classes ('{own[0]}', ...) is in {classes.label}")
    return tuple(found)
