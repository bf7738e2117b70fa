"""Text and JSON files that people write by hand or with an office program: read as they are meant, or refused."""

import codecs
import json
from pathlib import Path
from typing import Any

from clip_la.errors import UserError, one_line

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: str | Path) -> str:
    r"""The text of a UTF-8 file without its byte-order mark; every line ends in \n, whatever wrote it.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if data.startswith(UTF16_MARKS) or b"\0" in data:
        raise UserError(f"{path} is UTF-16 (or not text at all); save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_of(text: str) -> list[str]:
    r"""The lines of a text, trimmed; blank ones at the end are left out. Only \n ends a line."""
    lines = [line.strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def parse_json(text: str, path: str | Path) -> Any:
    """What JSON text holds; `path` only names it in errors.

    Raises:
        UserError: no JSON, or a key that comes twice, which `json` silently accepts.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for number, key in enumerate(keys) if key in keys[:number])
            raise UserError(f"{path} has the key '{one_line(twice)}' twice; keep one")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except UserError:
        raise
    # ValueError: also numbers of thousands of digits. RecursionError: brackets nested thousands deep.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {one_line(error)}") from None
