"""`clip-la scaling sweep`: a grid of training runs, resumed after a stop."""

import argparse
import sys
from pathlib import Path

from clip_la.cli import Parser
from clip_la.errors import UserError, unknown

DESCRIPTION = "Trains every run of a grid (YAML), one at a time on each GPU; what is finished is skipped."
FAILED_EXIT_CODE = 1
LAUNCHERS = ("local", "slurm")
DEFAULT_JOBS = 8


def parser() -> Parser:
    """The options of the command."""
    made = Parser(prog="clip-la scaling sweep", description=DESCRIPTION)
    made.add_argument("file", type=Path, metavar="FILE", help="sweep file; see configs/sweep")
    made.add_argument("--out", type=Path, required=True, help="folder of the runs, the table, the status and the logs")
    made.add_argument("--gpus", metavar="N[,N]", help="GPUs to train on (default: all that are visible; none: the CPU)")
    made.add_argument("--per-gpu", type=int, default=1, metavar="N", help="runs at a time on each GPU (default 1)")
    made.add_argument("--launcher", default="local", help="local (default): GPUs of this machine; slurm: jobs")
    made.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of each job, as for sbatch: partition=gpu, timeout_min=240, cpus_per_task=16; repeatable",
    )
    made.add_argument("--jobs", type=int, metavar="N", help=f"jobs at a time (default {DEFAULT_JOBS})")
    made.add_argument("--dry-run", action="store_true", help="list the runs with their cost, train nothing")
    made.add_argument(
        "--rates",
        type=Path,
        action="append",
        default=[],
        metavar="OUT",
        help="folder of another sweep whose measured rates predict the cost; repeatable",
    )
    made.add_argument(
        "--keep",
        default="all",
        help="checkpoints that stay: all (default), branches (a trunk's go when its branches are finished), none",
    )
    return made


def _check(options: argparse.Namespace) -> None:
    """Raises UserError for values of options that cannot be, or do not go together."""
    from clip_la.runs import RunFolder
    from clip_la.sweep.runner import KEEP

    if options.keep not in KEEP:
        raise unknown("value of --keep", options.keep, KEEP)
    absent = next((folder for folder in options.rates if not folder.is_dir()), None)
    if absent is not None:
        raise UserError(f"--rates {absent}: no such folder")
    if options.launcher not in LAUNCHERS:
        raise unknown("launcher", options.launcher, LAUNCHERS)
    by_slurm = options.launcher == "slurm"
    if (options.jobs is not None and options.jobs < 1) or (not by_slurm and (options.slurm or options.jobs)):
        raise UserError("--jobs (a number from 1) and --slurm belong to --launcher slurm")
    RunFolder(options.out).check_is_no_file()


def main(argv: list[str]) -> int:
    """Runs the sweep; returns 0, or 1 where runs failed. Raises UserError."""
    from clip_la.sweep.check import check_runs, check_shards
    from clip_la.sweep.costs import cost_table
    from clip_la.sweep.places import LOGS_NAME, Place, Worker, has_gpu, slots, visible_gpus
    from clip_la.sweep.plan import read_plan
    from clip_la.sweep.planned_run import PlannedRun
    from clip_la.sweep.runner import Sweep, count_evaluations
    from clip_la.sweep.state import is_finished

    options = parser().parse_args(argv)
    _check(options)
    by_slurm = options.launcher == "slurm"
    jobs = DEFAULT_JOBS if options.jobs is None else options.jobs
    runs = read_plan(options.file)
    # Before a folder is made or a GPU looked for; --dry-run says as much as the real run would, but for data, which may
    # be on another machine.
    checked = check_runs(options.file, options.out, runs)
    gpus = visible_gpus() if options.gpus is None else [gpu for gpu in options.gpus.split(",") if gpu]
    if options.gpus and not options.dry_run and not by_slurm and not has_gpu():
        raise UserError(f"--gpus {options.gpus}: no GPU can be used here (none: --gpus '' trains on the CPU)")
    local = slots(gpus, options.per_gpu)
    if options.dry_run:
        num_places = jobs if by_slurm else len(local)
        print(cost_table(runs, options.out, num_places, options.rates))
        return 0
    suites = {run.options.get("zeroshot_suite") for run in runs}
    evaluations = {suite: count_evaluations(suite) for suite in suites}

    def num_evaluations(run: PlannedRun) -> int:
        # Averaged weights are evaluated beside the trained ones.
        return evaluations[run.options.get("zeroshot_suite")] * (2 if run.options.get("model.ema_samples") else 1)

    places: list[Place]
    if by_slurm:
        from clip_la.sweep.slurm import job_places

        places = [*job_places(options.out, jobs, options.slurm)]
    else:
        # Jobs may find their data on disks of their own nodes.
        needed = [run for run in runs if not run.is_trunk and not is_finished(options.out, run, num_evaluations(run))]
        check_shards(options.file, needed, checked)
        places = [Worker(slot, options.out / LOGS_NAME) for slot in local]
    failed = Sweep(
        runs,
        options.out,
        places,
        num_evaluations=num_evaluations,
        report=lambda text: print(text, file=sys.stderr, flush=True),
        keep=options.keep,
        measured=options.rates,
    ).run()
    print(f"wrote {options.out / 'sweep.csv'}" + (f"; {len(failed)} failed: {', '.join(failed)}" if failed else ""))
    return FAILED_EXIT_CODE if failed else 0
