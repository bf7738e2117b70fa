"""Counted FLOPs against published figures and against PyTorch's own counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clip_la.models import create_model, list_attention, list_models, model_spec
from clip_la.models.attention.kinds import attention_kind
from clip_la.models.flops import MLP_RATIO, flops, gmacs, training_flops

# GFLOPs of a pair and of the image tower in open_clip's model profile (docs/model_profile.csv).
PUBLISHED = {"vit_s16": (12.58, 9.20), "vit_b16": (41.09, 35.13), "vit_l16": (136.41, 123.11)}


@pytest.mark.parametrize(("name", "total", "image"), [(name, *figures) for name, figures in PUBLISHED.items()])
def test_softmax_presets_cost_what_is_published(name: str, total: float, image: float) -> None:
    counted = flops(model_spec(name))
    assert counted["total"] / 1e9 == pytest.approx(total, rel=5e-3)
    assert counted["image"] / 1e9 == pytest.approx(image, rel=5e-3)
    assert counted["text"] / 1e9 == pytest.approx(total - image, rel=5e-3)
    assert gmacs(counted["total"]) == pytest.approx(total / 2, rel=5e-3)
    assert training_flops(model_spec(name)) == 3 * counted["total"]


# Their norms are products on a CPU.
FACTORED = ("linear", "linear_mean", "window_linear")
AFFINE = ("linear", "linear_mean")
COUNTED = ["softmax", *AFFINE, "softmax+linear*2", "softmax(conv=5,gate=sigmoid,rope=axial,norm=rms)"]
COUNTED += ["linear_mean(conv=3,cls=softmax)", "kernel", "hedgehog", "inline", "flatten", "rala", "mala", "mhla"]
COUNTED += ["mhla(blocks=2)", "ttt", "gla", "gated_delta", "window_linear(window=2)", "window_linear(window=3)"]
COUNTED += ["linear_mean(conv=dynamic)"]


# 80 pixels are 101 tokens: two chunks of a scan, mhla by its states, ragged windows.
@pytest.mark.parametrize("size", [32, 80])
@pytest.mark.parametrize("attention", COUNTED)
def test_the_image_tower_costs_what_pytorch_counts(attention: str, size: int) -> None:
    spec = model_spec("vit_micro", image_attention=attention, image_size=size)
    model = create_model("vit_micro", image_attention=attention, image_size=size, seed=0)
    # The counter does not see inside the fused form.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.image(torch.randn(1, 3, size, size))
    # The last MLP runs for one token but counts for all; norms of q and k do not count, but are products here.
    skipped = (spec.num_image_tokens - 1) * 4 * MLP_RATIO * spec.image_width**2
    norms = sum(4 * spec.num_image_tokens * spec.image_width for c in spec.image_choices if c.kind in FACTORED)
    # Nor does it see products of features that no matrix takes part in: the nine taps of a kernel an image.
    dynamic = sum(c.options["conv"] == "dynamic" for c in spec.image_choices)
    taps = dynamic * 2 * 9 * (spec.num_image_tokens - 1) * spec.image_width
    assert counter.get_total_flops() + skipped - norms + taps == flops(spec)["image"]


@pytest.mark.parametrize("attention", ["softmax", "softmax(conv=dynamic)"])
def test_the_text_tower_costs_what_pytorch_counts(attention: str) -> None:
    spec = model_spec("vit_micro", text_attention=attention)
    model = create_model("vit_micro", text_attention=attention, seed=0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.text(torch.randint(1, 49407, (1, spec.context_length)))
    skipped = (spec.context_length - 1) * 4 * MLP_RATIO * spec.text_width**2
    taps = 2 * 3 * spec.context_length * spec.text_width * spec.text_layers if "dynamic" in attention else 0
    assert counter.get_total_flops() + skipped + taps == flops(spec)["text"]


@pytest.mark.parametrize("attention", list_attention())
@pytest.mark.parametrize("name", list_models())
def test_attention_is_a_small_part_at_preset_sizes(name: str, attention: str) -> None:
    text = attention if attention_kind(attention).causal else "softmax"
    softmax, other = flops(model_spec(name)), flops(model_spec(name, image_attention=attention, text_attention=text))
    assert other["total"] == other["image"] + other["text"]
    # Gates, learned maps and inverses cost more than the N^2 that they save at such lengths; narrow heads feel it most.
    most = {"gated_delta": 2.3, "gla": 1.3, "hedgehog": 1.15, "ttt": 1.15, "mala": 1.15, "rala": 1.15}
    assert 0.7 * softmax["total"] < other["total"] <= most.get(attention, 1.03) * softmax["total"]


def test_a_pattern_costs_the_sum_of_its_layers() -> None:
    def image(attention: str) -> int:
        return flops(model_spec("vit_b16", image_attention=attention))["image"]

    saved = image("softmax") - image("linear")
    assert image("softmax") - image("linear*11+softmax") == saved * 11 // 12
    # One layer: 4 N^2 d against 4 N D d.
    assert saved == 12 * 4 * 197 * 768 * (197 - 64)


def test_linear_attention_is_linear_in_the_tokens() -> None:
    def attention_flops(kind: str, size: int) -> int:
        base = flops(model_spec("vit_b16", image_attention=kind, image_size=size))["image"]
        tokens = (size // 16) ** 2 + 1
        return base - 12 * 24 * tokens * 768**2 - 2 * (tokens - 1) * 768**2 - 2 * 768 * 512

    assert attention_flops("linear", 1024) / attention_flops("linear", 512) == pytest.approx(4097 / 1025)
    assert attention_flops("softmax", 1024) / attention_flops("softmax", 512) == pytest.approx((4097 / 1025) ** 2)
