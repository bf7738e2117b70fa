"""What a run's folder knows that its result lines do not: learning rate, resolution, tokens, measured GPU-seconds."""

import csv
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from clip_la.errors import UserError
from clip_la.models.flops import flops
from clip_la.models.registry import model_spec
from clip_la.runs import RunFolder

PLACE_NAME = "place.json"


@cache
def read_config(folder: Path) -> Mapping[str, Any]:
    """The run's config.yaml; empty where there is none or it is damaged."""
    try:
        found = RunFolder(folder).read_config()
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


@cache
def training_seconds(folder: Path) -> Mapping[int, float]:
    """Seconds of training by samples seen, from metrics.csv; empty where there is none."""
    try:
        rows = RunFolder(folder).rows()
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    seconds: dict[int, float] = {}
    for row in rows:
        try:
            seconds[int(row["samples_seen"])] = float(row["train_s"])
        except (KeyError, ValueError):
            # A row that a kill cut short inside a number, or another program's table.
            continue
    return seconds


def completed(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of a result line with what its run's folder adds; what the line says itself stands.

    The folder is the one that the line lies in, or that its checkpoint lies in (an evaluation of its own writes its
    lines elsewhere). Added, as far as known: `learning_rate`; `image_size` in pixels and `tokens` of an image with the
    class token; `patch_dropout` and `context_length` where the run set them to other than none and its preset's;
    `train_pairs`, the different pairs in local shards, and for shards mixed by weights `pass_samples`, the samples
    after which one of them has been shown whole; `gpu_seconds`, the seconds of training up to the line's samples times
    the GPUs, divided by the runs that shared each. A branch's seconds count its trunk's part. What the line says is
    changed in one place: `flops_per_sample` is that of the model as evaluated, and a run that left patches out trained
    on less.
    """
    # A line that is newer than its folder, or was copied, keeps what it says: it was there when the model was made.
    checkpoint = fields.get("checkpoint")
    if not read_config(folder) and isinstance(checkpoint, str):
        folder = Path(checkpoint).parent.parent
    config = read_config(folder)
    more, trained_share = _of_model(config.get("model"), fields)
    whole = fields.get("flops_per_sample")
    if trained_share != 1 and isinstance(whole, int | float):
        fields = {**fields, "flops_per_sample": whole * trained_share}
    seen = fields.get("samples_seen")
    seconds = training_seconds(folder).get(seen) if isinstance(seen, int) else None
    if seconds is not None:
        gpus = (_number(config, "devices") or 1) * (_number(config, "num_nodes") or 1)
        more["gpu_seconds"] = seconds * gpus / (_number(_read_json(folder / PLACE_NAME), "runs_per_gpu") or 1)
    more |= _of_shards(config.get("data"))
    return {**{name: value for name, value in more.items() if value is not None}, **fields}


def _of_model(model: Any, fields: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """What the section `model` of a config adds to a line, and the share of the model's FLOPs that its run spent."""
    more, share = dict[str, Any](), 1.0
    more["learning_rate"], more["image_size"] = _number(model, "lr"), _number(model, "image_size")
    if not isinstance(model, dict):
        return more, share
    names = ("image_size", "patch_size", "context_length")
    sizes = {name: model[name] for name in names if model.get(name) is not None}
    dropout, context = _number(model, "patch_dropout"), _number(model, "context_length")
    more["patch_dropout"], more["context_length"] = dropout or None, None if context is None else int(context)
    kinds: dict[str, Any] = {f"{tower}_attention": fields.get(f"{tower}_attention") for tower in ("image", "text")}
    try:
        spec = model_spec(str(model.get("name")), **sizes, **kinds)
        more["image_size"], more["tokens"] = spec.image_size, spec.num_image_tokens
        if spec.context_length == model_spec(spec.name).context_length:
            more["context_length"] = None
        if dropout:
            share = flops(spec, dropout)["total"] / flops(spec)["total"]
    except (UserError, TypeError, ValueError):
        # A model of a plugin that is not loaded here, or a config that was edited.
        pass
    return more, share


def _of_shards(data: Any) -> dict[str, Any]:
    """`train_pairs` and `pass_samples` by the section `data` of a config; empty where a folder has no counts."""
    shards, weights = (data.get("shards"), data.get("weights")) if isinstance(data, dict) else (None, None)
    counts = [_read_json(Path(str(each)) / "sizes.json") for each in (shards if isinstance(shards, list) else [shards])]
    # A single folder without counts makes the sum unknown.
    if not all(counts):
        return {}
    pairs = [sum(size for size in each.values() if isinstance(size, int)) for each in counts]
    more = {"train_pairs": sum(pairs)}
    if isinstance(weights, list) and len(weights) == len(pairs):
        drawn = [(size, float(w)) for size, w in zip(pairs, weights, strict=True) if isinstance(w, int | float) and w]
        # A source has a part of the samples as its weight is of all.
        if drawn:
            more["pass_samples"] = round(min(size * sum(w for _, w in drawn) / w for size, w in drawn))
    return more


def _number(section: Any, name: str) -> float | None:
    """A number of a section of a config; None for anything else."""
    value = section.get(name) if isinstance(section, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@cache
def _read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty where there is none or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
