"""A dataclass with docstrings is a command line, a Python call and a suite's entry, with one set of defaults."""

import argparse
import contextlib
import io
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from clip_la.cli import Parser
from clip_la.commands.eval import make_parser
from clip_la.errors import UserError
from clip_la.options import add_options, attribute_docs, check_types, option, split_values
from clip_la.zeroshot.options import EvalOptions, SuiteEntry


@dataclass(frozen=True, kw_only=True)
class Base:
    data: str
    """Where the
    shards are, 100 % of them."""


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    sizes: tuple[int, ...] = option((), positional=True, metavar="SIZE")
    """Some sizes."""
    batch_size: int = option(128, least=1)
    """Images at a time."""
    rate: float | None = None
    """GB/s (default: as it comes)."""
    kind: str = option("a", choices=("a", "b"))
    """YAML or not."""
    again: bool = False
    """Once more."""

    def __post_init__(self) -> None:
        check_types(self)


def parsed(*arguments: str, given_only: bool = False) -> dict:
    parser = Parser(prog="x")
    add_options(parser, Options, given_only=given_only)
    return vars(parser.parse_args(arguments))


def help_of(cls: type) -> str:
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=200))
    add_options(parser, cls)
    return parser.format_help()


def test_defaults_and_values():
    assert parsed() == {"data": None, "sizes": (), "batch_size": 128, "rate": None, "kind": "a", "again": False}
    line = "3 5 --batch-size 7 --rate 1e3 --kind b --again --data x"
    values = {"data": "x", "sizes": [3, 5], "batch_size": 7, "rate": 1000.0, "kind": "b", "again": True}
    assert parsed(*line.split()) == values
    assert parsed("--batch-size", "7", given_only=True) == {"batch_size": 7}


def test_the_help_is_the_docstrings():
    assert attribute_docs(Options)["data"] == "Where the shards are, 100 % of them."
    lines = [" ".join(line.split()) for line in help_of(Options).splitlines()]
    assert "SIZE some sizes" in lines
    assert "--data DATA where the shards are, 100 % of them" in lines
    assert "--batch-size N images at a time (default 128)" in lines
    assert "--rate RATE GB/s (default: as it comes)" in lines
    assert "--kind {a,b} YAML or not (default a)" in lines
    assert "--again once more" in lines


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": 3}, "data is 3, not text; put it in quotes"),
        ({"data": None}, "data is None, not text"),
        ({"batch_size": "7"}, "batch_size is '7', not a whole number"),
        ({"batch_size": True}, "batch_size is True, not a whole number"),
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"sizes": 3}, "sizes is 3, not a whole number"),
        ({"sizes": [1, "2"]}, r"sizes is \[1, '2'\], not a whole number"),
        ({"rate": "fast"}, "rate is 'fast', not a number"),
        ({"again": "yes"}, "again is 'yes', not true or false"),
    ],
)
def test_values_of_another_type_are_named(values: dict, message: str):
    with pytest.raises(UserError, match=message):
        Options(**{"data": "x", **values})
    assert Options(data="x", rate=3, sizes=[1, 2]).rate == 3


def test_values_by_name_are_split_and_paths_are_text():
    (own,) = split_values({"data": Path("a/b"), "rate": 2.0}, "f", Options)
    assert own == {"data": "a/b", "rate": 2.0}
    with pytest.raises(UserError, match="unknown option of f 'batchsize'; did you mean batch_size"):
        split_values({"batchsize": 1}, "f", Options)


# What `clip-la eval --help` has offered since before options were a dataclass.
EVAL_OPTIONS = """--data --classes --templates --labels --unknown-classes --name --checkpoints --config --out --again
--weights --device --precision --transform --image-size --batch-size --workers --sample-seconds --cache --contact-sheet
--task --train --shots --compare --per-class --clip-benchmark --compile --json"""


def test_eval_keeps_its_options():
    parser = make_parser()
    names = {name for action in parser._actions for name in action.option_strings if name.startswith("--")}
    assert names == {*EVAL_OPTIONS.split(), "--help"}
    both = [each.name for cls in (EvalOptions, SuiteEntry) for each in fields(cls)]
    assert len(set(both)) == len(both)
    defaults = vars(parser.parse_args(["MODEL"]))
    assert defaults["models"] == ["MODEL"]
    assert (defaults["batch_size"], defaults["checkpoints"], defaults["transform"]) == (128, "last", "clip_la")
    # What is not given of an entry must not overrule a suite's.
    assert not {each.name for each in fields(SuiteEntry)} & set(defaults)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = " ".join(shown.getvalue().split())
    for cls in (EvalOptions, SuiteEntry):
        for doc in attribute_docs(cls).values():
            assert doc[1:].rstrip(".") in text


def test_options_are_known_without_torch():
    code = "import sys; sys.modules['torch'] = None; import clip_la.zeroshot.options; print('fine')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "fine\n"
