"""From a sweep's YAML file to its runs: names and options of `clip-la train`. Plain Python.

```yaml
options:                      # of `clip-la train`, for every run
  model.name: vit_ti16
  data.shards: data/scenes/train
  data.batch_size: 1024
  budgets: [128000, 512000]   # several budgets by cool-down branches; or budget_samples: 512000, one run
  cooldown_share: 0.2         # of each budget (default 0.2)
grid:                         # every combination of these is a run; or a list of such grids, the most urgent first
  arm:                        # a name that stands for several options
    softmax: {model.attention: softmax}
    image-linear: {model.image_attention: linear_mean, model.text_attention: softmax}
  model.lr: [1.0e-3, 2.0e-3]
  seed: [0, 1]
```

With `budgets` a combination becomes a trunk, which warms up and then keeps a constant rate, and a branch for each
budget, which leaves the trunk's checkpoint and cools down. All branches share the trunk's samples, so five budgets cost
little more than the largest. Arms of one seed see the same samples in the same order: order and augmentation depend on
the seed alone.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip_la.atomic import atomic_write
from clip_la.errors import UserError, unknown
from clip_la.sweep.planned_run import RUNS_NAME, PlannedRun, as_text, folder_of, layers_of
from clip_la.yaml_text import load_yaml

# The runs are found here as well, with what plans them.
__all__ = [
    "MANIFEST_NAME",
    "RUNS_NAME",
    "PlannedRun",
    "expand",
    "folder_of",
    "keep_manifest",
    "layers_of",
    "read_manifest",
    "read_plan",
]

MANIFEST_NAME = "sweep.json"
SECTIONS = ("options", "grid")
DEFAULT_COOLDOWN_SHARE = 0.2
# Read here; `clip-la train` has no such options.
BUDGETS, COOLDOWN_SHARE = "budgets", "cooldown_share"
# What a run's folder may be called on every file system.
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+=@-]+")
_REFUSED = ("out", "resume", "branch_from")
# Trunk and branches have their own; and a checkpoint of a trunk says nothing of what its compute can reach.
_REFUSED_WITH_BUDGETS = (
    "budget_samples",
    "checkpoint_samples",
    "zeroshot_samples",
    "model.schedule",
    "model.cooldown_samples",
)
# A trunk goes on when its sweep is given more budgets; any other change would be another run.
_MAY_GROW = ("budget_samples", "checkpoint_samples")


def read_plan(path: Path) -> list[PlannedRun]:
    """The runs of a sweep file, in the order of its grid, the first axis slowest; a trunk before its branches.

    Raises:
        UserError: not readable, no YAML, an unknown section, an axis without values, an option twice in one place, an
            axis of an option's values that a later axis sets otherwise, a run's name too long for a folder, no budget,
            budgets too small for their warm-up and cool-down.

    An option may stand in several places: one of the grid overrides `options`, and a later axis what a name of an
    earlier axis stands for, such as the rate of a size. But the values of an axis of one option name its runs, and no
    later axis sets them otherwise.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected the sections {' and '.join(SECTIONS)}")
    for section in content:
        if section not in SECTIONS:
            raise unknown(f"section of {path}", str(section), SECTIONS)
    try:
        return expand(content.get("options") or {}, content.get("grid") or {})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def expand(options: Mapping[str, Any], grid: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[PlannedRun]:
    """The runs of every combination of the axes of each grid over the shared `options`. Raises UserError: read_plan."""
    grids: list[Any] = list(grid) if isinstance(grid, list) else [grid]
    for name, section in (("options", options), *(("grid", each) for each in grids)):
        if not isinstance(section, Mapping):
            raise UserError(f"'{name}' must hold lines KEY: VALUE, not a {type(section).__name__}")
        if other := [key for key in section if not isinstance(key, str)]:
            raise UserError(f"'{name}' holds {other[0]!r}, which is no name of an option")
    runs = [
        replace(run, grid=number)
        for number, axes in enumerate(grids)
        for choices in itertools.product(*(list(_axis(key, values)) for key, values in axes.items()))
        for run in _runs_of(options, choices)
    ]
    names = [run.name for run in runs]
    if longest := max(names, key=len, default="")[MAX_NAME:]:
        length = MAX_NAME + len(longest)
        raise UserError(
            f"a run of the grid would have a name of {length} characters, where a folder's has {MAX_NAME} at most "
            f"({max(names, key=len)[:60]}...): give the values of an axis names of their own"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"two runs of the grid would be called {twice}: a value stands twice in it, or two differ only in signs "
            "that no folder's name here has (others than A-Z a-z 0-9 _ . + = @ -)"
        )
    return runs


# A place on an axis of the grid: the axis, the value as written, its part of a run's name, the options it stands for.
_Choice = tuple[str, Any, str, Mapping[str, Any]]
# Of a file's or folder's name on the file systems in use.
MAX_NAME = 255


def _axis(key: str, values: Any) -> Iterator[_Choice]:
    """The choices along one axis: a list of an option's values, or names that stand for options."""

    def safe(text: str) -> str:
        return _UNSAFE.sub("_", text).strip("_.")

    if isinstance(values, Mapping) and values:
        for name, options in values.items():
            if not isinstance(options, Mapping) or not all(isinstance(each, str) for each in options):
                raise UserError(f"grid.{key}.{name} must hold options, such as {{model.lr: 1.0e-3}}")
            yield key, str(name), safe(str(name)), options
    elif isinstance(values, list) and values:
        for value in values:
            yield key, value, safe(f"{key.rpartition('.')[2]}{as_text(value)}"), {key: value}
    else:
        raise UserError(f"grid.{key} must be a list of values, or names with options, not {values!r}")


def _runs_of(shared: Mapping[str, Any], choices: tuple[_Choice, ...]) -> list[PlannedRun]:
    """The run of one combination, or with `budgets` its trunk and branches."""
    options: dict[str, Any] = {}
    named: dict[str, tuple[str, Any]] = {}
    for axis, value, _, part in (("options", None, "", shared), *choices):
        # The command line takes `batch-size` for `batch_size`, so a file may say it; all that look here have one name.
        own = {key.replace("-", "_"): value for key, value in part.items()}
        if len(own) < len(part):
            twice = next(key for key in part if "-" in key and key.replace("-", "_") in part)
            raise UserError(f"{axis}: {twice} and {twice.replace('-', '_')} are one option: give it once")
        for key, (earlier, before) in named.items():
            if key in own and own[key] != before:
                raise UserError(
                    f"grid.{axis} sets {key} to {own[key]!r}, where runs are called by grid.{earlier}: {before!r}; "
                    "an axis of an option's values comes after those that set it too"
                )
        # A name may stand for options that a later axis changes; a value in a run's name must be what it trains with.
        if part == {axis: value}:
            named |= dict.fromkeys(own, (axis, value))
        options |= own
    for key in _REFUSED:
        if key in options:
            raise UserError(f"the option {key} is set by the sweep itself: leave it out")
    for key, value in options.items():
        if isinstance(value, Mapping):
            first = next(iter(value), "NAME")
            raise UserError(f"{key} holds options itself: write each with its whole name, as '{key}.{first}: VALUE'")
    name = "-".join(label for _, _, label, _ in choices) or "run"
    place = {axis: value for axis, value, _, _ in choices}
    if BUDGETS in options:
        return _branched(name, place, options)
    if COOLDOWN_SHARE in options:
        raise UserError(f"options.{COOLDOWN_SHARE} belongs to options.{BUDGETS}")
    budget = options.get("budget_samples")
    if type(budget) is not int or budget < 1:
        raise UserError(f"options.budget_samples is missing or no whole number from 1 (or give {BUDGETS}: a list)")
    return [PlannedRun(name, place, options)]


def _branched(name: str, place: Mapping[str, Any], options: dict[str, Any]) -> list[PlannedRun]:
    """A trunk and a branch for each of `budgets`. Lengths are rounded up to whole batches, as training does."""
    budgets, share = options.pop(BUDGETS), options.pop(COOLDOWN_SHARE, DEFAULT_COOLDOWN_SHARE)
    for key in _REFUSED_WITH_BUDGETS:
        if key in options or key in place:
            raise UserError(f"the option {key} is set by the sweep itself where {BUDGETS} are given: leave it out")
    if not isinstance(budgets, list) or not budgets or not all(type(each) is int and each > 0 for each in budgets):
        raise UserError(f"options.{BUDGETS} must be a list of whole numbers of samples, not {budgets!r}")
    if not isinstance(share, float) or not 0 < share < 1:
        raise UserError(f"options.{COOLDOWN_SHARE} must be between 0 and 1, not {share!r}")
    batch = options.get("data.batch_size")
    if not isinstance(batch, int) or batch < 1:
        raise UserError(f"options.data.batch_size is missing: with {BUDGETS}, branches leave at whole batches")
    warmup = options.get("model.warmup_samples") or 0
    if not isinstance(warmup, int):
        raise UserError(f"the option model.warmup_samples must be a whole number of samples, not {warmup!r}")
    branches = []
    for budget in sorted(budgets):
        whole = -(-budget // batch) * batch
        cooldown = max(1, round(share * whole / batch)) * batch
        leaves_at = whole - cooldown
        if leaves_at < max(batch, warmup):
            raise UserError(f"budgets: {budget} samples are too few for warm-up and a cool-down of {cooldown}")
        own = {"budget_samples": whole, "model.schedule": "cooldown", "model.cooldown_samples": cooldown}
        # A branch begins with its trunk's configuration, whose checkpoints are not its own.
        branches.append(
            PlannedRun(
                f"{name}-n{budget}",
                {**place, "budget_samples": budget},
                {**options, **own, "checkpoint_samples": []},
                trunk=f"{name}-trunk",
                leaves_at=leaves_at,
            )
        )
    leaving = sorted({branch.leaves_at for branch in branches})
    constant = {key: value for key, value in options.items() if key != "zeroshot_suite"}
    constant |= {"model.schedule": "constant", "budget_samples": leaving[-1], "checkpoint_samples": leaving}
    return [PlannedRun(f"{name}-trunk", place, constant, is_trunk=True), *branches]


def keep_manifest(out: Path, runs: Sequence[PlannedRun]) -> None:
    """Writes down in `out` what each run is; a later sweep may add runs and budgets, but change no run.

    Raises:
        UserError: a run of that name, with other options, lies in `out` already.
    """
    path = out / MANIFEST_NAME
    known = read_manifest(out)
    for run in runs:
        before = known.get(run.name, run)
        keys = {*before.options, *run.options}.difference(_MAY_GROW if run.is_trunk else ())
        differing = sorted(key for key in keys if before.options.get(key) != run.options.get(key))
        if differing:
            raise UserError(
                f"{out} holds a run {run.name} with other options ({', '.join(differing)}): give another --out"
            )
        known[run.name] = run
    entries: dict[str, dict[str, Any]] = {}
    for run in known.values():
        entry: dict[str, Any] = {"place": dict(run.place), "options": dict(run.options)}
        # Plain runs are written as before there were branches.
        if run.is_trunk:
            entry["is_trunk"] = True
        if run.trunk:
            entry |= {"trunk": run.trunk, "leaves_at": run.leaves_at}
        entries[run.name] = entry
    with atomic_write(path, "w") as stream:
        json.dump(entries, stream, indent=1)


def read_manifest(out: Path) -> dict[str, PlannedRun]:
    """All runs that sweeps into `out` had, by name; none where there was no sweep. Raises UserError if damaged."""
    path = out / MANIFEST_NAME
    try:
        entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {name: PlannedRun(name, **entry) for name, entry in entries.items()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: not the manifest of a sweep; give another --out") from None
