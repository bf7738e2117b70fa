"""Times the attention kernels against their peers on this GPU: tidy rows, written by `clip-la bench kernels`.

Kernels alone are timed by CUDA-graph replay, whole autograd calls launched from Python. The floor of a row is its
counted bytes over the bandwidth of a device-to-device copy measured in the same run; T is the bytes of one
(B, N, H, D) tensor, 4 T forward and 11 T forward and backward. Correctness is checked first, at the very shapes timed.
"""

import dataclasses
import gc
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from clip_la_kernels.ops.linear_attention import configs

from clip_la.bench import providers
from clip_la.bench.providers import Shape
from clip_la.bench.table import note
from clip_la.bench.timing import EAGER, GRAPH, peak_mib, quantiles
from clip_la.errors import UserError

FORWARD, BOTH = "forward", "forward_backward"
TENSORS = {FORWARD: 4, BOTH: 11}
# Relative error of bfloat16 against float32, output and gradients.
GATE = 3e-2


@dataclass
class KernelRow:
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
# The whole table: image towers, linearity in N and a million tokens, captions, and the causal shape of arXiv
# 2510.21956.
ALL_SHAPES = [CAUSAL_SHAPES[0], *IMAGE_SHAPES, *TEXT_SHAPES, *CAUSAL_SHAPES[1:], *LINEAR_SHAPES]
QUICK_SHAPES = [Shape(8, 197, 12), Shape(8, 77, 8, 64, True)]
# The reference forms the matrix of weights: up to here the gate checks the very shape.
GATE_TOKENS = 4200


def check(provider: providers.Provider, shape: Shape, dtype: torch.dtype) -> None:
    """Raises UserError unless our provider agrees with the reference in float32 on a slice of the batch and of the
    heads, computed in the structure that the whole shape takes; output and gradients."""
    note(f"checking {provider.name} at {shape}")
    small = dataclasses.replace(shape, batch=1, heads=min(shape.heads, 2))
    case = provider.prepare(small, dtype)
    # The plan of the whole shape, forced on the small one: splits of heads, whole heads, and TMA.
    heads, device = shape.batch * shape.heads, torch.device("cuda", torch.cuda.current_device())
    scan = configs.Scan.of(heads, shape.tokens, shape.width, device)
    splits = configs.Plan.of(heads, shape.tokens, device).splits
    with configs.forced({}, splits=splits, causal_splits=scan.splits, whole=scan.whole, tma_bytes=0):
        out = case.forward()
        grads = torch.autograd.grad(out, case.inputs, case.grad)
    reference = provider.expected(case, small)
    for ours, exact in zip((out.detach(), *grads), reference, strict=True):
        error = float((ours.float() - exact).norm() / exact.norm())
        if not error < GATE:
            raise UserError(
                f"bench kernels: {provider.name} is wrong at {small}: relative error {error:.3g}; no times were taken"
            )


def rows(
    shapes: Iterable[Shape], chosen: Iterable[providers.Provider], dtype: torch.dtype, bandwidth: float
) -> Iterator[KernelRow]:
    """Times every provider that serves a shape, forward and both, by graph and eagerly; yields a row a time.

    bandwidth: bytes a second of a copy, see `timing.copy_bandwidth`.
    """
    device, software = torch.cuda.get_device_name(), (torch.__version__, providers.version("triton"))
    for shape, provider in itertools.product(shapes, chosen):
        if not provider.serves(shape):
            continue
        sizes = (shape.batch, shape.tokens, shape.heads, shape.width)
        tensor_bytes = shape.batch * shape.tokens * shape.heads * shape.width * dtype.itemsize
        kind = (provider.denominator, str(dtype).removeprefix("torch."))
        try:
            case = provider.prepare(shape, dtype)
            for mode, call in ((FORWARD, case.forward_only), (BOTH, case.both)):
                call()
                memory, moved = peak_mib(call), TENSORS[mode] * tensor_bytes
                floor_ms = moved / bandwidth * 1e3
                for timing in (GRAPH, EAGER) if provider.graphs else (EAGER,):
                    times = quantiles(call, timing)
                    rates = (floor_ms, times[0] / floor_ms, moved / (times[0] * 1e-3) / 1e9)
                    who = (provider.name, provider.op, mode)
                    about = (device, *software, *who, shape.causal, *kind, *sizes)
                    yield KernelRow(*about, *times, *rates, memory, timing)
        # A peer that fails at a shape is left out there, whatever it raises; ours failed at the gate already if it is
        # wrong.
        except Exception as error:
            note(f"{provider.name} at {shape}: {' '.join(str(error).split())[:160]}")
        gc.collect()
        torch.cuda.empty_cache()
