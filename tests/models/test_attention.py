"""Every attention kind against its quadratic reference: values, every gradient, causal and not, at odd lengths."""

import math
import subprocess
import sys

import pytest
import torch
from clip_la_kernels.ops.linear_attention.reference import fastmax_reference, linear_attention_reference
from torch import Tensor, nn

from clip_la.models.attention.base import Attention, attention_layer
from clip_la.models.attention.kinds import KINDS
from clip_la.models.attention.pattern import layer_choices
from clip_la.models.attention.softmax import CPU_PRODUCT_MAX_TOKENS

WIDTH, HEADS = 15, 3

# Each kind with and without its options changed, and what the reference is given for it.
CASES = {
    "softmax": {},
    "linear": {"denominator": "none"},
    "linear(a=0.5,b=-0.25)": {"denominator": "none", "a": 0.5, "b": -0.25},
    "linear_mean": {"denominator": "length"},
    "linear_mean(b=2)": {"denominator": "length", "b": 2.0},
    "linear_norm": {"denominator": "sum"},
    "linear_norm(a=2,b=-1)": {"denominator": "sum", "a": 2.0, "b": -1.0},
    "linear_map": {"denominator": "sum", "a": 0.0, "feature_map": "elu1"},
    "linear_map(feature_map=relu)": {"denominator": "sum", "a": 0.0, "feature_map": "relu"},
    "linear_map(feature_map=exp)": {"denominator": "sum", "a": 0.0, "feature_map": "exp"},
    "fastmax1(t=16)": {"p": 1, "temperature": 16.0},
    "fastmax2": {"p": 2},
    "fastmax2(t=0.5)": {"p": 2, "temperature": 0.5},
}


def make_layer(pattern: str, width: int = WIDTH, heads: int = HEADS) -> Attention:
    (choice,) = layer_choices(pattern, 1)
    layer = attention_layer(choice)(width, num_heads=heads)
    # The biases start at zero, where a gradient's path might hide.
    nn.init.normal_(layer.qkv.bias, std=0.1)
    return layer.double()


def reference(pattern: str, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """q, k, v, result: (batch, tokens, heads, head_dim)."""
    options = CASES[pattern]
    if pattern == "softmax":
        weights = torch.einsum("bihd,bjhd->bhij", q, k).div(math.sqrt(q.shape[-1])).exp()
        weights = weights.tril() if causal else weights
        return torch.einsum("bhij,bjhd->bihd", weights / weights.sum(-1, keepdim=True), v)
    if "p" in options:
        return fastmax_reference(q, k, v, causal=causal, **options)
    return linear_attention_reference(q, k, v, causal=causal, **options)


def reference_layer(layer: Attention, pattern: str, x: Tensor, causal: bool) -> Tensor:
    q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in layer.qkv(x).chunk(3, dim=-1))
    return layer.proj(reference(pattern, q, k, v, causal).flatten(2))


def test_every_kind_is_tested_here_or_in_test_mixers() -> None:
    older = {
        name for name, kind in KINDS.items() if kind.layer.partition(":")[0] in (".softmax", ".linear", ".fastmax")
    }
    assert {pattern.partition("(")[0] for pattern in CASES} == older


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("tokens", [1, 13, CPU_PRODUCT_MAX_TOKENS + 3])
@pytest.mark.parametrize("pattern", CASES)
def test_value_and_every_gradient_equal_the_reference(pattern: str, tokens: int, causal: bool) -> None:
    layer = make_layer(pattern)
    x = torch.randn(2, tokens, WIDTH, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    out = layer(x, is_causal=causal)
    expected = reference_layer(layer, pattern, x, causal)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("pattern", CASES)
def test_gradcheck(pattern: str, causal: bool) -> None:
    layer = make_layer(pattern, width=6, heads=2)
    x = torch.randn(1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: layer(t, is_causal=causal), (x,))


def test_linear_is_equation_seven() -> None:
    layer = make_layer("linear(a=0.75,b=0.5)", width=4, heads=1)
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    q, k, v = layer.qkv(x)[0].detach().chunk(3, dim=-1)
    rows = []
    for i in range(3):
        cosines = [float(q[i] @ k[j] / (q[i].norm() * k[j].norm())) for j in range(3)]
        rows.append(sum((0.75 + 0.5 * cosine) * v[j] for j, cosine in enumerate(cosines)))
    torch.testing.assert_close(layer(x)[0], layer.proj(torch.stack(rows)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_linear_norm_is_finite_when_every_key_opposes_the_query(dtype: torch.dtype, causal: bool) -> None:
    (choice,) = layer_choices("linear_norm", 1)
    layer = attention_layer(choice)(8, num_heads=1)
    direction = torch.randn(8)
    q = direction.expand(2, 9, 8)
    v = torch.randn(2, 9, 8)
    qkv = torch.stack([q, -q, v], dim=2).unsqueeze(3).to(dtype).requires_grad_()
    out = layer.attend(qkv, causal)
    out.float().square().sum().backward()
    assert out.isfinite().all()
    assert qkv.grad is not None
    assert qkv.grad.isfinite().all()


@pytest.mark.parametrize("pattern", CASES)
def test_bf16_autocast_stays_near_float32(pattern: str) -> None:
    layer = make_layer(pattern, width=32, heads=2).float()
    x = torch.randn(2, 17, 32)
    exact = layer(x, is_causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        rough = layer(x, is_causal=True)
    assert rough.dtype == torch.bfloat16
    error = (rough.float() - exact).norm() / exact.norm()
    assert error < 0.02


@pytest.mark.parametrize("pattern", CASES)
def test_causal_attention_sees_nothing_that_follows(pattern: str) -> None:
    layer = make_layer(pattern)
    x = torch.randn(1, 11, WIDTH, dtype=torch.float64)
    changed = x.clone()
    changed[:, 7:] += 1
    torch.testing.assert_close(layer(x, is_causal=True)[:, :7], layer(changed, is_causal=True)[:, :7])
    assert not torch.allclose(layer(x)[:, :7], layer(changed)[:, :7])


def test_what_is_not_supported_is_refused() -> None:
    (choice,) = layer_choices("linear", 1)
    with pytest.raises(ValueError, match="qk_norm"):
        attention_layer(choice)(8, num_heads=2, qk_norm=True)
    with pytest.raises(ValueError, match="no multiple of 3 heads"):
        attention_layer(choice)(8, num_heads=3)
    with pytest.raises(ValueError, match="attn_mask"):
        attention_layer(choice)(8, num_heads=2)(torch.randn(1, 3, 8), attn_mask=torch.ones(3, 3))


def test_fused_attention_of_cudnn_is_not_used() -> None:
    """It is the default on some GPUs, and its backward pass is wrong for some layouts."""
    code = "import torch; from clip_la.models import create_model; create_model('vit_pico'); "
    code += "assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_softmax_of_short_heads_runs_the_kernels_of_the_house() -> None:
    """On Hopper; what the layer computes is what it computes on a CPU."""
    if torch.cuda.get_device_properties(0).major != 9:
        pytest.skip("needs Hopper")
    (choice,) = layer_choices("softmax", 1)
    layer = attention_layer(choice)(128, num_heads=2)
    x = torch.randn(4, 65, 128)
    expected = layer(x, is_causal=True)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile, torch.autocast("cuda", torch.bfloat16):
        out = layer.cuda()(x.cuda(), is_causal=True)
        out.float().sum().backward()
    names = {event.name for event in profile.events()}
    assert {"softmax_forward", "softmax_backward"} <= names
    assert not any("flash" in name for name in names)
    assert float((out.float().cpu() - expected).norm() / expected.norm()) < 0.02
