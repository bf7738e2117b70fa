"""Test sets in folders: one folder a class, named by WordNet id, by class name, or by ImageNetV2's numbers."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clip_la.data.formats import IMAGE_SUFFIXES, is_hidden, is_picture
from clip_la.errors import UserError
from clip_la.zeroshot import classes as class_sets
from clip_la.zeroshot import names as known
from clip_la.zeroshot.classes import ClassSet
from clip_la.zeroshot.records import NO_LABEL, Content, Record, Skipped, TestSet

VALIDATION_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.")
NAMES_SHOWN = 3


@dataclass(frozen=True)
class FolderSource:
    """Files below `root`, each with its labels; an entry without labels is skipped and counted."""

    root: Path
    files: tuple[tuple[str, tuple[int, ...]], ...]

    def records(self) -> Iterator[Record | Skipped]:
        for name, labels in self.files:
            if labels:
                yield Record(name, labels, (self.root / name).read_bytes)
            else:
                yield Skipped(name, NO_LABEL)


def class_folders(root: Path) -> list[str]:
    """The names of the folders below `root`, sorted; hidden ones left out."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def pictures_in(root: Path, folder: str) -> list[str]:
    """The pictures below one class folder, as paths relative to `root`, sorted."""
    names = (path.relative_to(root).as_posix() for path in (root / folder).rglob("*"))
    return sorted(name for name in names if is_picture(name) and not is_hidden(name))


def _classes_of(root: Path, folders: Sequence[str]) -> ClassSet:
    """The class set that folder names imply: the smallest ImageNet with all these WordNet ids, or just these names."""
    others = [folder for folder in folders if not known.is_wordnet_id(folder)]
    if 0 < len(others) < len(folders):
        raise UserError(
            f"{root} mixes folders named by WordNet ids with others: {_some(others)}; move these away, or name the "
            "classes: --classes"
        )
    if others:
        return class_sets.from_entries(
            [{"id": folder, "name": folder.replace("_", " ")} for folder in folders],
            name=root.resolve().name,
            path=root,
        )
    for name in ("imagenet1k", "imagenet21k", "imagenet21k_google"):
        candidate = class_sets.imagenet(name)
        if set(folders) <= set(candidate.ids):
            return candidate
    strange = [folder for folder in folders if folder not in class_sets.imagenet("imagenet21k_google").index]
    raise UserError(f"folders of {root} are named by WordNet ids that no ImageNet has: {_some(strange)}")


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _positions(root: Path, folders: Sequence[str], classes: ClassSet) -> dict[str, int]:
    """Folder -> position in the class set."""
    numbered = all(folder.isdecimal() for folder in folders)
    if numbered and classes.name == "imagenet1k" and all(int(folder) < len(classes) for folder in folders):
        # ImageNetV2 numbers its folders by position in the sorted WordNet ids; they are not zero-padded.
        return {folder: int(folder) for folder in folders}
    spoken = {folder: folder.replace("_", " ") for folder in folders}
    positions = dict(zip(folders, classes.positions(folders), strict=True))
    positions |= {f: classes.positions([spoken[f]])[0] for f in folders if positions[f] < 0}
    strange = [folder for folder in folders if positions[folder] < 0]
    if strange:
        raise UserError(f"{root}: folders that are no class of {classes.label}: {_some(strange)}")
    return positions


def open_folders(root: Path, classes: ClassSet | None, name: str) -> TestSet:
    """The test set of a folder of class folders; a subset of the classes may be present.

    Raises:
        UserError: no class folders, folders outside the class set, or no pictures.
    """
    folders = class_folders(root)
    if not folders:
        raise UserError(f"{root} has no class folders; expected {root}/CLASS/PICTURE.jpg, CLASS a WordNet id or a name")
    classes = classes or _classes_of(root, folders)
    positions = _positions(root, folders, classes)
    pictures = {folder: pictures_in(root, folder) for folder in folders}
    files = [(file, (positions[folder],)) for folder in folders for file in pictures[folder]]
    empty = [folder for folder in folders if not pictures[folder]]
    note = (f"{root}: class folders without pictures: {_some(empty)}",) if empty else ()
    return replace(of_files(root, files, classes, name), notes=note)


def of_files(root: Path, files: Sequence[tuple[str, tuple[int, ...]]], classes: ClassSet, name: str) -> TestSet:
    """A test set of listed files, paths relative to `root`."""
    if not files:
        raise UserError(f"the class folders of {root} hold no pictures ({', '.join(IMAGE_SUFFIXES)})")
    content = Content([str(root / file) for file, _ in files], files)
    return TestSet(name, classes, (FolderSource(root, tuple(files)),), content, len(files))


def with_real_labels(test_set: TestSet) -> TestSet:
    """ImageNet-1K's validation folders with the ReaL labels: every class a person saw in the picture counts as right.

    The class of the folder stays the picture's own class (first label) where ReaL has it, for recall by class; pictures
    without any ReaL label are skipped, as their authors do (Beyer et al. 2020, arXiv 2006.07159).

    Raises:
        UserError: not ImageNet-1K, or file names without the validation number.
    """
    if test_set.classes.ids != known.wordnet_ids("imagenet"):
        raise UserError(f"ReaL labels are for imagenet1k, not {test_set.classes.label}")
    real = known.real_labels()
    (source,) = test_set.sources
    assert isinstance(source, FolderSource)
    files = []
    for file, (own, *_) in source.files:
        number = VALIDATION_NUMBER.search(file)
        if number is None or not 0 < int(number[1]) <= len(real):
            raise UserError(f"ReaL labels need ImageNet's own file names (ILSVRC2012_val_00000001.JPEG), not {file}")
        accepted = real[int(number[1]) - 1]
        own_first = [own] * (own in accepted) + [label for label in accepted if label != own]
        files.append((file, tuple(own_first)))
    real_set = of_files(source.root, files, test_set.classes, f"{test_set.name}-real")
    return replace(real_set, notes=test_set.notes)


def open_objectnet(root: Path, mappings: Path, name: str) -> TestSet:
    """ObjectNet's pictures of the 113 classes that it shares with ImageNet-1K, under ObjectNet's own names.

    The classes are read from the mappings that come with ObjectNet (Barbu et al. 2019), as CLIP_benchmark does; the
    other 200 folders are left out.
    """
    labels: Mapping[str, str] = json.loads((mappings / "folder_to_objectnet_label.json").read_text(encoding="utf-8"))
    shared: Mapping[str, str] = json.loads((mappings / "objectnet_to_imagenet_1k.json").read_text(encoding="utf-8"))
    folders = sorted(folder for folder, label in labels.items() if label in shared)
    entries = [{"id": folder, "name": labels[folder].lower()} for folder in folders]
    classes = class_sets.from_entries(entries, name="objectnet", path=mappings)
    present = [folder for folder in class_folders(root) if folder in classes.index]
    files = [(file, (classes.index[folder],)) for folder in present for file in pictures_in(root, folder)]
    return of_files(root, files, classes, name)


def objectnet_mappings(root: Path) -> Path | None:
    """The folder with ObjectNet's mappings, if `root` is ObjectNet's picture folder or a folder above it."""
    for folder in (root / "mappings", root.parent / "mappings", root / "objectnet-1.0" / "mappings"):
        if (folder / "objectnet_to_imagenet_1k.json").is_file():
            return folder
    return None
