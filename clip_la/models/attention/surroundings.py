"""What may stand around any attention: convolution of v, output gate, norm of heads, rotation of q and k."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from clip_la_kernels import depthwise_convolution
from torch import Tensor, nn

from clip_la.models.attention.costs import DYNAMIC_SIDE, dynamic_hidden
from clip_la.models.attention.layout import Layout

Uniform = Callable[[Tensor, float], None]

NORM_EPS = 1e-6
# Wave lengths of the rotations reach 2 pi times this: a few hundred places for a grid, as in RoPE-ViT (arXiv
# 2403.13298), and the usual 10,000 for text.
GRID_ROPE_BASE = 100.0
TEXT_ROPE_BASE = 10000.0


def widened(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is that: what sums of low precision are taken in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class DepthwiseConvolution(nn.Module):
    """k x k over the grid, or over each token and the k - 1 before it in a causal sequence; zero for prefix tokens.

    No bias: that of v does the same. It is what FLatten, RALA, MALA and others add to attention for locality.
    """

    def __init__(self, dim: int, kernel: int, layout: Layout, **factory: Any) -> None:
        super().__init__()
        self.layout = layout
        self.kernel = kernel
        rows = 1 if layout.causal else kernel
        self.weight = nn.Parameter(torch.empty(dim, 1, rows, kernel, **factory))

    def forward(self, v: Tensor) -> Tensor:
        """(batch, tokens, dim) -> the same."""
        return depthwise_convolution(v, self.weight, grid=self.layout.grid, prefix=self.layout.prefix)

    def draw(self, uniform: Uniform) -> None:
        """U(fan-in^-1/2), PyTorch's default for convolutions."""
        uniform(self.weight, self.weight[0].numel() ** -0.5)


class DynamicConvolution(DepthwiseConvolution):
    """A 3 x 3 depthwise convolution whose kernel depends on the tokens: y_i = sum_t (w + g(u_i))_t v_{i+t}.

    w is a static kernel, under the name and of the shape of conv=3's; g = W2 silu(W1 u) adds to it, where W1 narrows to
    an eighth of the width. On a grid u is the mean of v over the patches, so that an image has one kernel: the squeeze
    dynamic convolution of JetViT (arXiv 2605.26636, Sec. 3.2.1), which does not say the kernel's size. In a causal
    sequence u_i = v_i, a kernel a token, as in Jet-Nemotron (2508.15884), whose generator sees the layer's input
    instead: the same functions, as v is linear in it. A mean over the tokens would tell each of them what follows.

    W2 is 0 at first, so the layer starts as conv=3 does. Prefix tokens take no part and get nothing.
    """

    def __init__(self, dim: int, layout: Layout, **factory: Any) -> None:
        super().__init__(dim, DYNAMIC_SIDE, layout, **factory)
        self.taps = self.weight[0].numel()
        self.squeeze = nn.Linear(dim, dynamic_hidden(dim), bias=False, **factory)
        self.expand = nn.Linear(dynamic_hidden(dim), self.taps * dim, bias=False, **factory)

    def forward(self, v: Tensor) -> Tensor:
        """(batch, tokens, dim) -> the same; sums are taken in float32."""
        layout, reach = self.layout, self.kernel // 2
        values = v[:, layout.prefix :]
        source = values if layout.grid is None else widened(values).mean(1, keepdim=True)
        kernels = widened(self.expand(F.silu(self.squeeze(source.to(v.dtype))))).unflatten(-1, (self.taps, -1))
        kernels = kernels + self.weight.flatten(1).T
        # A shift a tap: a grouped convolution with a group for each sample and feature is slow wherever it exists, and
        # the compiler makes one pass of these.
        if layout.grid is None:
            padded = F.pad(values, (0, 0, self.kernel - 1, 0))
            shifted = [padded[:, tap : tap + v.shape[1]] for tap in range(self.taps)]
        else:
            rows, columns = layout.grid
            plane = F.pad(values.unflatten(1, layout.grid), (0, 0, reach, reach, reach, reach))
            shifted = [
                plane[:, row : row + rows, column : column + columns].flatten(1, 2)
                for row in range(self.kernel)
                for column in range(self.kernel)
            ]
        out = shifted[0] * kernels[:, :, 0]
        for tap in range(1, self.taps):
            out = out + shifted[tap] * kernels[:, :, tap]
        return F.pad(out.to(v.dtype), (0, 0, layout.prefix, 0))

    def draw(self, uniform: Uniform) -> None:
        """The static kernel as DepthwiseConvolution's; W1 U(fan-in^-1/2), W2 zeros."""
        super().draw(uniform)
        uniform(self.squeeze.weight, self.squeeze.in_features**-0.5)
        nn.init.zeros_(self.expand.weight)


class OutputGate(nn.Module):
    """Times a gate of the token itself: 2 sigmoid(W x + b), weights 0 at first; or W x + b (RALA, MALA), b 1 at first.

    Both start as one: the layer starts as it would without, and so does a converted one. The factor 2 on the usual
    sigmoid is what makes that so; the output projection could hold it as well.
    """

    def __init__(self, dim: int, kind: str, **factory: Any) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(dim, dim, **factory)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """x: what the layer was given; out: what it is about to project. Both (batch, tokens, dim)."""
        gate = self.linear(x)
        return out * (2 * gate.sigmoid() if self.kind == "sigmoid" else gate)

    def draw(self, uniform: Uniform) -> None:
        """Constants: the gate starts as one."""
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, 0.0 if self.kind == "sigmoid" else 1.0)


class HeadNorm(nn.Module):
    """Root-mean-square norm over the features of each head, in float32, and a gain a feature."""

    def __init__(self, num_heads: int, head_dim: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim, **factory))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, heads, head_dim) -> the same."""
        wide = widened(x)
        unit = wide * (wide.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        return (unit * self.weight).to(x.dtype)

    def draw(self, uniform: Uniform) -> None:
        """Gains start at one."""
        nn.init.ones_(self.weight)


def rotation(layout: Layout, tokens: int, width: int, device: torch.device) -> Tensor:
    """Angles (tokens, width / 2), float32, by which `rotated` turns the pairs of features of each token."""
    pairs = width // 2
    if layout.grid is None:
        # All pairs turn with the place, the first fastest.
        frequency = TEXT_ROPE_BASE ** -(torch.arange(pairs, device=device) / pairs)
        return torch.arange(tokens, device=device)[:, None] * frequency
    # Half of the pairs turn with the row, half with the column; the prefix has no place and is not turned.
    half = pairs // 2
    rows, columns = layout.grid
    frequency = GRID_ROPE_BASE ** -(torch.arange(half, device=device) / half)
    place = torch.arange(rows * columns, device=device)[:, None]
    angles = torch.cat([place // columns * frequency, place % columns * frequency], 1)
    return F.pad(angles, (0, 0, layout.prefix, 0))


def rotated(x: Tensor, layout: Layout) -> Tensor:
    """x with its features turned in pairs (i, i + width / 2) by the token's place. x: (batch, tokens, ..., width).

    The width of heads must be a multiple of 4 on a grid and of 2 in text (checked where the model is specified).
    """
    pairs = x.shape[-1] // 2
    angles = rotation(layout, x.shape[1], x.shape[-1], x.device)
    angles = angles.view(1, x.shape[1], *(1,) * (x.ndim - 3), pairs).to(torch.promote_types(x.dtype, torch.float32))
    first, second = x[..., :pairs], x[..., pairs:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
