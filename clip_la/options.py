"""Options written once: a dataclass whose attribute docstrings are the help of the command line and of the Python API.

```python
@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    data: str = option(metavar="PATH", default=None)
    \"""A folder of shards.\"""
    batch_size: int = 128
    \"""Images at a time.\"""
```

`add_options(parser, ReadOptions)` gives `--data PATH` and `--batch-size N`, with types, defaults and help. Nothing
heavy is imported: `--help` must answer at once. (jsonargparse knows attribute docstrings too, but no dashes in
names, and flags only as `--again true`.)
"""

import argparse
import ast
import inspect
import os
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any

from clip_la.errors import UserError, shown, unknown

# What errors call the types that a field may have.
TYPE_NAMES = {str: "text; put it in quotes", int: "a whole number", float: "a number", bool: "true or false"}


def option(
    default: Any = MISSING,
    *,
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
    least: int | None = None,
    positional: bool = False,
) -> Any:
    """A dataclass field with what the command line says of it besides type, default and help.

    Args:
        metavar: what stands for the value in the help; by default the choices, or N for a number.
        choices: the values that are allowed; argparse refuses others.
        least: the smallest number that `check_types` takes.
        positional: whether the values come without an option's name.
    """
    metadata = {"metavar": metavar, "choices": choices, "least": least, "positional": positional}
    return field(default=default, metadata=metadata) if default is not MISSING else field(metadata=metadata)


def attribute_docs(cls: type) -> dict[str, str]:
    """Attribute -> the docstring below it, in one line, of a class and those that it derives from.

    Python keeps these nowhere, so the source is read, as documentation tools do.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for before, after in zip(node.body, node.body[1:], strict=False):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and is_text:
                docs[before.target.id] = " ".join(str(after.value.value).split())  # type: ignore[attr-defined]
    return docs


def add_options(parser: argparse.ArgumentParser, cls: type, *, given_only: bool = False) -> None:
    """Adds an option for every field of a dataclass: `batch_size` is `--batch-size`, a bool is a flag, a tuple a list.

    Args:
        given_only: leave what is not given out of the namespace, where something else, such as a file, has defaults.
    """
    hints, docs = typing.get_type_hints(cls), attribute_docs(cls)
    for each in fields(cls):
        kind, repeated = _value_type(hints[each.name])
        default = None if each.default is MISSING else each.default
        text = docs[each.name].rstrip(".").replace("%", "%%")
        if default not in (None, False, ()) and "(default" not in text:
            text += f" (default {default})"
        settings: dict[str, Any] = {"help": text if text[1:2].isupper() else text[:1].lower() + text[1:]}
        settings["default"] = argparse.SUPPRESS if given_only else default
        if kind is bool:
            parser.add_argument(_flag(each), action="store_true", **settings)
            continue
        settings |= {"type": kind, "metavar": each.metadata.get("metavar") or ("N" if kind is int else None)}
        settings |= {"choices": each.metadata.get("choices"), "nargs": "*" if repeated else None}
        parser.add_argument(each.name if each.metadata.get("positional") else _flag(each), **settings)


def _flag(each: Field) -> str:
    return f"--{each.name.replace('_', '-')}"


def _value_type(hint: Any) -> tuple[type, bool]:
    """(type of a value, whether there may be several) of `str`, `int | None`, `tuple[str, ...]`, ..."""
    if isinstance(hint, types.UnionType):
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
    if typing.get_origin(hint) in (tuple, list):
        return typing.get_args(hint)[0], True
    return hint, False


def respelt(words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """A command line with each option's name as the parser has it: `--batch_size` and `--batch-size` are one option.

    Commands have dashes in their options, but training, whose options are names of YAML files too, has underscores;
    nobody should have to remember which.
    """
    known = {name.replace("_", "-"): name for action in parser._actions for name in action.option_strings}
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            word = known.get(name.replace("_", "-"), name) + equals + value
        found.append(word)
    return found


def split_values(values: Mapping[str, Any], who: str, *classes: type) -> list[dict[str, Any]]:
    """Divides options, by name, among dataclasses: the keyword arguments of each. Paths become text.

    Raises:
        UserError: a name that none of them has, with the nearest.
    """
    names = [[each.name for each in fields(cls)] for cls in classes]
    for name in values:
        if not any(name in own for own in names):
            raise unknown(f"option of {who}", name, [known for own in names for known in own])
    texts = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in values.items()}
    return [{name: texts[name] for name in own if name in texts} for own in names]


def check_types(instance: Any) -> None:
    """For `__post_init__`: raises UserError for a value of another type than its field's, or below its `least`.

    Command lines are typed by argparse; YAML and Python have numbers, dates and lists where a person may mean a text.
    """
    hints = typing.get_type_hints(type(instance))
    for each in fields(instance):
        value, least = getattr(instance, each.name), each.metadata.get("least")
        kind, repeated = _value_type(hints[each.name])
        if value is None and (isinstance(hints[each.name], types.UnionType) or each.default is None):
            continue
        several = repeated and isinstance(value, tuple | list)
        # type and not isinstance: True is an int to Python, and to nobody else.
        allowed = (int, float) if kind is float else (kind,)
        if any(type(one) not in allowed for one in (value if several else (value,))) or repeated != several:
            raise UserError(f"{each.name} is {shown(value)}, not {TYPE_NAMES[kind]}")
        if least is not None and value < least:
            raise UserError(f"{_flag(each)} must be at least {least}, not {value}")
