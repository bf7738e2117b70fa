"""A sweep's runs, checked before anything is trained: options as training reads them, architectures, suites."""

from collections.abc import Sequence
from pathlib import Path

from clip_la.errors import UserError
from clip_la.sweep.costs import flops_per_sample
from clip_la.sweep.plan import PlannedRun
from clip_la.sweep.runner import count_evaluations
from clip_la.train.cli import parse

SUITE = "zeroshot_suite"


def check_runs(file: Path, out: Path, runs: Sequence[PlannedRun]) -> None:
    """Checks every run by training's own parser, without torch: a grid of 400 runs takes seconds.

    Args:
        file: what the sweep was read from, which errors name.
        out: the sweep's folder; nothing is written there, nor read of runs that lie in it.

    Raises:
        UserError: an option that training refuses, an attention that does not fit its model, a suite that is not there
            or damaged; with file, run and option.
    """
    checked: set[str] = set()
    for run in runs:
        # The branches of a trunk differ in lengths alone, which the sweep works out and checks itself.
        if run.trunk in checked:
            continue
        checked |= {run.trunk} if run.trunk else set()
        try:
            parse(run.option_arguments(out))
            flops_per_sample(run)
        except UserError as error:
            raise UserError(f"{file}: run {run.name}: {error}") from None
        try:
            count_evaluations(run.options.get(SUITE))
        except UserError as error:
            raise UserError(f"{file}: run {run.name}: option {SUITE}: {error}") from None
