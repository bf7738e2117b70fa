"""Which files and folders of a data set are its pictures: not what systems leave behind, and one part, not several."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from clip_la.data.corpora.imagenet_names import is_wordnet_id
from clip_la.errors import UserError

# What unpackers, file managers, storage boxes and file systems leave in folders; hidden names are left out besides.
LEFT_BEHIND = {"__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "lost+found", "$recycle.bin"}
LEFT_BEHIND |= {"system volume information", "thumbs.db", "desktop.ini"}
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
PARTS |= {"val": "val", "valid": "val", "validation": "val", "dev": "val"}
TRAIN = "train"
PART_IN_NAME = re.compile(rf"(?:^|[-_.])({'|'.join(sorted(PARTS, key=len, reverse=True))})(?=[-_.\d]|$)", re.I)


def is_left_behind(name: str) -> bool:
    """Whether a file or folder of that name belongs to a system, not to the data."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if not is_left_behind(e.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error.strerror}") from None


def folders_in(root: Path) -> list[str]:
    """The names of the folders (and links to folders) in `root`, sorted."""
    return [entry.name for entry in _entries(root) if entry.is_dir()]


def files_below(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """The files below a folder with one of these suffixes in any case; links are followed, but not in circles.

    A link to nothing is given too, so that it can be counted as unreadable; pipes and devices are not.
    """
    yield from _below(folder, tuple(suffixes), frozenset([os.path.realpath(folder.parent)]))


def _below(folder: Path, suffixes: tuple[str, ...], above: frozenset[str]) -> Iterator[Path]:
    place = os.path.realpath(folder)
    if place in above:
        return
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _below(folder / entry.name, suffixes, above | {place})
        elif entry.name.lower().endswith(suffixes) and (entry.is_file() or entry.is_symlink()):
            path = folder / entry.name
            if entry.is_file() or not path.exists():
                yield path


def holds_files(folder: Path, suffixes: Sequence[str]) -> bool:
    """Whether files with these suffixes lie in the folder itself."""
    return any(entry.is_file() and entry.name.lower().endswith(tuple(suffixes)) for entry in _entries(folder))


def _wanted(parts: Iterable[str], training: bool) -> list[str]:
    """Those of the words for parts that are for training, or those that are not."""
    return [part for part in parts if (PARTS[part.lower()] == TRAIN) == training]


def class_root(root: Path, suffixes: Sequence[str], training: bool = False) -> tuple[Path, tuple[str, ...]]:
    """Where the class folders of a data set lie: `root`, or its only part that is (not) for training; and a note.

    Raises:
        UserError: several parts, or folders named as parts that hold no class folders.
    """
    folders = folders_in(root)
    named = [folder for folder in folders if folder.lower() in PARTS]
    if len(folders) > 1 and not named:
        return root, ()
    nested = [f for f in folders if not holds_files(root / f, suffixes) and folders_in(root / f)]
    parts = [folder for folder in named if folder in nested]
    others = [folder for folder in folders if folder not in named]
    if parts and all(folder in nested or not _holds_any(root / folder, suffixes) for folder in others):
        chosen = _wanted(parts, training)
        if len(chosen) != 1:
            raise _several(root, parts, str(root / (chosen or parts)[0]))
        return root / chosen[0], (f"{root} holds {' and '.join(named)}; taken is {root / chosen[0]}",)
    if folders and len(named) == len(folders):
        raise UserError(
            f"the folders of {root} ({', '.join(named)}) are named as parts of a data set, not as classes, and hold no "
            f"class folders; expected {root}/{named[0]}/CLASS/PICTURE.jpg"
        )
    wrapped = [folder for folder in nested if not is_wordnet_id(folder) and len(folders_in(root / folder)) > 1]
    if len(folders) == len(wrapped) == 1:
        raise UserError(f"the only folder of {root} holds the class folders; name it: --data {root / wrapped[0]}")
    return root, ()


def _holds_any(folder: Path, suffixes: Sequence[str]) -> bool:
    return next(files_below(folder, suffixes), None) is not None


def _several(root: Path, parts: Sequence[str], example: str) -> UserError:
    return UserError(
        f"{root} holds parts of a data set ({', '.join(parts)}), not one; name one, as in --data '{example}'"
    )


def one_part(files: Sequence[str], root: Path, training: bool = False) -> tuple[list[str], tuple[str, ...]]:
    """Of files of several parts (`test-00000-of-00001.parquet`) those of the only one that is (not) for training.

    Raises:
        UserError: several such parts.
    """
    words = {file: _part_word(os.path.relpath(file, root)) for file in files}
    parts = dict.fromkeys(PARTS[word.lower()] for word in words.values() if word)
    if len(parts) < 2:
        return list(files), ()
    chosen = _wanted(parts, training)
    if len(chosen) != 1:
        file, word = next(
            (file, word) for file, word in words.items() if word and PARTS[word.lower()] in (chosen or parts)
        )
        example = Path(file).parent / f"*{word}*{Path(file).suffix}"
        raise _several(root, list(parts), str(example) if word in Path(file).name else str(Path(file).parent))
    kept = [file for file, word in words.items() if word and PARTS[word.lower()] == chosen[0]]
    return kept, (f"{root} holds files of {' and '.join(parts)}; taken is {chosen[0]}: {len(kept)} of {len(files)}",)


def _part_word(path: str) -> str | None:
    """The word in a file's relative path that names a part, the file's own name first."""
    *folders, name = Path(path).parts
    found = (PART_IN_NAME.search(text) for text in (Path(name).stem, *reversed(folders)))
    return next((match[1] for match in found if match), None)
