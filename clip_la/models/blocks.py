"""What both towers build their transformer blocks from."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.layers import QuickGELU
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from clip_la.models.attention.base import Attention, attention_layer
from clip_la.models.attention.layout import Layout
from clip_la.models.attention.pattern import AttentionChoice

# open_clip's epsilon. timm's own, 1e-6, moves image features by 2e-3 and text features by 3e-2.
LAYER_NORM_EPS = 1e-5

norm_layer = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)

ACTIVATION_LAYERS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


def residual_stream(x: Tensor, narrow: bool) -> Tensor:
    """What blocks add to: as it is, or in autocast's type, which halves what every norm reads and writes.

    open_clip's stream is narrow under amp; float32 keeps more of small additions.
    """
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if narrow and torch.is_autocast_enabled(kind) else x


class LastBlock(Block):
    """The last block of a tower: attention for all tokens, then the MLP for the pooled token alone.

    Nothing reads the others after it, so the features are those of the whole block, for a third of its cost.
    """

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        pooled: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch 1 dim"]:
        """The token at place `pooled` of each row, the first if None."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
        x = x[:, :1] if pooled is None else x[torch.arange(x.shape[0], device=x.device), pooled].unsqueeze(1)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def block_maker(choices: Sequence[AttentionChoice]) -> Any:
    """A function for timm's `block_fn` that gives each block the attention of its own choice; the last is a LastBlock.

    timm hands one `attn_layer` to all blocks, but tells each block its depth.
    """
    layers = [attention_layer(choice) for choice in choices]

    def make_block(*, depth: int, attn_layer: object = None, **arguments: Any) -> Block:
        block_class = LastBlock if depth == len(layers) - 1 else Block
        return block_class(depth=depth, attn_layer=layers[depth], **arguments)

    return make_block


def set_layout(tower: nn.Module, layout: Layout) -> None:
    """Tells every attention layer of a tower how its tokens lie; once, when the blocks are made."""
    for module in tower.modules():
        if isinstance(module, Attention):
            module.set_layout(layout)
