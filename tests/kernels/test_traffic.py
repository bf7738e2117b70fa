"""The kernels that measure traffic alone: each touches every cell once."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("triton", reason="Triton is not installed")
from checks import DEVICE, GPU
from clip_la_kernels import traffic
from clip_la_kernels.runtime.dispatch import interpreting

pytestmark = pytest.mark.skipif(not (GPU or interpreting()), reason="needs a CUDA device or Triton's interpreter")


def tiles_sum(x, rows):
    """Sum over tiles of `rows` tokens, repeated for every tile: (B, N, H, D)."""
    batch, tokens, heads, width = x.shape
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -tokens % rows))
    total = padded.view(batch, -1, rows, heads, width).sum(1, keepdim=True)
    return total.expand(batch, padded.shape[1] // rows, rows, heads, width).flatten(1, 2)[:, :tokens]


@pytest.mark.parametrize(("heads", "of"), [(1, 3), (2, 4)])
def test_every_cell_is_read_and_written(heads, of):
    generator = torch.Generator().manual_seed(0)
    # Small integers: float16 sums of them are exact in any order.
    qkv = torch.randint(-3, 4, (2, 37, 3, of, 16), generator=generator).to(DEVICE, torch.float16)
    q, k, v = qkv.unbind(2)
    do, out = q.flip(1).contiguous(), torch.full_like(q, float("nan"), memory_format=torch.contiguous_format)
    grads = torch.full_like(qkv, float("nan")).unbind(2)
    traffic.run(traffic.forward_traffic, (q, k, v, out), 16, heads, 1)
    assert torch.equal(out, q + tiles_sum(k + v, 16))
    traffic.run(traffic.backward_traffic, (q, k, v, do, *grads), 16, heads, 1)
    for mine, expected in zip(grads, (q + do, k + tiles_sum(q + do, 16), v + tiles_sum(q + do, 16)), strict=True):
        assert torch.equal(mine, expected)
