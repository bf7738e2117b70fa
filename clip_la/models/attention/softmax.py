"""Softmax attention, the baseline."""

import torch.nn.functional as F
from torch import Tensor

from clip_la.models.attention.base import Attention


class SoftmaxAttention(Attention):
    """softmax(q k^T / sqrt D) v through PyTorch's fused scaled_dot_product_attention."""

    def attend(self, qkv: Tensor, is_causal: bool) -> Tensor:
        """As Attention.attend."""
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2)
