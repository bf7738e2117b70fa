"""Initial weights against open_clip's own: deviation, mean and shape of the distribution of every parameter."""

import open_clip
import pytest
import torch
from torch import Tensor

from clip_la.models import CLIP, create_model
from clip_la.models.interop import from_open_clip, spec_from_open_clip_config

MIN_NUMBERS = 300


def moments(tensor: Tensor) -> tuple[float, float, float]:
    """Mean over deviation, deviation, kurtosis (1.8 for a uniform, 3 for a normal distribution)."""
    x = tensor.detach().double().flatten()
    std = x.std().item()
    centred = x - x.mean()
    return x.mean().item() / max(std, 1e-12), std, (centred**4).mean().item() / max(std, 1e-12) ** 4


@pytest.fixture(scope="module")
def pair() -> tuple[CLIP, CLIP]:
    """One model of ours and one of open_clip's, brought to our names."""
    torch.manual_seed(7)
    config = open_clip.get_model_config("ViT-S-16")
    theirs = open_clip.CLIP(**config)
    spec = spec_from_open_clip_config("ViT-S-16", config)
    return create_model("vit_s16", seed=7), from_open_clip(theirs.state_dict(), spec, "ViT-S-16")


def test_every_parameter_is_drawn_as_open_clip_draws_it(pair: tuple[CLIP, CLIP]) -> None:
    ours, theirs = pair
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if bool((wanted[name] == wanted[name].flatten()[0]).all()):
            assert torch.equal(parameter, wanted[name]), name
            continue
        mean, std, kurtosis = moments(parameter)
        their_mean, their_std, their_kurtosis = moments(wanted[name])
        # The sampling error of a deviation is 1 / sqrt(2 n), of a mean over the deviation 1 / sqrt(n).
        error = 5 / parameter.numel() ** 0.5
        assert parameter.numel() >= MIN_NUMBERS, name
        assert std == pytest.approx(their_std, rel=2 * error), name
        assert mean == pytest.approx(their_mean, abs=2 * error), name
        assert kurtosis == pytest.approx(their_kurtosis, abs=10 * error), name


def test_constants_are_open_clips(pair: tuple[CLIP, CLIP]) -> None:
    ours, theirs = pair
    assert ours.logit_scale.item() == pytest.approx(theirs.logit_scale.item(), abs=1e-6)
    assert torch.equal(ours.text.norm.weight, torch.ones(384))
    assert not ours.image.trunk.blocks[3].attn.qkv.bias.any()
