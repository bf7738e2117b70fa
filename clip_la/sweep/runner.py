"""Runs a sweep: a thread for each place, fed run by run, and the table written anew after each."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_la.sweep.places import Place
from clip_la.sweep.plan import PlannedRun, folder_of, keep_manifest
from clip_la.sweep.schedule import Schedule
from clip_la.sweep.state import drop_checkpoints, figures, is_finished, last_row, write_place, write_table
from clip_la.sweep.status import Status

# Which checkpoints stay when nothing of the sweep needs them any more.
KEEP = ("all", "branches", "none")
Report = Callable[[str], None]


def run_sweep(
    runs: Sequence[PlannedRun],
    out: Path,
    places: Sequence[Place],
    *,
    num_evaluations: Callable[[PlannedRun], int],
    report: Report,
    keep: str = "all",
    measured: Sequence[Path] = (),
) -> list[str]:
    """Trains every run that is not finished, a run a place; table and status in `out` are written anew meanwhile.

    Args:
        runs: of the plan; trunks before branches is no must.
        out: the sweep's folder.
        places: where runs train; they are closed at the end.
        num_evaluations: how many results a run has once it is finished.
        report: hears a line for each run, and one of sum each minute.
        keep: "all" checkpoints; "branches": a trunk's are deleted when its branches are finished; "none": those of
            every finished run are deleted.
        measured: folders of other sweeps whose rates tell how long the rest takes.

    Returns the names of the runs that failed. Raises UserError where `out` holds another sweep's runs.
    """
    keep_manifest(out, runs)
    lock = threading.Lock()

    def say(run: PlannedRun, text: str) -> None:
        with lock:
            ended = len(schedule.finished) + len(schedule.failed)
            report(f"[{ended}/{len(runs)}] {run.name}: {text}")

    schedule = Schedule(
        runs,
        out,
        lambda run: is_finished(out, run, num_evaluations(run)),
        lambda run, reason: say(run, f"FAILED: {reason}"),
    )
    todo = len(schedule.waiting)
    report(f"{len(runs)} runs, {len(runs) - todo} finished already, {todo} to train on {len(places)} places")
    faults: list[BaseException] = []

    def work(place: Place) -> None:
        try:
            while (taken := schedule.take()) is not None:
                run, start = taken
                write_place(folder_of(out, run.name), place.runs_per_gpu)
                answer = place.train(run.name, run.arguments(out, start))
                schedule.end(run, is_failed=answer["error"] is not None)
                say(run, outcome(out, run, answer))
                with lock:
                    _drop_needless(schedule, runs, out, run, keep)
                    write_table(out, runs)
        except BaseException as fault:  # a thread's own end would look like the end of its runs
            faults.append(fault)
            schedule.close()

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in places[:todo]]
    status = Status(runs, out, schedule, len(places), measured)
    try:
        for thread in threads:
            thread.start()
        status.watch(threads, report)
    finally:
        for place in places:
            place.close()
    if faults:
        raise faults[0]
    write_table(out, runs)
    status.write()
    return [run.name for run in schedule.failed]


def _drop_needless(schedule: Schedule, runs: Sequence[PlannedRun], out: Path, run: PlannedRun, keep: str) -> None:
    """Deletes the checkpoints that a finished run leaves behind, as far as `keep` allows."""
    if keep == "none" and not run.is_trunk and run in schedule.finished:
        drop_checkpoints(out, run.name)
    # A trunk that was killed goes on from its own: they stay until the last branch is done.
    family = [each for each in runs if run.trunk and run.trunk in (each.trunk, each.name)]
    if keep != "all" and family and all(each in schedule.finished for each in family):
        drop_checkpoints(out, str(run.trunk))


def outcome(out: Path, run: PlannedRun, answer: Mapping[str, Any]) -> str:
    """How a run ended, for a person: loss, rate, results; or what was wrong."""
    if answer["error"] is not None:
        return f"FAILED: {answer['error']}"
    folder = folder_of(out, run.name)
    last = last_row(folder)
    parts = [f"loss {float(last['loss']):.4f}", f"{float(last['pairs_per_s']):,.0f} pairs/s"] if last else []
    return ", ".join([*parts, *figures(folder), f"{answer['seconds']:.0f} s"])


def count_evaluations(suite: str | None) -> int:
    """Results that a run evaluated on this suite has at its end. Raises UserError for a suite that cannot be read."""
    if suite is None:
        return 0
    from clip_la.zeroshot.options import read_suite

    return len(read_suite(suite)[1])
