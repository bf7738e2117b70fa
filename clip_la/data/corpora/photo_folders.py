"""Photographs as people have them unpacked: Tiny-ImageNet, or sample images named by WordNet ids; what is left out.

Of Tiny-ImageNet are read `train/WNID/images/*.JPEG` (or `train/WNID/*.JPEG`) with `WNID_boxes.txt`, and `val/images`
with `val_annotations.txt`, or `val/WNID/...`, as scripts sort it. `test/` has no labels and is not read. Sample images
are `WNID_name.JPEG` or `WNID/name.JPEG`, at any depth.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from clip_la.data.corpora.imagenet_names import WORDNET_ID, is_wordnet_id, lemmas
from clip_la.errors import UserError

TRAIN, VAL = "train", "val"
UNPACKED = "tiny-imagenet-200"
SUFFIXES = (".jpeg", ".jpg", ".png")
ANNOTATIONS = "val_annotations.txt"
# The id that a file's name begins with: n01440764.JPEG, n01440764_tench.JPEG, n01440764-tench.jpg.
LEADING_ID = re.compile(rf"({WORDNET_ID.pattern})(?![0-9A-Za-z])")
NO_CLASS = "not a class of wnids.txt"
HIDDEN = "hidden file"
NOT_AN_IMAGE = "not an image file"
NO_ANNOTATION = "no line in val_annotations.txt"
NOT_THERE = "named in val_annotations.txt, not there"
NO_ID = "no WordNet id in its name, nor as its folder's"
UNKNOWN_ID = "WordNet id that no ImageNet has"
COPY = "copy of another image"
AMBIGUOUS = "same image in several classes"
Box = tuple[int, int, int, int]


class FolderImage(NamedTuple):
    """An image file, the part it lies in ("train", "val", ...), its class, and the object's box in pixels if known."""

    path: Path
    half: str
    wnid: str
    box: Box | None = None


class Contents(NamedTuple):
    """The classes, sorted; the images, each once; and how many files were left out, by reason."""

    wnids: list[str]
    images: list[FolderImage]
    left_out: Counter[str]


def read_folder(folder: Path) -> Contents:
    """What an unpacked Tiny-ImageNet holds, in `folder` or in the folder `tiny-imagenet-200` there.

    The classes are those of wnids.txt or, without it, those with a folder in `train`. Files that are equal byte for
    byte are one image: of copies within a class the one in `val` stays, else the one with the shortest name. A
    image that lies in several classes has no right answer and is left out everywhere.

    Raises:
        UserError: no such folder, no classes in it, or neither annotations nor class folders in `val`.
    """
    root = next((place for place in (folder, folder / UNPACKED) if (place / TRAIN).is_dir()), None)
    if root is None:
        raise UserError(f"{folder} is no unpacked Tiny-ImageNet: it holds no folder '{TRAIN}' with WordNet ids in it")
    if (path := root / "wnids.txt").is_file():
        listed = path.read_text(encoding="utf-8-sig", errors="replace").split()
        if strange := next((text for text in listed if not is_wordnet_id(text)), None):
            raise UserError(f"{path}: '{strange[:40]}' is no WordNet id, such as n01443537")
    else:
        listed = [entry.name for entry in (root / TRAIN).iterdir() if is_wordnet_id(entry.name)]
    if not listed:
        raise UserError(f"{root} names no classes: no ids in wnids.txt, or no WordNet ids as folders of '{TRAIN}'")
    return _TinyImageNet(root, set(listed)).contents()


class _TinyImageNet:
    """One reading of the folder `root`: its images, and a count of what is left out.

    Folders that went through a file manager, an archive of macOS or a script hold more than the data set: nothing of
    that is an error, and all of it is counted.
    """

    def __init__(self, root: Path, wnids: set[str]) -> None:
        self.root = root
        self.wnids = wnids
        self.left_out: Counter[str] = Counter()

    def contents(self) -> Contents:
        found = [*self._class_folders(TRAIN), *self._validation()]
        if not found:
            raise UserError(f"{self.root} holds no images of its {len(self.wnids)} classes ({', '.join(SUFFIXES)})")
        images = distinct(found, self.left_out)
        return Contents(sorted(self.wnids), images, +self.left_out)

    def _class_folders(self, half: str) -> Iterator[FolderImage]:
        for entry in sorted((self.root / half).iterdir()):
            if entry.is_dir():
                listed = entry / f"{entry.name}_boxes.txt"
                known = entry.name in self.wnids
                boxes = self._columns(listed) if known and listed.is_file() else {}
                for path in images_below(entry, self.left_out):
                    if known:
                        yield FolderImage(path, half, entry.name, self._box(boxes.get(path.name, [])[:4]))
                    else:
                        self.left_out[NO_CLASS] += 1
            elif entry.name != ANNOTATIONS:
                self.left_out[HIDDEN if entry.name.startswith(".") else NOT_AN_IMAGE] += 1

    def _validation(self) -> Iterator[FolderImage]:
        folder = self.root / VAL
        if not (folder / ANNOTATIONS).is_file():
            if not any((folder / wnid).is_dir() for wnid in self.wnids):
                raise UserError(f"{folder} has neither {ANNOTATIONS} nor folders named by WordNet ids")
            yield from self._class_folders(VAL)
            return
        rows = self._columns(folder / ANNOTATIONS)
        missing = set(rows)
        for path in images_below(folder, self.left_out):
            row = rows.get(path.name)
            missing.discard(path.name)
            if row is None or row[0] not in self.wnids:
                self.left_out[NO_ANNOTATION if row is None else NO_CLASS] += 1
            else:
                yield FolderImage(path, VAL, row[0], self._box(row[1:5]))
        self.left_out[NOT_THERE] += len(missing)

    @staticmethod
    def _columns(path: Path) -> dict[str, list[str]]:
        """File name -> the other columns, of a file of tabs (or spaces); lines that hold less than two are skipped."""
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        # A name may hold spaces ("val_0 2.JPEG"), the other columns do not.
        rows = [line.split("\t") if "\t" in line else line.split() for line in lines]
        return {row[0].strip(): [text.strip() for text in row[1:]] for row in rows if len(row) > 1}

    @staticmethod
    def _box(texts: list[str]) -> Box | None:
        """Left, top, right and bottom in pixels; None where one is missing or no number."""
        if len(texts) != 4 or not all(text.isdecimal() for text in texts):
            return None
        left, top, right, bottom = map(int, texts)
        return left, top, right, bottom


def read_sample_images(folder: Path, half: str) -> Contents:
    """Sample images below `folder`, each with the WordNet id that its name begins with, else that of its folder.

    Hidden folders (.git) are not entered; copies are as in `read_folder`. `half`: that of each FolderImage.

    Raises:
        UserError: no such folder, or no image of a known class in it.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder} of sample images")
    left_out: Counter[str] = Counter()
    found = []
    for path in images_below(folder, left_out):
        named = LEADING_ID.match(path.name)
        wnid = named[1] if named else path.parent.name
        if wnid in lemmas():
            found.append(FolderImage(path, half, wnid))
        else:
            left_out[UNKNOWN_ID if is_wordnet_id(wnid) else NO_ID] += 1
    if not found:
        raise UserError(
            f"{folder} holds no image ({', '.join(SUFFIXES)}) with a WordNet id in its name, as n01440764_tench.JPEG"
        )
    images = distinct(found, left_out)
    return Contents(sorted({image.wnid for image in images}), images, +left_out)


def images_below(folder: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Image files at any depth, sorted; hidden ones (.DS_Store, ._X.JPEG) and others are counted, not given."""
    for path in sorted(folder.rglob("*")):
        above = path.relative_to(folder).parts[:-1]
        if path.is_dir() or any(part.startswith(".") for part in above):
            continue
        if path.name.startswith("."):
            left_out[HIDDEN] += 1
        elif path.suffix.lower() in SUFFIXES:
            yield path
        elif not path.name.endswith(("_boxes.txt", ANNOTATIONS)):
            left_out[NOT_AN_IMAGE] += 1


def distinct(images: Iterable[FolderImage], left_out: Counter[str]) -> list[FolderImage]:
    """The images without copies, sorted; `left_out` counts copies and images that lie in several classes."""
    groups: dict[bytes, list[FolderImage]] = defaultdict(list)
    for image in images:
        groups[hashlib.sha256(image.path.read_bytes()).digest()].append(image)
    kept = []
    for group in groups.values():
        if len({image.wnid for image in group}) > 1:
            left_out[AMBIGUOUS] += len(group)
            continue
        # A copy made by hand has the longer name ("X 2.JPEG", "copy of X.JPEG").
        kept.append(min(group, key=lambda image: (image.half != VAL, len(image.path.name), image.path)))
        left_out[COPY] += len(group) - 1
    return sorted(kept)
