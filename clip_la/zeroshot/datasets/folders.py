"""Test sets in folders: one folder a class, named by WordNet id, by class name, or by ImageNetV2's numbers."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clip_la.data.corpora import imagenet_names as known
from clip_la.data.shards.formats import IMAGE_SUFFIXES
from clip_la.errors import UserError, one_line
from clip_la.zeroshot.datasets import layout
from clip_la.zeroshot.datasets.label_values import numbers_in
from clip_la.zeroshot.datasets.layout import own_classes
from clip_la.zeroshot.datasets.records import NO_LABEL, NOT_IN_SET, Content, EvalDataset, Record, Skipped
from clip_la.zeroshot.labels import classes as class_sets
from clip_la.zeroshot.labels.classes import ClassSet
from clip_la.zeroshot.options import ERROR, SKIP

VALIDATION_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.")
# As CUB-200 ("001.Black_footed_Albatross") and Stanford Dogs ("n02085620-Chihuahua") call their folders.
KEY_AND_NAME = re.compile(r"(\d{1,9}|n\d{8})[-_. ]+([^\W\d_].*)", re.DOTALL)
NAMES_SHOWN = 3
# The sets that folders of WordNet ids are taken for where they are exactly none.
WHOLES = ("imagenet1k", "imagenet21k", "imagenet21k_google", "imagenet21k_ms")
MAX_DIGITS = 9
LARGEST_DIGIT = 9


@dataclass(frozen=True)
class FolderRecords:
    """Files below `root`, each with its labels or, for one that is skipped and counted, the reason."""

    root: Path
    files: tuple[tuple[str, tuple[int, ...] | str], ...]

    def records(self) -> Iterator[Record | Skipped]:
        for name, labels in self.files:
            if isinstance(labels, str):
                yield Skipped(name, labels)
            else:
                yield Record(name, labels, (self.root / name).read_bytes)


def images_in(root: Path, folder: str) -> list[str]:
    """The images below one class folder, as paths relative to `root`, sorted."""
    return sorted(path.relative_to(root).as_posix() for path in layout.files_below(root / folder, IMAGE_SUFFIXES))


def _classes_of(root: Path, folders: Sequence[str], filled: Sequence[str]) -> tuple[ClassSet, tuple[str, ...]]:
    """The class set that folder names imply, a set of the catalog or just these names, and what is to be said of it.

    `filled` are those of the folders that hold images.
    """
    others = [folder for folder in folders if not known.is_wordnet_id(folder)]
    # Beside WordNet ids any other folder is a stray one: taken for a class it would shift what chance is.
    if 0 < len(others) < len(folders):
        raise UserError(
            f"{root} mixes folders named by WordNet ids with others: {_some(others)}; move these away, or name the "
            "classes: --classes"
        )
    if not others:
        return _catalogued(root, folders)
    if len(filled) == 1:
        raise UserError(
            f"only one folder of {root} holds images, {filled[0]}: among one class every image is right; name the "
            "folder of the class folders, or the classes: --classes"
        )
    note: tuple[str, ...] = ()
    if all(map(_is_number, folders)):
        if max(map(int, folders)) > LARGEST_DIGIT:
            raise UserError(f"the folders of {root} are numbers ({_some(folders)}); name the classes: --classes")
        note = (f"{root}: the folders' digits are taken for the names of the classes; else name these: --classes",)
    spoken, said = _without_numbers(root, folders)
    note += said
    names = [{"id": own, "name": name.replace("_", " ")} for own, name in zip(folders, spoken, strict=True)]
    return class_sets.from_entries(names, name=root.resolve().name, path=root), note


def _catalogued(root: Path, folders: Sequence[str]) -> tuple[ClassSet, tuple[str, ...]]:
    """The catalog's set of exactly these WordNet ids, else the first large one with all or most of them."""
    given = set(folders)
    sets = {name: set(known.wordnet_ids(file)) for name, (file, _) in class_sets.CATALOG.items()}
    exact = [name for name, ids in sets.items() if ids == given]
    fitting = [name for name, ids in sets.items() if given <= ids]
    if exact:
        chosen = class_sets.imagenet(exact[0])
        return chosen, (f"{root}: its {len(folders)} folders are exactly the classes of {exact[0]}",)
    # A few ids that a set lacks, as of fall11 in winter21, do not make it another set.
    most = max(len(given & sets[name]) for name in WHOLES)
    if not most:
        raise UserError(f"folders of {root} are named by WordNet ids that no ImageNet has: {_some(folders)}")
    chosen = class_sets.imagenet(next(name for name in WHOLES if len(given & sets[name]) == most))
    others = [name for name in fitting if name != chosen.name]
    more = f"; {', '.join(others)} {'has' if len(others) == 1 else 'have'} them too" if others else ""
    return chosen, (
        f"{root}: {most} of the {len(chosen):,} classes of {chosen.name} have folders{more}; choose by --classes",
    )


def _without_numbers(root: Path, folders: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The names in folders that are all called by a number or WordNet id and a name, `001.Black_footed_Albatross`."""
    parts = [KEY_AND_NAME.fullmatch(folder) for folder in folders]
    keys, names = [part[1] for part in parts if part], [part[2] for part in parts if part]
    if len(names) < len(folders) or len(set(keys)) < len(keys) or len(set(names)) < len(names):
        return list(folders), ()
    # Numbers in front are keys only if they count; "101.dalmatian" alone may be a name.
    numbers = sorted(int(key) for key in keys if _is_number(key))
    counted = len(numbers) > 1 and numbers in (list(range(len(keys))), list(range(1, len(keys) + 1)))
    if numbers and not counted:
        return list(folders), (f"{root}: the numbers in the folders' names are taken for parts of the classes' names",)
    return names, (f"{root}: what the folders' names begin with is left out of prompts: '{keys[0]}' of '{folders[0]}'",)


def _is_number(folder: str) -> bool:
    return folder.isascii() and folder.isdecimal() and len(folder) <= MAX_DIGITS


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(map(one_line, names[:NAMES_SHOWN])) + (f" and {more} more" if more > 0 else "")


def _positions(root: Path, folders: Sequence[str], classes: ClassSet, unknown: str, counted: bool) -> dict[str, int]:
    """Folder -> position in the class set, -1 where it has no such class.

    Args:
        counted: whether the folders are called by class numbers; where these are names of classes, names come first.
    """
    named = dict(zip(folders, classes.positions(folders), strict=True))
    strange = [folder for folder in folders if named[folder] < 0]
    if counted and strange:
        outside = [folder for folder in folders if int(folder) >= len(classes)]
        if outside or len(strange) < len(folders):
            raise UserError(
                f"{root}: folders outside the {len(classes)} classes of {classes.label} (0 to N - 1): "
                f"{_some(outside or strange)}"
            )
        return {folder: int(folder) for folder in folders}
    if strange and (unknown == ERROR or len(strange) == len(folders)):
        skip = "" if len(strange) == len(folders) else f"; --unknown-classes {SKIP} leaves such out"
        raise UserError(f"{root}: folders that are no class of {classes.label}: {_some(strange)}{skip}")
    return named


def open_folders(
    root: Path, classes: ClassSet | None, name: str, unknown: str = SKIP, notes: tuple[str, ...] = ()
) -> EvalDataset:
    """The test set of a folder of class folders; a subset of the classes may be present.

    Args:
        classes: by default the list beside the folders (classes.json, classnames.txt), else what their names imply.
        unknown: what becomes of the images of a folder that `classes` lacks: skipped and counted, or a UserError.
        notes: what is known of the data already.

    Raises:
        UserError: no class folders, no folder (or, as asked for, not every one) within the class set, or no images.
    """
    folders = layout.folders_in(root)
    if not folders:
        raise UserError(f"{root} has no class folders; expected {root}/CLASS/IMAGE.jpg, CLASS a WordNet id or a name")
    are_numbers = all(map(_is_number, folders))
    # Folders of numbers count in the list beside them, whatever classes are asked for.
    own = None
    if classes is None or are_numbers:
        own = own_classes(root, above=root.resolve().name.lower() in layout.PARTS)
    images = {folder: images_in(root, folder) for folder in folders}
    classes = classes or own
    if classes is None:
        classes, said = _classes_of(root, folders, [folder for folder in folders if images[folder]])
        notes += said
    # Folder numbers count in a list of somebody's own, and in ImageNet-1K, as ImageNetV2 counts its folders.
    are_counted = are_numbers and (classes.naming == "file" or classes.name == "imagenet1k")
    counted = are_counted and numbers_in(own, classes) is not None
    positions = _positions(root, folders, classes, unknown, counted)
    labels = {folder: (place,) if (place := positions[folder]) >= 0 else NOT_IN_SET for folder in folders}
    files = [(file, labels[folder]) for folder in folders for file in images[folder]]
    strange = [folder for folder, place in positions.items() if place < 0]
    empty = [folder for folder, own_files in images.items() if not own_files]
    # Folders within folders may be the classes that a person meant.
    deep = [
        folder
        for folder, own_files in images.items()
        if len({file.split("/")[1] for file in own_files if file.count("/") > 1}) > 1
    ]
    remarks = {
        f"{root}: skipped, since they are no class of {classes.label}: {_some(strange)}": strange,
        f"{root}: class folders without images: {_some(empty)}": empty,
        f"{root}: images in folders below count for the top one: {_some(deep)}": deep,
    }
    notes += tuple(text for text, concerned in remarks.items() if concerned)
    return replace(of_files(root, files, classes, name), notes=notes)


def of_files(
    root: Path, files: Sequence[tuple[str, tuple[int, ...] | str]], classes: ClassSet, name: str
) -> EvalDataset:
    """A test set of listed files, paths relative to `root`."""
    if not files:
        raise UserError(f"the class folders of {root} hold no images ({', '.join(IMAGE_SUFFIXES)})")
    content = Content([str(root / file) for file, _ in files], files)
    return EvalDataset(name, classes, (FolderRecords(root, tuple(files)),), content, len(files))


def with_real_labels(test_set: EvalDataset) -> EvalDataset:
    """ImageNet-1K's validation folders with the ReaL labels: every class a person saw in the image counts as right.

    The class of the folder stays the image's own class (first label) where ReaL has it, for recall by class; images
    without any ReaL label are skipped, as their authors do (Beyer et al. 2020, arXiv 2006.07159).

    Raises:
        UserError: not ImageNet-1K, or file names without the validation number.
    """
    if test_set.classes.ids != known.wordnet_ids("imagenet"):
        raise UserError(f"ReaL labels are for imagenet1k, not {test_set.classes.label}")
    real = known.real_labels()
    (source,) = test_set.sources
    assert isinstance(source, FolderRecords)
    files: list[tuple[str, tuple[int, ...] | str]] = []
    for file, labels in source.files:
        # Skipped already, with its reason.
        if isinstance(labels, str):
            files.append((file, labels))
            continue
        number = VALIDATION_NUMBER.search(file)
        if number is None or not 0 < int(number[1]) <= len(real):
            raise UserError(f"ReaL labels need ImageNet's own file names (ILSVRC2012_val_00000001.JPEG), not {file}")
        accepted = real[int(number[1]) - 1]
        # Recall by class counts an image under its first label.
        own_first = (*(own for own in labels if own in accepted), *(label for label in accepted if label not in labels))
        files.append((file, own_first or NO_LABEL))
    real_set = of_files(source.root, files, test_set.classes, f"{test_set.name}-real")
    return replace(real_set, notes=test_set.notes)


def open_objectnet(root: Path, name: str) -> EvalDataset | None:
    """ObjectNet's images of the 113 classes that it shares with ImageNet-1K, under ObjectNet's own names.

    The classes are read from the mappings that come with ObjectNet (Barbu et al. 2019), as CLIP_benchmark does; the
    other 200 folders are left out.

    Args:
        root: ObjectNet's folder of images or a folder above it; for any other folder the answer is None.
    """
    places = (root / "mappings", root.parent / "mappings", root / "objectnet-1.0" / "mappings")
    mappings = next((place for place in places if (place / "objectnet_to_imagenet_1k.json").is_file()), None)
    if mappings is None:
        return None
    labels: Mapping[str, str] = json.loads((mappings / "folder_to_objectnet_label.json").read_text(encoding="utf-8"))
    shared: Mapping[str, str] = json.loads((mappings / "objectnet_to_imagenet_1k.json").read_text(encoding="utf-8"))
    folders = sorted(folder for folder, label in labels.items() if label in shared)
    entries = [{"id": folder, "name": labels[folder].lower()} for folder in folders]
    classes = class_sets.from_entries(entries, name="objectnet", path=mappings)
    root = mappings.parent / "images"
    present = [folder for folder in layout.folders_in(root) if folder in classes.index]
    files = [(file, (classes.index[folder],)) for folder in present for file in images_in(root, folder)]
    return of_files(root, files, classes, name)
