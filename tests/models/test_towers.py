"""What stands before the blocks of both towers."""

import pytest
import torch

from clip_la.models import create_model
from clip_la.models.image_tower import ProductPatchEmbed


@pytest.mark.parametrize(("size", "patch", "bias"), [((48, 32), (16, 8), True), ((15, 15), (5, 5), False)])
def test_patches_as_one_product_are_the_convolution(size, patch, bias):
    torch.manual_seed(0)
    embed = ProductPatchEmbed(img_size=size, patch_size=patch, embed_dim=7, bias=bias).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    results = [embed.product(images), embed.proj(images).flatten(2).transpose(1, 2)]
    torch.testing.assert_close(*results)
    weights = [images, *embed.parameters()]
    grads = [torch.autograd.grad(result.square().sum(), weights) for result in results]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_stream_is_narrow_where_asked_for_under_autocast(autocast):
    model = create_model("vit_nano", seed=0)
    images, tokens = torch.randn(2, 3, 32, 32), torch.tensor([[3, 49407], [4, 49407]])
    seen: list[torch.dtype] = []
    for block in (model.image.trunk.blocks[0], model.text.blocks[0]):
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    found = []
    for narrow in (False, True):
        model.set_narrow_residual(narrow)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found.append(torch.cat(model(images, tokens)[:2]))
    wide, narrow_type = torch.float32, torch.bfloat16 if autocast else torch.float32
    assert seen == [wide, wide, narrow_type, narrow_type]
    # Unit rows: bfloat16 has 8 bits.
    torch.testing.assert_close(found[1], found[0], atol=0.02 if autocast else 0.0, rtol=0.0)
