"""What both towers build their transformer blocks from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from timm.layers import QuickGELU
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from clip_la.models.attention.base import Attention, attention_layer
from clip_la.models.attention.layout import Layout
from clip_la.models.attention.pattern import AttentionChoice

# open_clip's epsilon. timm's own, 1e-6, moves image features by 2e-3 and text features by 3e-2.
LAYER_NORM_EPS = 1e-5

norm_layer = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)

ACTIVATION_LAYERS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}

# What `kept_for_backward` keeps, by PyTorch's names; those of our kernels have a namespace of their own.
OUR_OPERATORS = "clip_la_kernels"
# Of products also where among their arguments the two matrices begin; the third is float8's.
PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1, torch.ops.aten._scaled_mm.default: 0}
FUSED_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)


def residual_stream(x: Tensor, narrow: bool) -> Tensor:
    """What blocks add to: as it is, or in autocast's type, which halves what every norm reads and writes.

    open_clip's stream is narrow under amp; float32 keeps more of small additions.
    """
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if narrow and torch.is_autocast_enabled(kind) else x


def kept_for_backward(context: SelectiveCheckpointContext, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Which results selective checkpointing keeps: those of the layers' products and of fused attention.

    All else (norms, activations, additions, and batched products, whose results grow with the square of the tokens) is
    computed again. So is a product that narrows, the MLP's second: nothing inside the block reads the sum that takes
    its result.
    """
    if getattr(op, "namespace", "") == OUR_OPERATORS or op in FUSED_ATTENTION:
        return CheckpointPolicy.MUST_SAVE
    if op in PRODUCTS:
        first, second = args[PRODUCTS[op] :][:2]
        if second.shape[1] >= first.shape[1]:
            return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


class TowerBlock(Block):
    """timm's block, which may keep the expensive part of its activations alone.

    Attributes:
        selective: whether training does so (`kept_for_backward`). Inside of the block, so that a compiled block's graph
            holds it: PyTorch's checkpoint around compiled code would see no single operators.
        keeps_nothing: of all blocks, inside `keeping_nothing`.
    """

    selective = False
    keeps_nothing: ClassVar[bool] = False

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], attn_mask: Tensor | None = None, is_causal: bool = False, *more: Any
    ) -> Tensor:
        """The block's result; `more` is for `compute`."""
        if not (self.selective and self.training and torch.is_grad_enabled()):
            return self.compute(x, attn_mask, is_causal, *more)
        # What is kept does not go through the hooks of a checkpoint around the block. Compiled code's does.
        keeps_nothing = not torch.compiler.is_compiling() and TowerBlock.keeps_nothing
        # Nothing in a block is random; and while a CUDA graph is recorded, no generator's state can be read.
        kept: Tensor = checkpoint(
            *(self.compute, x, attn_mask, is_causal, *more),
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=noop_context_fn
            if keeps_nothing
            else partial(create_selective_checkpoint_contexts, kept_for_backward),
        )
        return kept

    def compute(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        """timm's own forward pass."""
        result: Tensor = super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        return result


@contextmanager
def keeping_nothing() -> Iterator[None]:
    """Selective blocks keep their input alone inside: for a pass that is computed again as a whole, before it is gone
    back through."""
    TowerBlock.keeps_nothing = True
    try:
        yield
    finally:
        TowerBlock.keeps_nothing = False


class LastBlock(TowerBlock):
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
        return super().forward(x, attn_mask, is_causal, pooled)

    def compute(  # type: ignore[override]
        self, x: Tensor, attn_mask: Tensor | None, is_causal: bool, pooled: Tensor | None
    ) -> Tensor:
        """As forward."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
        x = x[:, :1] if pooled is None else x[torch.arange(x.shape[0], device=x.device), pooled].unsqueeze(1)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def block_maker(choices: Sequence[AttentionChoice]) -> Any:
    """A function for timm's `block_fn` that gives each block the attention of its own choice; the last is a LastBlock.

    timm hands one `attn_layer` to all blocks, but tells each block its depth.
    """
    layers = [attention_layer(choice) for choice in choices]

    def make_block(*, depth: int, attn_layer: object = None, **arguments: Any) -> TowerBlock:
        block_class = LastBlock if depth == len(layers) - 1 else TowerBlock
        return block_class(depth=depth, attn_layer=layers[depth], **arguments)

    return make_block


def set_layout(tower: nn.Module, layout: Layout) -> None:
    """Tells every attention layer of a tower how its tokens lie; once, when the blocks are made."""
    for module in tower.modules():
        if isinstance(module, Attention):
            module.set_layout(layout)
