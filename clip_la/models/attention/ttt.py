"""Test-time training (ViT^3, arXiv 2512.01643): a small network takes one gradient step on the keys and values."""

from typing import Any

import torch
from torch import Tensor, nn

from clip_la.models.attention.base import Attention
from clip_la.models.attention.feature_maps import widened
from clip_la.models.attention.surroundings import Uniform

# The authors' scale of the inner loss.
LOSS_SCALE = 1 / 3


class TttAttention(Attention):
    """o_i = F(q_i; W - step g) with F(x) = (x W1) silu(x W2), g the gradient of -mean_j F(k_j).v_j / 3 at W, a head.

    Each column of g is divided by its norm plus one, as by the authors. The mean of the keys is taken off first,
    without which conversion diverges (arXiv 2605.02772). Their convolution inside is left out; conv=3 is another one,
    around the core. The step is one for all tokens, so there is no causal form.

    Args:
        dim: as for Attention, and so are the rest of timm's arguments.
        step: size of the inner step.
    """

    def __init__(self, dim: int, *, step: float, **timm_arguments: Any) -> None:
        super().__init__(dim, **timm_arguments)
        self.step = step
        like = self.qkv.weight
        shape = (2, self.num_heads, self.head_dim, self.head_dim)
        self.inner = nn.Parameter(torch.empty(shape, device=like.device, dtype=like.dtype))

    def attend(self, qkv: Tensor, is_causal: bool) -> Tensor:
        """As Attention.attend; raises ValueError if causal."""
        if is_causal:
            raise ValueError("ttt has no causal form: its step is taken on all tokens at once")
        with torch.autocast(qkv.device.type, enabled=False):
            q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
            k = widened(k)
            k = (k - k.mean(2, keepdim=True)).to(v.dtype)
            w1, w2 = self._stepped(k, v)
            out = (q @ w1) * nn.functional.silu(q @ w2)
            return out.transpose(1, 2)

    def _stepped(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """W1 and W2 after the step, (batch, heads, head_dim, head_dim), in the dtype of v."""
        w1, w2 = self.inner.to(v.dtype).unbind(0)
        # d/dz of z1 silu(z2): silu(z2) = z2 s by z1, and z1 s (1 + z2 (1 - s)) by z2, with s = sigmoid(z2).
        z1, z2 = widened(k @ w1), widened(k @ w2)
        gate = z2.sigmoid()
        error = widened(v) * (LOSS_SCALE / v.shape[2])
        across = k.transpose(-1, -2)
        g1 = across @ (error * z2 * gate).to(v.dtype)
        g2 = across @ (error * z1 * gate * (1 + z2 * (1 - gate))).to(v.dtype)
        stepped = []
        for weight, gradient in zip(widened(self.inner).unbind(0), (g1, g2), strict=True):
            gradient = widened(gradient)
            # The square root has no derivative at zero, where a column of v = 0 would put it.
            norm = (gradient.square().sum(-2, keepdim=True) + 1e-12).sqrt()
            # Downhill on minus the product with v, so the sign is plus.
            stepped.append((weight + self.step * gradient / (norm + 1)).to(v.dtype))
        return stepped[0], stepped[1]

    def draw_extra(self, uniform: Uniform) -> None:
        """As Attention.draw_extra; U((3 / d)^1/2), so that x W is as large as x."""
        super().draw_extra(uniform)
        uniform(self.inner, (3 / self.head_dim) ** 0.5)

    def extra_repr(self) -> str:
        return f"step={self.step:g}"
