"""What all attention layers share: one projection to q, k, v, heads, what stands around the core, the output."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clip_la.errors import UserError, shown
from clip_la.models.attention.kinds import attention_kind
from clip_la.models.attention.layout import Layout
from clip_la.models.attention.options import AROUND_PLAIN, OptionValue
from clip_la.models.attention.pattern import AttentionChoice
from clip_la.models.attention.surroundings import (
    DepthwiseConvolution,
    DynamicConvolution,
    HeadNorm,
    OutputGate,
    Uniform,
    rotated,
)

# cuDNN's fused attention, which PyTorch 2.11 prefers on Hopper, gives wrong gradients for some layouts and lengths
# silently (pytorch/pytorch 169849, 196678): runs diverge now and then, or die of an illegal memory access.
# FlashAttention and the memory-efficient kernel remain. `sdpa_kernel(SDPBackend.CUDNN_ATTENTION)` still asks for it.
torch.backends.cuda.enable_cudnn_sdp(False)

# Gains, logarithms of factors and the like, which weight decay should spare whatever their shape.
UNDECAYED = ("attn.head_norm.weight", "attn.temperature", "attn.mixture", "attn.share", "attn.map.scale")


class Attention(nn.Module):
    """Self-attention whose core a subclass computes in `attend`, with the interface that timm's Block expects.

    q, k, v and output have the same parameters and names for every kind, so that weights move between kinds and to
    timm. Around the core, in this order: 2-D (text: 1-D) rotation of q and k; the core; the class token's row by
    softmax over all keys (cls="softmax", linear in the tokens); a norm of each head; plus a depthwise convolution of v;
    times a gate computed from the input; the output projection.

    Args:
        dim: width of the tokens, a multiple of `num_heads`.
        num_heads: number of heads; each is dim / num_heads wide.
        qkv_bias: whether the projection to q, k, v has a bias.
        proj_bias: whether the output projection has one.
        around: conv ("0", "3", "5", "dynamic"), gate ("none", "sigmoid", "linear"), norm ("none", "rms"), rope ("none",
            "axial"), cls ("same", "softmax"); what is missing is off.
        unsupported: what timm's Block also passes; raises ValueError if any of it asks for something that is not here.
    """

    # Does the core itself rotate its features, after its feature map?
    rotates_features = False
    # Does the core need the layout of the tokens?
    needs_layout = False

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        around: Mapping[str, OptionValue] | None = None,
        **unsupported: Any,
    ) -> None:
        super().__init__()
        factory = {name: unsupported.pop(name, None) for name in ("device", "dtype")}
        # timm hands this to every attention; it is for a norm of q and k, which is asked for apart.
        unsupported.pop("norm_layer", None)
        asked = [name for name, value in unsupported.items() if value]
        if asked:
            raise ValueError(f"{type(self).__name__} has no {', '.join(asked)}")
        if dim % num_heads:
            raise ValueError(f"width {dim} is no multiple of {num_heads} heads")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.around = {**AROUND_PLAIN, **{name: str(value) for name, value in (around or {}).items()}}
        self.layout: Layout | None = None
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.gate = OutputGate(dim, self.around["gate"], **factory) if self.around["gate"] != "none" else None
        self.head_norm = HeadNorm(num_heads, self.head_dim, **factory) if self.around["norm"] == "rms" else None
        self.conv: DepthwiseConvolution | None = None

    def set_layout(self, layout: Layout) -> None:
        """Tells the layer how its tokens lie; makes what depends on it. Called once, by the tower."""
        self.layout = layout
        if self.around["conv"] != "0":
            width, like = self.qkv.in_features, self.qkv.weight
            factory: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
            if self.around["conv"] == "dynamic":
                self.conv = DynamicConvolution(width, layout, **factory)
            else:
                self.conv = DepthwiseConvolution(width, int(self.around["conv"]), layout, **factory)

    def attend(self, qkv: Float[Tensor, "batch tokens 3 heads head_dim"], is_causal: bool) -> Tensor:
        """The attention itself: packed q, k, v in, (batch, tokens, heads, head_dim) of the same dtype out."""
        raise NotImplementedError

    def core(self, x: Tensor, qkv: Tensor, is_causal: bool) -> Tensor:
        """`attend`, for kinds that compute gates from the tokens x too."""
        return self.attend(qkv, is_causal)

    def placed(self) -> Layout:
        """The layout; raises ValueError if no tower has set it."""
        if self.layout is None:
            raise ValueError(f"{type(self).__name__} needs set_layout before its first call")
        return self.layout

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attention over all tokens, or over those up to each one's own place if `is_causal`.

        Raises ValueError for an `attn_mask`: a sum that is factorised over the keys cannot be masked at will; and where
        the layout matters, for a call that does not agree with it.
        """
        if attn_mask is not None:
            raise ValueError(f"{type(self).__name__} takes is_causal, not attn_mask")
        self._check_layout(x.shape[1], is_causal)
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim)
        # The convolution reads v as projected: positions are in q and k alone.
        values = qkv[:, :, 2]
        if self.around["rope"] != "none" and not self.rotates_features:
            q, k = rotated(qkv[:, :, :2], self.placed()).unbind(2)
            qkv = torch.stack([q, k, values], 2)
        out = self.core(x, qkv, is_causal)
        # The pooled token's row decides what the tower says: by softmax it costs N products, linear in the tokens.
        if self.around["cls"] == "softmax" and not is_causal:
            out = self._prefix_by_softmax(qkv, out)
        if self.head_norm is not None:
            out = self.head_norm(out)
        out = out.reshape(batch, tokens, dim)
        if self.conv is not None:
            out = out + self.conv(values.reshape(batch, tokens, dim))
        if self.gate is not None:
            out = self.gate(x, out)
        return self.proj(out)

    @property
    def needs_grid(self) -> bool:
        """Does the layer read where tokens lie, so that it must be given all of an image's patches?"""
        return self.needs_layout or any(self.around[name] != AROUND_PLAIN[name] for name in ("conv", "rope"))

    def _check_layout(self, tokens: int, is_causal: bool) -> None:
        if not self.needs_grid:
            return
        # A caption may be shorter than the longest; an image always has all of its patches.
        layout = self.placed()
        if layout.causal != is_causal or (tokens > layout.max_tokens if layout.causal else tokens != layout.max_tokens):
            raise ValueError(f"{tokens} tokens, is_causal={is_causal}, do not lie as {layout}")

    def _prefix_by_softmax(self, qkv: Tensor, out: Tensor) -> Tensor:
        prefix = self.placed().prefix
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        read = F.scaled_dot_product_attention(q[:, :, :prefix], k, v).transpose(1, 2)
        return torch.cat([read.to(out.dtype), out[:, prefix:]], 1)

    def draw_extra(self, uniform: Uniform) -> None:
        """Fills what is not qkv or proj, in place; `uniform(tensor, bound)` draws from [-bound, bound]."""
        for part in (self.gate, self.head_norm, self.conv):
            if part is not None:
                part.draw(uniform)


def attention_layer(choice: AttentionChoice) -> type[nn.Module]:
    """A class for timm's `attn_layer` that makes layers of this choice.

    timm wants a class and passes its own arguments only. `__new__` returns a plain instance of the kind's class with
    the options given, so nothing of this helper remains in the model and it pickles. Raises UserError where the kind's
    class cannot be imported or is not derived from Attention.
    """
    kind = attention_kind(choice.kind)
    layer: Any = kind.layer
    if isinstance(layer, str):
        module, _, name = layer.partition(":")
        try:
            layer = getattr(importlib.import_module(module, __package__), name)
        except Exception as error:  # whatever runs while a module of a plugin is imported
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"attention kind '{choice.kind}': cannot import its layer {layer}: {why}") from error
    if not (isinstance(layer, type) and issubclass(layer, Attention)):
        # The towers initialise and place an Attention alone.
        raise UserError(
            f"attention kind '{choice.kind}': its layer {shown(layer)} is not derived from clip_la.Attention"
        )
    around = {name: value for name, value in choice.options.items() if name in AROUND_PLAIN}
    own = {name: value for name, value in choice.options.items() if name not in AROUND_PLAIN}
    arguments: dict[str, Any] = {**kind.fixed, **own, "around": around}

    class Bound(nn.Module):
        def __new__(cls, dim: int, **timm_arguments: Any) -> Any:
            return layer(dim, **timm_arguments, **arguments)

    return Bound
