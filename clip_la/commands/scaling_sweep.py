"""`clip-la scaling sweep`: a grid of training runs, gone on with after a stop."""

import sys
from pathlib import Path

from clip_la.cli import Parser

DESCRIPTION = "Trains every run of a grid (YAML), one at a time on each GPU; what is finished is skipped."
FAILED_EXIT_CODE = 1


def parser() -> Parser:
    """The options of the command."""
    made = Parser(prog="clip-la scaling sweep", description=DESCRIPTION)
    made.add_argument("file", type=Path, metavar="FILE", help="sweep file; see configs/sweep")
    made.add_argument("--out", type=Path, required=True, help="folder of the runs, the table and the logs")
    made.add_argument("--gpus", metavar="N[,N]", help="GPUs to train on (default: all that are visible; none: the CPU)")
    made.add_argument("--per_gpu", type=int, default=1, metavar="N", help="runs at a time on each GPU (default 1)")
    made.add_argument("--dry-run", action="store_true", help="list the runs with their cost, train nothing")
    return made


def main(argv: list[str]) -> int:
    """Runs the sweep; returns 0, or 1 where runs failed. Raises UserError."""
    from clip_la.sweep.costs import cost_table, flops_per_sample
    from clip_la.sweep.plan import read_plan
    from clip_la.sweep.runner import check_places, count_evaluations, run_sweep, slots, visible_gpus

    options = parser().parse_args(argv)
    runs = read_plan(options.file)
    gpus = visible_gpus() if options.gpus is None else [gpu for gpu in options.gpus.split(",") if gpu]
    check_places(gpus, options.per_gpu)
    if options.dry_run:
        print(cost_table(runs, options.out, max(1, len(gpus)) * options.per_gpu))
        return 0
    for run in runs:
        # Before anything is trained: an attention that does not fit is refused here.
        flops_per_sample(run)
    suites = {run.options.get("zeroshot_suite") for run in runs}
    evaluations = {suite: count_evaluations(suite) for suite in suites}
    failed = run_sweep(
        runs,
        options.out,
        slots(gpus, options.per_gpu),
        num_evaluations=lambda run: evaluations[run.options.get("zeroshot_suite")],
        report=_say,
    )
    print(f"wrote {options.out / 'sweep.csv'}" + (f"; {len(failed)} failed: {', '.join(failed)}" if failed else ""))
    return FAILED_EXIT_CODE if failed else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
