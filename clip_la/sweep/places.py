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

LOGS_NAME = "logs"
STOP_S = 60.0


class Place(Protocol):
    """Where one run trains at a time. `runs_per_gpu` runs share its GPU."""

    runs_per_gpu: int

    def train(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        """Runs `clip-la train` with these arguments to its end: {"error": one line or None, "seconds": wall time}."""

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

    The cores are dealt out over several places, so that their runs do not fight for them. A single place has the
    threads that `clip-la train` would have, and so the same digits on a CPU.

    Raises:
        UserError: fewer than one run at a time, or a GPU named twice.
    """
    if per_gpu < 1:
        raise UserError(f"--per-gpu must be at least 1, not {per_gpu}")
    if len(set(gpus)) != len(gpus):
        raise UserError(f"--gpus names a GPU twice: {','.join(gpus)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    places = max(1, len(gpus)) * per_gpu
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // places)))
    shared = {"OMP_NUM_THREADS": threads} if places > 1 else {}
    if not gpus:
        return [Slot(number, shared) for number in range(per_gpu)]
    return [
        Slot(number, {**shared, "CUDA_VISIBLE_DEVICES": gpu}, per_gpu)
        for number, gpu in enumerate(gpu for _ in range(per_gpu) for gpu in gpus)
    ]


# How the answer of a worker begins where the GPU had no memory left (torch.OutOfMemoryError).
OUT_OF_MEMORY = "OutOfMemoryError"


class Worker:
    """A worker process of one slot, started when first needed and again after it has died."""

    def __init__(self, slot: Slot, logs: Path) -> None:
        self._slot = slot
        self.runs_per_gpu = slot.runs_per_gpu
        self.log = logs / f"worker-{slot.number}.log"
        self._process: subprocess.Popen[str] | None = None

    def train(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        """Trains one run to its end; {"error": one line or None, ...}.

        One that finds no memory on the GPU is tried once more, in a process of its own.
        """
        answer = self._ask(name, arguments)
        if str(answer["error"]).startswith(OUT_OF_MEMORY):
            # What earlier runs left in the process may be what was missing: a new one begins with none of it.
            self.close()
            self._process = None
            answer = self._ask(name, arguments)
        return answer

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


def visible_gpus() -> list[str]:
    """The GPUs that runs may use, by the numbers that CUDA_VISIBLE_DEVICES takes."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]
