# ruff: noqa: E741, RUF059 (what Triton compiles is not quite Python)
# mypy: disable-error-code="no-untyped-def"
"""What the order of memory accesses costs by itself: the fused kernels' loads and stores, tile for tile, without their
arithmetic. The kernels cannot be faster than this; the floor of their bytes can.

    python -m clip_la_kernels.traffic
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from clip_la_kernels import tune
from clip_la_kernels.runtime.common import place
from clip_la_kernels.runtime.launcher import tensor_map

# (B, N, H, D) of the image towers that one fused program a head serves.
SHAPES = ((256, 197, 12, 64), (128, 577, 12, 64), (64, 1025, 12, 64))
# (rows a tile, heads a tile, stages of the pipeline): as the kernels have it, then what might be better.
TILES = ((64, 1, 3), (64, 1, 4), (128, 1, 3), (32, 2, 4), (64, 2, 3))
WARPS = 4


@triton.jit
def forward_traffic(
    Q, K, V, O, N, GROUPS, BL: tl.constexpr, HEADS: tl.constexpr, STAGES: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """Reads k and v, then reads q and writes o = q + sum over tiles of (k + v). A program a group of HEADS heads."""
    seq, group, split = place(tl.program_id(0), GROUPS, 1)
    h = group * HEADS
    total = tl.zeros([1, HEADS, BL, D], Q.dtype)
    for n0 in tl.range(0, N, BL, num_stages=STAGES):
        total += K.load([seq, h, n0, 0]) + V.load([seq, h, n0, 0])
    for n0 in tl.range(0, N, BL, num_stages=STAGES):
        O.store([seq, h, n0, 0], Q.load([seq, h, n0, 0]) + total)


@triton.jit
def backward_traffic(
    Q, K, V, DO, DQ, DK, DV, N, GROUPS, BL: tl.constexpr, HEADS: tl.constexpr, STAGES: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """Reads q and do and writes dq = q + do, then reads k and v and writes them with the sum over tiles of dq added."""
    seq, group, split = place(tl.program_id(0), GROUPS, 1)
    h = group * HEADS
    total = tl.zeros([1, HEADS, BL, D], Q.dtype)
    for n0 in tl.range(0, N, BL, num_stages=STAGES):
        x = Q.load([seq, h, n0, 0]) + DO.load([seq, h, n0, 0])
        total += x
        DQ.store([seq, h, n0, 0], x)
    for n0 in tl.range(0, N, BL, num_stages=STAGES):
        DK.store([seq, h, n0, 0], K.load([seq, h, n0, 0]) + total)
        DV.store([seq, h, n0, 0], V.load([seq, h, n0, 0]) + total)


def run(kernel: Any, tensors: Sequence[Tensor], rows: int, heads: int, stages: int) -> None:
    """Launches one of the kernels above on (B, N, H, D) tensors of any strides with unit stride along D."""
    batch, tokens, count, width = tensors[0].shape
    maps = [tensor_map(x, rows, width, heads) for x in tensors]
    groups = count // heads
    kernel[(batch * groups,)](*maps, tokens, groups, rows, heads, stages, width, num_warps=WARPS)


def main() -> None:
    """Prints a CSV: times by graph replay in ms, and their ratios to the floor of 4 and 7 tensors' bytes."""
    tune.require_gpu("traffic")
    speed, device = tune.copy_bandwidth(), torch.cuda.get_device_name()
    print("device,B,N,H,D,rows,heads,stages,forward_ms,backward_ms,forward_ratio,backward_ratio")
    for shape, (rows, heads, stages) in itertools.product(SHAPES, TILES):
        qkv, grad = tune.inputs(*shape)
        (q, k, v), out = qkv.detach().unbind(2), torch.empty_like(grad)
        grads = torch.empty_like(qkv.detach()).unbind(2)
        unit = grad.nbytes / speed * 1e3
        tile = (rows, heads, stages)
        forward = tune.median_ms(functools.partial(run, forward_traffic, (q, k, v, out), *tile))
        backward = tune.median_ms(functools.partial(run, backward_traffic, (q, k, v, grad, *grads), *tile))
        case = ",".join(map(str, (device, *shape, rows, heads, stages)))
        print(f"{case},{forward:.4f},{backward:.4f},{forward / unit / 4:.3f},{backward / unit / 7:.3f}", flush=True)


if __name__ == "__main__":
    main()
