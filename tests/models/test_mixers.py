"""The configurable operator and the mixers beyond it against their references: on a grid, causal, every gradient."""

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clip_la_kernels.ops.linear_attention.reference import linear_attention_reference
from clip_la_kernels.ops.mixers.reference import (
    dynamic_convolution_reference,
    mhla_reference,
    operator_reference,
    scan_reference,
    ttt_reference,
    window_reference,
)
from torch import Tensor

from clip_la.models.attention.base import attention_layer
from clip_la.models.attention.kinds import KINDS
from clip_la.models.attention.layout import Layout
from clip_la.models.attention.pattern import layer_choices
from clip_la.models.attention.scans import unit_lower_inverse

WIDTH, HEADS = 16, 2
GRIDS = {"3x5": Layout(16, (3, 5), 1), "4x4": Layout(18, (4, 4), 2), "9x8": Layout(73, (9, 8), 1)}
LAYOUTS = {**GRIDS, "text": Layout(19), "long text": Layout(150)}
OFF = "(conv=0,gate=none,rope=none,norm=none)"

MIXERS = [
    "flatten(conv=0)",
    "flatten(conv=0,power=2)",
    "hedgehog",
    "hedgehog(temperature=learned)",
    "inline(conv=0)",
    "inline(conv=0,rope=axial,temperature=learned)",
    f"rala{OFF}",
    "rala(conv=0,gate=none)",
    f"mala{OFF}",
    "mala(conv=0,gate=none)",
    "kernel(map=exp,over=sum,a=0.5)",
    "kernel(map=elu1,over=subtract,weight=rala)",
    "kernel(map=l2,over=length,a=1,temperature=learned)",
    "kernel(map=relu,over=none)",
    "mhla(blocks=2)",
    "mhla(blocks=4)",
    "ttt(step=1.5)",
    "gla(norm=none)",
    "gated_delta(norm=none)",
    "window_linear(window=2)",
    "window_linear(window=3)",
]


def make_layer(pattern: str, layout: Layout | None, width: int = WIDTH, heads: int = HEADS) -> Any:
    """A layer with random numbers in every parameter: a start at zero might hide a term."""
    (choice,) = layer_choices(pattern, 1)
    layer: Any = attention_layer(choice)(width, num_heads=heads)
    if layout is not None:
        layer.set_layout(layout)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        layer.draw_extra(lambda tensor, bound: torch.nn.init.uniform_(tensor, -bound, bound, generator=generator))
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return layer.double()


def random_tokens(tokens: int, width: int = WIDTH) -> Tensor:
    return torch.randn(2, tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def turned(x: Tensor, layout: Layout) -> Tensor:
    """2-D or 1-D rotary positions, a pair of features at a time."""
    out = x.clone()
    half = x.shape[-1] // 2
    for token in range(layout.prefix, x.shape[1]):
        for pair in range(half):
            if layout.grid is None:
                angle = token * 10000.0 ** -(pair / half)
            else:
                place = divmod(token - layout.prefix, layout.grid[1])[int(pair >= half // 2)]
                angle = place * 100.0 ** -((pair % (half // 2)) / (half // 2))
            a, b = x[:, token, :, pair], x[:, token, :, pair + half]
            out[:, token, :, pair] = a * math.cos(angle) - b * math.sin(angle)
            out[:, token, :, pair + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def features(layer: Any, x: Tensor, which: int) -> Tensor:
    """phi of (batch, tokens, heads, width), written out per map."""
    kind, power = layer.map.kind, layer.map.power
    if kind == "hedgehog":
        mapped = torch.einsum("bnhd,hde->bnhe", x, layer.map.maps[which])
        halves = (mapped.exp(), (-mapped).exp())
        return torch.cat([half / half.sum(-1, keepdim=True) for half in halves], -1)
    if kind == "focused":
        u = (x.relu() + 1e-6) / (1 + layer.map.scale[:, 0].exp()).log()
        return u**power * u.norm(dim=-1, keepdim=True) / (u**power).norm(dim=-1, keepdim=True)
    plain = {"l2": F.normalize, "identity": lambda t, dim: t, "relu": lambda t, dim: t.relu()}
    plain |= {"elu1": lambda t, dim: F.elu(t) + 1, "exp": lambda t, dim: t.exp()}
    return plain[kind](x, dim=-1)


def operator(layer: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    t = 1.0 if layer.temperature is None else layer.temperature.exp()[:, None]
    l2 = layer.map.kind == "l2"
    fq = features(layer, q if l2 else q * t, 0) * (t * q.shape[-1] ** 0.5 if l2 else q.shape[-1] ** -0.5)
    fk = features(layer, k, 1)
    pair = (turned(fq, layout), turned(fk, layout)) if layer.around["rope"] == "axial" else None
    if layer.over == "subtract" and pair:
        fq, fk, pair = *pair, None
    options = {"over": layer.over, "weight": layer.weight, "a": layer.a, "eps": layer.eps}
    return operator_reference(fq, fk, v, causal=layout.causal, turned=pair, **options)


def scan(layer: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Both directions of the patches one token at a time, and the prefix without decay."""
    p, heads = layout.prefix, layer.num_heads
    ways = 1 if layout.causal else 2
    if hasattr(layer, "gate_down"):
        logits = layer.gate_up(layer.gate_down(x[:, p:])).unflatten(-1, (ways, heads, -1))
        gates = [(logits[:, :, way].sigmoid() ** (1 / 16),) for way in range(ways)]
        q = q / q.shape[-1] ** 0.5
    else:
        rates = layer.rates(x[:, p:]).unflatten(-1, (ways, 2, heads, 1))
        gates = [(1 - rates[:, :, way, 0].sigmoid(), rates[:, :, way, 1].sigmoid()) for way in range(ways)]
        q, k = F.normalize(F.silu(q), dim=-1), F.normalize(F.silu(k), dim=-1)
    out = sum(
        scan_reference(q[:, p:], k[:, p:], v[:, p:], *gates[way], inclusive=way == 0, reverse=way == 1)
        for way in range(ways)
    )
    matrix = torch.einsum("bihd,bjhd->bhij", q, k)
    out = out + torch.einsum("bhij,bjhd->bihd", matrix[:, :, p:, :p], v[:, :p])
    return torch.cat([torch.einsum("bhij,bjhd->bihd", matrix[:, :, :p], v), out], 1)


def reference_core(layer: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    name = type(layer).__name__
    if name == "OperatorAttention":
        return operator(layer, q, k, v, layout)
    if name == "MhlaAttention":
        place = {"grid": layout.grid, "prefix": layout.prefix, "side": layer.blocks, "max_tokens": layout.max_tokens}
        return mhla_reference(q, k, v, layer.mixture.exp(), **place)
    if name == "TttAttention":
        return ttt_reference(q, k, v, layer.inner, layer.step)
    if name == "WindowLinearAttention":
        share = layer.share.sigmoid()
        everywhere = linear_attention_reference(q, k, v, denominator="length", causal=layout.causal)
        local = window_reference(q, k, v, grid=layout.grid, prefix=layout.prefix, side=layer.window)
        return share * local + (1 - share) * everywhere
    return scan(layer, x, q, k, v, layout)


def reference_layer(layer: Any, x: Tensor, layout: Layout) -> Tensor:
    q, k, v = (part.unflatten(-1, (layer.num_heads, -1)) for part in layer.qkv(x).chunk(3, dim=-1))
    return layer.proj(reference_core(layer, x, q, k, v, layout).flatten(2))


def cases() -> list[tuple[str, str]]:
    """Every mixer on a grid of 3 x 5 and in text; a long text and other grids for those whose form depends on it."""
    pairs = [(m, place) for m in MIXERS for place in ("3x5", "text") if not (m.startswith("ttt") and place == "text")]
    pairs += [("gla(norm=none)", "9x8"), ("gated_delta(norm=none)", "9x8"), ("mhla(blocks=2)", "9x8")]
    pairs += [("gla(norm=none)", "long text"), ("gated_delta(norm=none)", "long text"), ("mhla(blocks=2)", "long text")]
    return pairs + [(m, "4x4") for m in ("mhla(blocks=3)", "gla(norm=none)", "window_linear(window=2)", "ttt(step=1)")]


def test_every_mixer_is_tested() -> None:
    older = {
        name for name, kind in KINDS.items() if kind.layer.partition(":")[0] in (".softmax", ".linear", ".fastmax")
    }
    assert {pattern.partition("(")[0] for pattern in MIXERS} == set(KINDS) - older


@pytest.mark.parametrize(("pattern", "place"), cases())
def test_value_and_every_gradient_equal_the_reference(pattern: str, place: str) -> None:
    layout = LAYOUTS[place]
    layer = make_layer(pattern, layout)
    # Text is trimmed to its longest caption: fewer tokens than the layout allows.
    tokens = layout.max_tokens - 2 * layout.causal
    x = random_tokens(tokens).requires_grad_()
    inputs = [x, *layer.parameters()]
    out, expected = layer(x, is_causal=layout.causal), reference_layer(layer, x, layout)
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=1e-7)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def convolved(v: Tensor, weight: Tensor, layout: Layout) -> Tensor:
    """(batch, tokens, dim) one tap at a time; weight (dim, 1, rows, columns)."""
    out, (rows, columns) = torch.zeros_like(v), weight.shape[2:]
    for token in range(layout.prefix, v.shape[1]):
        for r in range(rows):
            for c in range(columns):
                if layout.grid is None:
                    other = token - (columns - 1) + c
                    inside = other >= 0
                else:
                    row, column = divmod(token - layout.prefix, layout.grid[1])
                    row, column = row + r - rows // 2, column + c - columns // 2
                    inside = 0 <= row < layout.grid[0] and 0 <= column < layout.grid[1]
                    other = layout.prefix + row * layout.grid[1] + column
                if inside:
                    out[:, token] = out[:, token] + weight[:, 0, r, c] * v[:, other]
    return out


@pytest.mark.parametrize("place", ["3x5", "4x4", "text"])
@pytest.mark.parametrize("options", ["conv=3", "conv=5,gate=linear", "gate=sigmoid,norm=rms", "rope=axial,cls=softmax"])
def test_what_stands_around_softmax_equals_the_reference(options: str, place: str) -> None:
    layout = LAYOUTS[place]
    layer = make_layer(f"softmax({options},temperature=learned)", layout)
    x = random_tokens(layout.max_tokens)
    q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in layer.qkv(x).chunk(3, dim=-1))
    if "rope" in options:
        q, k = turned(q, layout), turned(k, layout)
    plain = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    scores = plain * layer.temperature.exp()[:, :, None]
    if layout.causal:
        scores = scores.masked_fill(~torch.ones_like(scores[0, 0], dtype=torch.bool).tril(), float("-inf"))
    elif "cls" in options:
        # The class token's row has no temperature of its own.
        scores = torch.cat([plain[:, :, : layout.prefix], scores[:, :, layout.prefix :]], 2)
    out = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
    if "rms" in options:
        out = out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.head_norm.weight
    out = out.flatten(2)
    if "conv" in options:
        out = out + convolved(v.flatten(2), layer.conv.weight, layout)
    if "gate" in options:
        gate = layer.gate.linear(x)
        out = out * (gate if "linear" in options else 2 / (1 + (-gate).exp()))
    # Angles are float32.
    error = 1e-6 if "rope" in options else 1e-9
    torch.testing.assert_close(layer(x, is_causal=layout.causal), layer.proj(out), rtol=error, atol=error)


@pytest.mark.parametrize("place", ["3x5", "4x4", "text"])
def test_dynamic_convolution_and_every_gradient_equal_the_reference(place: str) -> None:
    layout = LAYOUTS[place]
    conv = make_layer("softmax(conv=dynamic)", layout).conv
    v = random_tokens(layout.max_tokens - 2 * layout.causal).requires_grad_()
    inputs = [v, conv.weight, conv.squeeze.weight, conv.expand.weight]
    expected = dynamic_convolution_reference(*inputs, grid=layout.grid, prefix=layout.prefix)
    torch.testing.assert_close(conv(v), expected)
    weight = torch.randn_like(expected)
    found = torch.autograd.grad((conv(v) * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    # The prefix gets nothing and moves nothing.
    assert not conv(v)[:, : layout.prefix].any()
    moved = torch.cat([v[:, : layout.prefix] + 1, v[:, layout.prefix :]], 1)
    assert torch.equal(conv(moved), conv(v))


@pytest.mark.parametrize("place", ["3x5", "text"])
def test_dynamic_convolution_starts_as_the_static_one(place: str) -> None:
    x, layout = random_tokens(LAYOUTS[place].max_tokens), LAYOUTS[place]
    start = []
    for conv in ("3", "dynamic"):
        (choice,) = layer_choices(f"linear_mean(conv={conv})", 1)
        layer: Any = attention_layer(choice)(WIDTH, num_heads=HEADS).double()
        layer.set_layout(layout)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for linear in (layer.qkv, layer.proj):
                torch.nn.init.uniform_(linear.weight, -1, 1, generator=generator)
                torch.nn.init.zeros_(linear.bias)
            draw = partial(torch.nn.init.uniform_, generator=generator)
            layer.draw_extra(lambda tensor, bound, draw=draw: draw(tensor, -bound, bound))
        start.append(layer(x, is_causal=layout.causal))
    torch.testing.assert_close(start[0], start[1])


AROUND_TEXT = ["linear(conv=3,rope=axial)", "softmax(conv=5,gate=sigmoid)", "linear_mean(conv=dynamic)"]


@pytest.mark.parametrize("pattern", [*MIXERS, *AROUND_TEXT])
def test_text_sees_nothing_that_follows(pattern: str) -> None:
    if pattern.startswith("ttt"):
        pytest.skip("has no causal form")
    layer = make_layer(pattern, LAYOUTS["text"])
    x = random_tokens(19)
    changed = x.clone()
    changed[:, 11:] += 1
    before, after = layer(x, is_causal=True), layer(changed, is_causal=True)
    torch.testing.assert_close(before[:, :11], after[:, :11])
    assert not torch.allclose(before[:, 11:], after[:, 11:])


@pytest.mark.parametrize("pattern", MIXERS)
def test_every_token_reads_all_others_of_a_grid(pattern: str) -> None:
    layer = make_layer(pattern, LAYOUTS["3x5"])
    x = random_tokens(16).requires_grad_()
    out = layer(x)
    for token in (0, 1, 8, 15):
        (gradient,) = torch.autograd.grad(out[0, token].sum(), x, retain_graph=True)
        assert (gradient[0].abs().amax(-1) > 0).all()
        assert not gradient[1].any()


AROUND_BF16 = ["linear_mean(conv=3,gate=sigmoid,norm=rms,rope=axial,cls=softmax)", "softmax(conv=dynamic)"]


@pytest.mark.parametrize("pattern", [*MIXERS, *AROUND_BF16])
@pytest.mark.parametrize("place", ["9x8", "long text"])
def test_bf16_autocast_stays_near_float32(pattern: str, place: str) -> None:
    layout = LAYOUTS[place]
    if pattern.startswith("ttt") and layout.causal:
        pytest.skip("has no causal form")
    layer = make_layer(pattern, layout, width=64).float()
    x = random_tokens(layout.max_tokens, 64).float()
    exact = layer(x, is_causal=layout.causal)
    with torch.autocast("cpu", torch.bfloat16):
        rough = layer(x, is_causal=layout.causal)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() / exact.norm() < 0.02


COMPILED = ["rala(norm=rms,cls=softmax)", "flatten", "mhla", "ttt", "gla", "gated_delta", "window_linear"]


@pytest.mark.parametrize("pattern", [*COMPILED, "linear(conv=dynamic)"])
def test_a_layer_is_one_graph_for_the_compiler(pattern: str) -> None:
    layer = make_layer(pattern, LAYOUTS["3x5"]).float()
    x = random_tokens(16).float()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    torch.compiler.reset()


@pytest.mark.parametrize("size", [1, 5, 16, 17, 49, 64, 100])
def test_the_inverse_of_a_unit_triangular_matrix(size: int) -> None:
    lower = torch.rand(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tril(-1)
    lower.requires_grad_()
    eye = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(unit_lower_inverse(lower) @ (lower + eye), eye.expand(2, 3, -1, -1))
    weight = torch.randn(2, 3, size, size, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((inverse * weight).sum(), lower)[0]
        for inverse in (unit_lower_inverse(lower), torch.linalg.inv(lower.tril(-1) + eye))
    ]
    torch.testing.assert_close(gradients[0].tril(-1), gradients[1])


def test_equal_keys_leave_the_float32_inverse_exact() -> None:
    # All ones below the diagonal: the powers of the whole matrix reach 1e18, its inverse is -1 beside the diagonal.
    lower = torch.ones(64, 64).tril(-1)
    wanted = torch.eye(64) - torch.eye(64)[:, 1:].matmul(torch.eye(64)[:-1])
    torch.testing.assert_close(unit_lower_inverse(lower), wanted, rtol=0, atol=1e-5)


def test_a_layer_that_needs_its_layout_says_so() -> None:
    for pattern in ("softmax(conv=3)", "mhla", "gla", "rala"):
        (choice,) = layer_choices(pattern, 1)
        layer = attention_layer(choice)(WIDTH, num_heads=HEADS)
        with pytest.raises(ValueError, match="needs set_layout"):
            layer(torch.randn(1, 16, WIDTH))
    layer = make_layer("softmax(conv=3)", LAYOUTS["3x5"])
    with pytest.raises(ValueError, match="17 tokens, is_causal=False, do not lie as"):
        layer(random_tokens(17))
    with pytest.raises(ValueError, match="ttt has no causal form"):
        make_layer("ttt", LAYOUTS["3x5"])(random_tokens(16), is_causal=True)
