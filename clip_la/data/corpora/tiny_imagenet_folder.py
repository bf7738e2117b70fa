"""Tiny-ImageNet as people have it unpacked: what is in the folder, and what is left out of it and why.

Read are `train/WNID/images/*.JPEG` (or `train/WNID/*.JPEG`) with `WNID_boxes.txt`, and `val/images` with
`val_annotations.txt`, or `val/WNID/...`, as scripts sort it. `test/` has no labels and is not read.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clip_la.errors import UserError

TRAIN, VAL = "train", "val"
UNPACKED = "tiny-imagenet-200"
SUFFIXES = (".jpeg", ".jpg", ".png")
WORDNET_ID = re.compile(r"n\d{8}")
ANNOTATIONS = "val_annotations.txt"
NO_CLASS = "not a class of wnids.txt"
HIDDEN = "hidden file"
NOT_A_PICTURE = "not a picture file"
NO_ANNOTATION = "no line in val_annotations.txt"
NOT_THERE = "named in val_annotations.txt, not there"
COPY = "copy of another picture"
AMBIGUOUS = "same picture in several classes"
Box = tuple[int, int, int, int]


class Picture(NamedTuple):
    """A picture file, the half it lies in ("train" or "val"), its class, and the object's box in pixels, if known."""

    path: Path
    half: str
    wnid: str
    box: Box | None


class Contents(NamedTuple):
    """The classes, sorted; the pictures, each once; and how many files were left out, by reason."""

    wnids: list[str]
    pictures: list[Picture]
    left_out: Counter[str]


def read_folder(folder: Path) -> Contents:
    """What the folder holds. Files that are equal byte for byte are one picture.

    Of copies within a class the one in `val` stays, else the one with the shortest name; a picture that lies in several
    classes has no right answer and is left out everywhere.

    Raises:
        UserError: no such folder, no classes in it, or neither annotations nor class folders in `val`.
    """
    root = _root(folder)
    left_out: Counter[str] = Counter()
    wnids = _wnids(root)
    found = [*_in_class_folders(root, TRAIN, wnids, left_out), *_validation(root, wnids, left_out)]
    if not found:
        raise UserError(f"{root} holds no pictures of its {len(wnids)} classes ({', '.join(SUFFIXES)})")
    return Contents(wnids, _distinct(found, left_out), +left_out)


def _root(folder: Path) -> Path:
    root = next((place for place in (folder, folder / UNPACKED) if (place / TRAIN).is_dir()), None)
    if root is None:
        raise UserError(f"{folder} is no unpacked Tiny-ImageNet: it holds no folder '{TRAIN}' with WordNet ids in it")
    return root


def _wnids(root: Path) -> list[str]:
    """The classes that wnids.txt lists or, without it, those with a folder in `train`; sorted."""
    path = root / "wnids.txt"
    if path.is_file():
        listed = path.read_text(encoding="utf-8-sig", errors="replace").split()
        strange = next((text for text in listed if not WORDNET_ID.fullmatch(text)), None)
        if strange is not None:
            raise UserError(f"{path}: '{strange[:40]}' is no WordNet id, such as n01443537")
    else:
        listed = [entry.name for entry in (root / TRAIN).iterdir() if WORDNET_ID.fullmatch(entry.name)]
    if not listed:
        raise UserError(f"{root} names no classes: no ids in wnids.txt, or no WordNet ids as folders of '{TRAIN}'")
    return sorted(set(listed))


def _pictures_below(folder: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Picture files at any depth, sorted; hidden ones (.DS_Store, ._X.JPEG) and others are counted, not given."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        if path.name.startswith("."):
            left_out[HIDDEN] += 1
        elif path.suffix.lower() in SUFFIXES:
            yield path
        elif not path.name.endswith(("_boxes.txt", ANNOTATIONS)):
            left_out[NOT_A_PICTURE] += 1


def _in_class_folders(root: Path, half: str, wnids: list[str], left_out: Counter[str]) -> Iterator[Picture]:
    known = set(wnids)
    for entry in sorted((root / half).iterdir()):
        if entry.is_dir():
            boxes = _boxes(entry / f"{entry.name}_boxes.txt") if entry.name in known else {}
            for path in _pictures_below(entry, left_out):
                if entry.name in known:
                    yield Picture(path, half, entry.name, boxes.get(path.name))
                else:
                    left_out[NO_CLASS] += 1
        elif entry.name != ANNOTATIONS:
            left_out[HIDDEN if entry.name.startswith(".") else NOT_A_PICTURE] += 1


def _validation(root: Path, wnids: list[str], left_out: Counter[str]) -> Iterator[Picture]:
    folder = root / VAL
    if not (folder / ANNOTATIONS).is_file():
        if not any((folder / wnid).is_dir() for wnid in wnids):
            raise UserError(f"{folder} has neither {ANNOTATIONS} nor folders named by WordNet ids")
        yield from _in_class_folders(root, VAL, wnids, left_out)
        return
    rows = _rows(folder / ANNOTATIONS)
    known, missing = set(wnids), set(rows)
    for path in _pictures_below(folder, left_out):
        row = rows.get(path.name)
        missing.discard(path.name)
        if row is None or row[0] not in known:
            left_out[NO_ANNOTATION if row is None else NO_CLASS] += 1
        else:
            yield Picture(path, VAL, row[0], _box(row[1:5]))
    left_out[NOT_THERE] += len(missing)


def _rows(path: Path) -> dict[str, list[str]]:
    """File name -> the other columns, of a file of tabs (or spaces); lines that hold less than two are passed over."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    # A name may hold spaces ("val_0 2.JPEG"), the other columns do not.
    rows = [line.split("\t") if "\t" in line else line.split() for line in lines]
    return {row[0].strip(): [text.strip() for text in row[1:]] for row in rows if len(row) > 1}


def _boxes(path: Path) -> dict[str, Box | None]:
    return {name: _box(row[:4]) for name, row in _rows(path).items()} if path.is_file() else {}


def _box(texts: list[str]) -> Box | None:
    """Left, top, right and bottom in pixels; None where one is missing or no number."""
    if len(texts) != 4 or not all(text.isdecimal() for text in texts):
        return None
    left, top, right, bottom = map(int, texts)
    return left, top, right, bottom


def _distinct(pictures: list[Picture], left_out: Counter[str]) -> list[Picture]:
    """The pictures without copies, in their order."""
    groups: dict[bytes, list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[hashlib.sha256(picture.path.read_bytes()).digest()].append(picture)
    kept = []
    for group in groups.values():
        if len({picture.wnid for picture in group}) > 1:
            left_out[AMBIGUOUS] += len(group)
            continue
        # A copy made by hand has the longer name ("X 2.JPEG", "copy of X.JPEG").
        kept.append(min(group, key=lambda picture: (picture.half != VAL, len(picture.path.name), picture.path)))
        left_out[COPY] += len(group) - 1
    return sorted(kept)
