"""How long a call takes and how much memory: what all tables measure with.

Every time is the median of several samples, and a sample is as many calls as fill SAMPLE_MS: the clock's resolution and
a launch's own time then do not show.
"""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

# Calls launched from Python, or replayed by a CUDA graph: kernels alone, without the host.
EAGER, GRAPH = "eager", "graph"
# Milliseconds of work behind one time, and how many times a median is taken of.
SAMPLE_MS = 4.0
SAMPLES = 11
MAX_CALLS = 50
# Bytes of the copy whose bandwidth is the floor: many times any cache.
COPY_BYTES = 2 << 30
CUDA = torch.device("cuda")


def quantiles(
    call: Callable[[], Any], timing: str = EAGER, device: torch.device = CUDA, samples: int = SAMPLES
) -> tuple[float, float, float]:
    """(median, 20th, 80th percentile) milliseconds of one call, after a first one that may compile.

    Args:
        timing: EAGER, or GRAPH on a GPU alone.
        device: where the call does its work, a CPU or a GPU.
        samples: times that the median is taken of, at least 2.
    """
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    once = elapsed_ms(call, 1, device)
    calls = max(1, min(MAX_CALLS, int(SAMPLE_MS / max(once, 1e-3))))
    # As in `timeit`: with compilers and peers loaded, one run of the garbage collector outlasts many calls.
    collects = gc.isenabled()
    gc.disable()
    try:
        if timing == GRAPH:
            graph = captured(call, calls)
            times = [elapsed_ms(graph.replay, 1, device) / calls for _ in range(samples)]
            del graph
        else:
            times = [elapsed_ms(call, calls, device) / calls for _ in range(samples)]
    finally:
        if collects:
            gc.enable()
    cuts = statistics.quantiles(times, n=10, method="inclusive")
    return statistics.median(times), cuts[1], cuts[7]


def elapsed_ms(call: Callable[[], Any], calls: int, device: torch.device = CUDA) -> float:
    """Milliseconds that so many calls take: by the device's own clock on a GPU, by the wall clock on a CPU."""
    if device.type == "cpu":
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        return 1e3 * (time.perf_counter() - begun)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        call()
    stop.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(stop)


def captured(call: Callable[[], Any], calls: int) -> torch.cuda.CUDAGraph:
    """A CUDA graph of so many calls, replayed once."""
    # What a first call on a stream sets up cannot be captured.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    return graph


def copy_bandwidth() -> float:
    """Bytes a second of a device-to-device copy, read and written counted. Eager: a graph's copy node is slower than
    the copy kernel."""
    source = torch.randn(COPY_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    median, _, _ = quantiles(lambda: target.copy_(source))
    return 2 * COPY_BYTES / (median * 1e-3)


def peak_mib(call: Callable[[], Any]) -> float:
    """Peak GPU memory of one call beside what is allocated before it, MiB."""
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak / 2**20
