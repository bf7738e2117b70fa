"""What a sweep will cost: FLOPs by arithmetic, time from the rates that runs were measured at."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_la.errors import counted
from clip_la.models.flops import TRAINING_FACTOR, flops
from clip_la.models.registry import model_spec
from clip_la.sweep.plan import read_manifest
from clip_la.sweep.planned_run import PlannedRun, folder_of
from clip_la.sweep.state import last_row

_PREFIX = "model."
# What of a run's options makes its architecture, and so its rate.
_DROPOUT = _PREFIX + "patch_dropout"
_SPEC_OPTIONS = tuple(name for name in inspect.signature(model_spec).parameters if name != "name")


def flops_per_sample(run: PlannedRun) -> int:
    """Forward FLOPs of a pair as the run trains on it. Raises UserError for an unknown model or attention, and where
    none is named."""
    given = {name: run.options[_PREFIX + name] for name in _SPEC_OPTIONS if _PREFIX + name in run.options}
    spec = model_spec(str(run.options.get(_PREFIX + "name")), **given)
    return flops(spec, float(run.options.get(_DROPOUT, 0.0)))["total"]


def training_flops(run: PlannedRun) -> int:
    """Forward and backward FLOPs of what the run trains itself. Raises UserError as flops_per_sample does."""
    return TRAINING_FACTOR * flops_per_sample(run) * run.own_samples


class Rates:
    """Pairs a second of each architecture, over the longest run of it in some sweeps, compiling included.

    For a branch, samples and seconds both count from the beginning of its trunk.

    Args:
        folders: of sweeps that have been begun; others add nothing.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        longest: dict[tuple[Any, ...], tuple[int, float]] = {}
        for out in folders:
            for run in read_manifest(out).values():
                last = last_row(folder_of(out, run.name))
                if last and float(last["train_s"]) > 0:
                    key, samples = self._key(run), int(last["samples_seen"])
                    longest[key] = max(longest.get(key, (0, 0.0)), (samples, samples / float(last["train_s"])))
        self._per_s = {key: rate for key, (_, rate) in longest.items()}

    @staticmethod
    def _key(run: PlannedRun) -> tuple[Any, ...]:
        architecture = (run.options.get(_PREFIX + name) for name in ("name", *_SPEC_OPTIONS))
        return (*architecture, float(run.options.get(_DROPOUT, 0.0)))

    def seconds(self, run: PlannedRun, samples_seen: int = 0) -> float | None:
        """Training time from `samples_seen` to the end of the run's budget; None for an architecture not measured."""
        rate = self._per_s.get(self._key(run))
        return None if rate is None else (run.budget_samples - max(run.leaves_at, samples_seen)) / rate


def cost_table(runs: Sequence[PlannedRun], out: Path, num_places: int, measured: Sequence[Path] = ()) -> str:
    """A line a run and a sum: training FLOPs, and seconds where a run of the same architecture has been measured.

    Args:
        out: the sweep's folder, whose runs have been measured if it was begun.
        num_places: how many runs train at a time.
        measured: folders of other sweeps with measured runs.
    """
    rates = Rates([*measured, out])
    lines, total_flops, total_s, unknown = [], 0.0, 0.0, 0
    for run in runs:
        cost, time_s = training_flops(run), rates.seconds(run)
        total_flops += cost
        total_s += time_s or 0.0
        unknown += time_s is None
        time = "   not measured" if time_s is None else f"{time_s:8.0f} s"
        lines.append(f"{run.name}  {run.own_samples:,} samples  {cost:.2e} FLOPs {time}")
    hours = (
        f"{total_s / 3600:.2f} device hours, {total_s / 3600 / num_places:.2f} hours on {counted(num_places, 'place')}"
    )
    if unknown:  # a sum over the others alone is no estimate of all
        known = len(runs) - unknown
        rest = f"; the other {known}: {hours}" if known else ""
        are = "is of an architecture" if unknown == 1 else "are of architectures"
        hours = f"{counted(unknown, 'run')} {are} not measured yet{rest}"
    ends = [run for run in runs if not run.is_trunk]
    if len(ends) < len(runs):
        apart = sum(TRAINING_FACTOR * flops_per_sample(run) * run.budget_samples for run in ends)
        budgets, trunks = counted(len(ends), "budget"), counted(len(runs) - len(ends), "trunk")
        lines.append(f"{budgets} from {trunks}; trained apart: {apart:.2e} FLOPs")
    return "\n".join([*lines, f"{counted(len(runs), 'run')}, {total_flops:.2e} FLOPs, {hours}"])
