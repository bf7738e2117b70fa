"""The image tower: timm's VisionTransformer as CLIP wants it, and a projection."""

from jaxtyping import Float, Int
from timm.layers import PatchEmbed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from clip_la.models.blocks import (
    ACTIVATION_LAYERS,
    LAYER_NORM_EPS,
    block_maker,
    norm_layer,
    residual_stream,
    set_layout,
)
from clip_la.models.spec import MLP_RATIO, ModelSpec


class ProductPatchEmbed(PatchEmbed):
    """timm's patch embedding, as one product of all patches with the weight where the images are on a GPU.

    cuDNN's convolution of patches in bf16 turns the images around and runs a kernel of an older generation: 2.1 ms of
    a 35 ms step of ViT-Ti/16 at 128 px and batch 1,024 on an H100. On the CPU the convolution stays.
    """

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches dim"]:
        """One token a patch, row by row. Raises what timm does for images of another size."""
        if x.is_cuda and x.shape[-2:] == self.img_size:
            return self.product(x)
        patches: Tensor = super().forward(x)
        return patches

    def product(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches dim"]:
        """The same tokens by one product."""
        rows, columns = self.patch_size
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // rows, rows, width // columns, columns)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * rows * columns)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class StreamNorm(nn.LayerNorm):
    """The norm before the blocks, which begins the residual stream.

    Attributes:
        narrow_residual: see `residual_stream`.
    """

    narrow_residual = False

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        return residual_stream(super().forward(x), self.narrow_residual)


class Trunk(VisionTransformer):
    """timm's VisionTransformer, which may be told which patches to keep."""

    def forward(  # type: ignore[override]
        self, images: Float[Tensor, "batch 3 height width"], kept: Int[Tensor, "batch kept"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """The pooled token, normed; `kept` as in ImageTower.forward."""
        x = self._pos_embed(self.patch_embed(images))
        if kept is not None:
            # After the positions are added, each patch's own; the class token, number 0, always stays.
            places = F.pad(kept + 1, (1, 0)).unsqueeze(-1)
            x = x.gather(1, places.expand(-1, -1, x.shape[-1]))
        x = self.norm_pre(x)
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        return self.forward_head(self.norm(x))


class ImageTower(nn.Module):
    """Patches and a class token, norm before and after the blocks, a bias-free projection of the class token.

    `fc_norm` puts the last norm after the pooling: the same numbers as open_clip's norm of all tokens, for one token.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.trunk = Trunk(
            img_size=spec.image_size,
            patch_size=spec.patch_size,
            num_classes=0,
            global_pool="token",
            embed_dim=spec.image_width,
            depth=spec.image_layers,
            num_heads=spec.image_heads,
            mlp_ratio=MLP_RATIO,
            pre_norm=True,
            fc_norm=True,
            weight_init="skip",
            embed_layer=ProductPatchEmbed,
            norm_layer=norm_layer,
            act_layer=ACTIVATION_LAYERS[spec.activation],
            block_fn=block_maker(spec.image_choices),
        )
        self.trunk.norm_pre = StreamNorm(spec.image_width, eps=LAYER_NORM_EPS)
        set_layout(self.trunk, spec.image_layout)
        self.projection = nn.Linear(spec.image_width, spec.embed_dim, bias=False)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], kept: Int[Tensor, "batch kept"] | None = None
    ) -> Float[Tensor, "batch embed_dim"]:
        """Features, not normalised, of normalised pixels.

        `kept` are the numbers of the patches that the blocks see, row by row from 0 and beside the class token: patch
        dropout, for attention that needs no grid (`Attention.needs_grid`). None: all.
        """
        return self.projection(self.trunk(images, kept))
