"""From a sweep's YAML file to its runs: names and options of `clip-la train`. Plain Python.

```yaml
options:                      # of `clip-la train`, for every run
  model.name: vit_ti16
  data.shards: data/scenes/train
  data.batch_size: 1024
  budget_samples: 512000
grid:                         # every combination of these is a run
  arm:                        # a name that stands for several options
    softmax: {model.attention: softmax}
    image-linear: {model.image_attention: linear_mean, model.text_attention: softmax}
  model.lr: [1.0e-3, 2.0e-3]
  seed: [0, 1]
```
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clip_la.atomic import atomic_write
from clip_la.errors import UserError, unknown

MANIFEST_NAME = "sweep.json"
RUNS_NAME = "runs"
SECTIONS = ("options", "grid")
# What a run's folder may be called on every file system.
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+=@-]+")
_REFUSED = ("out", "resume", "branch_from")


@dataclass(frozen=True)
class PlannedRun:
    """One run: its name, its place in the grid (axis -> value as written) and its options for `clip-la train`."""

    name: str
    place: Mapping[str, Any]
    options: Mapping[str, Any]

    def arguments(self, out: Path) -> list[str]:
        """What `clip-la train` is called with."""
        given = [f"--{key}={_as_text(value)}" for key, value in self.options.items()]
        return [*given, f"--out={folder_of(out, self.name)}", "--resume"]

    @property
    def budget_samples(self) -> int:
        """Samples that the run will see."""
        return int(self.options["budget_samples"])


def folder_of(out: Path, name: str) -> Path:
    """The folder of a run of the sweep in `out`."""
    return out / RUNS_NAME / name


def read_plan(path: Path) -> list[PlannedRun]:
    """The runs of a sweep file, in the order of its grid, the first axis slowest.

    Raises:
        UserError: not readable, no YAML, an unknown section, an axis without values, an option given twice, no budget.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected the sections {' and '.join(SECTIONS)}")
    for section in content:
        if section not in SECTIONS:
            raise unknown(f"section of {path}", str(section), SECTIONS)
    try:
        return expand(content.get("options") or {}, content.get("grid") or {})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def expand(options: Mapping[str, Any], grid: Mapping[str, Any]) -> list[PlannedRun]:
    """Every combination of the axes of `grid` over the shared `options`. Raises UserError as read_plan does."""
    for name, section in (("options", options), ("grid", grid)):
        if not isinstance(section, Mapping):
            raise UserError(f"'{name}' must hold lines KEY: VALUE, not a {type(section).__name__}")
    axes = [list(_axis(key, values)) for key, values in grid.items()]
    runs = [_combined(options, choices) for choices in itertools.product(*axes)]
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two runs of the grid would be called {twice}: a value stands twice in it")
    return runs


@dataclass(frozen=True)
class _Choice:
    axis: str
    value: Any
    label: str
    options: Mapping[str, Any]


def _axis(key: str, values: Any) -> Iterator[_Choice]:
    """The choices along one axis: a list of an option's values, or names that stand for options."""
    if isinstance(values, Mapping) and values:
        for name, options in values.items():
            if not isinstance(options, Mapping):
                raise UserError(f"grid.{key}.{name} must hold options, such as {{model.lr: 1.0e-3}}")
            yield _Choice(key, str(name), _safe(str(name)), options)
    elif isinstance(values, list) and values:
        for value in values:
            yield _Choice(key, value, _safe(f"{key.rpartition('.')[2]}{_as_text(value)}"), {key: value})
    else:
        raise UserError(f"grid.{key} must be a list of values, or names with options, not {values!r}")


def _combined(shared: Mapping[str, Any], choices: tuple[_Choice, ...]) -> PlannedRun:
    options = dict(shared)
    for choice in choices:
        options |= choice.options
    for key in _REFUSED:
        if key in options:
            raise UserError(f"the option {key} is set by the sweep itself: leave it out")
    if not isinstance(options.get("budget_samples"), int):
        raise UserError("options.budget_samples is missing or no whole number")
    name = "-".join(choice.label for choice in choices) or "run"
    return PlannedRun(name, {choice.axis: choice.value for choice in choices}, options)


def _as_text(value: Any) -> str:
    """A value as the command line of `clip-la train` reads it."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_text, value)) + "]"
    return repr(value) if isinstance(value, float) else str(value)


def _safe(text: str) -> str:
    return _UNSAFE.sub("_", text).strip("_.")


def keep_manifest(out: Path, runs: list[PlannedRun]) -> None:
    """Writes down in `out` what each run is; a later sweep may add runs, but change none.

    Raises:
        UserError: a run of that name, with other options, lies in `out` already.
    """
    path = out / MANIFEST_NAME
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for run in runs:
        own = {"place": dict(run.place), "options": dict(run.options)}
        before = known.get(run.name, own)
        if before["options"] != own["options"]:
            keys = {*before["options"], *own["options"]}
            differing = sorted(k for k in keys if before["options"].get(k) != own["options"].get(k))
            raise UserError(
                f"{out} holds a run {run.name} with other options ({', '.join(differing)}): give another --out"
            )
        known[run.name] = own
    with atomic_write(path, "w") as stream:
        json.dump(known, stream, indent=1)
