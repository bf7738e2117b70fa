"""The text of `clip-la train --help`, read from the sources: importing torch for it would take seconds."""

import ast
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_WIDTH = 118
_INDENT = 30
# Values that the command fills in from other options.
_LINKED = {
    "model.batch_size",
    "model.budget_samples",
    "model.seed",
    "data.seed",
    "data.image_size",
    "data.context_length",
}
_NOT_OPTIONS = {"task", "data", "train_data", "config_text"}

USAGE = """\
usage: clip-la train --config FILE.yaml [--out RUN] [--OPTION VALUE ...]
       clip-la train --resume --out RUN
       clip-la train --branch_from RUN/checkpoints/samples=N.ckpt --out BRANCH --budget_samples M
                     --model.schedule cooldown --model.cooldown_samples C

Trains image and text towers on shards of image-text pairs. Options come from YAML files and the command line, later
ones win; --print_config prints the outcome. A run that goes on, or branches off, keeps its options unless told so.
"""


@dataclass(frozen=True)
class Option:
    """One option as its signature and docstring have it; `default` is Python's text, None where one must be given."""

    name: str
    type: str
    default: str | None
    help: str


def options() -> list[Option]:
    """All options of the command, in the order of the sources."""
    return [
        Option("config", "path", "None", "a YAML file of options; may be given several times"),
        Option("budget_samples", "int", None, "samples to see, counting repetitions"),
        *(
            option
            for module, name, prefix in (
                ("clip_la.train.run", "train_run", ""),
                ("clip_la.train.task", "ContrastiveTask", "model."),
                ("clip_la.data.datamodule", "ShardDataModule", "data."),
            )
            for option in parameters_of(module, name, prefix)
            if option.name not in _LINKED | _NOT_OPTIONS
        ),
    ]


def help_text() -> str:
    """Usage and a paragraph an option."""
    return USAGE + "\noptions:\n" + paragraphs(options())


def paragraphs(options: Iterable[Option]) -> str:
    """A paragraph an option."""
    return "\n".join(_paragraph(option) for option in options)


def _paragraph(option: Option) -> str:
    default = "required" if option.default is None else f"default {option.default}"
    default = default.replace("default None", "optional")
    text = textwrap.fill(
        f"{option.help} ({option.type}; {default})",
        _WIDTH,
        initial_indent=" " * _INDENT,
        subsequent_indent=" " * _INDENT,
    )
    head = f"  --{option.name}"
    return f"{head:<{_INDENT}}{text.lstrip()}" if len(head) < _INDENT else f"{head}\n{text}"


def parameters_of(module: str, name: str, prefix: str) -> list[Option]:
    """What the parameters of a function, or of a class's __init__, become as options that begin with `prefix`."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name)
    told = _documented(ast.get_docstring(node) or "")
    function = node
    if isinstance(node, ast.ClassDef):
        function = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    assert isinstance(function, ast.FunctionDef)
    return [
        Option(prefix + arg.arg, ast.unparse(arg.annotation) if arg.annotation else "", default, told.get(arg.arg, ""))
        for arg, default in _parameters(function.args)
        if arg.arg != "self"
    ]


def _parameters(arguments: ast.arguments) -> list[tuple[ast.arg, str | None]]:
    """Each parameter with the text of its default."""
    missing = [None] * (len(arguments.args) - len(arguments.defaults))
    defaults = [*missing, *arguments.defaults, *arguments.kw_defaults]
    texts = [None if default is None else ast.unparse(default) for default in defaults]
    return list(zip([*arguments.args, *arguments.kwonlyargs], texts, strict=True))


def _documented(docstring: str) -> dict[str, str]:
    """Parameter -> text, from the section Args of a Google docstring."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1], re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in entries}
