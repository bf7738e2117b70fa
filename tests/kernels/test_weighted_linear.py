"""Weighted linear attention against the law: outputs, all gradients, odd lengths, rotation, strides, tracing; and the
layer that uses it."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from clip_la_kernels import serves_weighted, use_backend, weighted_linear_attention

from clip_la.models.attention.layout import Layout
from clip_la.models.attention.operator import OperatorAttention

sys.path.insert(0, str(Path(__file__).parent))
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
from checks import DEVICE, GPU, TOLERANCE, case, ours, poisoned, relative
from clip_la_kernels.ops.weighted_linear.reference import weighted_linear_reference


def turns(tokens, width):
    """(cos, sin) of random angles; those of the first token, a class token's, are 0."""
    angles = torch.rand(tokens, width // 2, generator=torch.Generator().manual_seed(1)) * 6
    angles[0] = 0
    return torch.stack([angles.cos(), angles.sin()]).to(DEVICE)


def check(qkv, grad, turn=None, feature_map="elu1", rala=True, eps=1e-6, as_it_lies=False):
    """Kernels against the law, everything written. as_it_lies: no dense copy of qkv is made."""
    options = {"feature_map": feature_map, "rala": rala, "scale": qkv.shape[-1] ** -0.5, "eps": eps, "turn": turn}
    exact = qkv.detach().double().requires_grad_()
    expected = weighted_linear_reference(*exact.unbind(2), **options)
    (dexpected,) = torch.autograd.grad(expected, exact, grad.double())
    with use_backend("triton"), poisoned():
        if as_it_lies:
            leaf = qkv.detach().requires_grad_()
            out = weighted_linear_attention(leaf, **options)
            (dqkv,) = torch.autograd.grad(out, leaf, grad)
        else:
            out, dqkv = ours(lambda x: weighted_linear_attention(x, **options), qkv, grad)
    assert out.dtype == dqkv.dtype == qkv.dtype
    tolerance = TOLERANCE[qkv.dtype]
    assert relative(out, expected) < tolerance
    # One key has weight 1 whatever q and k are: rounding is all that is left of their gradients.
    parts = ("dq", "dk", "dv") if qkv.shape[1] > 1 else ("all",)
    for index, name in enumerate(parts):
        ours_, theirs = (d if name == "all" else d[:, :, index] for d in (dqkv, dexpected))
        assert relative(ours_, theirs) < tolerance, name


@pytest.mark.parametrize(
    ("tokens", "width", "heads", "rala", "turn", "feature_map"),
    [
        (1, 64, 1, True, True, "elu1"),
        (7, 32, 3, True, True, "relu"),
        (64, 32, 1, True, False, "elu1"),
        (65, 64, 3, True, True, "elu1"),
        (100, 32, 1, False, True, "relu"),
        (65, 64, 1, False, False, "elu1"),
        (197, 64, 1, True, True, "elu1"),
    ],
)
def test_kernels_equal_the_law(tokens, width, heads, rala, turn, feature_map):
    qkv, grad = case(1, tokens, heads, width)
    check(qkv, grad, turns(tokens, width) if turn else None, feature_map, rala)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_extreme_scores_of_low_precision(dtype):
    """Scores some +-30 apart: few keys have nearly all of the weight; q and k reach 20."""
    qkv, grad = case(1, 65, 1, 64, dtype)
    qkv[:, ::3, 1] *= 8
    qkv[:, ::5, 0] *= 8
    fq, fk = (torch.where(x > 0, x + 1, x.clamp(max=0).exp()) for x in qkv[:, :, :2].double().unbind(2))
    scores = (fk * fq.mean(1, keepdim=True)).sum(-1) * 64**-0.5
    assert scores.max() - scores.min() > 30
    check(qkv, grad, turns(65, 64))


def test_no_divisor_vanishes_and_eps_counts():
    """relu features of queries that meet no key: zeros, with finite gradients; a large eps, whose share delta holds."""
    qkv, grad = case(1, 20, 1, 32)
    check(qkv, grad, turns(20, 32), rala=True, eps=2.0)
    qkv[:, :, 1] = -qkv[:, :, 1].abs()
    with use_backend("triton"), poisoned():
        out, dqkv = ours(lambda x: weighted_linear_attention(x, feature_map="relu"), qkv, grad)
    assert not out.any()
    assert dqkv.isfinite().all()


def test_strange_strides_and_addresses():
    """q, k, v apart; in a wider tensor; without unit stride; off the alignment; a gradient that is broadcast."""
    qkv, grad = case(2, 9, 2, 32)
    wide = torch.zeros(2, 12, 3, 3, 40, device=qkv.device)
    off = torch.zeros(qkv.numel() + 1, device=qkv.device)[1:].view(qkv.shape).copy_(qkv)
    for x in (
        qkv.permute(2, 0, 3, 1, 4).contiguous().permute(1, 3, 0, 2, 4),
        wide[:, 2:11, :, 1:, 4:36].copy_(qkv),
        qkv.transpose(1, 4).contiguous().transpose(1, 4),
        off,
    ):
        check(x, grad[:, :1].expand_as(grad), as_it_lies=True)


def test_compiles_without_a_break_and_refuses_a_second_derivative():
    qkv, grad = case(1, 18, 2, 32)
    turn = turns(18, 32)
    with use_backend("triton"):
        eager = ours(lambda x: weighted_linear_attention(x * 1.5, turn=turn), qkv, grad)
        backend = "inductor" if GPU else "aot_eager"
        traced = torch.compile(lambda x: weighted_linear_attention(x * 1.5, turn=turn), fullgraph=True, backend=backend)
        for a, b in zip(eager, ours(traced, qkv, grad), strict=True):
            assert relative(b, a) < 1e-5
        leaf = qkv.clone().requires_grad_()
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(weighted_linear_attention(leaf), leaf, grad, create_graph=True)


def test_what_is_saved():
    """The projection, a state and its sums a head, the table of angles: no feature of a token, and nothing without a
    gradient."""
    qkv, _ = case(1, 18, 2, 32)
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t)
    with use_backend("triton"), hooks:
        weighted_linear_attention(qkv.requires_grad_(), turn=turns(18, 32))
    assert [t.numel() for t in saved] == [qkv.numel(), 2 * 18 * 16, 2 * 32 * 32, 2 * 65]
    saved.clear()
    with use_backend("triton"), torch.no_grad(), hooks:
        weighted_linear_attention(qkv)
    assert not saved


@pytest.mark.parametrize(("map", "weight", "rope"), [("elu1", "rala", "axial"), ("relu", "none", "none")])
def test_the_layer_computes_the_same_by_kernels(map, weight, rope):
    """Outputs and gradients of all parameters, 2-D rotation behind a class token."""
    torch.manual_seed(0)
    around = {"rope": rope}
    layer = OperatorAttention(64, num_heads=2, map=map, over="sum", weight=weight, around=around).to(DEVICE)
    layer.set_layout(Layout(17, (4, 4), 1))
    x = torch.randn(1, 17, 64, device=DEVICE)
    results = []
    for backend in ("torch", "triton"):
        with use_backend(backend):
            assert serves_weighted(layer.qkv(x).view(1, 17, 3, 2, 32), map) == (backend == "triton")
            out = layer(x)
            results.append([out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))])
    for theirs, mine in zip(*results, strict=True):
        assert relative(mine, theirs) < 1e-5
    assert not all(torch.equal(theirs, mine) for theirs, mine in zip(*results, strict=True))


def test_what_the_layer_leaves_to_pytorch():
    """Causal attention, other divisors, a constant weight, a learned temperature: the kernels compute none of them."""
    qkv = torch.randn(1, 9, 3, 2, 32, device=DEVICE)
    for causal, options in [
        (True, {"over": "sum"}),
        (False, {"over": "magnitude"}),
        (False, {"over": "sum", "a": 1.0}),
        (False, {"over": "sum", "temperature": "learned"}),
    ]:
        layer = OperatorAttention(64, num_heads=2, map="elu1", weight="rala", **options).to(DEVICE)
        layer.draw_extra(lambda tensor, bound: None)
        with use_backend("torch"):
            expected = layer.attend(qkv, causal)
        with use_backend("triton"):
            assert torch.equal(layer.attend(qkv, causal), expected)


def test_bad_input():
    with use_backend("triton"):
        for shape in ((1, 4, 2, 1, 32), (1, 4, 3, 1, 48), (0, 4, 3, 1, 32)):
            with pytest.raises(ValueError, match="kernels of weighted linear attention want"):
                weighted_linear_attention(torch.randn(shape, device=DEVICE))
        qkv = torch.randn(1, 4, 3, 1, 32, device=DEVICE)
        with pytest.raises(ValueError, match="'exp'"):
            weighted_linear_attention(qkv, feature_map="exp")
        with pytest.raises(ValueError, match=r"turn must be float32 \(2, 4, 16\)"):
            weighted_linear_attention(qkv, turn=torch.zeros(2, 5, 16, device=DEVICE))
        with pytest.raises(ValueError, match=f"on {DEVICE}.*; got torch.float32 .* on meta"):
            weighted_linear_attention(qkv, turn=torch.zeros(2, 4, 16, device="meta"))
    with use_backend("torch"):
        assert not serves_weighted(qkv, "elu1")
