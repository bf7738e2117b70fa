"""Fastmax attention (arXiv 2402.07901): a polynomial in place of the exponential, on standardised queries and keys."""

from typing import Any

from clip_la_kernels import fastmax
from torch import Tensor

from clip_la.models.attention.base import Attention


class FastmaxAttention(Attention):
    """Weights 1 + x or 1 + x + x^2 / 2 of x = q k / t, divided by their sum; q and k have zero mean and unit deviation.

    Args:
        dim: as for Attention, and so are the rest of timm's arguments.
        p: degree of the polynomial, 1 or 2. The second degree takes time quadratic in the tokens.
        t: temperature, above zero.
    """

    def __init__(self, dim: int, *, p: int, t: float, **timm_arguments: Any) -> None:
        super().__init__(dim, **timm_arguments)
        self.p = p
        self.t = t

    def attend(self, qkv: Tensor, is_causal: bool) -> Tensor:
        """As Attention.attend."""
        return fastmax(qkv, p=self.p, temperature=self.t, causal=is_causal)

    def extra_repr(self) -> str:
        return f"p={self.p}, t={self.t:g}"
