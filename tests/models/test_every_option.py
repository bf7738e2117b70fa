"""Every attention kind with every value of every option: its reference, its cost, what it may see, one graph.

Plans are made from the registry, so that a kind or an option that is added is tested here at once.
"""

import random
from functools import cache

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clip_la.errors import UserError
from clip_la.models.attention.kinds import KINDS
from clip_la.models.attention.layout import Layout
from clip_la.models.attention.options import Number, Option
from clip_la.models.attention.pattern import layer_choices
from tests.models.reference_layers import HEADS, LAYOUTS, WIDTH, make_layer, random_tokens, reference_layer

# Values that no plan may have, with why in the registry's own words.
REFUSED = {("linear_map", "rope", "axial"): "rope turns positive features negative"}
TRIES = 300


def values(option: Option) -> list[str]:
    """Every choice; of a number its default and another that it may be."""
    if not isinstance(option, Number):
        return list(option.choices)
    other = option.default + 1 if option.whole else option.default * 1.5 or 0.5
    return [f"{option.default:g}", f"{other:g}"]


def spelt(kind: str, given: dict[str, str]) -> str:
    return f"{kind}({','.join(f'{name}={value}' for name, value in given.items())})"


def is_sound(plan: str) -> bool:
    try:
        layer_choices(plan, 1)
    except UserError:
        return False
    return True


@cache
def cover(kind: str) -> tuple[str, ...]:
    """Plans that hold every value of every option of a kind, several at a time."""
    options = {name: values(option) for name, option in KINDS[kind].options.items()}
    open_values = {(name, value) for name, each in options.items() for value in each}
    open_values -= {(name, value) for of, name, value in REFUSED if of == kind}
    dice, plans = random.Random(kind), []
    while open_values:
        name, value = min(open_values)
        drawn = [{key: dice.choice(each) for key, each in options.items()} | {name: value} for _ in range(TRIES)]
        sound = [given for given in drawn if is_sound(spelt(kind, given))]
        assert sound, f"no plan of {kind} has {name}={value}"
        best = max(sound, key=lambda given: len(open_values & set(given.items())))
        open_values -= set(best.items())
        plans.append(spelt(kind, best))
    return tuple(plans)


# Each plan on a grid with a class token, and on one with two prefix tokens or in text, in turn.
CASES = [
    (plan, place)
    for kind, entry in KINDS.items()
    for index, plan in enumerate(cover(kind))
    for place in ("3x5", "text" if entry.causal and index % 2 == 0 else "4x4")
]
CAUSAL = [kind for kind, entry in KINDS.items() if entry.causal]
# Products that count as none, in products of all tokens and features: norms of unit queries and keys (4), denominators.
UNCOUNTED = {"linear": 4, "linear_mean": 4, "window_linear": 4, "linear_norm": 6, "linear_map": 2, "fastmax1": 2}


@pytest.mark.parametrize(("kind", "option", "value"), REFUSED)
def test_what_is_refused_says_why(kind: str, option: str, value: str) -> None:
    with pytest.raises(UserError, match=REFUSED[kind, option, value]):
        layer_choices(f"{kind}({option}={value})", 1)


@pytest.mark.parametrize(("plan", "place"), CASES)
def test_value_and_every_gradient_equal_the_reference(plan: str, place: str) -> None:
    layout = LAYOUTS[place]
    layer = make_layer(plan, layout)
    x = random_tokens(layout.max_tokens - 2 * layout.causal).requires_grad_()
    inputs = [x, *layer.parameters()]
    out, expected = layer(x, is_causal=layout.causal), reference_layer(layer, x, layout)
    # Angles are float32.
    error = 1e-5 if "rope=axial" in plan else 1e-7
    torch.testing.assert_close(out, expected, rtol=error, atol=error)
    weight = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((out * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * error, atol=10 * error)


@pytest.mark.parametrize(("plan", "place"), CASES)
def test_gradients_lie_as_their_parameters(plan: str, place: str) -> None:
    """DDP keeps gradients as views of its buckets, and warns where the strides of one are not its parameter's."""
    layout = LAYOUTS[place]
    # float32: float64 takes another convolution, whose gradients lie right in any case.
    layer = make_layer(plan, layout).float()
    layer(random_tokens(layout.max_tokens).float(), is_causal=layout.causal).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name


@pytest.mark.parametrize(("plan", "place"), CASES)
def test_parameters_are_those_counted(plan: str, place: str) -> None:
    layer, layout, (choice,) = make_layer(plan, LAYOUTS[place]), LAYOUTS[place], layer_choices(plan, 1)
    extra = sum(p.numel() for name, p in layer.named_parameters() if not name.startswith(("qkv.", "proj.")))
    assert extra == KINDS[choice.kind].parameters(layout, WIDTH, WIDTH // HEADS, choice.options)


@pytest.mark.parametrize("plan", [plan for kind in KINDS for plan in cover(kind)])
def test_flops_are_those_that_pytorch_counts(plan: str) -> None:
    # 101 tokens: two chunks of a scan, mhla by its states, ragged windows. Of text the linear form counts (costs.py),
    # but a CPU computes all pairs.
    layout, (choice,) = Layout(101, (10, 10), 1), layer_choices(plan, 1)
    layer = make_layer(plan, layout).float()
    # The counter does not see inside the fused form.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        layer(random_tokens(101)[:1].float())
    found = counter.get_total_flops() - 101 * WIDTH * (8 * WIDTH + UNCOUNTED.get(choice.kind, 0))
    # Nor does it see a product that no matrix takes part in: the nine taps of a kernel an image.
    found += 2 * 9 * 100 * WIDTH if choice.options["conv"] == "dynamic" else 0
    assert found == KINDS[choice.kind].flops(layout, WIDTH, WIDTH // HEADS, choice.options)


@pytest.mark.parametrize("place", ["3x5", "text"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_one_graph_for_the_compiler(kind: str, place: str) -> None:
    layout = LAYOUTS[place]
    if layout.causal and kind not in CAUSAL:
        pytest.skip("has no causal form")
    # Another plan in each place: most differ in what stands around.
    layer = make_layer(cover(kind)[-1 if layout.causal else 0], layout).float()
    x = random_tokens(layout.max_tokens).float()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, is_causal=layout.causal), layer(x, is_causal=layout.causal))
    torch.compiler.reset()


@pytest.mark.parametrize("plan", [plan for kind in CAUSAL for plan in cover(kind)])
def test_text_sees_nothing_that_follows(plan: str) -> None:
    layer, x = make_layer(plan, LAYOUTS["text"]), random_tokens(19)
    changed = x.clone()
    changed[:, 11:] += 1
    before, after = layer(x, is_causal=True), layer(changed, is_causal=True)
    torch.testing.assert_close(before[:, :11], after[:, :11])
    assert not torch.allclose(before[:, 11:], after[:, 11:])


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(CAUSAL)))
def test_a_kind_without_a_causal_form_refuses(kind: str) -> None:
    for plan in cover(kind):
        with pytest.raises(ValueError, match=r"no causal form|do not lie as"):
            make_layer(plan, LAYOUTS["3x5"])(random_tokens(16), is_causal=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_convolution_does_not_mix_the_prefix(kind: str) -> None:
    """What a prefix token gets of `conv` is nothing, and what it holds moves no patch's part of it."""
    layer = make_layer(f"{kind}(conv=3)", LAYOUTS["4x4"])
    v = random_tokens(18)
    moved = torch.cat([v[:, :2].flip(1) + 1, v[:, 2:]], 1)
    assert not layer.conv(v)[:, :2].any()
    assert torch.equal(layer.conv(v), layer.conv(moved))
