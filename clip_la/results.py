"""Result lines: one JSON object a (checkpoint, data set, task), appended to a file that other programs read."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_la.errors import UserError
from clip_la.json_text import json_text

if TYPE_CHECKING:
    import torch

CLASSIFICATION = "zeroshot_classification"
RETRIEVAL = "zeroshot_retrieval"
LINEAR_PROBE = "linear_probe"
KNN = "knn"
TASKS = (CLASSIFICATION, RETRIEVAL, LINEAR_PROBE, KNN)
# The distributions whose versions can move a result.
VERSIONED = ("clip_la", "torch", "torchvision", "timm", "open_clip_torch", "pillow", "numpy")
# Raised when what an evaluation computes from the same input changes: what was kept before is then not found.
FORMAT = 2
# What a line says of places; they may be spelt in several ways.
PLACES = ("checkpoint", "data", "train_path")


def append(path: str | os.PathLike[str], line: Mapping[str, Any]) -> None:
    """Appends one line in one write, so that lines of several processes never mix.

    A last line that a kill cut short is removed first: it is no JSON, and would spoil the new line too.

    Raises:
        ValueError: a value is NaN or infinite, which JSON does not have.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json_text(line, allow_nan=False) + "\n"
    with path.open("ab+") as stream:
        stream.seek(0)
        content = stream.read()
        if last := content[content.rfind(b"\n") + 1 :]:
            try:
                json.loads(last)
                text = "\n" + text
            except (ValueError, RecursionError):
                stream.truncate(len(content) - len(last))
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())


def numbered_lines(path: str | os.PathLike[str], *, skip_damaged: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""(line number from 1, fields) of every result in a file, in order; the one reader of result lines.

    It takes what other versions and programs leave: blank lines, fields that it does not know, NaN as a value, the same
    evaluation several times (made again, or under another name: `find` prefers the last). A last line without \n that
    cannot be read was cut short by a kill and is skipped; `skip_damaged` skips every line that cannot be read.

    Raises:
        UserError: the file cannot be read; a line that is no JSON object, with its number.
    """
    try:
        # Only \n ends a line: str.splitlines would cut strings that hold U+2028.
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    for number, data in enumerate(lines, start=1):
        if not data.strip():
            continue
        reason = None
        try:
            fields = json.loads(data.decode("utf-8"))
            reason = None if isinstance(fields, dict) else "not a JSON object"
        except UnicodeDecodeError:
            reason = "not UTF-8"
        except json.JSONDecodeError as error:
            reason = f"not JSON ({error.msg} at column {error.colno})"
        # ValueError: numbers of thousands of digits. RecursionError: brackets nested thousands deep.
        except (ValueError, RecursionError):
            reason = "not JSON"
        if reason is None:
            yield number, fields
        elif number < len(lines) and not skip_damaged:
            raise UserError(f"{path}:{number}: {reason}; one result a line is expected")


def read(path: str | os.PathLike[str], *, skip_damaged: bool = False) -> Iterator[dict[str, Any]]:
    """The lines of a result file, none if there is no file; as `numbered_lines` has them."""
    if Path(path).exists():
        yield from (fields for _, fields in numbered_lines(path, skip_damaged=skip_damaged))


def find(path: str | os.PathLike[str], evaluation: str, labels: Mapping[str, Any] | None = None) -> dict | None:
    """The last line of the file with this evaluation id, if any; one that says the same as `labels` before others."""
    lines = [line for line in read(path) if line.get("evaluation") == evaluation]
    agreeing = [line for line in lines if agrees(line, labels or {})]
    return next(reversed(agreeing or lines), None)


def agrees(line: Mapping[str, Any], labels: Mapping[str, Any]) -> bool:
    """Whether a line says the same as `labels` of model and data, however paths are spelt."""
    for name, wanted in labels.items():
        own = line.get(name)
        # A run's own evaluation knows of no file yet.
        if name == "checkpoint" and (own is None or wanted is None):
            continue
        if name in PLACES and isinstance(own, str) and isinstance(wanted, str):
            own, wanted = os.path.abspath(own), os.path.abspath(wanted)
        # As JSON has it, which knows no tuples.
        if own != json.loads(json.dumps(wanted)):
            return False
    return True


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can move a result."""
    installed = {"python": platform.python_version()}
    for name in VERSIONED:
        # Run from a source tree without an install, as on a bare GPU machine, a package has none.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def device_name(device: "torch.device") -> str:
    """What computed a result: "cpu", or the accelerator's name."""
    if device.type != "cuda":
        return device.type
    import torch

    return torch.cuda.get_device_name(device)


def provenance(device: "torch.device", precision: str) -> dict[str, Any]:
    """The fields of a line that say by what and when (UTC, to the second, ISO 8601) it was computed."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"versions": versions(), "device": device_name(device), "precision": precision, "date": now}
