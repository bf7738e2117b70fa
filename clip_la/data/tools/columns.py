"""Which columns of a table hold images and captions."""

from collections.abc import Sequence
from pathlib import Path

from clip_la.errors import UserError

IMAGE_COLUMNS = ("image", "path", "filepath", "file_path", "image_path", "filename", "file_name", "file", "img")
CAPTION_COLUMNS = ("caption", "text", "title", "description", "captions")
ADDRESS_COLUMNS = ("url", "image_url", "img_url")
# Names of columns shown in a message.
MAX_SHOWN = 12


def find_columns(columns: Sequence[str], wanted: str | None, usual: Sequence[str]) -> list[str]:
    """The columns of the name asked for, else of the first usual name that is there: those of exactly this name, else
    those that differ in case and in spaces around. More than one is for a person to mend."""
    for name in (wanted,) if wanted else usual:
        for same in (str, lambda column: column.strip().casefold()):
            if found := [column for column in columns if same(column) == same(name)]:
                return found
    return []


def pick_column(
    path: Path, columns: Sequence[str], wanted: str | None, usual: Sequence[str], option: str, hint: str = ""
) -> str:
    """The one column that `find_columns` finds.

    Raises:
        UserError: there is none, or there are two; the message lists those that are there, then `hint`.
    """
    found = find_columns(columns, wanted, usual)
    if not found:
        missing = f"no column '{wanted}'" if wanted else f"no column named {' or '.join(usual)}; give {option}"
        fetch = "; the images of its addresses are to be fetched first, for example with img2dataset"
        fetch = fetch if find_columns(columns, None, ADDRESS_COLUMNS) else ""
        raise UserError(f"{path}: {missing}; its columns are {shown(columns)}{hint}{fetch}")
    if len(found) > 1:
        raise UserError(f"{path}: {len(found)} columns are named {shown(found)}; rename all but one")
    return found[0]


def shown(columns: Sequence[str]) -> str:
    """The names of columns in a message, without line breaks and tabs."""
    names = ", ".join(repr(column)[1:-1] for column in columns[:MAX_SHOWN] if column)
    return names + (f" and {len(columns) - MAX_SHOWN} more" if len(columns) > MAX_SHOWN else "")


def columns_note(columns: Sequence[str], image: str, caption: str) -> str:
    """The note for a person: which columns are used, and which others could have been."""
    usual = IMAGE_COLUMNS + CAPTION_COLUMNS
    others = [column for column in columns if column not in (image, caption) and find_columns([column], None, usual)]
    unused = f"; not used: {shown(others)}" if others else ""
    return f"images from column '{image}', captions from column '{caption}'{unused}"
