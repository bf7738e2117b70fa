"""A jsonargparse parser whose options come from dataclasses, and whose errors are one line each. Without torch."""

import argparse
import difflib
import os
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from clip_la.errors import UserError, one_line, shown
from clip_la.options import TYPE_NAMES, respelt
from clip_la.yaml_text import load_yaml

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
    (r"Problems parsing config: ", "not valid YAML: "),
    (r' in "<unicode string>",', " at"),
    (r"Unexpected config:.*", "holds no options; expected lines NAME: VALUE"),
)
# Of these jsonargparse tells at length what each part of the type expected: what a type is, is said here.
_OF_A_TYPE = (
    r'(?:Parser key ")?([\w.]+)"?: Does not validate against any of the Union subtypes.* Given value: (.*)',
    r'(?:Parser key ")?([\w.]+)"?: Expected a <class \'tuple\'>\. Got value: (.*)',
)
_NO_GROUP = r"(?:Parser key \")?([\w.]+)\"?: Unable to load config '(.*?)' - .*"
_LISTS = {str: "[a.tar, b.tar]", int: "[1, 2]", float: "[0.5, 2]"}
# What other trainers call an option -> what it is here, where it is as much as that.
_ALIASES = {
    **dict.fromkeys(("learning_rate", "peak_lr", "max_lr"), "model.lr"),
    **dict.fromkeys(("wd", "decay"), "model.weight_decay"),
    **dict.fromkeys(("warmup", "warmup_steps"), "model.warmup_samples"),
    **dict.fromkeys(("cooldown", "cooldown_steps"), "model.cooldown_samples"),
    **dict.fromkeys(("grad_clip", "grad_clip_norm", "clip_grad_norm"), "model.max_grad_norm"),
    **dict.fromkeys(("arch", "preset", "model"), "model.name"),
    **dict.fromkeys(("epochs", "max_epochs", "num_epochs", "steps", "max_steps", "samples"), "budget_samples"),
    **dict.fromkeys(("train_data", "dataset", "train_shards"), "data.shards"),
    **dict.fromkeys(("batch", "bs", "train_batch_size"), "data.batch_size"),
    **dict.fromkeys(("num_workers", "n_workers"), "data.workers"),
    **dict.fromkeys(("val_data", "validation"), "validate_on"),
    **dict.fromkeys(("gpus", "num_gpus", "nproc"), "devices"),
    **dict.fromkeys(("output_dir", "out_dir", "output", "logdir"), "out"),
}


def _described(hint: Any, default: Any) -> str:
    """What a value must be, from its type and, for a list, its default as the example."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return ", or ".join(_described(each, default) for each in typing.get_args(hint))
    if hint is type(None):
        return "null"
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(map(repr, parts))
    if parts:
        example = "[" + ", ".join(map(str, default)) + "]" if default else _LISTS[parts[0]]
        return f"a list such as {example}"
    return TYPE_NAMES[hint].partition(";")[0]


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

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *more: Any, **kwargs: Any
    ) -> Any:
        # At the end: a file of options that came later would be printed alone, and unchecked.
        words = respelt(sys.argv[1:] if args is None else args, self)
        return super().parse_args(sorted(words, key=lambda word: word.startswith("--print_config")), *more, **kwargs)

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        self._file_prefix = f"{path}: "
        try:
            given = super().parse_path(path, *args, **kwargs)
            self._check_given(given)
            try:
                # jsonargparse takes the last of two equal keys without a word.
                load_yaml(Path(path).read_text(encoding="utf-8"))
            except UserError as error:
                self.error(str(error))
            return given
        except UnicodeDecodeError as error:
            self.error(f"not text in UTF-8: {error}", error)
        finally:
            self._file_prefix = ""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(message.split())
        actions = {action.dest: action for action in self._actions}
        for pattern in _OF_A_TYPE:
            if (match := re.fullmatch(pattern, text)) and match[1] in actions:
                hint = getattr(actions[match[1]], "_typehint", str)
                text = f"{match[1]}: {one_line(match[2])} is not {_described(hint, actions[match[1]].default)}"
        if match := re.fullmatch(_NO_GROUP, text):
            first = next((name for name in actions if name.startswith(f"{match[1]}.")), "OPTION")
            text = f"{match[1]} is a group of options, and {match[2]!r} no file of them; write --{first} VALUE"
        for pattern, wording in _REWORDED:
            text = re.sub(pattern, wording, text)
        if match := re.fullmatch(r"unknown option (?:--)?([\w.-]+).*", text):
            text = self._unknown(match[1], text)
        raise UserError(f"{self.prog}: {self._file_prefix}{text} (see `{self.prog} --help`)")

    def _check_given(self, given: Namespace) -> None:
        """Refuses what jsonargparse takes from a file unseen: null for what has none, groups that are none, and options
        that there are not, of which it says later that they are unknown, but not where."""
        names = [action.dest for action in self._actions]
        for name in given.keys():  # noqa: SIM118 (a Namespace iterates over nothing)
            if name not in names and not any(name.startswith(f"{each}.") for each in names if "." in each):
                self.error(f"unknown option {name}")
        for action in self._actions:
            name, hint = action.dest, getattr(action, "_typehint", None)
            if name not in given:
                continue
            value = given[name]
            if hint is not None:
                if value is None and type(None) not in typing.get_args(hint):
                    self.error(f"{name}: null is not {_described(hint, action.default)}; give a value or leave it out")
            elif any(each.startswith(f"{name}.") for each in names) and not isinstance(value, Namespace):
                what = "null" if value is None else shown(value)
                self.error(f"{name} is {what}, not a group of options; write lines NAME: VALUE below it")

    def _unknown(self, name: str, text: str) -> str:
        """What to say of an option that there is not: where it is, if another group has it, else what is like it."""
        known = [action.dest for action in self._actions if action.dest not in ("help", argparse.SUPPRESS)]
        name = name.replace("-", "_")
        # A group of options, such as `model`, takes no value.
        single = [each for each in known if not any(other.startswith(f"{each}.") for other in known)]
        homes = [other for other in single if other.rpartition(".")[2] == name.rpartition(".")[2]]
        if len(homes) == 1 and homes[0] != name:
            return f'"{name}" must be given via "{homes[0]}"'
        # Other tools' names, mistyped ones too.
        meant = difflib.get_close_matches(name.rpartition(".")[2], _ALIASES, n=1, cutoff=0.85)
        if meant and (alias := _ALIASES[meant[0]]) in known:
            return f"{text}; did you mean {alias}?"
        near = difflib.get_close_matches(name, known, n=_NUM_NEAR)
        return f"{text}; did you mean {' or '.join(near)}?" if near else text
