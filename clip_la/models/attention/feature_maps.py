"""Feature maps of linear attention, as modules: some learn. They work in float32 (float64 stays) and return it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clip_la.models.attention.surroundings import Uniform, widened

ZERO = 1e-6
# With the identity, the authors' start for trained heads, new heads of 64 features weigh all keys nearly alike: the
# gradient of q is an eighth of softmax's beside that of v; with this more than half (results/LOG.md).
HEDGEHOG_START = 2.0


def elu1(x: Tensor) -> Tensor:
    """elu + 1, in a form that keeps exp(x) for very negative x."""
    return torch.where(x >= 0, x + 1, x.clamp(max=0).exp())


def unit(x: Tensor) -> Tensor:
    """Rows of length one; a row of zeros stays, with no gradient to speak of."""
    return x * (x.square().sum(-1, keepdim=True) + ZERO**2).rsqrt()


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": unit,
    "identity": lambda x: x,
    "elu1": elu1,
    "relu": torch.relu,
    "exp": torch.exp,
}


class FeatureMap(nn.Module):
    """phi for q and for k: both are (batch, heads, tokens, head_dim) -> (batch, heads, tokens, features) in float32.

    l2, identity, elu1, relu, exp have no parameters. focused (FLatten, arXiv 2308.00442): u = (relu(x) + 1e-6) /
    softplus(scale), then u^p at the length of u; norms are a head's, where the authors' are of all heads at once.
    hedgehog (arXiv 2402.04347, in LoLCATs' form): softmax over the features of W x and of -W x, both halves kept.
    """

    def __init__(self, kind: str, power: float, num_heads: int, head_dim: int, **factory: Any) -> None:
        super().__init__()
        self.kind = kind
        self.power = power
        self.scale: nn.Parameter | None = None
        self.maps: nn.Parameter | None = None
        if kind == "focused":
            self.scale = nn.Parameter(torch.empty(num_heads, 1, head_dim, **factory))
        if kind == "hedgehog":
            self.maps = nn.Parameter(torch.empty(2, num_heads, head_dim, head_dim, **factory))

    def forward(self, x: Tensor, which: int) -> Tensor:
        """`which`: 0 for queries, 1 for keys."""
        if self.kind == "hedgehog":
            assert self.maps is not None
            mapped = widened(x @ self.maps[which].to(x.dtype))
            return torch.cat([mapped.softmax(-1), (-mapped).softmax(-1)], -1)
        x = widened(x)
        if self.kind == "focused":
            return self._focused(x)
        return PLAIN[self.kind](x)

    def _focused(self, x: Tensor) -> Tensor:
        assert self.scale is not None
        u = (x.relu() + ZERO) / nn.functional.softplus(widened(self.scale))
        # Relative to the largest feature: u^p itself leaves the range of float16 and the precision of bfloat16.
        largest = u.amax(-1, keepdim=True)
        sharp = (u / largest).pow(self.power)
        return sharp * (u.square().sum(-1, keepdim=True) / sharp.square().sum(-1, keepdim=True)).sqrt()

    def draw(self, uniform: Uniform) -> None:
        """Scales 0 (softplus: 0.69), maps HEDGEHOG_START times the identity."""
        if self.scale is not None:
            nn.init.zeros_(self.scale)
        if self.maps is not None:
            self.maps.copy_(HEDGEHOG_START * torch.eye(self.maps.shape[-1]).expand_as(self.maps))
