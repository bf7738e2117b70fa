"""Linear attention: weights a + b phi(q).phi(k), so that sums over the keys are taken once for all queries."""

from typing import Any

from clip_la_kernels import linear_attention
from torch import Tensor

from clip_la.models.attention.base import Attention


class LinearAttention(Attention):
    """Linear attention, of unit queries and keys (arXiv 2604.10064, Eq. 7, and its normalised forms) or of mapped ones.

    o_i = sum_j w_ij v_j / n_i with w_ij = a + b phi(q_i).phi(k_j), and n_i = 1, the number of keys, or sum_j w_ij. As
    the weights are sums of products, o_i = (a sum_j v_j + b S^T phi(q_i)) / n_i with one state S = sum_j phi(k_j) v_j^T
    for all queries.

    Args:
        dim: as for Attention, and so are the rest of timm's arguments.
        denominator: "none", "length" (mean over the keys) or "sum" (of the weights).
        a: weight of every key, whatever the query.
        b: weight of the product of query and key.
        feature_map: phi; "l2" makes unit vectors, "elu1" (elu + 1), "relu" and "exp" work on each number.
        eps: the least mean weight that a row is divided by, if the denominator is "sum"; None for the kernels' own.
    """

    def __init__(
        self,
        dim: int,
        *,
        denominator: str,
        a: float = 1.0,
        b: float = 1.0,
        feature_map: str = "l2",
        eps: float | None = None,
        **timm_arguments: Any,
    ) -> None:
        super().__init__(dim, **timm_arguments)
        self.options: dict[str, Any] = {
            "a": a,
            "b": b,
            "feature_map": feature_map,
            "denominator": denominator,
            "eps": eps,
        }

    def attend(self, qkv: Tensor, is_causal: bool) -> Tensor:
        """As Attention.attend."""
        return linear_attention(qkv, causal=is_causal, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())
