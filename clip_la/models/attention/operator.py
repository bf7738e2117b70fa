"""First-order linear attention as one operator: feature map, normaliser, weight of keys, temperature.

Kernels on a GPU for `sum` over all keys of elu1 or relu features, else plain PyTorch; linear in the tokens, but causal
attention forms the products of all pairs (text is short). With weights w_j of mean one over the keys seen, n their
number, x_ij = t s phi(q_i).phi(k_j):

| over      | o_i                                                                    |
|-----------|------------------------------------------------------------------------|
| none      | sum_j w_j (a + x_ij) v_j                                               |
| length    | the same / n                                                           |
| sum       | sum_j w_j (a + x_ij) v_j / (sum_j w_j (a + x_ij) + n eps)              |
| subtract  | sum_j w_j (1 + x_ij - mean_l w_l x_il) v_j / n (InLine, 2412.06590)    |
| magnitude | sum_j w_j ((1 + 1 / z_i) x_ij - z_i) v_j / n, z_i = mean_l w_l x_il    |

The last is MALA (arXiv 2507.00698); the rows of the last three sum to one. Where q and k are rotated, the numerators
see rotated features and the denominators of `sum` and `magnitude` unrotated ones, which are positive.
"""

from typing import Any

import torch
from clip_la_kernels import serves_weighted, weighted_linear_attention
from torch import Tensor, nn

from clip_la.models.attention.base import Attention
from clip_la.models.attention.feature_maps import FeatureMap, widened
from clip_la.models.attention.surroundings import Uniform, rotated, rotation


class OperatorAttention(Attention):
    """See the table above; t is a learned number a head or 1, s is D^-1/2, or D^1/2 for unit
    vectors: either way x varies by about one over random q and k.

    Args:
        dim: as for Attention, and so are the rest of timm's arguments.
        map: feature map, see FeatureMap.
        over: what the sum over the keys is divided by, see the table.
        weight: "none", or "rala": n times the softmax over the keys of s phi(k_j) . mean_i phi(q_i) (2411.07635).
        a: weight of every key, whatever the query; not for subtract and magnitude.
        power: of the focused map.
        eps: added to the mean weight that a row is divided by.
        temperature: "fixed" or "learned"; a learned one multiplies q before the map, after it for l2.
    """

    rotates_features = True

    def __init__(
        self,
        dim: int,
        *,
        map: str,
        over: str,
        weight: str = "none",
        a: float = 0.0,
        power: float = 3.0,
        eps: float = 1e-6,
        temperature: str = "fixed",
        **timm_arguments: Any,
    ) -> None:
        super().__init__(dim, **timm_arguments)
        self.over, self.weight, self.a, self.eps = over, weight, a, eps
        self.scale = self.head_dim ** (0.5 if map == "l2" else -0.5)
        like: dict[str, Any] = {"device": self.qkv.weight.device, "dtype": self.qkv.weight.dtype}
        self.map = FeatureMap(map, power, self.num_heads, self.head_dim, **like)
        # Its logarithm: positive, and its steps are relative.
        self.temperature = nn.Parameter(torch.empty(self.num_heads, **like)) if temperature == "learned" else None
        self._has_kernels = over == "sum" and a == 0 and temperature == "fixed"

    def attend(self, qkv: Tensor, is_causal: bool) -> Tensor:
        """As Attention.attend."""
        if not is_causal and self._has_kernels and serves_weighted(qkv, self.map.kind):
            return self._by_kernels(qkv)
        with torch.autocast(qkv.device.type, enabled=False):
            q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
            fq, fk = self._features(q, k)
            turned = self._turned(fq), self._turned(fk)
            sums = self._causal if is_causal else self._full
            return sums(fq, fk, turned, v).transpose(1, 2).to(qkv.dtype)

    def _by_kernels(self, qkv: Tensor) -> Tensor:
        """What `_full` computes, in one pass over q, k, v that keeps no feature."""
        turn = None
        if self.around["rope"] != "none":
            angles = rotation(self.placed(), qkv.shape[1], self.head_dim, qkv.device)
            turn = torch.stack([angles.cos(), angles.sin()])
        return weighted_linear_attention(
            qkv, feature_map=self.map.kind, rala=self.weight == "rala", scale=self.scale, eps=self.eps, turn=turn
        )

    def _features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """phi(q) with scale and temperature, phi(k): (batch, heads, tokens, features) in float32."""
        t = None if self.temperature is None else widened(self.temperature).exp().view(-1, 1, 1)
        after = self.map.kind == "l2"
        fq = self.map(q if t is None or after else (widened(q) * t).to(q.dtype), 0)
        fq = fq * self.scale if t is None or not after else fq * (t * self.scale)
        return fq, self.map(k, 1)

    def _turned(self, features: Tensor) -> Tensor:
        if self.around["rope"] == "none":
            return features
        return rotated(features.transpose(1, 2), self.placed()).transpose(1, 2)

    def _full(self, fq: Tensor, fk: Tensor, turned: tuple[Tensor, Tensor], v: Tensor) -> Tensor:
        """Every key seen: two products with a state of (features, head_dim). Means, so that bf16 has no large sums."""
        n = v.shape[2]
        tq, tk = turned
        wide = widened(v)
        if self.weight == "rala":
            score = (fk @ fq.mean(2).unsqueeze(-1)).softmax(2) * n
            fk, tk, wide_weighted = fk * score, tk * score, wide * score
        else:
            wide_weighted = wide
        mean_v = wide_weighted.mean(2, keepdim=True)
        if self.over == "subtract":
            # Centred before the product: a large mean of the keys would cancel in bf16.
            tk = tk - (tk.mean(2, keepdim=True) * score if self.weight == "rala" else tk.mean(2, keepdim=True))
        state = (tk / n).to(v.dtype).transpose(-1, -2) @ v
        read = widened(tq.to(v.dtype) @ state)
        z = (fq * fk.mean(2, keepdim=True)).sum(-1, keepdim=True)
        return self._combine(read, z, mean_v, n)

    def _combine(self, read: Tensor, z: Tensor, mean_v: Tensor, n: Tensor | int) -> Tensor:
        """read: mean_j w_j x_ij v_j (of centred keys for subtract); z: mean_j w_j x_ij; mean_v: mean_j w_j v_j."""
        if self.over == "subtract":
            return mean_v + read
        if self.over == "magnitude":
            return read * (1 + 1 / (z + self.eps)) - z * mean_v
        out = read + self.a * mean_v if self.a else read
        if self.over == "sum":
            return out / (z + self.a + self.eps)
        return out * n if self.over == "none" else out

    def _causal(self, fq: Tensor, fk: Tensor, turned: tuple[Tensor, Tensor], v: Tensor) -> Tensor:
        """Keys up to each query: the same with running means, the products of all pairs masked."""
        dtype, tokens = v.dtype, v.shape[2]
        lower = torch.ones(tokens, tokens, dtype=torch.bool, device=v.device).tril_()
        n = torch.arange(1, tokens + 1, device=v.device, dtype=fq.dtype).view(-1, 1)
        share = lower / n
        if self.weight == "rala":
            running = fq.cumsum(2) / n
            scores = running @ fk.transpose(-1, -2)
            share = scores.masked_fill(~lower, float("-inf")).softmax(-1)
        products = widened(turned[0].to(dtype) @ turned[1].to(dtype).transpose(-1, -2)) * share
        plain = products
        if self.around["rope"] != "none" and self.over in ("sum", "magnitude"):
            plain = widened(fq.to(dtype) @ fk.to(dtype).transpose(-1, -2)) * share
        z = plain.sum(-1, keepdim=True)
        if self.over == "subtract":
            products = products - z * share
        mean_v = widened(share.to(dtype) @ v)
        return self._combine(widened(products.to(dtype) @ v), z, mean_v, n)

    def draw_extra(self, uniform: Uniform) -> None:
        """As Attention.draw_extra; the temperature starts at one."""
        super().draw_extra(uniform)
        self.map.draw(uniform)
        if self.temperature is not None:
            nn.init.zeros_(self.temperature)

    def extra_repr(self) -> str:
        return f"map={self.map.kind}, over={self.over}, weight={self.weight}, a={self.a:g}"
