"""Result lines: one JSON object a (checkpoint, data set, task), appended to a file that other programs read."""

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from clip_la.errors import UserError
from clip_la.json_text import json_text, lines_in

CLASSIFICATION = "zeroshot_classification"
RETRIEVAL = "zeroshot_retrieval"
LINEAR_PROBE = "linear_probe"
KNN = "knn"
# The distributions whose versions can move a result.
VERSIONED = ("clip_la", "torch", "torchvision", "timm", "open_clip_torch", "pillow", "numpy")
# Raised when what an evaluation computes from the same input changes: what was kept before is then not found.
FORMAT = 2
# What a line says of places; they may be spelt in several ways.
PLACES = ("checkpoint", "data", "train_path")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can move a result."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            # Run from a source tree without an install, as on a bare GPU machine.
            continue
    return found


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def append(path: str | os.PathLike[str], line: Mapping[str, Any]) -> None:
    """Appends one line in one write, so that lines of several processes never mix.

    A last line that a kill cut short is dropped first: it is no JSON, and what follows it would be spoilt too.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json_text(line, allow_nan=False) + "\n"
    with path.open("ab+") as stream:
        text = _mend_end(stream) + text
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())


def _mend_end(stream: IO[bytes]) -> str:
    """What must come before the next line: a line end where the last line lacks one. Cuts a torn last line off."""
    stream.seek(0)
    content = stream.read()
    last = content[content.rfind(b"\n") + 1 :]
    if not last:
        return ""
    try:
        json.loads(last)
    except ValueError:
        stream.truncate(len(content) - len(last))
        return ""
    return "\n"


def read(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The lines of a result file, none if there is no file. A last line that a kill cut short is passed over.

    Raises:
        UserError: another line that is no JSON object, with its number.
    """
    path = Path(path)
    if not path.exists():
        return
    try:
        lines = lines_in(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; one result a line is expected") from None
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            if number == len(lines):
                return
            raise UserError(f"{path}:{number}: no JSON; one result a line is expected") from None
        if not isinstance(line, dict):
            raise UserError(f"{path}:{number}: a {type(line).__name__}, not a result")
        yield line


def find(path: str | os.PathLike[str], evaluation: str, labels: Mapping[str, Any] | None = None) -> dict | None:
    """The last line of the file with this evaluation id, if any; one that says the same as `labels` before others."""
    lines = [line for line in read(path) if line.get("evaluation") == evaluation]
    agreeing = [line for line in lines if agrees(line, labels or {})]
    found = agreeing or lines
    return found[-1] if found else None


def agrees(line: Mapping[str, Any], labels: Mapping[str, Any]) -> bool:
    """Whether a line says the same as `labels` of model and data, however paths are spelt."""
    return all(_same(name, line.get(name), value) for name, value in labels.items())


def _same(name: str, found: Any, wanted: Any) -> bool:
    # A run's own evaluation knows of no file yet.
    if name == "checkpoint" and (found is None or wanted is None):
        return True
    if name in PLACES and isinstance(found, str) and isinstance(wanted, str):
        return os.path.abspath(found) == os.path.abspath(wanted)
    # As JSON has it, which knows no tuples.
    return bool(found == json.loads(json.dumps(wanted)))


def provenance(device: torch.device, precision: str) -> dict[str, Any]:
    """The fields of a line that say by what and when it was computed."""
    return {"versions": versions(), "device": device_name(device), "precision": precision, "date": now()}


def device_name(device: torch.device) -> str:
    """What computed a result: "cpu", or the accelerator's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
