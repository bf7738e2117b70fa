"""The class list and the prompts that lie beside the pictures of a test set."""

from collections.abc import Iterator
from pathlib import Path

from clip_la.errors import UserError, one_line
from clip_la.zeroshot.labels import classes as class_sets
from clip_la.zeroshot.labels.classes import ClassSet
from clip_la.zeroshot.labels.prompts import with_slot
from clip_la.zeroshot.labels.text_files import lines_of, read_text

CLASS_FILES = ("classes.json", "classnames.txt")
TEMPLATE_FILE = "zeroshot_classification_templates.txt"


def _beside(folder: Path | None, file: str, above: bool = True) -> Iterator[Path]:
    """The files of that name in the folder and, since it may be a split's, in the one above."""
    folders = [] if folder is None else [folder, folder.resolve().parent][: 1 + above]
    return (path for path in (place / file for place in folders) if path.is_file())


def own_classes(folder: Path | None, *, above: bool = True) -> ClassSet | None:
    """The class list that lies beside the pictures or, unless `above` is False, in the folder above, if there is one.

    Raises:
        UserError: a list that cannot be read, or two in one folder that name the classes differently.
    """
    found = [path for file in CLASS_FILES for path in _beside(folder, file, above)]
    if not found:
        return None
    nearest = min(found, key=lambda path: -len(path.parent.resolve().parts))
    chosen = class_sets.from_file(nearest)
    for other in found:
        if other.parent == nearest.parent and other != nearest:
            _check_equal(chosen, class_sets.from_file(other), nearest, other)
    return chosen


def _check_equal(first: ClassSet, second: ClassSet, path: Path, other: Path) -> None:
    if len(first) != len(second):
        raise UserError(f"{path} has {len(first)} classes, {other.name} beside it {len(second)}; remove one of the two")
    for number, (own, its) in enumerate(zip(first.names, second.names, strict=True)):
        if not {*map(class_sets.reading, own)} & {*map(class_sets.reading, its)}:
            first_name, second_name = one_line(own[0]), one_line(its[0])
            raise UserError(
                f"class {number} is '{first_name}' in {path}, '{second_name}' in {other.name} beside; keep one of both"
            )


def own_templates(folder: Path | None) -> tuple[str, ...] | None:
    """The prompts that lie beside the pictures, in CLIP_benchmark's form, if there are any."""
    path = next(_beside(folder, TEMPLATE_FILE), None)
    return None if path is None else tuple(with_slot(line) for line in lines_of(read_text(path)) if line)
