"""Softmax attention, the baseline."""

from typing import Any

import torch
import torch.nn.functional as F
from clip_la_kernels import softmax_attention
from torch import Tensor, nn

from clip_la.models.attention.base import Attention
from clip_la.models.attention.surroundings import Uniform

# On a CPU two products and a softmax beat PyTorch's fused attention for short sequences: forward and backward at 17
# tokens and 6 heads of 16 take 6.0 ms against 9.7 (batch 128, one thread, float32); at 77 tokens they are equal.
CPU_PRODUCT_MAX_TOKENS = 64


class SoftmaxAttention(Attention):
    """softmax(t q k^T / sqrt D) v.

    On a GPU `clip_la_kernels.softmax_attention`: kernels for short heads, PyTorch's scaled_dot_product_attention
    for others. On a CPU that or, where they are faster, plain products.

    Args:
        dim: as for Attention, and so are the rest of timm's arguments.
        temperature: "fixed" (t = 1) or "learned": t a positive number a head, 1 at first.
    """

    def __init__(self, dim: int, *, temperature: str = "fixed", **timm_arguments: Any) -> None:
        super().__init__(dim, **timm_arguments)
        self.temperature: nn.Parameter | None = None
        if temperature == "learned":
            like = self.qkv.weight
            self.temperature = nn.Parameter(torch.empty(self.num_heads, 1, device=like.device, dtype=like.dtype))

    def draw_extra(self, uniform: Uniform) -> None:
        """As Attention.draw_extra."""
        super().draw_extra(uniform)
        if self.temperature is not None:
            nn.init.zeros_(self.temperature)

    def attend(self, qkv: Tensor, is_causal: bool) -> Tensor:
        """As Attention.attend."""
        if self.temperature is not None:
            q, k, v = qkv.unbind(2)
            qkv = torch.stack([(q * self.temperature.exp()).to(q.dtype), k, v], 2)
        if qkv.device.type != "cpu":
            return softmax_attention(qkv, causal=is_causal)
        # The backward pass of the fused bf16 form is about ten times slower on a CPU than that in float32.
        wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
        with torch.autocast("cpu", enabled=False):
            core = self._products if qkv.shape[1] <= CPU_PRODUCT_MAX_TOKENS else self._fused
            return core(wide, is_causal).to(qkv.dtype)

    @staticmethod
    def _fused(qkv: Tensor, is_causal: bool) -> Tensor:
        # Unbinding along the packed axis lets the backward pass write the packed gradient in one copy.
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2)

    @staticmethod
    def _products(qkv: Tensor, is_causal: bool) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if is_causal:
            scores = scores + torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype).triu_(1)
        return (scores.softmax(dim=-1) @ v).transpose(1, 2)
