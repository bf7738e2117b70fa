"""Where a sweep's runs train: worker processes of this machine, each with its GPU and its share of the cores."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from clip_la.errors import UserError
from clip_la.launched import SHARED_BY_VARIABLE, core_share

LOGS_NAME = "logs"
STOP_S = 60.0
# Which GPUs a process sees, by their numbers.
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Place(Protocol):
    """Where one run trains at a time. `runs_per_gpu` runs share its GPU, whose number is `gpu`.

    `gpu` is None where no other place of the sweep can be on the same one: a job's own, or none at all.
    """

    runs_per_gpu: int
    gpu: str | None

    def train(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        """Runs `clip-la train` with these arguments to its end.

        Returns:
            {"error": one line or None, "seconds": wall time, "out_of_memory": whether the GPU had no memory left (no
            such key is False), "is_fresh": whether its process had trained nothing before (no such key is True)}.
        """

    def rest(self) -> None:
        """Gives back what a place holds while nothing trains there: the next run begins in a new process."""

    def close(self) -> None:
        """Stops what is still at work."""


@dataclass(frozen=True)
class Slot:
    """A number, what is added to the environment of the worker there, and how many runs share its GPU."""

    number: int
    environment: Mapping[str, str] = field(default_factory=dict)
    runs_per_gpu: int = 1


def slots(gpus: Sequence[str], per_gpu: int) -> list[Slot]:
    """`per_gpu` places on each GPU (by the numbers that CUDA_VISIBLE_DEVICES takes), or so many on the CPU.

    The cores are dealt out over several places, so that their runs do not fight for them: threads of operators, loader
    processes of evaluations, threads that decode. A single place has the
    threads that `clip-la train` would have, and so the same digits on a CPU.

    Raises:
        UserError: fewer than one run at a time, or a GPU named twice.
    """
    if per_gpu < 1:
        raise UserError(f"--per-gpu must be at least 1, not {per_gpu}")
    if len(set(gpus)) != len(gpus):
        raise UserError(f"--gpus names a GPU twice: {','.join(gpus)}")
    places = max(1, len(gpus)) * per_gpu
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, core_share() // places)))
    shared = {"OMP_NUM_THREADS": threads, SHARED_BY_VARIABLE: str(places)} if places > 1 else {}
    if not gpus:
        return [Slot(number, shared) for number in range(per_gpu)]
    return [
        Slot(number, {**shared, VISIBLE: gpu}, per_gpu)
        for number, gpu in enumerate(gpu for _ in range(per_gpu) for gpu in gpus)
    ]


class Worker:
    """A worker process of one slot, started when first needed and again after it has died."""

    def __init__(self, slot: Slot, logs: Path) -> None:
        self._slot = slot
        self.runs_per_gpu = slot.runs_per_gpu
        self.gpu = slot.environment.get(VISIBLE)
        self.log = logs / f"worker-{slot.number}.log"
        self._process: subprocess.Popen[str] | None = None

    def train(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        """Trains one run to its end; the answer is that of `Place.train`.

        After one that finds no memory on the GPU the process ends: others have its memory at once, and what earlier
        runs left there is missing no more.
        """
        is_fresh = self._process is None
        answer = self._ask(name, arguments)
        if answer.get("out_of_memory"):
            self.rest()
        return {**answer, "is_fresh": is_fresh}

    def rest(self) -> None:
        """Ends the process, which holds a CUDA context and perhaps a decoded corpus on the GPU."""
        self.close()
        self._process = None

    def _ask(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"name": name, "arguments": arguments}) + "\n")
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


def has_gpu() -> bool:
    """Whether PyTorch finds a GPU here: a run on a named one would otherwise train on the CPU, without a word."""
    import torch

    return torch.cuda.device_count() > 0


def visible_gpus() -> list[str]:
    """The GPUs that runs may use, by the numbers that CUDA_VISIBLE_DEVICES takes."""
    import torch

    named = os.environ.get(VISIBLE)
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]
