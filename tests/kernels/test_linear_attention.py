"""Both paths of linear attention against the reference, at odd sizes, with and without the kernels."""

import sys
from pathlib import Path

import pytest
import torch
from clip_la_kernels import fastmax, linear_attention, linear_attention_split, use_backend
from clip_la_kernels.ops.linear_attention.reference import linear_attention_reference

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("triton", reason="Triton is not installed")
from checks import DEVICE, GPU, TOLERANCE, case, kernels, ours, poisoned, product, reference, relative, ways

AFFINE = {"l2": (1.0, 0.7), "identity": (3.0, 0.2), "relu": (0.5, 1.0), "elu1": (0.0, 1.0), "exp": (0.0, 1.0)}
# The sizes on a GPU are those of image towers and captions; the interpreter gets what crosses its 16-row tiles.
LENGTHS = (1, 7, 63, 65, 77, 196, 197, 257, 577, 1025) if GPU else (1, 7, 33)
DTYPES = (torch.float32, torch.bfloat16, torch.float16) if GPU else (torch.float32,)


def check(qkv, grad, plan, **options):
    """Kernels against the reference: asserts closeness of o and of the packed gradient, and that all was written."""
    expected, dexpected = reference(qkv, grad, **options)
    tolerance = TOLERANCE[qkv.dtype]
    for way in ways(qkv.dtype):
        with kernels(**plan, **way), poisoned():
            out, dqkv = ours(lambda x: linear_attention(x, **options), qkv, grad)
        assert out.dtype == qkv.dtype
        assert dqkv.shape == qkv.shape
        assert relative(out, expected) < tolerance
        # Beside the whole gradient: dq of a single token under a denominator is zero.
        for index, name in enumerate(("dq", "dk", "dv")):
            error = (dqkv[:, :, index].double() - dexpected[:, :, index]).norm() / dexpected.norm()
            assert error < 2 * tolerance, name


@pytest.mark.parametrize(
    ("tokens", "denominator", "causal"), product(n=LENGTHS, d=("none", "length", "sum"), c=(False, True))
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_lengths(tokens, denominator, causal, dtype):
    check(
        *case(2 if GPU else 1, tokens, 3 if GPU else 2, 64 if GPU else 16, dtype),
        {},
        denominator=denominator,
        causal=causal,
    )


@pytest.mark.parametrize(("denominator", "causal"), product(d=("none", "sum"), c=(False, True)))
def test_tiles_by_the_copy_engine(denominator, causal):
    """Three heads: no tile may be as many heads high as the tensor has."""
    qkv, grad = case(2, 37, 3, 16, torch.float16)
    check(qkv, grad, {}, denominator=denominator, causal=causal)


@pytest.mark.parametrize(
    ("causal", "plan"),
    [
        (False, {"splits": 3}),
        (True, {"causal_splits": 3, "whole": 0, "columns": 64 if GPU else 16}),
        (True, {"causal_splits": 3, "whole": 1, "columns": 64 if GPU else 16}),
    ],
)
@pytest.mark.parametrize("denominator", ["none", "sum"])
def test_splits_and_columns_by_tma(causal, plan, denominator):
    """Blocks of columns are narrower than the other tiles of the same launch."""
    qkv, grad = case(2, 400 if GPU else 45, 3, 128 if GPU else 32, torch.float16)
    plan = {**plan, "short": 0, "multiple": 128 if GPU else 16}
    check(qkv, grad, plan, denominator=denominator, causal=causal)


def test_one_tile_divided_by_almost_nothing_stays_finite_in_float16():
    """Without a constant the weights of unit vectors cancel: z is held, and what it divides is beyond float16."""
    qkv, grad = case(1, 15, 2, 32, torch.float16, seed=56)
    with kernels(), poisoned():
        out, dqkv = ours(lambda x: linear_attention(x, a=0.0, b=0.7, denominator="sum", causal=True), qkv, grad)
    assert out.isfinite().all()
    assert dqkv.isfinite().all()


@pytest.mark.parametrize(("name", "denominator", "causal"), product(m=AFFINE, d=("none", "sum"), c=(False, True)))
def test_maps_with_a_padding_mask(name, denominator, causal):
    a, b = AFFINE[name]
    qkv, grad = case(2, 150 if GPU else 21, 2 if GPU else 1, 48 if GPU else 5)
    mask = torch.rand(qkv.shape[:2], generator=torch.Generator().manual_seed(1)) > 0.4
    mask[1, :3] = False
    options = {"a": a, "b": b, "feature_map": name, "denominator": denominator, "causal": causal}
    check(qkv, grad, {}, key_padding_mask=mask.to(DEVICE), **options)


@pytest.mark.parametrize("name", AFFINE)
def test_rows_that_see_no_key_keep_float16_finite(name):
    """Their divisor is held at eps, and a row divided by it is beyond float16."""
    a, b = AFFINE[name]
    qkv, grad = case(2, 70 if GPU else 21, 2 if GPU else 1, 16, torch.float16)
    mask = torch.ones(qkv.shape[:2], dtype=torch.bool)
    mask[0, :3] = False
    options = {"a": a, "b": b, "feature_map": name, "denominator": "sum", "causal": True}
    check(qkv, grad, {"short": 0}, key_padding_mask=mask.to(DEVICE), **options)


@pytest.mark.parametrize(("splits", "denominator", "causal"), product(p=(1, 3), d=("length", "sum"), c=(False, True)))
def test_split_over_the_tokens(splits, denominator, causal):
    qkv, grad = case(1, 1025 if GPU else 45, 2 if GPU else 1, 64 if GPU else 16)
    plan = {"splits": splits, "causal_splits": splits, "short": 0, "multiple": 128 if GPU else 16}
    check(qkv, grad, plan, denominator=denominator, causal=causal)


@pytest.mark.parametrize(
    ("name", "constants", "denominator"),
    [("l2", (1.0, 0.7), "none"), ("l2", (0.0, 1.0), "none"), ("identity", (0.5, 1.0), "none"),
     ("l2", (1.0, 1.0), "length"), ("l2", (1.0, 0.7), "sum"), ("relu", (0.5, 1.0), "none")],
)  # fmt: skip
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_causal_heads_by_columns(name, constants, denominator, splits, dtype):
    """As where wide heads fill the GPU: one scan a block of columns, states saved at the splits' borders."""
    qkv, grad = case(1, 1100 if GPU else 45, 2, 128 if GPU else 32, dtype)
    if GPU and dtype == torch.float32:
        qkv, grad = qkv[..., :64].contiguous(), grad[..., :64].contiguous()
    plan = {
        "causal_splits": splits,
        "whole": 1,
        "short": 0,
        "multiple": 128 if GPU else 16,
        "columns": qkv.shape[4] // 2,
    }
    options = {"a": constants[0], "b": constants[1], "feature_map": name, "denominator": denominator, "causal": True}
    if dtype != torch.float16 or name == "l2":
        check(qkv, grad, plan, **options)


@pytest.mark.parametrize("causal", [False, True])
def test_short_parts(causal):
    check(*case(1, 50, 2, 16), {"splits": 0}, denominator="sum", causal=causal)


@pytest.mark.parametrize(("splits", "causal"), product(p=(0, 2), c=(False, True)))
def test_packed_sequences(splits, causal):
    qkv, grad = case(1, 300 if GPU else 41, 2 if GPU else 1, 32 if GPU else 16)
    tokens = qkv.shape[1]
    borders = torch.tensor([0, tokens // 3, tokens // 3, tokens - 1, tokens], dtype=torch.int32, device=DEVICE)
    plan = {"splits": splits, "causal_splits": max(splits, 1), "short": 0, "multiple": 128 if GPU else 16}
    check(qkv, grad, plan, denominator="sum", causal=causal, cu_seqlens=borders)


def test_borders_of_any_layout_and_integer_type():
    qkv, grad = case(1, 41, 2, 16)
    borders = torch.tensor([0, 9, 30, 41], device=DEVICE)
    expected = reference(qkv, grad, cu_seqlens=borders)
    strided = torch.stack([borders, borders * 0 + 99], 1).flatten()[::2]
    # Borders beyond the end are held there: nothing outside is read or written.
    beyond = torch.tensor([0, 9, 30, 4100], device=DEVICE)
    for cu in (borders, borders.int(), strided, beyond):
        with kernels(splits=0), poisoned():
            out, dqkv = ours(lambda x, cu=cu: linear_attention(x, cu_seqlens=cu), qkv, grad)
        assert relative(out, expected[0]) < 1e-5
        assert relative(dqkv, expected[1]) < 1e-5


def test_heads_wider_than_any_tile_go_to_pytorch():
    qkv, grad = case(1, 9, 1, 512)
    with kernels():
        out, dqkv = ours(linear_attention, qkv, grad)
    for mine, exact in zip((out, dqkv), reference(qkv, grad), strict=True):
        assert relative(mine, exact) < 1e-5


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_one_gradient_of_a_wide_causal_head(wanted):
    qkv, grad = case(1, 45, 2, 32)
    leaves = [t.clone().requires_grad_(w) for t, w in zip(qkv.unbind(2), wanted, strict=True)]
    with kernels(causal_splits=1, whole=1, short=0, columns=16), poisoned():
        out = linear_attention_split(*leaves, causal=True)
        (mine,) = torch.autograd.grad(out, [t for t in leaves if t.requires_grad], grad)
    assert relative(mine, reference(qkv, grad, causal=True)[1][:, :, wanted.index(True)]) < 1e-5


@pytest.mark.parametrize("width", [16, 20, 64, 80, 128])
def test_head_widths(width):
    check(*case(1, 130 if GPU else 17, 2, width), {}, denominator="sum", causal=width == 80)


@pytest.mark.parametrize(("denominator", "causal"), product(d=("none", "length", "sum"), c=(False, True)))
@pytest.mark.parametrize("tokens", [1, 9, 200])
def test_pytorch_path(denominator, causal, tokens):
    qkv, grad = case(2, tokens, 2, 5, torch.float64)
    mask = torch.rand(qkv.shape[:2], generator=torch.Generator().manual_seed(3)).to(DEVICE) > 0.3
    for padding in (None, mask):
        options = {"denominator": denominator, "causal": causal, "key_padding_mask": padding}
        with use_backend("torch"):
            out, dqkv = ours(lambda x, o=options: linear_attention(x, **o), qkv, grad)
        expected, dexpected = reference(qkv, grad, **options)
        assert relative(out, expected) < TOLERANCE[torch.float64]
        assert relative(dqkv, dexpected) < TOLERANCE[torch.float64]


def test_pytorch_path_gradcheck():
    qkv = torch.randn(1, 5, 3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for options in ({"denominator": "sum"}, {"feature_map": "elu1", "a": 0.0, "denominator": "sum", "causal": True}):
        assert torch.autograd.gradcheck(lambda x, o=options: linear_attention(x, **o), qkv)


@pytest.mark.parametrize("causal", [False, True])
def test_garbage_at_padded_tokens_does_not_matter(causal):
    qkv, grad = case(2, 19, 2, 16)
    mask = torch.ones(2, 19, dtype=torch.bool, device=DEVICE)
    mask[:, 11:] = False
    dirty = qkv.clone()
    dirty[:, 11:, 1:] = float("nan")
    for backend in ("torch", "triton"):
        with kernels(), use_backend(backend):
            clean = ours(
                lambda x: linear_attention(x, causal=causal, denominator="sum", key_padding_mask=mask), qkv, grad
            )
            same = ours(
                lambda x: linear_attention(x, causal=causal, denominator="sum", key_padding_mask=mask), dirty, grad
            )
        assert torch.equal(clean[0], same[0])
        assert torch.equal(clean[1], same[1])
        assert not same[1][:, 11:, 1:].any()


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("causal", [False, True])
def test_keys_that_oppose_every_query_stay_finite(backend, causal):
    direction = torch.randn(16, generator=torch.Generator().manual_seed(2))
    qkv = torch.empty(1, 21, 3, 1, 16)
    qkv[:, :, 0], qkv[:, :, 1] = direction, -direction
    qkv[:, :, 2] = torch.randn(21, 1, 16, generator=torch.Generator().manual_seed(4))
    for dtype in (torch.float32, torch.bfloat16) if GPU or backend == "torch" else (torch.float32,):
        with kernels(), use_backend(backend):
            grad = torch.ones(1, 21, 1, 16, device=DEVICE, dtype=dtype)
            out, dqkv = ours(
                lambda x: linear_attention(x, denominator="sum", causal=causal), qkv.to(DEVICE, dtype), grad
            )
        assert torch.isfinite(out).all()
        assert torch.isfinite(dqkv).all()
        # The weights are zero up to rounding, and the divisor is held at a thousandth of their number.
        assert out.abs().max() < (1e-2 if dtype == torch.float32 else 50)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_zero_rows_map_to_zero_with_zero_gradient(backend):
    qkv, grad = case(1, 20, 2, 16)
    qkv[:, 3, :2] = 0
    with kernels(), use_backend(backend):
        out, dqkv = ours(lambda x: linear_attention(x, a=0.5, denominator="length"), qkv, grad)
    torch.testing.assert_close(out[:, 3], 0.5 * qkv[:, :, 2].mean(1))
    assert not dqkv[:, 3, :2].any()
    assert torch.isfinite(dqkv).all()


@pytest.mark.parametrize("causal", [False, True])
def test_split_inputs_and_strange_gradients(causal):
    qkv, _ = case(2, 23, 3, 16)
    q, k, v = (qkv[:, :, i].transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for i in range(3))
    pooled = torch.randn(2, 1, 3, 16, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    for grad in (pooled.expand(2, 23, 3, 16), torch.randn(16, 3, 23, 2, device=DEVICE).permute(3, 2, 1, 0)):
        with kernels():
            out = linear_attention_split(q, k, v, denominator="sum", causal=causal)
            grads = torch.autograd.grad(out, (q, k, v), grad)
        exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
        expected = linear_attention_reference(*exact, denominator="sum", causal=causal)
        for ours_, theirs in zip(
            (out, *grads), (expected, *torch.autograd.grad(expected, exact, grad.double())), strict=True
        ):
            assert relative(ours_, theirs) < 2e-5


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_frozen_inputs_get_no_gradient(backend):
    qkv, grad = case(1, 20, 2, 16)
    q, k, v = (t.clone() for t in qkv.unbind(2))
    for trained in (q, k):
        trained.requires_grad_()
        with kernels(), use_backend(backend):
            out = linear_attention_split(q, k, v, denominator="sum")
            (ours_,) = torch.autograd.grad(out, trained, grad)
        exact = [t.detach().double() for t in (q, k, v)]
        exact[0 if trained is q else 1].requires_grad_()
        expected = torch.autograd.grad(
            linear_attention_reference(*exact, denominator="sum"), exact[0 if trained is q else 1], grad.double()
        )
        assert relative(ours_, expected[0]) < 2e-5
        trained.requires_grad_(False)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [(0, 5), (2, 0)])
def test_no_sequences_and_no_tokens(size, causal, backend):
    qkv, grad = case(*size, 2, 16)
    with use_backend(backend):
        out, dqkv = ours(lambda x: linear_attention(x, causal=causal), qkv, grad)
        split = linear_attention_split(*qkv.unbind(2), causal=causal)
        assert fastmax(qkv, causal=causal).shape == grad.shape
    assert out.shape == split.shape == grad.shape
    assert dqkv.shape == qkv.shape
