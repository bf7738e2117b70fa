"""Affine linear attention: weights a + b cos(q, k), so that sums over the keys are taken once for all queries."""

from typing import Any

from clip_la_kernels import linear_attention
from torch import Tensor

from clip_la.models.attention.base import Attention


class LinearAttention(Attention):
    """Linear attention of unit queries and keys (arXiv 2604.10064, Eq. 7, and its normalised forms).

    Args:
        dim: as for Attention, and so are the rest of timm's arguments.
        a: weight of every key, whatever the query.
        b: weight of the cosine between query and key.
        denominator: "none", "length" (mean over the keys) or "sum" (of the weights).
    """

    def __init__(self, dim: int, *, a: float, b: float, denominator: str, **timm_arguments: Any) -> None:
        super().__init__(dim, **timm_arguments)
        self.a = a
        self.b = b
        self.denominator = denominator

    def attend(self, qkv: Tensor, is_causal: bool) -> Tensor:
        """As Attention.attend."""
        return linear_attention(qkv, a=self.a, b=self.b, denominator=self.denominator, causal=is_causal)

    def extra_repr(self) -> str:
        return f"a={self.a:g}, b={self.b:g}, denominator={self.denominator}"
