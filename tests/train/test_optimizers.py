"""Groups of parameters against timm's layer decay and open_clip's rule, Muon against its definition, resumed states."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay

from clip_la.errors import UserError
from clip_la.models import create_model
from clip_la.train.optimizers import MuonWithAdamW, layers_above, make_optimizer, parameter_groups
from clip_la.train.options import ModelOptions, OptimOptions

# The quintic of Muon's page: x -> a x + b x^3 + c x^5 on singular values, five times.
A, B, C = 3.4445, -4.7750, 2.0315


def optimizer_of(model, **options):
    return make_optimizer(model.named_parameters(), OptimOptions(**options), undecayed=model.no_weight_decay())


def names_by_group(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return [{names[id(p)] for p in group["params"]} for group in groups]


def test_vectors_and_scalars_are_not_decayed():
    model = create_model("vit_pico", seed=0)
    optimizer = optimizer_of(model, lr=0.5, beta1=0.8, beta2=0.7, eps=0.1, weight_decay=0.3)
    assert all((g["lr"], g["betas"], g["eps"]) == (0.5, (0.8, 0.7), 0.1) for g in optimizer.param_groups)
    decayed, spared = names_by_group(model, optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert decayed | spared == {name for name, _ in model.named_parameters()}
    assert {"logit_scale", "image.trunk.cls_token"} <= spared
    # open_clip's rule, on shapes without axes of one.
    assert all((p.squeeze().ndim < 2) == (name in spared) for name, p in model.named_parameters())


@pytest.mark.parametrize("attention", ["softmax", "mhla(conv=3,gate=sigmoid,norm=rms)"])
def test_muon_trains_the_matrices_inside_the_blocks(attention):
    model = create_model("vit_nano", attention=attention, seed=0)
    groups = optimizer_of(model, optimizer="muon", lr=0.5, muon_lr=0.1, weight_decay=0.3).param_groups
    hidden = set().union(*names_by_group(model, [group for group in groups if "momentum" in group]))
    layers = [
        *(f"image.trunk.blocks.{i}" for i in range(2)),
        *(f"text.blocks.{i}" for i in range(2)),
    ]
    plain = {f"{layer}.{part}.weight" for layer in layers for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert plain <= hidden
    assert all(p.ndim == 2 and ".blocks." in name for name, p in model.named_parameters() if name in hidden)
    if attention == "softmax":
        assert hidden == plain
    assert {(g["lr"], g["weight_decay"]) for g in groups if "momentum" in g} == {(0.1, 0.3)}
    assert {g["lr"] for g in groups if "betas" in g} == {0.5}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_step_of_muon_is_its_definition():
    """In float64 by singular values; the optimiser's own iteration runs in bfloat16."""
    torch.manual_seed(0)
    weight, bias = torch.nn.Parameter(torch.randn(12, 7)), torch.nn.Parameter(torch.randn(5))
    named = [("text.blocks.0.mlp.fc1.weight", weight), ("text.blocks.0.mlp.fc1.bias", bias)]
    options = OptimOptions(optimizer="muon", lr=0.02, weight_decay=0.1)
    optimizer = make_optimizer(named, options, undecayed={named[1][0]})
    expected, momentum = weight.detach().double(), torch.zeros(12, 7, dtype=torch.float64)
    theirs = torch.nn.Parameter(bias.detach().clone())
    adamw = torch.optim.AdamW([theirs], 0.02, (0.9, 0.98), 1e-6, weight_decay=0.0)
    for _ in range(3):
        weight.grad, bias.grad = torch.randn(12, 7), torch.randn(5)
        theirs.grad = bias.grad.clone()
        optimizer.step()
        adamw.step()
        # Momentum as an average, then Nesterov's look ahead.
        momentum = 0.95 * momentum + 0.05 * weight.grad.double()
        u, s, v = torch.linalg.svd(0.05 * weight.grad.double() + 0.95 * momentum, full_matrices=False)
        s = s / s.norm()
        for _ in range(5):
            s = A * s + B * s**3 + C * s**5
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * 0.2 * math.sqrt(12) * (u * s) @ v
    change = (weight.detach().double() - expected).norm() / (3 * 0.02 * 0.2 * math.sqrt(12 * 7))
    assert change < 0.03
    torch.testing.assert_close(bias.detach(), theirs.detach())


def test_a_saved_state_goes_on_to_the_bit():
    def steps(optimizer, model, seeds):
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()

    whole, first, second = (create_model("vit_pico", seed=0) for _ in range(3))
    options = {"optimizer": "muon", "layer_decay": 0.5}
    steps(optimizer_of(whole, **options), whole, range(4))
    optimizer = optimizer_of(first, **options)
    steps(optimizer, first, range(2))
    second.load_state_dict(first.state_dict())
    resumed = optimizer_of(second, **options)
    assert isinstance(resumed, MuonWithAdamW)
    resumed.load_state_dict(optimizer.state_dict())
    steps(resumed, second, range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters(), strict=True))


def test_layer_decay_is_timms():
    """The trunk's parameters have timm's rates, but for the norm before the blocks, which timm files with the last."""
    model = create_model("vit_micro", seed=0)
    options = OptimOptions(layer_decay=0.65, lr=1.0)
    groups = parameter_groups(model.named_parameters(), options, undecayed=model.no_weight_decay())
    names = names_by_group(model, groups)
    ours = {name: group["lr_scale"] for group, own in zip(groups, names, strict=True) for name in own}
    assert all(group["lr"] == group["lr_scale"] for group in groups)
    trunk = model.image.trunk
    assert isinstance(trunk, VisionTransformer)
    found = param_groups_layer_decay(trunk, layer_decay=0.65)
    theirs = {id(p): group["lr_scale"] for group in found for p in group["params"]}
    for name, p in trunk.named_parameters():
        expected = 0.65**4 if name.startswith("norm_pre") else theirs[id(p)]
        assert ours[f"image.trunk.{name}"] == pytest.approx(expected), name
    # The text tower has two blocks and is counted like the image tower.
    text = {
        "token_embedding.weight": 3,
        "position_embedding": 3,
        "blocks.0.attn.qkv.weight": 2,
        "blocks.1.norm1.bias": 1,
    }
    text |= {"norm.weight": 0, "projection.weight": 0}
    for name, above in text.items():
        assert ours[f"text.{name}"] == pytest.approx(0.65**above), name
    assert ours["logit_scale"] == ours["image.projection.weight"] == 1.0


def test_frozen_layers_still_count():
    model = create_model("vit_nano", seed=0)
    model.image.requires_grad_(False)
    groups = parameter_groups(model.named_parameters(), OptimOptions(layer_decay=0.5), undecayed=set())
    assert not any(name.startswith("image.") for own in names_by_group(model, groups) for name in own)
    assert layers_above(["model.text.blocks.11.mlp.fc1.weight", "model.text.blocks.3.x"]) == {
        "model.text.blocks.11.mlp.fc1.weight": 1,
        "model.text.blocks.3.x": 9,
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"muon_lr": 0.1}, "muon_lr is for optimizer muon, not for adamw"),
        ({"optimizer": "muon", "muon_lr": -1.0}, "muon_lr must be positive and finite"),
        ({"layer_decay": 0.0}, "layer_decay must be above 0 and at most 1"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1"),
        ({"ema_samples": 0}, "ema_samples must be at least 1"),
        ({"freeze": "image"}, "freeze image: that tower would keep random weights; give trained ones: init_from"),
    ],
)
def test_values_that_cannot_be_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        ModelOptions(name="vit_pico", **options)
