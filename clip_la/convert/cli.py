"""The command line of a conversion: options of `convert`, and of the data under `data.` as in `clip-la train`."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from clip_la.convert.run import STAGES, Stage, convert
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
    parser.add_class_arguments(ShardDataModule, "data", skip=NOT_OF_DATA)
    return parser


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """The arguments of `convert` that a command line stands for. Raises UserError."""
    values = vars(make_parser().parse_args(list(_written_out(argv))))
    del values["config"]
    stages = {name: Stage(**vars(values[name])) for name in STAGES}
    return {**values, **stages, "data": vars(values["data"])}


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
    runs = convert(**parse(argv))
    if is_first_process():
        folders = " ".join(shlex.quote(str(run.folder)) for run in runs)
        how = "wrote" if runs[-1].is_finished else "stopped, the same command goes on; in"
        print(f"{how} {folders}")
    return 0 if runs[-1].is_finished else STOPPED_EXIT_CODE
