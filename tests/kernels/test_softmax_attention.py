"""Softmax attention of short heads against the law: outputs, all gradients, odd lengths, strides, tiles, tracing."""

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
import torch
from clip_la_kernels import softmax_attention, use_backend
from clip_la_kernels.ops.softmax_attention.reference import softmax_attention_reference
from clip_la_kernels.ops.softmax_attention.softmax_attention import MOST_TOKENS, MOST_TOKENS_FLOAT32, serves_softmax

sys.path.insert(0, str(Path(__file__).parent))
HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON:
    from checks import GPU, TOLERANCE, case, ours, poisoned, relative
else:
    GPU = False
triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def law(qkv, grad, **options):
    """(o, dqkv) of the reference in float64."""
    exact = qkv.detach().double().requires_grad_()
    out = softmax_attention_reference(*exact.unbind(2), **options)
    return out.detach(), torch.autograd.grad(out, exact, grad.double())[0]


def check(qkv, grad, call=softmax_attention, **options):
    """Kernels against the law, everything written."""
    expected, dexpected = law(qkv, grad, **options)
    with use_backend("triton"), poisoned():
        assert serves_softmax(qkv)
        out, dqkv = ours(lambda x: call(x, **options), qkv, grad)
    assert out.dtype == dqkv.dtype == qkv.dtype
    # A third of what linear attention may err: nothing is divided by a sum that may vanish.
    tolerance = TOLERANCE[qkv.dtype] / 3
    assert relative(out, expected) < tolerance
    for index, name in enumerate(("dq", "dk", "dv")):
        error = (dqkv[:, :, index].double() - dexpected[:, :, index]).norm() / dexpected.norm()
        assert error < tolerance, name


@pytest.mark.parametrize(("tokens", "causal", "scale"), [(1, False, None), (9, True, None), (9, False, 0.3)])
def test_pytorch_equals_the_law(tokens, causal, scale):
    """The law itself against PyTorch's attention, on the path that serves every device."""
    qkv = torch.randn(2, tokens, 3, 2, 6, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, tokens, 2, 6, dtype=torch.float64)
    out = softmax_attention(qkv, causal=causal, scale=scale)
    (dqkv,) = torch.autograd.grad(out, qkv, grad)
    expected, dexpected = law(qkv, grad, causal=causal, scale=scale)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dqkv, dexpected, rtol=1e-10, atol=1e-12)


@triton
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 31, 33, 50, 65, 77, 100, 129])
def test_kernels_at_odd_lengths(tokens, causal):
    check(*case(2, tokens, 3, 64, torch.bfloat16), causal=causal)


@triton
@pytest.mark.parametrize(("tokens", "causal"), [(163, True), (192, False), (197, False), (217, True)])
def test_heads_in_blocks(tokens, causal):
    """Last blocks of 64, none, 16 and 32 rows."""
    check(*case(1, tokens, 2, 32, torch.bfloat16), causal=causal)


@triton
@pytest.mark.parametrize(
    ("width", "dtype"), [pair for pair in itertools.product((32, 64, 128), DTYPES) if pair != (128, torch.float32)]
)
def test_kernels_at_head_widths_and_dtypes(width, dtype):
    most = MOST_TOKENS_FLOAT32 if dtype == torch.float32 else MOST_TOKENS
    for tokens in (17, min(most[width], 70)):
        check(*case(1, tokens, 1, width, dtype), causal=tokens == 17)


@triton
def test_strange_strides_and_addresses():
    """q, k, v apart, in a wider tensor, off the alignment; gradients that are broadcast, by head, without unit
    stride."""
    qkv, grad = case(2, 65, 2, 32, torch.float16)
    apart = qkv.permute(2, 0, 3, 1, 4).contiguous().permute(1, 3, 0, 2, 4)
    wide = torch.zeros(2, 70, 3, 3, 40, dtype=qkv.dtype, device=qkv.device)
    inside = wide[:, 3:68, :, 1:, 4:36].copy_(qkv)
    inside_out = qkv.transpose(1, 4).contiguous().transpose(1, 4)
    off = torch.zeros(qkv.numel() + 1, dtype=qkv.dtype, device=qkv.device)[1:].view(qkv.shape).copy_(qkv)
    for x in (apart, inside, inside_out, off):
        check_as_it_lies(x, grad)
    for g in (
        grad[:, :1].expand_as(grad),
        grad.transpose(1, 2).contiguous().transpose(1, 2),
        grad.transpose(1, 3).contiguous().transpose(1, 3),
    ):
        check(qkv, g)


def check_as_it_lies(x, grad):
    """As `check`, which makes a dense copy of its leaf; here the operator reads these strides."""
    expected, dexpected = law(x, grad)
    leaf = x.detach().requires_grad_()
    with use_backend("triton"), poisoned():
        out = softmax_attention(leaf)
        (dqkv,) = torch.autograd.grad(out, leaf, grad)
    assert relative(out, expected) < TOLERANCE[x.dtype] / 3
    assert relative(dqkv, dexpected) < TOLERANCE[x.dtype] / 3


@triton
@pytest.mark.parametrize(("tokens", "causal"), [(65, False), (65, True), (163, False), (163, True)])
def test_large_logits_do_not_overflow(tokens, causal):
    """Logits of thousands: a row is one key's, and no exponential may be infinite."""
    qkv, grad = case(1, tokens, 2, 64, torch.bfloat16)
    qkv[:, :, :2] *= 40
    expected, _ = law(qkv, grad, causal=causal)
    with use_backend("triton"):
        out, dqkv = ours(lambda x: softmax_attention(x, causal=causal), qkv, grad)
    assert relative(out, expected) < TOLERANCE[qkv.dtype] / 3
    assert dqkv.isfinite().all()
    # 3,000 in all of them: the weights are equal, and so are the outputs.
    qkv[:, :, 0], qkv[:, :, 1] = 20, 19
    with use_backend("triton"):
        out = softmax_attention(qkv)
    mean = qkv[:, :, 2].double().mean(1, keepdim=True).expand_as(out)
    assert relative(out, mean) < TOLERANCE[qkv.dtype] / 3


@triton
@pytest.mark.parametrize("scale", [0.05, -0.3, 1.0])
def test_scale(scale):
    check(*case(1, 40, 2, 32, torch.float32), scale=scale)


@triton
def test_a_tile_more_than_needed_changes_nothing():
    """Every way in which a head may be cut, by the tuner's switch."""
    from clip_la_kernels.ops.linear_attention import configs
    from clip_la_kernels.ops.softmax_attention.launch import tiling

    cuts = set()
    for rows in (64, 128):
        config = configs.Config(rows, 4, 1)
        with configs.forced({"softmax_forward": config, "softmax_backward": config}):
            cuts.add(tiling("softmax_backward", 70, 32, torch.float16)[:2])
            check(*case(1, 70, 2, 32, torch.float16))
    assert cuts == {(64, 16), (128, 0)}


@pytest.mark.parametrize("dtype", DTYPES)
@triton
def test_tiles_hold_all_tokens(dtype):
    from clip_la_kernels.ops.softmax_attention.launch import in_blocks, tiling

    most = MOST_TOKENS_FLOAT32 if dtype == torch.float32 else MOST_TOKENS
    for width, longest in most.items():
        for tokens in range(1, longest + 1):
            first, rest, warps, _, _ = tiling("softmax_backward", tokens, width, dtype)
            if in_blocks(tokens, width):
                assert 0 <= tokens % first <= rest
            else:
                assert tokens <= first + rest <= max(16, 1 << (tokens - 1).bit_length())
                assert rest < first
            assert warps in (1, 2, 4, 8)


@triton
@pytest.mark.parametrize(("tokens", "dtype", "tolerance"), [(33, torch.float32, 1e-5), (130, torch.bfloat16, 1e-2)])
def test_compiles_without_a_break_and_refuses_a_second_derivative(tokens, dtype, tolerance):
    qkv, grad = case(1, tokens, 2, 32, dtype)
    with use_backend("triton"):
        eager = ours(lambda x: softmax_attention(x * 1.5, causal=True), qkv, grad)
        backend = "inductor" if GPU else "aot_eager"
        traced = torch.compile(lambda x: softmax_attention(x * 1.5, causal=True), fullgraph=True, backend=backend)
        for a, b in zip(eager, ours(traced, qkv, grad), strict=True):
            assert relative(b, a) < tolerance
        leaf = qkv.clone().requires_grad_()
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(softmax_attention(leaf), leaf, grad, create_graph=True)


def test_the_path_of_a_cpu_compiles_without_a_break():
    qkv, grad = torch.randn(1, 9, 3, 2, 32), torch.randn(1, 9, 2, 32)
    traced = torch.compile(softmax_attention, fullgraph=True, backend="aot_eager")
    with use_backend("torch"):
        leaf = qkv.requires_grad_()
        (dqkv,) = torch.autograd.grad(traced(leaf), leaf, grad)
    torch.testing.assert_close(dqkv.double(), law(qkv, grad)[1], rtol=1e-4, atol=1e-5)


@triton
@pytest.mark.parametrize("tokens", [40, 130])
def test_what_is_saved(tokens):
    """The projection; of heads in blocks also the output and a float32 a row: no matrix of weights."""
    qkv, _ = case(1, tokens, 2, 32, torch.bfloat16)
    saved = []
    with use_backend("triton"), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        out = softmax_attention(qkv.requires_grad_())
    more = [] if tokens == 40 else [out.numel(), 2 * tokens]
    assert [t.numel() for t in saved] == [qkv.numel(), *more]
    saved.clear()
    with use_backend("triton"), torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        softmax_attention(qkv)
    assert not saved


@triton
def test_autocast_decides_the_dtype():
    qkv, grad = case(1, 20, 2, 32)
    leaf = qkv.requires_grad_()
    with use_backend("triton"), torch.autocast(qkv.device.type, torch.bfloat16):
        out = softmax_attention(leaf)
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out, leaf, grad.to(out.dtype))[0].dtype == torch.float32


def test_what_the_kernels_do_not_serve_is_pytorchs():
    """float64, long heads, other widths; and an empty batch."""
    shapes = [(257, 64, torch.bfloat16), (65, 64, torch.float32), (129, 128, torch.bfloat16), (8, 48, torch.float32)]
    for tokens, width, dtype in [*shapes, (8, 64, torch.float64)]:
        qkv = torch.randn(1, tokens, 3, 2, width).to(dtype)
        if HAS_TRITON and dtype != torch.float64:
            with use_backend("triton"):
                assert not serves_softmax(qkv)
        assert relative_to_law(qkv) < (2e-2 if dtype == torch.bfloat16 else 1e-5)
    empty = torch.randn(0, 5, 3, 2, 32, requires_grad=True)
    softmax_attention(empty).sum().backward()
    assert empty.grad.shape == empty.shape


def relative_to_law(qkv):
    expected = softmax_attention_reference(*qkv.double().unbind(2))
    return float((softmax_attention(qkv).double() - expected).norm() / expected.norm())


def test_bad_input():
    with pytest.raises(ValueError, match=r"qkv must be \(B, N, 3, H, D\)"):
        softmax_attention(torch.randn(1, 4, 2, 1, 4))
    with pytest.raises(ValueError, match=r"got torch\.int64"):
        softmax_attention(torch.ones(1, 4, 3, 1, 4, dtype=torch.int64))


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("tokens", "width", "causal"),
    [(32, 64, True), (65, 64, False), (77, 64, True), (128, 128, False), (197, 64, False)],
)
def test_bfloat16_is_as_exact_as_pytorch_repeats_and_is_captured(tokens, width, causal):
    qkv, grad = case(64, tokens, 4, width, torch.bfloat16)
    expected = law(qkv, grad, causal=causal)
    mine = ours(lambda x: softmax_attention(x, causal=causal), qkv, grad)
    with use_backend("torch"):
        theirs = ours(lambda x: softmax_attention(x, causal=causal), qkv, grad)
    for index in (0, 1):
        assert relative(mine[index], expected[index]) <= 1.2 * relative(theirs[index], expected[index])
    for _ in range(50):
        again = ours(lambda x: softmax_attention(x, causal=causal), qkv, grad)
        assert torch.equal(mine[0], again[0])
        assert torch.equal(mine[1], again[1])
    leaf = torch.zeros_like(qkv).requires_grad_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = softmax_attention(leaf, causal=causal)
        (dqkv,) = torch.autograd.grad(out, leaf, grad)
    leaf.data.copy_(qkv)
    graph.replay()
    assert torch.equal(out, mine[0])
    assert torch.equal(dqkv, mine[1])
