"""The text tower: causal timm blocks, pooled at the end-of-text token, and a projection."""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clip_la.models.blocks import ACTIVATION_LAYERS, block_maker, norm_layer, residual_stream, set_layout
from clip_la.models.spec import MLP_RATIO, ModelSpec


class TextTower(nn.Module):
    """Token and position embeddings, causal blocks, norm, a bias-free projection of the end-of-text token.

    Causal attention lets no token see what follows it, so padding after the end-of-text token changes nothing and a
    batch may be trimmed to its longest caption.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(spec.vocab_size, spec.text_width)
        self.position_embedding = nn.Parameter(torch.empty(spec.context_length, spec.text_width))
        make_block = block_maker(spec.text_choices)
        self.blocks = nn.ModuleList(
            make_block(
                depth=depth,
                dim=spec.text_width,
                num_heads=spec.text_heads,
                mlp_ratio=MLP_RATIO,
                qkv_bias=True,
                norm_layer=norm_layer,
                act_layer=ACTIVATION_LAYERS[spec.activation],
            )
            for depth in range(spec.text_layers)
        )
        set_layout(self.blocks, spec.text_layout)
        self.norm = norm_layer(spec.text_width)
        self.projection = nn.Linear(spec.text_width, spec.embed_dim, bias=False)
        self.grad_checkpointing = self.narrow_residual = False

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch embed_dim"]:
        """Features, not normalised, of captions padded with any token; each is pooled at its first token of the highest
        number, which is the end-of-text token.

        Raises ValueError for captions longer than the context.
        """
        length = tokens.shape[1]
        if length > self.position_embedding.shape[0]:
            raise ValueError(f"captions of {length} tokens; this model takes {self.position_embedding.shape[0]}")
        x = residual_stream(self.token_embedding(tokens) + self.position_embedding[:length], self.narrow_residual)
        for block in self.blocks[:-1]:
            x = self._run(block, x)
        # The end-of-text token has the highest number of CLIP's vocabulary; padding is 0.
        pooled = self._run(self.blocks[-1], x, pooled=tokens.argmax(dim=-1))
        return self.projection(self.norm(pooled.squeeze(1)))

    def _run(self, block: nn.Module, x: Tensor, **arguments: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(partial(block, is_causal=True, **arguments), x, use_reentrant=False)
        return block(x, is_causal=True, **arguments)
