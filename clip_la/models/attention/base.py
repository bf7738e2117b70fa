"""What all attention layers share: one projection to q, k, v, heads, and the output projection."""

import importlib
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from clip_la.models.attention.kinds import attention_kind
from clip_la.models.attention.pattern import AttentionChoice


class Attention(nn.Module):
    """Self-attention whose core a subclass computes in `attend`, with the interface that timm's Block expects.

    Parameters and their names are the same for every kind, so that weights move between kinds and to timm.

    Args:
        dim: width of the tokens, a multiple of `num_heads`.
        num_heads: number of heads; each is dim / num_heads wide.
        qkv_bias: whether the projection to q, k, v has a bias.
        proj_bias: whether the output projection has one.
        unsupported: what timm's Block also passes; raises ValueError if any of it asks for something that is not here.
    """

    def __init__(
        self, dim: int, *, num_heads: int, qkv_bias: bool = True, proj_bias: bool = True, **unsupported: Any
    ) -> None:
        super().__init__()
        factory = {name: unsupported.pop(name, None) for name in ("device", "dtype")}
        unsupported.pop("norm_layer", None)
        asked = [name for name, value in unsupported.items() if value]
        if asked:
            raise ValueError(f"{type(self).__name__} has no {', '.join(asked)}")
        if dim % num_heads:
            raise ValueError(f"width {dim} is no multiple of {num_heads} heads")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)

    def attend(self, qkv: Float[Tensor, "batch tokens 3 heads head_dim"], is_causal: bool) -> Tensor:
        """The attention itself: packed q, k, v in, (batch, tokens, heads, head_dim) of the same dtype out."""
        raise NotImplementedError

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attention over all tokens, or over those up to each one's own place if `is_causal`.

        Raises ValueError for an `attn_mask`: a sum that is factorised over the keys cannot be masked at will.
        """
        if attn_mask is not None:
            raise ValueError(f"{type(self).__name__} takes is_causal, not attn_mask")
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim)
        return self.proj(self.attend(qkv, is_causal).reshape(batch, tokens, dim))


def attention_layer(choice: AttentionChoice) -> type[nn.Module]:
    """A class for timm's `attn_layer` that makes layers of this choice.

    timm wants a class and passes its own arguments only. `__new__` returns a plain instance of the kind's class with
    the options given, so nothing of this helper remains in the model and it pickles.
    """
    kind = attention_kind(choice.kind)
    file, class_name = kind.layer.split(":")
    layer = getattr(importlib.import_module(f"{__package__}.{file}"), class_name)
    arguments = {**kind.fixed, **choice.options}

    class Bound(nn.Module):
        def __new__(cls, dim: int, **timm_arguments: Any) -> Any:
            return layer(dim, **timm_arguments, **arguments)

    return Bound
