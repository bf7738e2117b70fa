"""Softmax attention, the baseline."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_la.models.attention.base import Attention

# On a CPU two products and a softmax beat PyTorch's fused attention for short sequences: forward and backward at 17
# tokens and 6 heads of 16 take 6.0 ms against 9.7 (batch 128, one thread, float32); at 77 tokens they are equal.
CPU_PRODUCT_MAX_TOKENS = 64


class SoftmaxAttention(Attention):
    """softmax(q k^T / sqrt D) v: PyTorch's scaled_dot_product_attention, or plain products where they are faster."""

    def attend(self, qkv: Tensor, is_causal: bool) -> Tensor:
        """As Attention.attend."""
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if q.device.type == "cpu":
            return _cpu_attention(q, k, v, is_causal).transpose(1, 2).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2)


def _cpu_attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Softmax attention in float32 at least: the backward pass of the fused bf16 form is about ten times slower."""
    with torch.autocast("cpu", enabled=False):
        if q.dtype.itemsize < torch.float32.itemsize:
            q, k, v = q.float(), k.float(), v.float()
        if q.shape[-2] > CPU_PRODUCT_MAX_TOKENS:
            return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if is_causal:
            scores = scores + torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype).triu_(1)
        return scores.softmax(dim=-1) @ v
