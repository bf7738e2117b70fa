"""Runs a sweep on this machine: a worker process for each GPU (or several), fed run by run."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_la.errors import UserError
from clip_la.sweep.plan import PlannedRun, folder_of, keep_manifest
from clip_la.sweep.state import is_finished, last_row, result_lines, write_table

LOGS_NAME = "logs"
STOP_S = 60.0
Report = Callable[[str], None]


@dataclass(frozen=True)
class Slot:
    """A place where one run trains at a time: its number and what is added to its worker's environment."""

    number: int
    environment: Mapping[str, str] = field(default_factory=dict)


def slots(gpus: Sequence[str], per_gpu: int) -> list[Slot]:
    """`per_gpu` places on each GPU (by the numbers that CUDA_VISIBLE_DEVICES takes), or so many on the CPU.

    The cores are dealt out over several places, so that their runs do not fight for them. A single place has the
    threads that `clip-la train` would have, and so the same digits on a CPU.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    places = max(1, len(gpus)) * per_gpu
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // places)))
    shared = {"OMP_NUM_THREADS": threads} if places > 1 else {}
    if not gpus:
        return [Slot(number, shared) for number in range(per_gpu)]
    return [
        Slot(number, {**shared, "CUDA_VISIBLE_DEVICES": gpu})
        for number, gpu in enumerate(gpu for _ in range(per_gpu) for gpu in gpus)
    ]


class Worker:
    """A worker process of one slot, started when first needed and again after it has died."""

    def __init__(self, slot: Slot, logs: Path) -> None:
        self._slot = slot
        self.log = logs / f"worker-{slot.number}.log"
        self._process: subprocess.Popen[str] | None = None

    def train(self, run: PlannedRun, out: Path) -> dict[str, Any]:
        """Trains one run to its end; {"error": one line or None, ...}."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"name": run.name, "arguments": run.arguments(out)}) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return dict(json.loads(answer))
        code = process.wait()
        self._process = None
        return {"error": f"its process ended with exit code {code}; see {self.log}"}

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "clip_la.sweep.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, **self._slot.environment},
                )
        return self._process

    def close(self) -> None:
        """Lets the process end; ends it where it is still at work."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()


def run_sweep(
    runs: Sequence[PlannedRun],
    out: Path,
    places: Sequence[Slot],
    *,
    num_evaluations: Callable[[PlannedRun], int],
    report: Report,
) -> list[str]:
    """Trains every run that is not finished, a run a place; the table in `out` is written anew after each.

    Args:
        num_evaluations: how many results a run has once it is finished.
        report: hears a line for each run.

    Returns the names of the runs that failed. Raises UserError where `out` holds another sweep's runs.
    """
    keep_manifest(out, list(runs))
    waiting: queue.SimpleQueue[PlannedRun] = queue.SimpleQueue()
    todo = [run for run in runs if not is_finished(out, run, num_evaluations(run))]
    for run in todo:
        waiting.put(run)
    report(f"{len(runs)} runs, {len(runs) - len(todo)} finished already, {len(todo)} to train on {len(places)} places")
    failed: list[str] = []
    faults: list[BaseException] = []
    lock = threading.Lock()
    workers = [Worker(place, out / LOGS_NAME) for place in places[: len(todo)]]

    def work(worker: Worker) -> None:
        try:
            train_waiting(worker)
        except BaseException as fault:  # a thread's own end would look like the end of its runs
            faults.append(fault)

    def train_waiting(worker: Worker) -> None:
        while True:
            try:
                run = waiting.get_nowait()
            except queue.Empty:
                return
            answer = worker.train(run, out)
            with lock:
                if answer["error"] is not None:
                    failed.append(run.name)
                report(f"[{len(runs) - waiting.qsize()}/{len(runs)}] {run.name}: {outcome(out, run, answer)}")
                write_table(out, runs)

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for worker in workers:
            worker.close()
    if faults:
        raise faults[0]
    write_table(out, runs)
    return failed


def outcome(out: Path, run: PlannedRun, answer: Mapping[str, Any]) -> str:
    """How a run ended, for a person: loss, rate, results; or what was wrong."""
    if answer["error"] is not None:
        return f"FAILED: {answer['error']}"
    folder = folder_of(out, run.name)
    last = last_row(folder)
    parts = [f"loss {float(last['loss']):.4f}", f"{float(last['pairs_per_s']):,.0f} pairs/s"] if last else []
    for line in result_lines(folder):
        name, value = next(iter(line["metrics"].items()))
        parts.append(f"{line['dataset']} {name} {100 * value['value']:.1f} %")
    return ", ".join([*parts, f"{answer['seconds']:.0f} s"])


def visible_gpus() -> list[str]:
    """The GPUs that runs may use, by the numbers that CUDA_VISIBLE_DEVICES takes."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def count_evaluations(suite: str | None) -> int:
    """Results that a run evaluated on this suite has at its end. Raises UserError for a suite that cannot be read."""
    if suite is None:
        return 0
    from clip_la.zeroshot.options import read_suite

    return len(read_suite(suite)[1])


def check_places(gpus: Sequence[str], per_gpu: int) -> None:
    """Raises UserError for a number of places that makes no sense."""
    if per_gpu < 1:
        raise UserError(f"--per_gpu must be at least 1, not {per_gpu}")
    if len(set(gpus)) != len(gpus):
        raise UserError(f"--gpus names a GPU twice: {','.join(gpus)}")
