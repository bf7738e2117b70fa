"""Times the attention kernels against their peers on this GPU: tidy rows, written by `clip-la bench kernels`.

Every time is the median of repeated calls: kernels alone by CUDA-graph replay, whole autograd calls launched from
Python. The floor of a row is its counted bytes over the bandwidth of a device-to-device copy measured in the same run;
T is the bytes of one (B, N, H, D) tensor, 4 T forward and 11 T forward and backward. Correctness is checked first, at
the very shapes timed.
"""

import dataclasses
import gc
import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from clip_la_kernels.ops.linear_attention import configs

from clip_la.bench import providers
from clip_la.bench.providers import Shape
from clip_la.errors import UserError

FORWARD, BOTH = "forward", "forward_backward"
TENSORS = {FORWARD: 4, BOTH: 11}
GRAPH, EAGER = "graph", "eager"

# Milliseconds of work behind one time, and how many times a median is taken of.
SAMPLE_MS = 4.0
SAMPLES = 11
MAX_CALLS = 50
# Bytes of the copy whose bandwidth is the floor: many times any cache.
COPY_BYTES = 2 << 30
# Relative error of bfloat16 against float32, output and gradients.
GATE = 3e-2
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass
class Row:
    """One line of results/kernels.csv."""

    device: str
    torch: str
    triton: str
    provider: str
    op: str
    mode: str
    causal: bool
    denominator: str
    dtype: str
    B: int
    N: int
    H: int
    D: int
    median_ms: float
    p20_ms: float
    p80_ms: float
    floor_ms: float
    ratio_to_floor: float
    gbps: float
    peak_mib: float
    timing: str


IMAGE_SHAPES = [
    Shape(256, 197, 12),
    Shape(256, 257, 6),
    Shape(128, 577, 12),
    Shape(64, 1025, 12),
    Shape(16, 4097, 12),
    Shape(4, 16385, 12),
]
LINEAR_SHAPES = [Shape(16, 4096, 12), Shape(1, 65536, 12), Shape(4, 1_000_000, 8)]
CAUSAL_SHAPES = [Shape(4, n, 16, 128, True) for n in (10_000, 2048, 4096)]
TEXT_SHAPES = [Shape(256, 77, 8, 64, True)]
# The reference forms the matrix of weights: up to here the gate checks the very shape.
GATE_TOKENS = 4200
QUICK_SHAPES = [Shape(8, 197, 12), Shape(8, 77, 8, 64, True)]


def all_shapes() -> list[Shape]:
    """The whole table: image towers, linearity in N and a million tokens, captions, and the causal shape of arXiv
    2510.21956."""
    return [CAUSAL_SHAPES[0], *IMAGE_SHAPES, *TEXT_SHAPES, *CAUSAL_SHAPES[1:], *LINEAR_SHAPES]


def quantiles(call: Callable[[], Any], timing: str) -> tuple[float, float, float]:
    """(median, 20th, 80th percentile) milliseconds of one call."""
    call()
    torch.cuda.synchronize()
    once = _elapsed(call, 1)
    calls = max(1, min(MAX_CALLS, int(SAMPLE_MS / max(once, 1e-3))))
    with _without_collector():
        if timing == GRAPH:
            graph = _captured(call, calls)
            times = [_elapsed(graph.replay, 1) / calls for _ in range(SAMPLES)]
            del graph
        else:
            times = [_elapsed(call, calls) / calls for _ in range(SAMPLES)]
    cuts = statistics.quantiles(times, n=10, method="inclusive")
    return statistics.median(times), cuts[1], cuts[7]


@contextmanager
def _without_collector() -> Iterator[None]:
    """As in `timeit`: with compilers and peers loaded, one run of the garbage collector outlasts many calls."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _elapsed(call: Callable[[], Any], calls: int) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


def _captured(call: Callable[[], Any], calls: int) -> torch.cuda.CUDAGraph:
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
    median, _, _ = quantiles(lambda: target.copy_(source), EAGER)
    return 2 * COPY_BYTES / (median * 1e-3)


def peak_mib(call: Callable[[], Any]) -> float:
    """Peak memory of one call beside what is allocated before it, MiB."""
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


def check(provider: providers.Provider, shape: Shape, dtype: torch.dtype) -> None:
    """Raises UserError unless our provider agrees with the reference in float32 on a slice of the batch and of the
    heads, computed in the structure that the whole shape takes; output and gradients."""
    small = dataclasses.replace(shape, batch=1, heads=min(shape.heads, 2))
    case = provider.prepare(small, dtype)
    with configs.forced({}, **structure(shape)):
        out = case.forward()
        grads = torch.autograd.grad(out, case.inputs, case.grad)
    law = provider.law(case, small)
    for ours, exact in zip((out.detach(), *grads), law, strict=True):
        error = float((ours.float() - exact).norm() / exact.norm())
        if not error < GATE:
            raise UserError(
                f"bench kernels: {provider.name} is wrong at {small}: relative error {error:.3g}; no times were taken"
            )


def structure(shape: Shape) -> dict[str, int]:
    """The plan of a shape, to force on a smaller one: parts of heads, whole heads, and the copy engine."""
    heads, device = shape.batch * shape.heads, torch.device("cuda", torch.cuda.current_device())
    scan = configs.scan(heads, shape.tokens, shape.width, device)
    parts = configs.plan(heads, shape.tokens, shape.width, device).parts
    return {"parts": parts, "causal_parts": scan.parts, "whole": scan.whole, "tma_bytes": 0}


def rows(
    shapes: Iterable[Shape], chosen: Iterable[providers.Provider], dtype: torch.dtype, bandwidth: float
) -> Iterator[Row]:
    """Times every provider that serves a shape, forward and both, by graph and eagerly; yields a row a time."""
    for shape, provider in itertools.product(shapes, chosen):
        if not provider.serves(shape):
            continue
        yield from _provider_rows(provider, shape, dtype, bandwidth)
        gc.collect()
        torch.cuda.empty_cache()


def _provider_rows(provider: providers.Provider, shape: Shape, dtype: torch.dtype, bandwidth: float) -> Iterator[Row]:
    try:
        case = provider.prepare(shape, dtype)
        calls = {FORWARD: case.forward_only, BOTH: case.both}
        for mode, call in calls.items():
            call()
            memory = peak_mib(call)
            for timing in (GRAPH, EAGER) if provider.graphs else (EAGER,):
                yield _row(provider, shape, dtype, mode, timing, quantiles(call, timing), memory, bandwidth)
    # A peer that fails at a shape is left out there, whatever it raises; ours failed at the gate already if it is
    # wrong.
    except Exception as error:
        providers.note(f"{provider.name} at {shape}: {' '.join(str(error).split())[:160]}")


def _row(
    provider: providers.Provider, shape: Shape, dtype: torch.dtype, mode: str, timing: str,
    times: tuple[float, float, float], memory: float, bandwidth: float,
) -> Row:  # fmt: skip
    name = str(dtype).removeprefix("torch.")
    tensor = shape.batch * shape.tokens * shape.heads * shape.width * BYTES[name]
    floor = TENSORS[mode] * tensor / bandwidth * 1e3
    return Row(
        torch.cuda.get_device_name(), torch.__version__, providers.version("triton"), provider.name, provider.op, mode,
        shape.causal,
        provider.denominator, name, shape.batch, shape.tokens, shape.heads, shape.width, *times, floor,
        times[0] / floor,
        TENSORS[mode] * tensor / (times[0] * 1e-3) / 1e9, memory, timing,
    )  # fmt: skip
