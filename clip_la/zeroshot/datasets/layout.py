"""What lies in the folders of a data set: its images, not what systems leave there; one part; its own class list."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from clip_la.data.corpora.imagenet_names import is_wordnet_id
from clip_la.errors import UserError, one_line
from clip_la.zeroshot.labels import classes as class_sets
from clip_la.zeroshot.labels.classes import ClassSet
from clip_la.zeroshot.labels.prompts import with_slot
from clip_la.zeroshot.labels.text_files import lines_of, read_text

CLASS_FILES = ("classes.json", "classnames.txt")
TEMPLATE_FILE = "zeroshot_classification_templates.txt"
# What unpackers, file managers, storage boxes and file systems leave in folders; hidden names are left out besides.
LEFT_BEHIND = {"__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "lost+found", "$recycle.bin"}
LEFT_BEHIND |= {"system volume information", "thumbs.db", "desktop.ini"}
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
PARTS |= {"val": "val", "valid": "val", "validation": "val", "dev": "val"}
TRAIN = "train"
SEVERAL = "{} holds parts of a data set ({}), not one; name one, as in --data '{}'"
PART_IN_NAME = re.compile(rf"(?:^|[-_.])({'|'.join(sorted(PARTS, key=len, reverse=True))})(?=[-_.\d]|$)", re.I)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What belongs to the data in a folder, sorted by name."""
    try:
        with os.scandir(folder) as listed:
            own = [
                entry for entry in listed if not entry.name.startswith(".") and entry.name.lower() not in LEFT_BEHIND
            ]
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error.strerror}") from None
    return sorted(own, key=lambda entry: entry.name)


def folders_in(root: Path) -> list[str]:
    """The names of the folders (and links to folders) in `root`, sorted."""
    return [entry.name for entry in _entries(root) if entry.is_dir()]


def files_below(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """The files below a folder with one of these suffixes in any case; links are followed, but not in circles.

    A link to nothing is given too, so that it can be counted as unreadable; pipes and devices are not.
    """

    def below(folder: Path, above: frozenset[str]) -> Iterator[Path]:
        place = os.path.realpath(folder)
        # A link to one of the folders that led here would go round for ever.
        if place in above:
            return
        for entry in _entries(folder):
            path = folder / entry.name
            if entry.is_dir():
                yield from below(path, above | {place})
                continue
            is_lost_link = entry.is_symlink() and not path.exists()
            if entry.name.lower().endswith(tuple(suffixes)) and (entry.is_file() or is_lost_link):
                yield path

    yield from below(folder, frozenset([os.path.realpath(folder.parent)]))


def class_root(root: Path, suffixes: Sequence[str], training: bool = False) -> tuple[Path, tuple[str, ...]]:
    """Where the class folders of a data set lie: `root`, or its only part that is (not) for training; and a note.

    Raises:
        UserError: several parts, or folders named as parts that hold no class folders.
    """

    def holds_files(folder: str) -> bool:
        """In itself, not in folders below."""
        return any(e.is_file() and e.name.lower().endswith(tuple(suffixes)) for e in _entries(root / folder))

    # A class may be called "test" among others; a data set of parts has nothing but parts, each with class folders.
    folders = folders_in(root)
    named = [folder for folder in folders if folder.lower() in PARTS]
    if len(folders) > 1 and not named:
        return root, ()
    nested = [f for f in folders if not holds_files(f) and folders_in(root / f)]
    parts = [folder for folder in named if folder in nested]
    others = [folder for folder in folders if folder not in named]
    # Beside parts there may be other folders, but no classes: nothing with files of the data in itself.
    are_empty = (folder in nested or next(files_below(root / folder, suffixes), None) is None for folder in others)
    if parts and all(are_empty):
        chosen = [part for part in parts if (PARTS[part.lower()] == TRAIN) == training]
        if len(chosen) != 1:
            raise UserError(SEVERAL.format(root, ", ".join(parts), root / (chosen or parts)[0]))
        return root / chosen[0], (f"{root} holds {' and '.join(named)}; taken is {root / chosen[0]}",)
    if folders and len(named) == len(folders):
        raise UserError(
            f"the folders of {root} ({', '.join(named)}) are named as parts of a data set, not as classes, and hold no "
            f"class folders; expected {root}/{named[0]}/CLASS/IMAGE.jpg"
        )
    # One folder with many in it is a download unpacked one level too deep, not a class.
    wrapped = [folder for folder in nested if not is_wordnet_id(folder) and len(folders_in(root / folder)) > 1]
    if len(folders) == len(wrapped) == 1:
        raise UserError(f"the only folder of {root} holds the class folders; name it: --data {root / wrapped[0]}")
    return root, ()


def one_part(files: Sequence[str], root: Path, training: bool = False) -> tuple[list[str], tuple[str, ...]]:
    """Of files of several parts (`test-00000-of-00001.parquet`) those of the only one that is (not) for training.

    Raises:
        UserError: several such parts.
    """
    words: dict[str, str | None] = {}
    for file in files:
        *folders, name = Path(os.path.relpath(file, root)).parts
        # The file's own name first, then the folders from the nearest up.
        matches = (PART_IN_NAME.search(text) for text in (Path(name).stem, *reversed(folders)))
        words[file] = next((match[1] for match in matches if match), None)
    # "valid" and "dev" are one part under two names.
    parts = dict.fromkeys(PARTS[word.lower()] for word in words.values() if word)
    if len(parts) < 2:
        return list(files), ()
    chosen = [part for part in parts if (part == TRAIN) == training]
    if len(chosen) != 1:
        file, word = next(
            (file, word) for file, word in words.items() if word and PARTS[word.lower()] in (chosen or parts)
        )
        example = Path(file).parent / f"*{word}*{Path(file).suffix}"
        named = example if word in Path(file).name else Path(file).parent
        raise UserError(SEVERAL.format(root, ", ".join(parts), named))
    kept = [file for file, word in words.items() if word and PARTS[word.lower()] == chosen[0]]
    return kept, (f"{root} holds files of {' and '.join(parts)}; taken is {chosen[0]}: {len(kept)} of {len(files)}",)


def own_classes(folder: Path | None, *, above: bool = True) -> ClassSet | None:
    """The class list that lies beside the images or, unless `above` is False, in the folder above, if there is one.

    Raises:
        UserError: a list that cannot be read, or two in one folder that name the classes differently.
    """
    found = [path for file in CLASS_FILES for path in _beside(folder, file, above)]
    if not found:
        return None
    # The list in the folder itself is nearer to the data than one in the folder above.
    nearest = min(found, key=lambda path: -len(path.parent.resolve().parts))
    chosen = class_sets.from_file(nearest)
    for path in found:
        if path.parent != nearest.parent or path == nearest:
            continue
        other = class_sets.from_file(path)
        # Two lists of one folder may differ in how they write a name, not in what they mean.
        if len(chosen) != len(other):
            text = f"{nearest} has {len(chosen)} classes, {path.name} beside it {len(other)}"
            raise UserError(f"{text}; remove one of the two")
        for number, (own, its) in enumerate(zip(chosen.names, other.names, strict=True)):
            if not {*map(class_sets.reading, own)} & {*map(class_sets.reading, its)}:
                text = (
                    f"class {number} is '{one_line(own[0])}' in {nearest}, '{one_line(its[0])}' in {path.name} beside"
                )
                raise UserError(f"{text}; keep one of both")
    return chosen


def own_templates(folder: Path | None) -> tuple[str, ...] | None:
    """The prompts that lie beside the images, in CLIP_benchmark's form, if there are any."""
    path = next(_beside(folder, TEMPLATE_FILE), None)
    return None if path is None else tuple(with_slot(line) for line in lines_of(read_text(path)) if line)


def _beside(folder: Path | None, file: str, above: bool = True) -> Iterator[Path]:
    """The files of that name in the folder and, since it may be a split's, in the one above."""
    folders = [] if folder is None else [folder, folder.resolve().parent][: 1 + above]
    return (path for path in (place / file for place in folders) if path.is_file())
