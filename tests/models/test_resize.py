"""A model at another image size: what is interpolated, what stays, what is said of the rest."""

import pytest
import torch

from clip_la.errors import UserError
from clip_la.models import create_model
from clip_la.models.resize import at_image_size, length_dependent


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
