"""A jsonargparse parser whose options come from dataclasses, and whose errors are one line each. Without torch."""

import argparse
import difflib
import os
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from clip_la.errors import UserError

# As a shell counts a process ended by Ctrl-C.
STOPPED_EXIT_CODE = 130
_NUM_NEAR = 3
# What jsonargparse says -> what a user reads.
_REWORDED = (
    (r"unrecognized arguments: ([^\s=]+).*", r"unknown option \1"),
    (r"Group '([\w.]+)' does not accept option '([\w.]+)'.*", r"unknown option \1.\2"),
    (r"Option '([\w.]+)' is not accepted.*", r"unknown option \1"),
    (r"Parser key \"([\w.]+)\": ?", r"\1: "),
    (r"Expected a typing\.Literal\[(.*?)\]\. Got value: (.*)", r"\2 is not one of \1"),
    (r"Expected a <class '(\w+)'>\. Got value: (.*)", r"\2 is not of type \1"),
    (r"is not of type bool", "is not true or false"),
    (r"is not of type tuple", "is not a list such as [1, 2]"),
    (r"Problems parsing config: ", "not valid YAML: "),
    (r' in "<unicode string>",', " at"),
    (r"Unexpected config:.*", "holds no options; expected lines NAME: VALUE"),
)


class OneLineParser(ArgumentParser):
    """A parser whose errors are UserErrors: one line that names the file and the option, with the nearest ones.

    Args:
        options: a dataclass whose fields become options, with the texts below them as help; a field that is a dataclass
            itself becomes a group of options `--field.name`.
        skip: fields that become none.
        kwargs: of ArgumentParser.
    """

    # The configuration file that is being read, as its errors begin.
    _file_prefix = ""

    def __init__(self, options: type | None = None, *, skip: Sequence[str] = (), **kwargs: Any) -> None:
        # Half an option is a misspelt one: what it stands for changes with the options that are added.
        super().__init__(**{"allow_abbrev": False, **kwargs})
        if options is None:
            return  # jsonargparse makes parsers of this class for its own ends
        # A setting of the whole process, off by default because reading sources takes time: a tenth of a second here.
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        self.add_argument("--config", action="config", help="a YAML file of options; may be given several times")
        self.add_class_arguments(options, skip=set(skip))

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        self._file_prefix = f"{path}: "
        try:
            return super().parse_path(path, *args, **kwargs)
        except UnicodeDecodeError as error:
            self.error(f"not text in UTF-8: {error}", error)
        finally:
            self._file_prefix = ""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(message.split())
        for pattern, wording in _REWORDED:
            text = re.sub(pattern, wording, text)
        if match := re.fullmatch(r"unknown option (?:--)?([\w.]+).*", text):
            text = self._unknown(match[1], text)
        raise UserError(f"{self.prog}: {self._file_prefix}{text} (see `{self.prog} --help`)")

    def _unknown(self, name: str, text: str) -> str:
        """What to say of an option that there is not: where it is, if another group has it, else what is like it."""
        known = [action.dest for action in self._actions if action.dest not in ("help", argparse.SUPPRESS)]
        homes = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
        if len(homes) == 1:
            return f'"{name}" must be given via "{homes[0]}"'
        near = difflib.get_close_matches(name, known, n=_NUM_NEAR)
        return f"{text}; did you mean {' or '.join(near)}?" if near else text
