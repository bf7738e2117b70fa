"""The image tower: timm's VisionTransformer as CLIP wants it, and a projection."""

from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from clip_la.models.blocks import ACTIVATION_LAYERS, block_maker, norm_layer, set_layout
from clip_la.models.spec import MLP_RATIO, ModelSpec


class ImageTower(nn.Module):
    """Patches and a class token, norm before and after the blocks, a bias-free projection of the class token.

    `fc_norm` puts the last norm after the pooling: the same numbers as open_clip's norm of all tokens, for one token.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.trunk = VisionTransformer(
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
            norm_layer=norm_layer,
            act_layer=ACTIVATION_LAYERS[spec.activation],
            block_fn=block_maker(spec.image_choices),
        )
        set_layout(self.trunk, spec.image_layout)
        self.projection = nn.Linear(spec.image_width, spec.embed_dim, bias=False)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed_dim"]:
        """Features, not normalised, of normalised pixels."""
        return self.projection(self.trunk(images))
