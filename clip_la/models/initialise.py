"""Initial weights, all of them, in one place."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from clip_la.errors import UserError
from clip_la.models.attention.base import Attention
from clip_la.models.image_tower import ImageTower
from clip_la.models.text_tower import TextTower

TOKEN_STD = 0.02
POSITION_STD = 0.01
# The temperature that CLIP starts from (arXiv 2103.00020, section 2.5).
INITIAL_TEMPERATURE = 0.07


class Initialiser:
    """Draws the weights of open_clip's models, from one generator (None: PyTorch's global one).

    d width, L layers, U(x) uniform in [-x, x], N(s) normal of deviation s; fan-in f is 3 p^2 for patches of side p:

    | part                    | image tower       | text tower         |
    |-------------------------|-------------------|--------------------|
    | patches                 | U(f^-1/2)         |                    |
    | class token             | N(d^-1/2)         |                    |
    | token embedding         |                   | N(0.02)            |
    | positions               | N(d^-1/2)         | N(0.01)            |
    | qkv weight              | U((6 / 4d)^1/2)   | N(d^-1/2)          |
    | attention output weight | U(d^-1/2)         | N((2 L d)^-1/2)    |
    | qkv and output bias     | 0                 | 0                  |
    | first MLP weight        | U(d^-1/2)         | N((2 d)^-1/2)      |
    | second MLP weight       | U((4 d)^-1/2)     | N((2 L d)^-1/2)    |
    | MLP biases              | U(fan-in^-1/2)    | U(fan-in^-1/2)     |
    | norms                   | weight 1, bias 0  | weight 1, bias 0   |
    | projection              | N(d^-1/2)         | N(d^-1/2)          |

    and the logit scale is ln(1 / 0.07). The image column is PyTorch's defaults: Xavier for the qkv of
    MultiheadAttention, Kaiming with a = sqrt 5, which is U(fan-in^-1/2), for linear layers and convolutions.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def _uniform(self, tensor: Tensor, bound: float) -> None:
        nn.init.uniform_(tensor, -bound, bound, generator=self.generator)

    def _normal(self, tensor: Tensor, std: float) -> None:
        nn.init.normal_(tensor, std=std, generator=self.generator)

    def _fan_in(self, *tensors: Tensor, fan_in: int) -> None:
        for tensor in tensors:
            self._uniform(tensor, fan_in**-0.5)

    @staticmethod
    def _norms_and_zeros(tower: nn.Module) -> None:
        for module in tower.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for name, parameter in tower.named_parameters():
            if name.endswith(("attn.qkv.bias", "attn.proj.bias")):
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def image_tower(self, tower: ImageTower) -> None:
        """Fills an image tower in place."""
        trunk: Any = tower.trunk
        width = trunk.embed_dim
        patches = trunk.patch_embed.proj.weight
        self._norms_and_zeros(tower)
        self._fan_in(patches, fan_in=patches[0].numel())
        for tensor in (trunk.cls_token, trunk.pos_embed, tower.projection.weight):
            self._normal(tensor, width**-0.5)
        for block in trunk.blocks:
            self._uniform(block.attn.qkv.weight, math.sqrt(6 / (4 * width)))
            self._fan_in(block.attn.proj.weight, fan_in=width)
            self._fan_in(block.mlp.fc1.weight, block.mlp.fc1.bias, fan_in=width)
            self._fan_in(block.mlp.fc2.weight, block.mlp.fc2.bias, fan_in=block.mlp.fc2.in_features)

    @torch.no_grad()
    def text_tower(self, tower: TextTower) -> None:
        """Fills a text tower in place."""
        width = tower.token_embedding.embedding_dim
        residual_std = (2 * len(tower.blocks) * width) ** -0.5
        self._norms_and_zeros(tower)
        self._normal(tower.token_embedding.weight, TOKEN_STD)
        self._normal(tower.position_embedding, POSITION_STD)
        self._normal(tower.projection.weight, width**-0.5)
        blocks: Any = tower.blocks
        for block in blocks:
            self._normal(block.attn.qkv.weight, width**-0.5)
            self._normal(block.attn.proj.weight, residual_std)
            self._normal(block.mlp.fc1.weight, (2 * width) ** -0.5)
            self._normal(block.mlp.fc2.weight, residual_std)
            self._fan_in(block.mlp.fc1.bias, fan_in=width)
            self._fan_in(block.mlp.fc2.bias, fan_in=block.mlp.fc2.in_features)

    @torch.no_grad()
    def attention_extras(self, *towers: nn.Module) -> None:
        """Fills what attention layers have beyond qkv and output, as each kind says (`draw_extra`).

        After everything else, so that the rest starts from the same weights whatever the attention. Raises UserError
        where a kind leaves a number of its own without a value: memory that nobody has written would be its start.
        """
        for tower in towers:
            for module in tower.modules():
                if isinstance(module, Attention):
                    extras = {n: p for n, p in module.named_parameters() if not n.startswith(("qkv.", "proj."))}
                    # What is still NaN afterwards was forgotten.
                    for extra in extras.values():
                        extra.fill_(math.nan)
                    module.draw_extra(self._uniform)
                    unset = next((name for name, extra in extras.items() if extra.isnan().any()), None)
                    if unset is not None:
                        raise UserError(f"{type(module).__name__}.draw_extra gives {unset} no initial values")

    @staticmethod
    def logit_scale(parameter: Tensor) -> None:
        """Sets the logarithm of the factor on the cosine similarities."""
        nn.init.constant_(parameter, -math.log(INITIAL_TEMPERATURE))
