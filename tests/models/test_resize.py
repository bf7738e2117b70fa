"""A model at another image size: what is interpolated, what stays, what is said of the rest."""

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from clip_la.errors import UserError
from clip_la.models import create_model
from clip_la.models.attention import costs
from clip_la.models.attention.base import Attention
from clip_la.models.attention.kinds import KINDS, AttentionKind
from clip_la.models.attention.layout import Layout
from clip_la.models.attention.surroundings import Uniform
from clip_la.models.resize import at_image_size, describe_resize, length_dependent


def test_the_same_size_is_the_same_model() -> None:
    model = create_model("vit_nano", image_attention="mhla(conv=3)", seed=1).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(at_image_size(model, 32).encode_image(images), model.encode_image(images))


@pytest.mark.parametrize("attention", ["softmax", "inline(rope=axial)", "mhla(conv=3)", "gated_delta", "window_linear"])
def test_positions_are_interpolated_over_the_grid(attention: str) -> None:
    model = create_model("vit_nano", image_attention=attention, seed=1)
    grid = model.image.trunk.pos_embed.detach()[:, 1:].unflatten(1, (4, 4))
    # A plane over the grid stays a plane, within the edges: the value at the centre of each new patch.
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    with torch.no_grad():
        model.image.trunk.pos_embed[:, 1:] = (3 * row + column).reshape(1, 16, 1).expand_as(grid.flatten(1, 2))
    large = at_image_size(model, 64)
    assert large.spec.image_size == 64
    assert large.encode_image(torch.randn(1, 3, 64, 64)).shape == (1, model.spec.embed_dim)
    new = large.image.trunk.pos_embed
    assert torch.equal(new[:, :1], model.image.trunk.pos_embed[:, :1])
    centres = (torch.arange(8.0) + 0.5) / 2 - 0.5
    plane = (3 * centres[:, None] + centres)[2:6, 2:6]
    torch.testing.assert_close(new[0, 1:, 0].view(8, 8)[2:6, 2:6], plane, rtol=0, atol=0.2)
    others = {n: p for n, p in model.named_parameters() if n != "image.trunk.pos_embed"}
    assert all(torch.equal(p, others[n]) for n, p in large.named_parameters() if n in others)


@pytest.mark.parametrize("size", [16, 40, 72, 128])
def test_positions_are_those_of_timm_and_of_torch(size: int) -> None:
    model = create_model("vit_nano", seed=1)
    old, side = model.image.trunk.pos_embed.detach(), size // 8
    new = at_image_size(model, size).image.trunk.pos_embed.detach()
    assert torch.equal(new, resample_abs_pos_embed(old, new_size=[side, side], old_size=[4, 4]))
    grid = old[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2).double()
    wanted = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    wanted = torch.cat([old[:, :1].double(), wanted.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    torch.testing.assert_close(new.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_resize_says_which_layers_feel_it() -> None:
    plan = "linear+linear_mean+linear"
    model = at_image_size(create_model("vit_micro", image_attention=plan, seed=1), 64)
    text = describe_resize(model, 32)
    assert text.startswith("positions interpolated from 32 to 64 pixels (17 to 65 tokens); image layers 0, 2 sum over")
    assert "up to 3.8 times" in text
    plain = at_image_size(create_model("vit_nano", seed=1), 64)
    assert describe_resize(plain, 32) == "positions interpolated from 32 to 64 pixels (17 to 65 tokens)"


class GridBound(Attention):
    """Attention whose own weights belong to one grid, as a plugin may bring it."""

    def set_layout(self, layout: Layout) -> None:
        super().set_layout(layout)
        self.bias = torch.nn.Parameter(torch.empty(layout.max_tokens))

    def draw_extra(self, uniform: Uniform) -> None:
        super().draw_extra(uniform)
        torch.nn.init.zeros_(self.bias)

    def attend(self, qkv: torch.Tensor, is_causal: bool) -> torch.Tensor:
        return qkv[:, :, 2].cumsum(1)


def test_a_plugin_may_say_that_it_grows_and_be_bound_to_its_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = AttentionKind("a sum", GridBound, costs.quadratic, surroundings={}, sums_over_tokens=True)
    monkeypatch.setitem(KINDS, "grid_bound", kind)
    model = create_model("vit_pico", attention="grid_bound", seed=1)
    assert length_dependent(model) == [0]
    with pytest.raises(UserError, match=r"vit_pico at 32 pixels .*attn.bias is \(17,\), not \(65,\)"):
        at_image_size(model, 64)


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="image_size 36 is no multiple of patch_size 8"):
        at_image_size(create_model("vit_pico", seed=1), 36)


def test_kinds_say_whether_they_grow_with_the_tokens() -> None:
    plan = "linear+linear(norm=rms)+kernel(over=none)"
    assert length_dependent(create_model("vit_micro", image_attention=plan)) == [0, 2]
    plan = "gla+gla(norm=none)+linear_mean"
    model = create_model("vit_micro", image_attention=plan, seed=1).eval()
    assert length_dependent(model) == [1]
    # The definition: a layer at its initial weights, on the same token repeated, at two sizes.
    for block, grows in zip(model.image.trunk.blocks, (False, True, False), strict=True):
        sizes = []
        for side in (32, 96):
            layer = at_image_size(model, side).image.trunk.blocks[list(model.image.trunk.blocks).index(block)].attn
            token = torch.ones(1, (side // 8) ** 2 + 1, 96) * torch.linspace(-1, 1, 96)
            sizes.append(layer(token)[:, 0].norm().item())
        assert (sizes[1] > 1.5 * sizes[0]) == grows
