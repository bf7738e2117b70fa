"""The command line of a conversion: ConvertOptions, with the data under `data.` as in `clip-la train`."""

import shlex
from collections.abc import Sequence

from clip_la.convert.options import ConvertOptions
from clip_la.data.options import StreamOptions
from clip_la.train.parser import OneLineParser

USAGE = """\
clip-la convert RUN_OR_OPENCLIP --attention PLAN --data SHARDS --out OUT [--OPTION VALUE ...]
       clip-la convert NAME:FILE --image_attention PLAN --data SHARDS --out OUT --layers.samples N ..."""
DESCRIPTION = """\
A trained model into one of another attention. Weights are copied; what has no counterpart starts at its initial value,
and is reported. Then the stages layers and features, and tune if asked for, each a run in a folder of OUT (metrics.csv,
checkpoints); OUT/copied holds the model before them. The same command goes on where it was stopped or killed;
--attention softmax is the control. `clip-la eval OUT/features` evaluates; result lines carry the lineage: the teacher,
and samples of each stage."""


def make_parser() -> OneLineParser:
    """Every option of the command."""
    parser = OneLineParser(ConvertOptions, skip=["data"], prog="clip-la convert", usage=USAGE, description=DESCRIPTION)
    # The tokenizer is the model's.
    parser.add_class_arguments(StreamOptions, "data", skip={"tokenizer"})
    teacher = "a run (its last checkpoint), a checkpoint, or a model of open_clip as NAME:FILE or NAME:TAG"
    parser.add_argument("teacher", type=str, help=teacher)
    return parser


def parse(argv: Sequence[str]) -> tuple[str, ConvertOptions]:
    """The teacher and the options that a command line stands for. Raises UserError.

    `--data SHARDS` is short for --data.shards; `--stages layers,tune` needs no brackets.
    """
    given, words = [], iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("--data", "--stages"):
            given.append(word)
            continue
        # Without a value after it, an empty one: the parser says what is missing.
        value = value if equals else next(words, "")
        given += ["--data.shards", value] if name == "--data" else [name, f"[{value.strip('[]')}]"]
    parser = make_parser()
    values = vars(parser.instantiate(parser.parse_args(given)))
    del values["config"]
    return values.pop("teacher"), ConvertOptions(**values)


def main(argv: list[str]) -> int:
    """Runs `clip-la convert` with `argv` (without program and verb); returns 0, or 130 where Ctrl-C has stopped it.

    Raises UserError.
    """
    teacher, options = parse(argv)
    from clip_la.convert.run import convert
    from clip_la.train.hardware import is_first_process

    runs = convert(teacher, options)
    if is_first_process():
        folders = " ".join(shlex.quote(str(run.folder)) for run in runs)
        how = "wrote" if runs[-1].is_finished else "stopped, the same command goes on; in"
        print(f"{how} {folders}")
    return runs[-1].exit_code
