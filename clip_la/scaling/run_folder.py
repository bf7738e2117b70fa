"""What a run's folder knows that its result lines do not: learning rate, resolution, measured GPU-seconds."""

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from clip_la.runs import RunFolder


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


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def completed(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of a result line with what the folder it lies in adds; what the line says itself stands.

    `gpu_seconds` are the seconds of training up to the line's samples, times the GPUs.
    """
    config = read_config(folder)
    model = config.get("model") if isinstance(config.get("model"), dict) else {}
    assert isinstance(model, dict)
    seconds = training_seconds(folder).get(fields.get("samples_seen") or -1)
    gpus = (_number(config.get("devices")) or 1) * (_number(config.get("num_nodes")) or 1)
    more = {
        "learning_rate": _number(model.get("lr")),
        "image_size": _number(model.get("image_size")),
        "gpu_seconds": None if seconds is None else seconds * gpus,
    }
    return {**{name: value for name, value in more.items() if value is not None}, **fields}
