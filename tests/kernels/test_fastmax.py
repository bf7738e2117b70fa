"""Fastmax against the reference, p = 1 and 2, bidirectional and causal, on both paths, across tiles and blocks."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from clip_la_kernels import fastmax, use_backend
from clip_la_kernels.ops.linear_attention.reference import fastmax_reference

sys.path.insert(0, str(Path(__file__).parent))
HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON:
    from checks import DEVICE, GPU, TOLERANCE, case, kernels, ours, poisoned, relative, ways
else:
    GPU = False
triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")

LENGTHS = (1, 7, 63, 65, 77, 196, 197, 577, 1025) if GPU else (1, 7, 33)
DTYPES = (torch.float32, torch.bfloat16, torch.float16) if GPU else (torch.float32,)


def reference(qkv, grad, **options):
    """(o, dqkv) of the reference in float64."""
    exact = qkv.detach().double().requires_grad_()
    out = fastmax_reference(*exact.unbind(2), **options)
    return out.detach(), torch.autograd.grad(out, exact, grad.double())[0]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("p", "tokens"), [(1, 9), (2, 9), (2, 530)])
def test_equals_the_reference(p, tokens, causal):
    qkv = torch.randn(1, tokens, 3, 2, 6, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(1, tokens, 2, 6, dtype=torch.float64)
    out = fastmax(qkv, p=p, temperature=6.5, causal=causal)
    expected = fastmax_reference(*qkv.unbind(2), p=p, temperature=6.5, causal=causal)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    ours, theirs = (torch.autograd.grad(o, qkv, grad)[0] for o in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def check(qkv, grad, **options):
    """Kernels against the reference, everything written."""
    expected, dexpected = reference(qkv, grad, **options)
    for way in ways(qkv.dtype):
        with kernels(**way), poisoned():
            out, dqkv = ours(lambda x: fastmax(x, **options), qkv, grad)
        assert out.dtype == qkv.dtype
        assert relative(out, expected) < TOLERANCE[qkv.dtype]
        for index, name in enumerate(("dq", "dk", "dv")):
            error = (dqkv[:, :, index].double() - dexpected[:, :, index]).norm() / dexpected.norm()
            assert error < 2 * TOLERANCE[qkv.dtype], name


@triton
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_at_odd_lengths(tokens, causal, dtype):
    width = 64 if GPU else 16
    check(*case(2, tokens, 3 if GPU else 2, width, dtype), temperature=width**0.5, causal=causal)


@triton
@pytest.mark.parametrize("causal", [False, True])
def test_tiles_by_the_copy_engine(causal):
    """Three heads: no tile may be as many heads high as the tensor has."""
    check(*case(2, 37, 3, 16, torch.float16), temperature=4.0, causal=causal)


@triton
@pytest.mark.parametrize("width", [16, 20, 64, 128])
def test_kernels_at_head_widths(width):
    dtype = torch.bfloat16 if GPU and width == 128 else torch.float32
    check(*case(1, 150 if GPU else 18, 2, width, dtype), temperature=2.0, causal=width == 20)


@triton
@pytest.mark.parametrize("causal", [False, True])
def test_means_found_beforehand(causal, monkeypatch):
    """The pass that long sequences have, off-centre rows, a row without deviation."""
    monkeypatch.setattr("clip_la_kernels.ops.fastmax.launch.KNOWN_FROM_TOKENS", 1)
    qkv, grad = case(1, 200 if GPU else 35, 2, 16)
    qkv = qkv + 3
    qkv[0, 5, 0] = 1.5
    check(qkv, grad, temperature=4.0, causal=causal)


@triton
def test_strange_strides_and_gradients():
    qkv, grad = case(2, 40, 2, 16)
    apart = qkv.permute(2, 0, 3, 1, 4).contiguous().permute(1, 3, 0, 2, 4)
    thin = grad[:, :1].expand_as(grad)
    for x, g in ((apart, grad), (qkv, thin), (qkv, grad.transpose(1, 3).contiguous().transpose(1, 3))):
        check(x, g, temperature=4.0)


@triton
def test_compiles_without_a_break_and_refuses_a_second_derivative():
    qkv, grad = case(1, 30, 2, 16)
    with kernels():
        eager = ours(lambda x: fastmax(x * 1.5, temperature=4.0), qkv, grad)
        backend = "inductor" if GPU else "aot_eager"
        traced = torch.compile(lambda x: fastmax(x * 1.5, temperature=4.0), fullgraph=True, backend=backend)
        for a, b in zip(eager, ours(traced, qkv, grad), strict=True):
            assert relative(b, a) < 1e-5
        leaf = qkv.clone().requires_grad_()
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(fastmax(leaf), leaf, grad, create_graph=True)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("tokens", "width"), [(197, 64), (1025, 64), (577, 128)])
def test_bfloat16_is_about_as_exact_as_pytorch_and_repeats(tokens, width, causal):
    qkv, grad = case(2, tokens, 3, width, torch.bfloat16)
    options = {"temperature": width**0.5, "causal": causal}
    expected = reference(qkv, grad, **options)
    mine = ours(lambda x: fastmax(x, **options), qkv, grad)
    with use_backend("torch"):
        theirs = ours(lambda x: fastmax(x, **options), qkv, grad)
    for index, factor in ((0, 2), (1, 3)):
        assert relative(mine[index], expected[index]) <= factor * relative(theirs[index], expected[index])
    for _ in range(50):
        again = ours(lambda x: fastmax(x, **options), qkv, grad)
        assert torch.equal(mine[0], again[0])
        assert torch.equal(mine[1], again[1])


@triton
def test_a_whole_batch_on_the_device_under_test():
    """As a tower calls it: bfloat16 on a GPU, more heads than one."""
    qkv, grad = case(3, 50, 4, 32, DTYPES[-1] if not GPU else torch.bfloat16)
    assert qkv.device.type == DEVICE
    check(qkv, grad, temperature=32**0.5, causal=True)


@triton
def test_float16_keeps_its_range_in_long_causal_heads():
    """The first row's gradient, which divides by one weight, where the last divides by thousands."""
    from clip_la_kernels.ops.fastmax.launch import Numbers

    for tokens in (1, 100, 1 << 20):
        for temperature in (0.1, 1.0, 8.0):
            const = Numbers.of(tokens, 64, temperature)
            largest_weight = (const.alpha * (64 / temperature + 1)) ** 2 + const.alpha**2
            assert largest_weight < torch.finfo(torch.float16).max / 2
            # A row of one weight becomes `shift`, and sums of such by incoming gradients need room.
            assert const.shift <= 2**12


def test_bad_options():
    qkv = torch.randn(1, 4, 3, 1, 4)
    with pytest.raises(ValueError, match="p = 3"):
        fastmax(qkv, p=3)
    with pytest.raises(ValueError, match="temperature must be positive"):
        fastmax(qkv, temperature=0.0)
    with pytest.raises(ValueError, match=r"qkv must be \(B, N, 3, H, D\)"):
        fastmax(qkv[:, :, 0])
