"""A sweep's runs, checked before anything is trained: options as training reads them, architectures, suites, data."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from clip_la.errors import UserError
from clip_la.sweep.costs import flops_per_sample
from clip_la.sweep.planned_run import PlannedRun
from clip_la.sweep.runner import count_evaluations
from clip_la.sweep.state import COLUMNS, TABLE_NAME
from clip_la.train.cli import check_data, check_plan, parse
from clip_la.train.options import TrainOptions

SUITE = "zeroshot_suite"


def check_runs(file: Path, out: Path, runs: Sequence[PlannedRun]) -> dict[str, TrainOptions]:
    """Checks every run by training's own parser, without torch: a grid of 400 runs takes seconds.

    Args:
        file: what the sweep was read from, which errors name.
        out: the sweep's folder; nothing is written there, nor read of runs that lie in it.

    Returns:
        The options of each run, by its name; of a trunk and its branches one's, by the trunk's.

    Raises:
        UserError: an axis called as a column of the sweep's table, an option that training refuses, a schedule that
            does not fit its budget, an attention that does not fit its model, a suite that is not there or damaged;
            with file, run and option.
    """
    axes = dict.fromkeys(axis for run in runs for axis in run.place)
    if taken := next((axis for axis in axes if axis in COLUMNS), None):
        raise UserError(f"{file}: grid.{taken}: {TABLE_NAME} has a column of that name: call the axis otherwise")
    found: dict[str, TrainOptions] = {}
    checked: set[str] = set()
    for run in runs:
        # The branches of a trunk differ in lengths alone, which the sweep works out and checks itself.
        if run.trunk in checked:
            continue
        checked |= {run.trunk} if run.trunk else set()
        try:
            options = parse(run.option_arguments(out))
            check_plan(options)
            flops_per_sample(run)
        except UserError as error:
            raise UserError(f"{file}: run {run.name}: {error}") from None
        found[run.trunk or run.name] = options
        try:
            count_evaluations(run.options.get(SUITE))
        except UserError as error:
            raise UserError(f"{file}: run {run.name}: option {SUITE}: {error}") from None
    return found


def check_shards(file: Path, runs: Iterable[PlannedRun], options: Mapping[str, TrainOptions]) -> None:
    """Raises UserError, with file and run, where shards that `runs` train on are not there.

    Args:
        options: what `check_runs` returned.
    """
    looked_at: set[str] = set()
    for run in runs:
        own = options[run.trunk or run.name]
        if (sources := repr((own.data.shards, own.data.weights))) in looked_at:
            continue
        looked_at.add(sources)
        try:
            check_data(own)
        except UserError as error:
            raise UserError(f"{file}: run {run.name}: {error}") from None
