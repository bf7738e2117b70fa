"""What a sweep will cost: FLOPs by arithmetic, time from the rates that its finished runs were measured at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_la.errors import UserError
from clip_la.models.flops import flops
from clip_la.models.registry import model_spec
from clip_la.sweep.plan import PlannedRun, folder_of
from clip_la.sweep.state import last_row

_PREFIX = "model."
# What of a run's options makes its architecture.
_SPEC_OPTIONS = ("attention", "image_attention", "text_attention", "image_size", "patch_size", "context_length")
# Forward and backward: the backward pass costs twice the forward pass.
TRAINING_FACTOR = 3


def _architecture(options: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(options.get(_PREFIX + name) for name in ("name", *_SPEC_OPTIONS))


def flops_per_sample(run: PlannedRun) -> int:
    """Forward FLOPs of a pair. Raises UserError for an unknown model or attention, and where none is named."""
    given = {name: run.options[_PREFIX + name] for name in _SPEC_OPTIONS if _PREFIX + name in run.options}
    try:
        return flops(model_spec(str(run.options.get(_PREFIX + "name")), **given))["total"]
    except UserError as error:
        raise UserError(f"run {run.name}: {error}") from None


def measured_rates(runs: Sequence[PlannedRun], out: Path) -> dict[tuple[Any, ...], float]:
    """Architecture -> pairs a second over a whole finished run, compiling included."""
    rates = {}
    for run in runs:
        last = last_row(folder_of(out, run.name))
        if last and float(last["train_s"]) > 0:
            rates[_architecture(run.options)] = int(last["samples_seen"]) / float(last["train_s"])
    return rates


def cost_table(runs: Sequence[PlannedRun], out: Path, num_places: int) -> str:
    """A line a run and a sum: training FLOPs, and seconds where a run of the same architecture has been measured."""
    rates = measured_rates(runs, out)
    lines, total_flops, total_s, unknown = [], 0.0, 0.0, 0
    for run in runs:
        cost = TRAINING_FACTOR * flops_per_sample(run) * run.budget_samples
        rate = rates.get(_architecture(run.options))
        total_flops += cost
        total_s += run.budget_samples / rate if rate else 0.0
        unknown += rate is None
        time = f"{run.budget_samples / rate:8.0f} s" if rate else "   not measured"
        lines.append(f"{run.name}  {run.budget_samples:,} samples  {cost:.2e} FLOPs {time}")
    hours = f"{total_s / 3600:.2f} device hours, {total_s / 3600 / num_places:.2f} hours on {num_places} places"
    if unknown:  # a sum over the others alone is no estimate of all
        known = len(runs) - unknown
        rest = f"; the other {known}: {hours}" if known else ""
        hours = f"{unknown} runs are of architectures not measured yet{rest}"
    return "\n".join([*lines, f"{len(runs)} runs, {total_flops:.2e} FLOPs, {hours}"])
