"""What only a GPU can show of linear attention: true bfloat16, repeatability, sizes beyond 32 bits, CUDA graphs."""

import math
import sys
from pathlib import Path

import pytest
import torch
from clip_la_kernels import linear_attention, use_backend

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("triton", reason="Triton is not installed")
from checks import DEVICE, GPU, case, kernels, ours, product, reference, relative

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs a CUDA device")]


@pytest.mark.parametrize(("denominator", "causal"), product(d=("none", "length", "sum"), c=(False, True)))
@pytest.mark.parametrize(("tokens", "width"), [(77, 64), (197, 64), (1025, 64), (1025, 128), (4097, 64)])
def test_bfloat16_is_about_as_exact_as_pytorch(denominator, causal, tokens, width):
    qkv, grad = case(4, tokens, 3, width, torch.bfloat16)
    expected = reference(qkv, grad, denominator=denominator, causal=causal)
    plans = (
        ({}, {"splits": 2}) if not causal else ({}, {"causal_splits": 2}, {"whole": 1, "columns": 64, "tma_bytes": 0})
    )
    for plan in plans:
        with kernels(**plan):
            mine = ours(lambda x: linear_attention(x, denominator=denominator, causal=causal), qkv, grad)
        with use_backend("torch"):
            theirs = ours(lambda x: linear_attention(x, denominator=denominator, causal=causal), qkv, grad)
        for index, factor in ((0, 2), (1, 3)):
            assert relative(mine[index], expected[index]) <= factor * relative(theirs[index], expected[index])


@pytest.mark.parametrize(
    ("tokens", "width", "causal"),
    [(77, 64, True), (197, 64, False), (1025, 64, False), (1025, 128, True), (4097, 64, True)],
)
def test_bit_equal_over_fifty_repeats(tokens, width, causal):
    qkv, grad = case(8, tokens, 12, width, torch.bfloat16)
    for denominator in ("none", "sum"):
        first = ours(lambda x, d=denominator: linear_attention(x, denominator=d, causal=causal), qkv, grad)
        for _ in range(50):
            again = ours(lambda x, d=denominator: linear_attention(x, denominator=d, causal=causal), qkv, grad)
            assert torch.equal(first[0], again[0])
            assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("causal", [False, True])
def test_more_heads_than_a_grid_axis_and_more_than_2_31_elements(causal):
    batch, tokens, heads, width = 8192, 130, 12, 64
    qkv = torch.randn(batch, tokens, 3, heads, width, device=DEVICE, dtype=torch.bfloat16)
    assert batch * heads > 65_535
    assert qkv.numel() > 2**31 * 0.8
    qkv = torch.cat([qkv, qkv[: batch // 2]])
    assert qkv.numel() > 2**31
    grad = torch.randn(*qkv.shape[:2], heads, width, device=DEVICE, dtype=torch.bfloat16)
    out, dqkv = ours(lambda x: linear_attention(x, causal=causal), qkv, grad)
    for rows in (slice(0, 1), slice(-1, None)):
        expected, dexpected = reference(qkv[rows], grad[rows], causal=causal)
        assert relative(out[rows], expected) < 2e-2
        assert relative(dqkv[rows], dexpected) < 2e-2


@pytest.mark.parametrize("causal", [False, True])
def test_cuda_graph_replays_what_eager_computes(causal):
    qkv, grad = case(4, 300, 3, 64, torch.bfloat16)
    leaf = qkv.clone().requires_grad_()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(linear_attention(leaf, denominator="sum", causal=causal), leaf, grad)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = linear_attention(leaf, denominator="sum", causal=causal)
        (dqkv,) = torch.autograd.grad(out, leaf, grad)
    fresh = case(4, 300, 3, 64, torch.bfloat16, seed=9)[0]
    leaf.data.copy_(fresh)
    graph.replay()
    expected = ours(lambda x: linear_attention(x, denominator="sum", causal=causal), fresh, grad)
    assert torch.equal(out, expected[0])
    assert torch.equal(dqkv, expected[1])


def test_a_million_tokens():
    qkv, grad = case(1, 1_000_003, 8, 64, torch.bfloat16)
    out, dqkv = ours(lambda x: linear_attention(x, denominator="sum"), qkv, grad)
    q, k, v = (t.double() for t in qkv[:, :, :, :1].unbind(2))
    q, k = (torch.nn.functional.normalize(t, dim=-1) for t in (q, k))
    total = 1_000_003 + torch.einsum("bnhd,bhd->bnh", q, k.sum(1))
    expected = (v.sum(1) + torch.einsum("bnhd,bhde->bnhe", q, torch.einsum("bnhd,bnhe->bhde", k, v))) / total[..., None]
    assert relative(out[:, :, :1], expected) < 2e-2
    assert math.isfinite(float(dqkv.float().abs().max()))
