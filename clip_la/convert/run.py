"""A conversion in its folder: the copy, then stages that are runs of the trainer, each in a folder of its own."""

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from clip_la.convert.copying import converted_spec, copy_weights, load_teacher, write_copy
from clip_la.convert.matching import FEATURES, LAYERS, FeatureMatching, LayerMatching
from clip_la.data.datamodule import ShardDataModule
from clip_la.errors import UserError
from clip_la.models.spec import ModelSpec
from clip_la.train.beginning import Beginning, read_beginning
from clip_la.train.checkpoint import check_same_model, checkpoint_name, read_block, saved_checkpoints
from clip_la.train.hardware import Accelerator, Precision, is_first_process
from clip_la.train.run import METRICS_NAME, Run, train_run
from clip_la.train.start import CHECKPOINTS_NAME, CONFIG_NAME
from clip_la.train.task import ContrastiveTask

TUNE = "tune"
STAGES = (LAYERS, FEATURES, TUNE)
COPIED = "copied"
StageName = Literal["layers", "features", "tune"]
# Samples of a stage that is not told how many, as a share of the teacher's: a tenth in all.
SHARES = {LAYERS: 0.02, FEATURES: 0.06, TUNE: 0.02}
WARMUP_SHARE = 0.05
# Rows of metrics.csv, and checkpoints for resuming, in a stage that is not told how far apart they should be.
PARTS = {"log": 20, "save": 10}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How one stage trains.

    Args:
        samples: to see, counting repetitions; null: a share of the teacher's own.
        lr: peak learning rate of a cosine with a short warm-up.
        weight_decay: of AdamW; a teacher keeps weights in bounds better.
        batch_size: samples in a step, if not the data's: matching needs no negatives, and small batches learn more from
            as many samples.
    """

    samples: int | None = None
    lr: float
    weight_decay: float = 0.0
    batch_size: int | None = None


@dataclass(frozen=True)
class _Place:
    """A stage in its folder, and what of its settings the trainer does not compare by itself when it goes on."""

    name: str
    out: Path
    stage: Stage
    begins_with: Path

    @property
    def folder(self) -> Path:
        return self.out / self.name

    def settings(self) -> dict[str, Any]:
        return {"begins_with": str(self.begins_with.relative_to(self.out)), **asdict(self.stage)}


def convert(
    teacher: str,
    data: Mapping[str, Any],
    *,
    out: str,
    attention: str | None = None,
    image_attention: str | None = None,
    text_attention: str | None = None,
    stages: Sequence[StageName] = ("layers", "features", "tune"),
    layers: Stage = Stage(lr=3e-3),
    features: Stage = Stage(lr=1e-3),
    tune: Stage = Stage(lr=1e-4, weight_decay=0.2),
    seed: int = 0,
    log_every_samples: int | None = None,
    save_every_samples: int | None = None,
    precision: Precision = "auto",
    accelerator: Accelerator = "auto",
    devices: int | None = None,
    zeroshot_suite: str | None = None,
) -> list[Run]:
    """Converts a model; returns the runs of the stages, the last unfinished if it was stopped by Ctrl-C or SIGTERM.

    A second call with the same arguments goes on where the first was stopped or killed, to the very next sample, and
    does nothing twice. Each stage begins with the last one before it that is in `out`, or with the copy.

    Args:
        teacher: a run (its last checkpoint), a checkpoint, or a model of open_clip as NAME:FILE or NAME:TAG.
        data: options of ShardDataModule, without those that the model decides.
        out: the folder; each stage is a run in it, beside `copied`, the model before any training.
        attention: kind of both towers, or a plan of their layers; softmax for the control.
        image_attention: of the image tower, if not `attention`; the teacher's if neither is given.
        text_attention: of the text tower, if not `attention`; the teacher's if neither is given.
        stages: which to do, of layers (attention outputs), features, tune (contrastive), always in this order.
        layers: how the first trains.
        features: how the second trains.
        tune: how the third trains.
        seed: of what is not copied, and of the order of the data, which is another in each stage.
        log_every_samples: samples a row of metrics.csv; null: twenty rows a stage.
        save_every_samples: distance of checkpoints for resuming, of which only the newest is kept; null: ten a stage.
        precision: auto is bfloat16 where a GPU has it in hardware, else float32.
        accelerator: auto is a GPU where there is one.
        devices: processes on this machine; null: as many as torchrun or SLURM started here, else 1.
        zeroshot_suite: YAML file as for `clip-la eval --config`, evaluated on at the end of each stage.

    Raises UserError for a teacher or plan that cannot be, settings other than those `out` began with, an unfinished
    stage that a later one would begin with, and as train_run does.
    """
    _check_stages(stages)
    begun = load_teacher(teacher)
    spec = converted_spec(begun.model.spec, attention, image_attention, text_attention)
    how = {"layers": layers, "features": features, "tune": tune}
    how = {name: _filled_in(name, stage, begun, data["batch_size"]) for name, stage in how.items() if name in stages}
    last = _copied(Path(out), begun, spec, seed)
    options: dict[str, Any] = {
        "seed": seed,
        "log_every_samples": log_every_samples,
        "save_every_samples": save_every_samples,
        "precision": precision,
        "accelerator": accelerator,
        "devices": devices,
        "zeroshot_suite": zeroshot_suite,
    }
    runs: list[Run] = []
    for number, name in enumerate(STAGES):
        if name not in stages:
            last = _passed_over(Path(out) / name, last)
            continue
        place = _Place(name, Path(out), how[name], last)
        task = _task(place, begun, spec, seed)
        own_data = {**data, "batch_size": place.stage.batch_size}
        run = _train(place, task, _data_module(own_data, spec, seed + number), own_data, options)
        runs.append(run)
        if not run.is_finished or run.newest_checkpoint is None:
            break
        last = run.newest_checkpoint
    return runs


def _check_stages(stages: Sequence[str]) -> None:
    if not stages or len(set(stages)) != len(stages):
        raise UserError(f"stages {list(stages)}: name each that is wanted once, of {', '.join(STAGES)}")


def _filled_in(name: str, stage: Stage, teacher: Beginning, batch_size: int) -> Stage:
    """The stage with all its numbers; raises UserError where that of the samples is neither given nor follows."""
    seen = teacher.lineage[-1]["samples_seen"]
    if stage.samples is None and not seen:
        raise UserError(f"the teacher does not say how many samples it saw: give {name}.samples")
    samples = int(SHARES[name] * seen) if stage.samples is None else stage.samples
    if samples < 1:
        raise UserError(f"{name}.samples must be at least 1, not {samples}")
    return replace(stage, samples=samples, batch_size=batch_size if stage.batch_size is None else stage.batch_size)


def _copied(out: Path, teacher: Beginning, spec: ModelSpec, seed: int) -> Path:
    """The checkpoint of the copy in `out`, written if it is not there; raises UserError if it is another's."""
    path = out / COPIED / CHECKPOINTS_NAME / checkpoint_name(0)
    if path.exists():
        there = read_beginning(path)
        check_same_model(path, {"spec": there.model.spec.to_dict()}, spec)
        if [_identity(line) for line in there.lineage[:-1]] != [_identity(line) for line in teacher.lineage]:
            raise UserError(f"{out} holds a conversion of {there.lineage[-2]['checkpoint']}: give another --out")
        return path
    copy = copy_weights(teacher.model, spec, seed)
    write_copy(path, copy, teacher, seed)
    for line in copy.lines():
        _note(line)
    return path


def _identity(line: Mapping[str, Any]) -> dict[str, Any]:
    """What tells trainings apart, wherever they lie: all but the path, where a run has an id."""
    return {key: value for key, value in line.items() if key != "checkpoint" or line["run_id"] is None}


def _passed_over(folder: Path, before: Path) -> Path:
    """Where the next stage begins if this one is not asked for: at its end if it is there, else where it would."""
    if not folder.exists():
        return before
    newest = next(reversed(saved_checkpoints(folder / CHECKPOINTS_NAME).values()), None)
    block = read_block(newest) if newest else None
    if newest is None or block is None or block["samples_seen"] < block["budget_samples"]:
        raise UserError(f"{folder} is not finished: add {folder.name} to the stages, or remove it")
    return newest


def _task(place: _Place, teacher: Beginning, spec: ModelSpec, seed: int) -> ContrastiveTask:
    samples = place.stage.samples or 0
    options: dict[str, Any] = {
        "name": spec.name,
        "image_attention": spec.image_attention,
        "text_attention": spec.text_attention,
        "init_from": str(place.begins_with),
        "loss": "sigmoid" if teacher.loss == "sigmoid" else "contrastive",
        "lr": place.stage.lr,
        "weight_decay": place.stage.weight_decay,
        "warmup_samples": int(WARMUP_SHARE * samples),
        "batch_size": place.stage.batch_size,
        "budget_samples": samples,
        "seed": seed,
    }
    if place.name == TUNE:
        return ContrastiveTask(**options)
    matching = LayerMatching if place.name == LAYERS else FeatureMatching
    return matching(teacher.model, **options)


def _data_module(data: Mapping[str, Any], spec: ModelSpec, seed: int) -> ShardDataModule:
    return ShardDataModule(
        **data, seed=seed, image_size=spec.image_size, context_length=spec.context_length, tokenizer=spec.tokenizer
    )


def _train(
    place: _Place, task: ContrastiveTask, module: ShardDataModule, data: Mapping[str, Any], options: Mapping[str, Any]
) -> Run:
    """Runs the stage, from where it stands in its folder."""
    config = place.folder / CONFIG_NAME
    if config.exists():
        _check_same_settings(config, place.settings())
    _note(f"stage {place.name}, from {place.begins_with}")
    defaults = {f"{name}_every_samples": -(-task.budget_samples // parts) for name, parts in PARTS.items()}
    options = {key: defaults.get(key) if value is None else value for key, value in options.items()}
    shards = data["shards"]
    run = train_run(
        task,
        module,
        out=str(place.folder),
        resume=place.folder.exists(),
        train_data=shards if isinstance(shards, str) else " ".join(shards),
        config_text=yaml.safe_dump({**place.settings(), "data": _plain(data)}, sort_keys=False),
        tensorboard=False,
        **options,
    )
    _note(_outcome(place, run))
    return run


def _check_same_settings(config: Path, wanted: Mapping[str, Any]) -> None:
    try:
        there = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{config} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(there, dict):
        raise UserError(f"{config} holds no settings of a stage; give another --out")
    for key, value in wanted.items():
        if there.get(key) != value:
            raise UserError(f"{config} has {key} {there.get(key)}, not {value}: give the same, or another --out")


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}


def _outcome(place: _Place, run: Run) -> str:
    """A stage's last line: samples, the loss of its first and last row, its checkpoint."""
    metrics = run.folder / METRICS_NAME
    rows = list(csv.DictReader(metrics.read_text(encoding="utf-8").splitlines())) if metrics.exists() else []
    losses = f", loss {float(rows[0]['loss']):.4g} -> {float(rows[-1]['loss']):.4g}" if rows else ""
    how_far = "" if run.is_finished else f" of {run.budget_samples:,}"
    return f"stage {place.name}: {run.samples_seen:,}{how_far} samples{losses}; {run.newest_checkpoint}"


def _note(text: str) -> None:
    if is_first_process():
        print(text, file=sys.stderr)
