"""A process that trains one run after another: `python -m clip_la.sweep.worker`, started by the sweep.

It reads a line of JSON a run (name, arguments of `clip-la train`) from its standard input, and answers each with one
line on the standard output that it was started with. One process for many runs: imports, decoded images and compiled
kernels are there from the second run on.
"""

import gc
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from clip_la.errors import UserError
from clip_la.sweep.planned_run import layers_of

ORPHAN_POLL_S = 0.5


# What other errors than torch.OutOfMemoryError say where a GPU has no memory left: CUDA's own, as it starts or loads a
# kernel, and its libraries'.
_NO_MEMORY = ("CUDA error: out of memory", "[CUDA]: out of memory", "_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that the GPU had no memory left."""
    import torch

    # Compilers wrap what a kernel's trial run raises.
    cause = error.__cause__ or error.__context__
    if isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _NO_MEMORY):
        return True
    return cause is not None and is_out_of_memory(cause)


def train_one(arguments: Sequence[str]) -> dict[str, Any]:
    """Trains one run; says how it ended: {"error": one line or None, "out_of_memory": of its GPU, "seconds": wall}."""
    import torch

    from clip_la.train.cli import run_and_say

    started = time.monotonic()
    error: str | None = None
    out_of_memory = False
    try:
        if not run_and_say(arguments).is_finished:
            error = "stopped"
    except UserError as wrong:
        error = " ".join(str(wrong).split())
    except Exception as fault:  # a fault of one run must not end the others; the log holds the traceback
        traceback.print_exc()
        error = f"{type(fault).__name__}: {' '.join(str(fault).split())}"
        out_of_memory = is_out_of_memory(fault)
    # Model and trainer know each other, so only the search for cycles frees them, and with them the GPU's memory.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {"error": error, "out_of_memory": out_of_memory, "seconds": time.monotonic() - started}


def end_with(parent: int) -> None:
    """Ends this process soon after the sweep's own: called again, the sweep trains in the same folders."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_POLL_S)
    os._exit(1)


def serve(requests: Iterable[str], answers: TextIO) -> None:
    """Trains run after run: a line of JSON (name, arguments) each from `requests`, one with its end to `answers`.

    After the first run of some layers all that lives on (modules, compiled code, decoded data) is left out of later
    searches for cycles. With half a million objects in it, each search took a third of a second on a CPU, twice that
    with compiled layers: half of what a short branch costs beyond its steps. What later runs leave is still found.
    """
    compiled: frozenset[str] | None = None
    is_frozen = False
    for line in requests:
        request = json.loads(line)
        layers = layers_of(request["arguments"])
        if compiled not in (None, layers):
            # What was compiled for other layers would only be looked through again.
            import torch

            torch.compiler.reset()
            gc.unfreeze()
            is_frozen = False
        compiled = layers
        answer = train_one(request["arguments"])
        if not is_frozen and answer["error"] is None:
            # Just searched by `train_one`: no model or trainer of the run is among what is frozen.
            gc.freeze()
            is_frozen = True
        print(json.dumps({"name": request["name"], **answer}), file=answers, flush=True)


def main() -> None:
    """Trains what comes in over the standard input until there is no more.

    What training prints goes to the standard error, which is the worker's log.
    """
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
