"""The command line of training: options, from YAML files and the command line, and the run, which brings torch."""

import argparse
import dataclasses
import functools
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from clip_la.data.shards.sources import check_sources
from clip_la.data.text.captions import Captions
from clip_la.errors import UserError
from clip_la.models.registry import model_spec
from clip_la.options import respelt
from clip_la.runs import BEGINS_WITH, RunFolder
from clip_la.train.lock import LOCK
from clip_la.train.optim import schedule_of
from clip_la.train.options import TrainOptions
from clip_la.train.parser import OneLineParser

if TYPE_CHECKING:
    from clip_la.data.datamodule import ShardDataModule
    from clip_la.train.run import Run
    from clip_la.train.task import ContrastiveTask

USAGE = """\
clip-la train --config FILE.yaml [--out RUN] [--OPTION VALUE ...]
       clip-la train --resume --out RUN
       clip-la train --branch_from RUN/checkpoints/samples=N.ckpt --out BRANCH --budget_samples M
                     --model.schedule cooldown --model.cooldown_samples C"""
DESCRIPTION = """\
Trains image and text towers on shards of image-text pairs. Options come from YAML files and the command line, later
ones win; --print_config prints the outcome. A run that resumes or branches off keeps its options, but for those that
are given."""
# A flag too: without a value it is true, where the parser wants `--resume true`.
RESUME = "--resume"
# What the parser, which reads values as YAML, takes for true.
YES = ("true", "yes", "on")


def make_parser() -> OneLineParser:
    """Every option of the command, from TrainOptions."""
    return OneLineParser(TrainOptions, prog="clip-la train", usage=USAGE, description=DESCRIPTION)


# One for all that a process parses: a sweep reads hundreds of command lines, and making it takes longer than parsing.
_shared_parser = functools.cache(make_parser)


def parse(argv: Sequence[str]) -> TrainOptions:
    """The options that a command line stands for, with those of its configuration files. Raises UserError.

    A run that goes on, its own or as a branch, keeps its configuration; what `argv` says comes on top.
    """
    parser = _shared_parser()
    rest, words = respelt(argv, parser), []
    while rest:
        word = rest.pop(0)
        if word == RESUME:
            word = f"{RESUME}={rest.pop(0) if rest and not rest[0].startswith('-') else 'true'}"
        words.append(word)
    begun = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--out", "--branch_from", RESUME):
        begun.add_argument(option)
    try:
        known, _ = begun.parse_known_args(words)
    except argparse.ArgumentError:
        known = begun.parse_args([])  # an option without its value; the full parser says so
    own = RunFolder(Path(known.out)) if str(known.resume).lower() in YES and known.out else None
    parent = RunFolder.of_checkpoint(Path(known.branch_from)) if known.branch_from else None
    begun_run = next((run for run in (own, parent) if run and run.config.is_file()), None)
    try:
        options = parser.parse_args([*(["--config", str(begun_run.config)] if begun_run else []), *words])
    except UserError as error:
        if begun_run is not None:
            check_is_no_stage(begun_run)
        # Whoever resumes or branches off gives no options: that all are missing is said of what holds none.
        elif "arguments are required" in str(error):
            if own is not None:
                raise UserError(f"{own.path} holds no run to resume: {error}") from None
            if known.branch_from and not Path(known.branch_from).is_file():
                is_what = "is a folder" if Path(known.branch_from).is_dir() else "is not there"
                where = "name a checkpoint, RUN/checkpoints/samples=NUMBER.ckpt"
                raise UserError(f"--branch_from {known.branch_from} {is_what}: {where}") from None
            if known.branch_from:
                raise UserError(f"--branch_from {known.branch_from} has no config.yaml beside it: {error}") from None
        raise
    values = vars(parser.instantiate(options))
    del values["config"]
    return TrainOptions(**values)


def check_is_no_stage(run: RunFolder) -> None:
    """Raises UserError for a run that `clip-la convert` made: its settings are no options of training."""
    try:
        settings = run.read_config()
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return
    if isinstance(settings, dict) and BEGINS_WITH in settings:
        raise UserError(
            f"{run.path} is a stage of a conversion: the same `clip-la convert` resumes it; a run of its own begins "
            "with its weights by --model.init_from CHECKPOINT"
        )


def check(options: TrainOptions) -> None:
    """Refuses what would be refused later, once torch and Lightning are imported, which takes many seconds.

    Whatever has another source of truth, such as a checkpoint to begin with or a bucket, is left to who reads that.
    Raises UserError.
    """
    folder = RunFolder(Path(options.out))
    folder.check_is_no_file()
    # Whoever holds the lock has not finished: that is said instead, by who wants the lock.
    if not options.resume and not (folder.path / LOCK).exists():
        folder.check_not_begun()
    check_plan(options)
    check_data(options)


def check_plan(options: TrainOptions) -> None:
    """Of `check` what needs neither the run's folder nor its data: lengths, schedule, architecture, captions."""
    model, data = options.model, options.data
    schedule = schedule_of(model, batch_size=data.batch_size, budget_samples=options.budget_samples)
    options.check_within(schedule.budget_samples)
    if model.init_from is None:
        choices = ("attention", "image_attention", "text_attention", "image_size", "patch_size", "context_length")
        model_spec(model.name, **{name: getattr(model, name) for name in choices})
    Captions(data.caption_fields, data.caption_weights)


def check_data(options: TrainOptions) -> None:
    """Raises UserError for shards that are not there, or weights that do not fit them."""
    check_sources(options.data.shards, options.data.weights)


def config_text(options: TrainOptions) -> str:
    """All options as YAML, which gives the same run again; without `resume`, which concerns one call alone."""
    values = dataclasses.asdict(options)
    del values["resume"]
    return yaml.safe_dump(values, sort_keys=False)


def make_task_and_data(options: TrainOptions) -> "tuple[ContrastiveTask, ShardDataModule]":
    """The Lightning module and the data of a run; each gets what the other decides. Raises UserError."""
    from clip_la.data.datamodule import ShardDataModule
    from clip_la.train.task import ContrastiveTask

    task = ContrastiveTask(
        options.model, batch_size=options.data.batch_size, budget_samples=options.budget_samples, seed=options.seed
    )
    spec = task.model.spec
    data = ShardDataModule(
        options.data, image_size=spec.image_size, context_length=spec.context_length, seed=options.seed
    )
    return task, data


def run(argv: Sequence[str]) -> "Run":
    """Trains what a command line says, from where it stands; returns the Run. Raises UserError as `train` does."""
    options = parse(argv)
    check(options)
    from clip_la.train.compiled import decided
    from clip_la.train.hardware import note, quiet_lightning, trainer_hardware
    from clip_la.train.run import train_run

    accelerator = trainer_hardware(options)["accelerator"]
    model = decided(options.model, accelerator)
    if accelerator == "gpu" and options.model.compile == "auto" and not model.compile:
        note("without Triton, or on a GPU of before 2017, nothing is compiled: small models train far slower so")
    options = dataclasses.replace(options, model=model)
    with quiet_lightning():
        task, data = make_task_and_data(options)
    return train_run(task, data, options, train_data=options.data.train_data, config_text=config_text(options))


def main(argv: list[str]) -> int:
    """Runs `clip-la train` with `argv` (without program and verb); returns 0, or 130 where Ctrl-C has stopped the run.

    Raises UserError. Can be called many times in one process.
    """
    return run_and_say(argv).exit_code


def run_and_say(argv: Sequence[str]) -> "Run":
    """As `run`; a last line on stdout says what was written and where, and how to go on."""
    done = run(argv)
    from clip_la.train.hardware import is_first_process

    where = f"wrote {RunFolder(done.folder).metrics} and {done.newest_checkpoint}"
    if done.is_finished:
        text = f"{done.samples_seen:,} samples seen; {where}"
    else:
        resume = f"`clip-la train --resume --out {shlex.quote(str(done.folder))}` goes on"
        text = f"stopped at {done.samples_seen:,} of {done.budget_samples:,} samples; {where}; {resume}"
    if is_first_process():
        print(text)
    return done


def train(**options: Any) -> "Run":
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
    return run(list(_as_arguments(options)))


def _as_arguments(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Options from Python as the command line has them; every value keeps all its digits."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _as_arguments(value, f"{prefix}{name}.")
        else:
            is_text = isinstance(value, str | os.PathLike)
            yield f"--{prefix}{name}={os.fspath(value) if is_text else json.dumps(value, default=os.fspath)}"
