"""What both towers build their transformer blocks from."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import QuickGELU
from timm.models.vision_transformer import Block
from torch import nn

from clip_la.models.attention.base import attention_layer
from clip_la.models.attention.pattern import AttentionChoice

# open_clip's epsilon. timm's own, 1e-6, moves image features by 2e-3 and text features by 3e-2.
LAYER_NORM_EPS = 1e-5

norm_layer = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)

ACTIVATION_LAYERS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


def block_maker(choices: Sequence[AttentionChoice]) -> Any:
    """A function for timm's `block_fn` that gives block number `depth` the attention of its own choice.

    timm hands one `attn_layer` to all blocks, but tells each block its depth.
    """
    layers = [attention_layer(choice) for choice in choices]

    def make_block(*, depth: int, attn_layer: object = None, **arguments: Any) -> Block:
        return Block(depth=depth, attn_layer=layers[depth], **arguments)

    return make_block
