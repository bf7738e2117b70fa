"""The command line of a conversion: options of `convert`, and of the data under `data.` as in `clip-la train`."""

import shlex
from collections.abc import Iterator, Sequence

from jsonargparse import Namespace

from clip_la.convert.run import convert
from clip_la.data.datamodule import ShardDataModule
from clip_la.train.cli import STOPPED_EXIT_CODE, OneLineParser
from clip_la.train.hardware import is_first_process

PROG = "clip-la convert"
# What the model and the other options decide.
NOT_OF_DATA = {"seed", "image_size", "context_length", "tokenizer"}


def make_parser() -> OneLineParser:
    """Every option of the command."""
    parser = OneLineParser(prog=PROG, allow_abbrev=False)
    parser.add_argument("teacher", type=str)
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(convert, skip={"teacher", "data"})
    parser.add_class_arguments(ShardDataModule, "data", skip=NOT_OF_DATA, instantiate=False)
    return parser


def parse(argv: Sequence[str]) -> Namespace:
    """The arguments of `convert` that a command line stands for. Raises UserError."""
    parser = make_parser()
    values = parser.instantiate_classes(parser.parse_args(list(_written_out(argv))))
    return Namespace({name: value for name, value in vars(values).items() if name != "config"})


def _written_out(argv: Sequence[str]) -> Iterator[str]:
    """`--data SHARDS` is short for --data.shards; `--stages layers,tune` needs no brackets."""
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("--data", "--stages"):
            yield word
            continue
        value = value if equals else next(words, "")
        yield from ("--data.shards", value) if name == "--data" else (name, f"[{value.strip('[]')}]")


def main(argv: list[str]) -> int:
    """Runs `clip-la convert` with `argv` (without program and verb); returns 0, or 130 where it was stopped.

    Raises UserError.
    """
    values = parse(argv)
    arguments = {**vars(values), "data": vars(values.data)}
    runs = convert(**arguments)
    if is_first_process():
        ends = " ".join(shlex.quote(str(run.folder)) for run in runs)
        print(f"wrote {ends}" if runs[-1].is_finished else f"stopped in {runs[-1].folder}; the same command goes on")
    return 0 if runs[-1].is_finished else STOPPED_EXIT_CODE
