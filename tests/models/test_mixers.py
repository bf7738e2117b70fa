"""The configurable operator and the mixers beyond it against their references: on a grid, causal, every gradient."""

from functools import partial
from typing import Any

import pytest
import torch
from clip_la_kernels.ops.mixers.reference import dynamic_convolution_reference

from clip_la.models.attention.base import attention_layer
from clip_la.models.attention.kinds import KINDS
from clip_la.models.attention.pattern import layer_choices
from clip_la.models.attention.scans import unit_lower_inverse
from tests.models.reference_layers import HEADS, LAYOUTS, WIDTH, make_layer, random_tokens, reference_layer

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
    "window_linear(window=9)",
]


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


@pytest.mark.parametrize("place", ["3x5", "text"])
def test_a_window_wider_than_all_tokens_costs_no_more_than_these(place: str) -> None:
    layout = LAYOUTS[place]
    wide, wider = (layer_choices(f"window_linear(window={side})", 1)[0] for side in (5, 1000))
    flops = [KINDS["window_linear"].flops(layout, WIDTH, WIDTH // HEADS, each.options) for each in (wide, wider)]
    assert flops[0] == flops[1]
    x, (a, b) = random_tokens(layout.max_tokens), (make_layer(str(each), layout) for each in (wide, wider))
    b.load_state_dict(a.state_dict())
    torch.testing.assert_close(a(x, is_causal=layout.causal), b(x, is_causal=layout.causal))


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
