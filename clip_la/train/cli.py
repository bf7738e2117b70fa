"""The command line of training: LightningCLI with fixed classes, flat options and errors of one line."""

import argparse
import contextlib
import difflib
import json
import os
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from clip_la.data.datamodule import ShardDataModule
from clip_la.errors import UserError
from clip_la.train.hardware import is_first_process, quiet_lightning
from clip_la.train.run import METRICS_NAME, Run, train_run
from clip_la.train.start import CONFIG_NAME
from clip_la.train.task import ContrastiveTask

PROG = "clip-la train"
# As a shell counts a process ended by Ctrl-C.
STOPPED_EXIT_CODE = 130
_NUM_NEAR = 3


class OneLineParser(LightningArgumentParser):
    """A parser whose errors are UserErrors: one line that names the file and the option, with the nearest ones."""

    # The configuration file that is being read, as its errors begin.
    _file_prefix = ""

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        self._file_prefix = f"{path}: "
        try:
            return super().parse_path(path, *args, **kwargs)
        except UnicodeDecodeError as error:
            self.error(f"not text in UTF-8: {error}", error)
        finally:
            self._file_prefix = ""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known = [action.dest for action in self._actions if action.dest not in ("help", argparse.SUPPRESS)]
        text = f"{self._file_prefix}{_readable(message)}{_nearest(message, known)}"
        raise UserError(f"{self.prog}: {text} (see `{self.prog} --help`)")


class TrainCLI(LightningCLI):
    """Options of `train_run` at the top level, of the task under `model.`, of the data under `data.`; does not train.

    Attributes:
        model: the ContrastiveTask.
        datamodule: the ShardDataModule.
        options: keyword arguments for train_run.
        train_data: the shards as they were given.

    Raises UserError for an option or a configuration file that is wrong.
    """

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            ContrastiveTask,
            ShardDataModule,
            save_config_callback=None,
            parser_class=OneLineParser,
            parser_kwargs={"prog": PROG, "dump_header": None, "allow_abbrev": False},
            args=args,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Ours instead of Lightning's `seed_everything`."""
        parser.add_argument("--budget_samples", type=int, required=True, help="samples to see, counting repetitions")
        parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint in `out`")
        self.option_names = parser.add_function_arguments(
            train_run, skip={"task", "data", "resume", "train_data", "config_text"}
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The two classes without Lightning's Trainer, and what one of them has to know of the other."""
        parser.add_lightning_class_args(ContrastiveTask, "model")
        parser.add_lightning_class_args(ShardDataModule, "data")
        parser.link_arguments("budget_samples", "model.budget_samples")
        parser.link_arguments("data.batch_size", "model.batch_size")
        for part in ("model", "data"):
            parser.link_arguments("seed", f"{part}.seed")
        parser.link_arguments("model", "data.image_size", compute_fn=_image_size, apply_on="instantiate")
        parser.link_arguments("model", "data.context_length", compute_fn=_context_length, apply_on="instantiate")

    def instantiate_trainer(self, **kwargs: Any) -> None:  # type: ignore[override]
        """None here: train_run makes it when it knows where the run starts."""
        shards = self.config.data.shards
        self.train_data = shards if isinstance(shards, str) else " ".join(shards)
        self.options = {name: self.config_init[name] for name in (*self.option_names, "resume")}

    def _set_seed(self) -> None:
        """Nothing: train_run sets the seeds."""

    def config_text(self) -> str:
        """The resolved configuration as YAML, without what concerns this call alone."""
        config = self.config.clone()
        for name in ("config", "resume"):
            config.pop(name, None)
        with _without_warnings():
            return self.parser.dump(config, skip_none=False)


def main(argv: list[str]) -> int:
    """Runs `clip-la train` with `argv` (without program and verb); returns 0, or 130 where the run was stopped.

    Raises UserError. Can be called many times in one process.
    """
    run = _run(argv)
    if is_first_process():
        print(_outcome(run))
    return 0 if run.is_finished else STOPPED_EXIT_CODE


def train(**options: Any) -> Run:
    """Trains a model: `clip-la train` from Python, with its very options and defaults (`clip-la train --help`).

    ```python
    run = clip_la.train(
        out="runs/linear",
        budget_samples=1_000_000,
        model={"name": "vit_ti16", "attention": "linear_mean"},
        data={"shards": "data/{00000..00099}.tar", "batch_size": 1024},
    )
    ```

    Args:
        options: `out` and `budget_samples` (samples to see, counting repetitions) at least; those of the model and the
            data as dictionaries; `config`, a YAML file of options, over which the others have the last word;
            `resume=True` goes on with the run in `out`, `branch_from` with another one's checkpoint.

    Returns the Run: its folder, samples seen, and checkpoints (samples seen -> file); not `is_finished` if it was
    stopped by a signal. Raises UserError for options or data that are wrong, before anything is written, and for a loss
    that is not finite.
    """
    return _run(list(_as_arguments(options)))


def _run(argv: list[str]) -> Run:
    cli = parse([*_base_config(argv), *argv])
    return train_run(cli.model, cli.datamodule, **cli.options, train_data=cli.train_data, config_text=cli.config_text())


def _as_arguments(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Options from Python as the command line has them; every value keeps all its digits."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _as_arguments(value, f"{prefix}{name}.")
        elif prefix + name == "resume":
            yield from ["--resume"] if value else []
        else:
            is_text = isinstance(value, str | os.PathLike)
            yield f"--{prefix}{name}={os.fspath(value) if is_text else json.dumps(value, default=os.fspath)}"


def parse(argv: list[str]) -> TrainCLI:
    """Options and configuration files -> the task and the data, made but not trained. Raises UserError."""
    with quiet_lightning(), _without_warnings():
        return TrainCLI(argv)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Lightning warns of argv given from Python; Lightning and we use names that newer jsonargparse deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _base_config(argv: list[str]) -> list[str]:
    """A run that goes on, its own or as a branch, keeps its configuration; what `argv` says comes on top."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--branch_from", type=Path)
    try:
        known, _ = parser.parse_known_args(argv)
    except argparse.ArgumentError:
        return []  # an option without its value; the full parser says so
    folders = [known.out] if known.resume and known.out else []
    # RUN/checkpoints/samples=....ckpt
    folders += [known.branch_from.parent.parent] if known.branch_from else []
    configs = [folder / CONFIG_NAME for folder in folders if (folder / CONFIG_NAME).is_file()]
    return ["--config", str(configs[0])] if configs else []


def _outcome(run: Run) -> str:
    """The last line: what was written and where, and how to go on."""
    where = f"{run.folder / METRICS_NAME} and {run.newest_checkpoint}"
    if run.is_finished:
        return f"{run.samples_seen:,} samples seen; wrote {where}"
    return (
        f"stopped at {run.samples_seen:,} of {run.budget_samples:,} samples; wrote {where}; "
        f"`clip-la train --resume --out {shlex.quote(str(run.folder))}` goes on"
    )


def _image_size(task: ContrastiveTask) -> int:
    return task.model.spec.image_size


def _context_length(task: ContrastiveTask) -> int:
    return task.model.spec.context_length


# What jsonargparse says -> what a user reads.
_REWORDED = (
    (r"unrecognized arguments: ([^\s=]+).*", r"unknown option \1"),
    (r"Group '([\w.]+)' does not accept option '([\w.]+)'.*", r"unknown option \1.\2"),
    (r"Option '([\w.]+)' is not accepted.*", r"unknown option \1"),
    (r"Parser key \"([\w.]+)\": ?", r"\1: "),
    (r"Expected a typing\.Literal\[(.*?)\]\. Got value: (.*)", r"\2 is not one of \1"),
    (r"Expected a <class '(\w+)'>\. Got value: (.*)", r"\2 is not of type \1"),
    (r"Problems parsing config: ", "not valid YAML: "),
    (r' in "<unicode string>",', " at"),
    (r"Unexpected config:.*", "holds no options; expected lines NAME: VALUE"),
)


def _readable(message: str) -> str:
    text = " ".join(message.split())
    for pattern, wording in _REWORDED:
        text = re.sub(pattern, wording, text)
    return text


def _nearest(message: str, known: list[str]) -> str:
    """The options most like the unknown one, if the message is about one."""
    match = re.fullmatch(r"unknown option (?:--)?([\w.]+).*", _readable(message))
    near = difflib.get_close_matches(match[1], known, n=_NUM_NEAR) if match else []
    return f"; did you mean {' or '.join(near)}?" if near else ""
