"""The `clip-la` command: finds the verb, lets its file in `commands/` run, turns user errors into one line.

Nothing heavy is imported here or at the top of a command file, so that `clip-la --help` answers at once.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from clip_la import __version__, launched, plugins
from clip_la.errors import EXIT_CODE, UserError, printable, unknown
from clip_la.options import respelt

VERBS = {
    "demo": "the whole chain on real pairs: corpus, training, zero-shot, scaling plot; minutes on a CPU",
    "data": "make, check and look at shards: starter, photos, scenes, tiny-imagenet, pack, verify, read, show",
    "train": "train image and text towers on shards",
    "convert": "a trained model into one of another attention, by copying and matching",
    "eval": "zero-shot evaluation of a run, a checkpoint or an open_clip model",
    "scaling": "scaling laws from results, and runs for them: fit, plot, report, predict, points, coverage, sweep",
    "bench": "measured tables for this machine: kernels, attention, data, train, zeroshot",
    "models": "list the presets with parameters and FLOPs",
    "export": "write a softmax model as an open_clip checkpoint",
}
# How PyTorch begins its error about a loader process that has ended.
DEAD_LOADER = "DataLoader worker (pid"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors: one line, with the nearest option where one is near."""

    def __init__(self, **kwargs: Any) -> None:
        # Half an option is a misspelt one: what it stands for changes with the options that are added.
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (see `{self.prog} --help`)")

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        words = sys.argv[1:] if args is None else args
        known, extra = self.parse_known_args(respelt(words, self), namespace)
        if extra:
            options = [o for action in self._actions for o in action.option_strings]
            raise unknown(
                f"{self.prog} option" if extra[0].startswith("-") else f"{self.prog} argument", extra[0], options
            )
        return known


def _overview() -> Parser:
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {verb:<{width}}{text}" for verb, text in VERBS.items())
    parser = Parser(
        prog="clip-la",
        description="Softmax against linear attention in CLIP-style models.",
        epilog=f"commands:\n{verbs}\n\n`clip-la COMMAND --help` says more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clip-la {__version__}")
    parser.add_argument(
        plugins.OPTION,
        action="append",
        metavar="FILE",
        help="a Python file that registers attention kinds or models; for every command, before or after its name",
    )
    parser.add_argument("command", metavar="COMMAND", nargs="?")
    return parser


def run(argv: Sequence[str]) -> int:
    """Runs one command line (without the program's name) and returns its exit code; raises UserError."""
    argv, files = plugins.take_option(argv)
    plugins.use_plugins(files)
    overview = _overview()
    verb = overview.parse_args(argv[:1]).command
    if verb is None:
        overview.print_help()
        return EXIT_CODE
    if verb not in VERBS:
        raise unknown("command", verb, VERBS)
    command = importlib.import_module(f"clip_la.commands.{verb}")
    return int(command.main(list(argv[1:])) or 0)


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Exit codes: 0 done, 2 wrong input (one line on stderr), 130 interrupted."""
    launched.listen()
    for stream in (sys.stdout, sys.stderr):
        # A name of a file that is not UTF-8, or a terminal that lacks a sign, is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return guarded("clip-la", lambda: run(sys.argv[1:] if argv is None else argv))


def guarded(program: str, work: Callable[[], int]) -> int:
    """What `work` returns as an exit code; what ends it early as one line that begins with the program's name.

    For the scripts of a checkout too. Raises what is a fault of the program itself.
    """
    try:
        return work()
    except UserError as error:
        return _fail(program, str(error))
    except KeyboardInterrupt:
        text = "interrupted; what was written is whole, the same command goes on from there"
        print(f"{program}: {text}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone: not an error, but Python would complain once more while shutting down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A folder that cannot be written, a full disk: the machine's state, not a fault of the program.
        return _fail(program, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except RuntimeError as error:
        if lost := launched.lost_rank(error):
            return _fail(program, lost, ends_job=False)
        # So a pool of processes, or PyTorch's loader, reports a dead worker.
        if type(error).__name__ == "BrokenProcessPool" or str(error).startswith(DEAD_LOADER):
            text = f"a worker process was killed, or out of memory, of which fewer workers take less: {error}"
            return _fail(program, text)
        raise


def _fail(program: str, message: str, ends_job: bool = True) -> int:
    """One line on stderr, however many lines the message and processes the job has; the exit code of wrong input."""
    if launched.speaks():
        print(f"{program}: error: {printable(' '.join(message.split()))}", file=sys.stderr)
        if ends_job:
            launched.end_job()
    elif ends_job:
        launched.wait_for_end()
    return EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
