"""Errors that a user can mend: one clear line each, exit code 2, no traceback."""

import difflib
from collections.abc import Iterable

EXIT_CODE = 2
SHOWN_SIGNS = 80


class UserError(ValueError):
    """Wrong input. The message is one line that names the file, key or option and says what would be right."""


def one_line(value: object) -> str:
    """A text from elsewhere as it stands in an error: in one line, cut where it is long."""
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_SIGNS else text[:SHOWN_SIGNS] + "..."


def shown(value: object) -> str:
    """A value as an error quotes it: as Python writes it, in one line, cut where it is long."""
    return one_line(repr(value))


def printable(text: str) -> str:
    """Text from a file, such as a key or a name, as a terminal may get it: in one line, control signs as escapes."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, for a person: "1 run", "2 runs", "3 categories" (a plural without -s is given)."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def unknown(kind: str, name: str, choices: Iterable[str], listed_by: str | None = None) -> UserError:
    """The error for a name outside a registry, with the nearest names or, if none is near, what lists them, or all."""
    known = sorted(set(choices))
    near = difflib.get_close_matches(name[:SHOWN_SIGNS], known, n=3, cutoff=0.5)
    others = f"{listed_by} lists them" if listed_by else f"known: {', '.join(known)}"
    hint = f"did you mean {' or '.join(near)}?" if near else others
    return UserError(f"unknown {kind} {shown(name)}; {hint}")
