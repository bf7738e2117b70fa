"""A conversion in its folder: the copy, then stages that are runs of the trainer, each in a folder of its own."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from clip_la.convert.copying import converted_spec, copy_weights, load_teacher, write_copy
from clip_la.convert.matching import FeatureMatching, LayerMatching
from clip_la.convert.options import FEATURES, LAYERS, MATCHING_BATCH, STAGES, TUNE, ConvertOptions, Stage
from clip_la.data.datamodule import ShardDataModule
from clip_la.data.shards.sources import check_sources
from clip_la.errors import UserError
from clip_la.models.checkpoint import read_torch_file
from clip_la.models.spec import ModelSpec
from clip_la.runs import BEGINS_WITH, RunFolder
from clip_la.train.beginning import Beginning, read_beginning
from clip_la.train.checkpoint import check_same_model, read_block
from clip_la.train.compiled import decided
from clip_la.train.hardware import note, trainer_hardware
from clip_la.train.optim import schedule_of, whole_batches
from clip_la.train.options import ModelOptions, RunOptions
from clip_la.train.run import Run, train_run
from clip_la.train.task import ContrastiveTask

COPIED = "copied"
# Samples of a stage by default, as a share of the teacher's: a tenth in the stages that are done unasked.
SHARES: dict[str, float] = {LAYERS: 0.02, FEATURES: 0.08, TUNE: 0.02}
WARMUP_SHARE = 0.05
# Rows of metrics.csv, and checkpoints for resuming, in a stage by default.
NUM_ROWS, NUM_SAVES = 20, 10


def convert(teacher: str, options: ConvertOptions) -> list[Run]:
    """Converts a model; returns the runs of the stages, the last unfinished if it was stopped by Ctrl-C or SIGTERM.

    A second call with the same arguments goes on where the first was stopped or killed, to the very next sample, and
    does nothing twice. Each stage begins with the last one before it that is in `out`, or with the copy.

    Args:
        teacher: a run (its last checkpoint), a checkpoint, or a model of open_clip as NAME:FILE or NAME:TAG.
        options: plan of the attention, stages, data and folder.

    Raises UserError for a teacher or plan that cannot be, settings other than those `out` began with, an unfinished
    stage that a later one would begin with, and as train_run does.
    """
    begun = load_teacher(teacher)
    spec = converted_spec(begun.model.spec, options.attention, options.image_attention, options.text_attention)
    conversion = Conversion(begun, spec, options)
    # Before anything is written, all that can be seen now.
    RunFolder(conversion.out).check_is_no_file()
    if RunFolder(conversion.out).is_begun:
        raise UserError(f"{conversion.out} holds a run: give the conversion an --out of its own")
    check_sources(options.data.shards, options.data.weights)
    stages: dict[str, Stage] = {name: conversion.stage(name) for name in STAGES if name in options.stages}
    last = conversion.copied()
    conversion.check_folders(stages)
    runs: list[Run] = []
    for name in STAGES:
        if name not in stages:
            last = conversion.skipped(name, last)
            continue
        run = conversion.train(name, stages[name], last)
        runs.append(run)
        # Stopped: the next call goes on here, and the later stages wait for it.
        if not run.is_finished or run.newest_checkpoint is None:
            break
        last = run.newest_checkpoint
    return runs


@dataclass(frozen=True)
class Conversion:
    """One conversion: the teacher's weights, the architecture they go into, and the options. Methods are its steps."""

    teacher: Beginning
    spec: ModelSpec
    options: ConvertOptions

    @property
    def out(self) -> Path:
        """The folder of the conversion; each stage is a run in it."""
        return Path(self.options.out)

    def stage(self, name: str) -> Stage:
        """A stage with all its numbers; raises UserError where one of them cannot be.

        The samples must be given, or follow from the teacher's.
        """
        stage: Stage = getattr(self.options, name)
        seen = self.teacher.lineage[-1]["samples_seen"]
        if stage.samples is None and not seen:
            raise UserError(f"the teacher does not say how many samples it saw: give {name}.samples")
        samples = int(SHARES[name] * seen) if stage.samples is None else stage.samples
        if samples < 1:
            raise UserError(f"{name}.samples must be at least 1, not {samples}")
        batch_size = stage.batch_size
        if batch_size is None:
            batch_size = self.options.data.batch_size
            batch_size = batch_size if name == TUNE else min(batch_size, MATCHING_BATCH)
        whole = replace(stage, samples=samples, batch_size=batch_size)
        try:
            # As the trainer will: a last stage must not fail after hours of those before it.
            schedule_of(self._model_options(whole), batch_size=batch_size, budget_samples=samples)
        except UserError as error:
            raise UserError(f"stage {name}: {error}") from None
        return whole

    def copied(self) -> Path:
        """The checkpoint of the copy in `out`, written if it is not there; raises UserError if it is another's."""
        path = RunFolder(self.out / COPIED).checkpoint(0)
        if path.exists():
            there = read_beginning(path)
            # The teacher may lie elsewhere by now; its lineage says whether it is the same.
            try:
                check_same_model(path, {"spec": there.model.spec.to_dict()}, self.spec)
            except UserError as error:
                raise UserError(f"{error}: give another --out") from None
            if [_identity(line) for line in there.lineage[:-1]] != [_identity(line) for line in self.teacher.lineage]:
                raise UserError(
                    f"{self.out} holds a conversion of {there.lineage[-2]['checkpoint']}: give another --out"
                )
            return path
        copy = copy_weights(self.teacher.model, self.spec, self.options.seed)
        write_copy(path, copy, self.teacher, self.options.seed)
        for line in copy.lines():
            note(line)
        return path

    def skipped(self, name: str, before: Path) -> Path:
        """Where the next stage begins if this one is not asked for: at its end if it is there, else where it would.

        Raises UserError for a stage that was begun and not finished.
        """
        folder = self.out / name
        if not folder.exists():
            return before
        newest = RunFolder(folder).newest_checkpoint()
        block = read_block(read_torch_file(newest), newest) if newest else None
        if newest is None or block is None or block["samples_seen"] < block["budget_samples"]:
            raise UserError(f"{folder} is not finished: add {name} to the stages, or remove it")
        return newest

    def check_folders(self, stages: Mapping[str, Stage]) -> None:
        """Raises UserError where a stage in `out` had other settings or another beginning than it will be asked for.

        All of them before the first trains: a last stage must not be refused after hours of those before it.
        """
        last = RunFolder(self.out / COPIED).checkpoint(0)
        for name in STAGES:
            if name not in stages:
                last = self.skipped(name, last)
                continue
            run, stage = RunFolder(self.out / name), stages[name]
            if run.config.exists():
                _check_same_settings(run, self._settings(stage, last))
            assert stage.samples is not None
            assert stage.batch_size is not None
            last = run.checkpoint(whole_batches(stage.samples, stage.batch_size))

    def _settings(self, stage: Stage, begins_with: Path) -> dict[str, Any]:
        """What of a stage's settings the trainer does not compare by itself when it goes on."""
        return {BEGINS_WITH: str(begins_with.relative_to(self.out)), **asdict(stage)}

    def train(self, name: str, stage: Stage, begins_with: Path) -> Run:
        """Runs a stage, from where it stands in its folder. Raises UserError as train_run does."""
        settings = self._settings(stage, begins_with)
        folder = self.out / name
        note(f"stage {name}, from {begins_with}")
        model = replace(self._model_options(stage), init_from=str(begins_with), compile=self._compiles(name, folder))
        task = self._task(name, stage, model)
        data = replace(self.options.data, batch_size=task.batch_size, tokenizer=self.spec.tokenizer)
        run = train_run(
            task,
            ShardDataModule(
                data,
                image_size=self.spec.image_size,
                context_length=self.spec.context_length,
                # Another order in each stage: what one saw last is not what the next sees first.
                seed=self.options.seed + STAGES.index(name),
            ),
            self._run_options(folder, task.budget_samples),
            train_data=data.train_data,
            config_text=yaml.safe_dump({**settings, "compile": model.compile, "data": asdict(data)}, sort_keys=False),
        )
        note(_outcome(name, run))
        return run

    def _compiles(self, name: str, folder: Path) -> bool:
        """Whether a stage compiles: as asked; else as it has begun, so that it ends by the same arithmetic."""
        asked, run, before = self.options.compile, RunFolder(folder), self.teacher.model.spec
        if asked == "auto" and run.config.exists():
            # Stages begun before the option existed compiled nothing.
            asked = bool(run.read_config().get("compile"))
        elif asked == "auto" and name == FEATURES and _plans(before) == _plans(self.spec):
            # A control must see no difference. The compiler fuses a pass with gradients (the student's) otherwise than
            # one without (the teacher's), and AdamW makes steps of full size of what the roundings differ by.
            asked = False
        hardware = trainer_hardware(self.options)
        return decided(ModelOptions(name=self.spec.name, compile=asked), hardware["accelerator"]).compile is True

    def _task(self, name: str, stage: Stage, options: ModelOptions) -> ContrastiveTask:
        """What a stage trains: the student, after the teacher's layers, its features, or pairs."""
        assert stage.samples is not None
        assert stage.batch_size is not None
        sizes = {"batch_size": stage.batch_size, "budget_samples": stage.samples, "seed": self.options.seed}
        if name == TUNE:
            return ContrastiveTask(options, **sizes)
        matching = LayerMatching if name == LAYERS else FeatureMatching
        return matching(options, self.teacher.model, **sizes)

    def _model_options(self, stage: Stage) -> ModelOptions:
        """The trainer's options for the model and its optimizer in a stage, without the weights it begins with."""
        assert stage.samples is not None
        return ModelOptions(
            name=self.spec.name,
            # Plans as the specification spells them, which are those of the checkpoint it begins with.
            image_attention=self.spec.image_attention,
            text_attention=self.spec.text_attention,
            loss="sigmoid" if self.teacher.loss == "sigmoid" else "contrastive",
            lr=stage.lr,
            weight_decay=stage.weight_decay,
            warmup_samples=int(WARMUP_SHARE * stage.samples),
        )

    def _run_options(self, folder: Path, budget_samples: int) -> RunOptions:
        """The trainer's options for a stage: the conversion's own, and distances that follow from its length."""
        own = self.options
        return RunOptions(
            out=str(folder),
            resume=folder.exists(),
            seed=own.seed,
            log_every_samples=own.log_every_samples or -(-budget_samples // NUM_ROWS),
            save_every_samples=own.save_every_samples or -(-budget_samples // NUM_SAVES),
            precision=own.precision,
            accelerator=own.accelerator,
            devices=own.devices,
            reduction=own.reduction,
            zeroshot_suite=own.zeroshot_suite,
            tensorboard=False,
        )


def _identity(line: Mapping[str, Any]) -> dict[str, Any]:
    """What distinguishes trainings, wherever they lie: all but the path, where a run has an id."""
    return {key: value for key, value in line.items() if key != "checkpoint" or line["run_id"] is None}


def _plans(spec: ModelSpec) -> tuple[Any, Any]:
    """The attention of each layer of both towers, however it was spelt."""
    return spec.image_choices, spec.text_choices


def _check_same_settings(run: RunFolder, wanted: Mapping[str, Any]) -> None:
    """Raises UserError naming what differs from a stage's config.yaml."""
    try:
        there = run.read_config()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{run.config} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(there, dict):
        raise UserError(f"{run.config} holds no settings of a stage; give another --out")
    for key, value in wanted.items():
        if there.get(key) != value:
            raise UserError(f"{run.config} has {key} {there.get(key)}, not {value}: give the same, or another --out")


def _outcome(name: str, run: Run) -> str:
    """A stage's last line: samples, the loss of its first and last row, its checkpoint."""
    rows = RunFolder(run.folder).rows()
    losses = f", loss {float(rows[0]['loss']):.4g} -> {float(rows[-1]['loss']):.4g}" if rows else ""
    how_far = "" if run.is_finished else f" of {run.budget_samples:,}"
    return f"stage {name}: {run.samples_seen:,}{how_far} samples{losses}; {run.newest_checkpoint}"
