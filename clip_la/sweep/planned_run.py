"""One run of a sweep: its options as `clip-la train` is called with them, and what it can share with others.

Plain Python.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from clip_la.train.options import LossOptions, OptimOptions

RUNS_NAME = "runs"
# Options of the model that change no layer: what is compiled for one run serves another that differs in these alone.
# But a frozen tower has other graphs, and so has one that drops patches.
_ANY_LAYERS = {f"model.{each.name}" for each in (*fields(OptimOptions), *fields(LossOptions))} - {
    "model.freeze",
    "model.patch_dropout",
}
_ANY_LAYERS |= {"model.init_from"}
# Of the run: what layers are compiled for as well; a file of options may hold any.
_LAYERS_TOO = ("model", "config", "precision", "strategy")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: its folder below `OUT/runs`.
        place: its place in the grid, axis -> value as written.
        options: of `clip-la train`, without those that the sweep adds (out, resume, branch_from).
        is_trunk: whether it is a constant-rate run that branches leave.
        trunk: the name of the trunk that this branch leaves, None for other runs.
        leaves_at: samples of the trunk that the branch starts with, 0 for other runs.
        grid: the number of its grid in the file; the runs of the first come first.
    """

    name: str
    place: Mapping[str, Any]
    options: Mapping[str, Any]
    is_trunk: bool = False
    trunk: str | None = None
    leaves_at: int = 0
    grid: int = 0

    def arguments(self, out: Path, branch_from: Path | None = None) -> list[str]:
        """What `clip-la train` is called with; `branch_from` is the trunk's checkpoint that a branch starts from."""
        start = [f"--branch_from={branch_from}"] if branch_from else []
        return [*self.option_arguments(out), *start, "--resume"]

    def option_arguments(self, out: Path) -> list[str]:
        """As `arguments`, but for where the run goes on from: a run in `out`, or a trunk, need not be there."""
        given = [f"--{key}={as_text(value)}" for key, value in self.options.items()]
        return [*given, f"--out={folder_of(out, self.name)}"]

    @property
    def layers(self) -> frozenset[str]:
        """What its compiled layers depend on; equal for runs that can share them."""
        return layers_of([f"--{key}={as_text(value)}" for key, value in self.options.items()])

    @property
    def data(self) -> frozenset[str]:
        """What its pool of decoded samples depends on; a process that trained on the same has it in memory."""
        return frozenset(f"{key}={as_text(value)}" for key, value in self.options.items() if key.startswith("data."))

    @property
    def budget_samples(self) -> int:
        """Samples that the run has seen at its end; for a branch with those of its trunk."""
        return int(self.options["budget_samples"])

    @property
    def own_samples(self) -> int:
        """Samples that this run trains on itself: for a branch those after it left its trunk."""
        return self.budget_samples - self.leaves_at


def layers_of(arguments: Sequence[str]) -> frozenset[str]:
    """What of the arguments of `clip-la train` the compiled layers depend on."""
    found = set()
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if name in _LAYERS_TOO or (name.startswith("model.") and name not in _ANY_LAYERS):
            found.add(f"{name}={value}")
    return frozenset(found)


def folder_of(out: Path, name: str) -> Path:
    """The folder of a run of the sweep in `out`."""
    return out / RUNS_NAME / name


def as_text(value: Any) -> str:
    """A value as the command line of `clip-la train` reads it."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, list):
        # In quotes: YAML would cut `a, b` in two inside a list, and read `{0..9}` as a mapping and `1` as a number.
        return "[" + ", ".join(json.dumps(each) if isinstance(each, str) else as_text(each) for each in value) + "]"
    return repr(value) if isinstance(value, float) else str(value)
