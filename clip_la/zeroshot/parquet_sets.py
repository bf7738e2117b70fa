"""Test sets in Parquet files as the Hugging Face hub keeps them: a column of pictures, a column of class numbers."""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_la.errors import UserError
from clip_la.zeroshot import classes as class_sets
from clip_la.zeroshot import names as known
from clip_la.zeroshot.classes import ClassSet
from clip_la.zeroshot.records import NO_LABEL, NO_PICTURE, NOT_IN_SET, Content, Record, Skipped, TestSet

PICTURE_COLUMNS = ("image", "img", "picture", "jpg")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "wnid")
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class ParquetSource:
    """One file. `positions[n]` is the class set's position of the file's class number n (-1: not in the set)."""

    path: Path
    picture_column: str
    label_column: str
    classes: ClassSet
    positions: tuple[int, ...] | None

    def records(self) -> Iterator[Record | Skipped]:
        import pyarrow.parquet

        number = 0
        with pyarrow.parquet.ParquetFile(self.path) as file:
            columns = [self.picture_column, self.label_column]
            for rows in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                for picture, label in zip(*(rows.column(name).to_pylist() for name in columns), strict=True):
                    yield self._record(f"{self.path.name}:{number}", picture, label)
                    number += 1

    def _record(self, key: str, picture: Any, label: Any) -> Record | Skipped:
        data = picture.get("bytes") if isinstance(picture, dict) else picture
        if not isinstance(data, bytes):
            return Skipped(key, NO_PICTURE)
        if label is None or label == -1:  # the hub's mark of a withheld label
            return Skipped(key, NO_LABEL)
        position = self._position(key, label)
        return Record(key, (position,), functools.partial(bytes, data)) if position >= 0 else Skipped(key, NOT_IN_SET)

    def _position(self, key: str, label: Any) -> int:
        if isinstance(label, str):
            return self.classes.positions([label])[0]
        if self.positions is None or not 0 <= label < len(self.positions):
            size = 0 if self.positions is None else len(self.positions)
            raise UserError(f"{self.path}: label {label} of {key} is outside the {size} classes that the file names")
        return self.positions[label]


def open_parquet(root: Path, classes: ClassSet | None, name: str) -> TestSet:
    """The test set of a Parquet file, or of all in a folder.

    Raises:
        UserError: pyarrow is not installed, the columns or the class names are missing, the classes do not fit.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading Parquet needs pyarrow: pip install 'clip_la[parquet]'") from None
    paths = sorted(root.rglob("*.parquet")) if root.is_dir() else [root]
    try:
        files = [pyarrow.parquet.ParquetFile(path) for path in paths]
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{root}: a Parquet file is damaged or none ({str(error).splitlines()[0]})") from None
    schema = files[0].schema_arrow
    picture, label = _column(schema, PICTURE_COLUMNS, paths[0]), _column(schema, LABEL_COLUMNS, paths[0])
    own = _class_names(schema, label)
    if classes is None and own is None:
        raise UserError(f"{paths[0]} does not name its classes; name them: --classes")
    chosen = classes or class_sets.from_entries(own or [], name=name, path=paths[0])
    positions = None if own is None else _positions(own, chosen, paths[0])
    sources = tuple(ParquetSource(path, picture, label, chosen, positions) for path in paths)
    content = Content(list(map(str, paths)), [[path.name for path in paths], picture, label, positions])
    num_records = sum(file.metadata.num_rows for file in files)
    return TestSet(name, chosen, sources, content, num_records)


def _column(schema: Any, candidates: tuple[str, ...], path: Path) -> str:
    found = next((name for name in candidates if name in schema.names), None)
    if found is None:
        raise UserError(f"{path} has no column {' or '.join(candidates)}; its columns: {', '.join(schema.names)}")
    return found


def _class_names(schema: Any, column: str) -> list[str] | None:
    """The names of the class numbers, from what the hub's library writes into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [names[str(i)] for i in range(len(names))] if isinstance(names, dict) else list(names)


def _positions(own: list[str], classes: ClassSet, path: Path) -> tuple[int, ...]:
    """For each class number its position in the class set: by id, by name, or by all lemmas, as the hub names them."""
    by_lemmas: dict[str, int] = {}
    lemmas = known.lemmas()
    for position, key in enumerate(classes.ids):
        text = ", ".join(lemmas.get(key, ()))
        # Lemmas that two classes share tell nothing; then the order decides, below.
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
