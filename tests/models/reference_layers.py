"""Attention layers written out: the core of every kind, and all that may stand around it."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from clip_la_kernels.ops.linear_attention.reference import fastmax_reference, linear_attention_reference
from clip_la_kernels.ops.mixers.reference import (
    dynamic_convolution_reference,
    mhla_reference,
    operator_reference,
    scan_reference,
    ttt_reference,
    window_reference,
)
from torch import Tensor

from clip_la.models.attention.base import attention_layer
from clip_la.models.attention.layout import Layout
from clip_la.models.attention.pattern import layer_choices

WIDTH, HEADS = 16, 2
GRIDS = {"3x5": Layout(16, (3, 5), 1), "4x4": Layout(18, (4, 4), 2), "9x8": Layout(73, (9, 8), 1)}
LAYOUTS = {**GRIDS, "text": Layout(19), "long text": Layout(150)}


def make_layer(pattern: str, layout: Layout | None, width: int = WIDTH, heads: int = HEADS) -> Any:
    """A layer with random numbers in every parameter: a start at zero might hide a term."""
    (choice,) = layer_choices(pattern, 1)
    layer: Any = attention_layer(choice)(width, num_heads=heads)
    if layout is not None:
        layer.set_layout(layout)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        layer.draw_extra(lambda tensor, bound: torch.nn.init.uniform_(tensor, -bound, bound, generator=generator))
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return layer.double()


def random_tokens(tokens: int, width: int = WIDTH) -> Tensor:
    return torch.randn(2, tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def turned(x: Tensor, layout: Layout) -> Tensor:
    """2-D or 1-D rotary positions, a pair of features at a time."""
    out = x.clone()
    half = x.shape[-1] // 2
    for token in range(layout.prefix, x.shape[1]):
        for pair in range(half):
            if layout.grid is None:
                angle = token * 10000.0 ** -(pair / half)
            else:
                place = divmod(token - layout.prefix, layout.grid[1])[int(pair >= half // 2)]
                angle = place * 100.0 ** -((pair % (half // 2)) / (half // 2))
            a, b = x[:, token, :, pair], x[:, token, :, pair + half]
            out[:, token, :, pair] = a * math.cos(angle) - b * math.sin(angle)
            out[:, token, :, pair + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def features(layer: Any, x: Tensor, which: int) -> Tensor:
    """phi of (batch, tokens, heads, width), written out per map."""
    kind, power = layer.map.kind, layer.map.power
    if kind == "hedgehog":
        mapped = torch.einsum("bnhd,hde->bnhe", x, layer.map.maps[which])
        halves = (mapped.exp(), (-mapped).exp())
        return torch.cat([half / half.sum(-1, keepdim=True) for half in halves], -1)
    if kind == "focused":
        u = (x.relu() + 1e-6) / (1 + layer.map.scale[:, 0].exp()).log()
        return u**power * u.norm(dim=-1, keepdim=True) / (u**power).norm(dim=-1, keepdim=True)
    plain = {"l2": F.normalize, "identity": lambda t, dim: t, "relu": lambda t, dim: t.relu()}
    plain |= {"elu1": lambda t, dim: F.elu(t) + 1, "exp": lambda t, dim: t.exp()}
    return plain[kind](x, dim=-1)


def operator(layer: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    t = 1.0 if layer.temperature is None else layer.temperature.exp()[:, None]
    l2 = layer.map.kind == "l2"
    fq = features(layer, q if l2 else q * t, 0) * (t * q.shape[-1] ** 0.5 if l2 else q.shape[-1] ** -0.5)
    fk = features(layer, k, 1)
    pair = (turned(fq, layout), turned(fk, layout)) if layer.around["rope"] == "axial" else None
    if layer.over == "subtract" and pair:
        fq, fk, pair = *pair, None
    options = {"over": layer.over, "weight": layer.weight, "a": layer.a, "eps": layer.eps}
    return operator_reference(fq, fk, v, causal=layout.causal, turned=pair, **options)


def scan(layer: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Both directions of the patches one token at a time, and the prefix without decay."""
    p, heads = layout.prefix, layer.num_heads
    ways = 1 if layout.causal else 2
    if hasattr(layer, "gate_down"):
        logits = layer.gate_up(layer.gate_down(x[:, p:])).unflatten(-1, (ways, heads, -1))
        gates = [(logits[:, :, way].sigmoid() ** (1 / 16),) for way in range(ways)]
        q = q / q.shape[-1] ** 0.5
    else:
        rates = layer.rates(x[:, p:]).unflatten(-1, (ways, 2, heads, 1))
        gates = [(1 - rates[:, :, way, 0].sigmoid(), rates[:, :, way, 1].sigmoid()) for way in range(ways)]
        q, k = F.normalize(F.silu(q), dim=-1), F.normalize(F.silu(k), dim=-1)
    out = sum(
        scan_reference(q[:, p:], k[:, p:], v[:, p:], *gates[way], inclusive=way == 0, reverse=way == 1)
        for way in range(ways)
    )
    matrix = torch.einsum("bihd,bjhd->bhij", q, k)
    out = out + torch.einsum("bhij,bjhd->bihd", matrix[:, :, p:, :p], v[:, :p])
    return torch.cat([torch.einsum("bhij,bjhd->bihd", matrix[:, :, :p], v), out], 1)


def softmax(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(~torch.ones_like(scores[0, 0], dtype=torch.bool).tril(), float("-inf"))
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)


def reference_core(layer: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """q, k, v, result: (batch, tokens, heads, head_dim)."""
    name, causal = type(layer).__name__, layout.causal
    if name == "SoftmaxAttention":
        return softmax(q if layer.temperature is None else q * layer.temperature.exp(), k, v, causal)
    if name == "LinearAttention":
        given = {key: value for key, value in layer.options.items() if value is not None}
        return linear_attention_reference(q, k, v, causal=causal, **given)
    if name == "FastmaxAttention":
        return fastmax_reference(q, k, v, causal=causal, p=layer.p, temperature=layer.t)
    if name == "OperatorAttention":
        return operator(layer, q, k, v, layout)
    if name == "MhlaAttention":
        place = {"grid": layout.grid, "prefix": layout.prefix, "side": layer.blocks, "max_tokens": layout.max_tokens}
        return mhla_reference(q, k, v, layer.mixture.exp(), **place)
    if name == "TttAttention":
        return ttt_reference(q, k, v, layer.inner, layer.step)
    if name == "WindowLinearAttention":
        share = layer.share.sigmoid()
        everywhere = linear_attention_reference(q, k, v, denominator="length", causal=causal)
        local = window_reference(q, k, v, grid=layout.grid, prefix=layout.prefix, side=layer.window)
        return share * local + (1 - share) * everywhere
    return scan(layer, x, q, k, v, layout)


def reference_layer(layer: Any, x: Tensor, layout: Layout) -> Tensor:
    """The core and what stands around it, from the layer's parameters alone."""
    q, k, v = (part.unflatten(-1, (layer.num_heads, -1)) for part in layer.qkv(x).chunk(3, dim=-1))
    if layer.around["rope"] == "axial" and not layer.rotates_features:
        q, k = turned(q, layout), turned(k, layout)
    out = reference_core(layer, x, q, k, v, layout)
    if layer.around["cls"] == "softmax" and not layout.causal:
        # The class token's row has no temperature of its own.
        out = torch.cat([softmax(q, k, v, False)[:, : layout.prefix], out[:, layout.prefix :]], 1)
    if layer.around["norm"] == "rms":
        out = out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.head_norm.weight
    out, values = out.flatten(2), v.flatten(2)
    if layer.around["conv"] == "dynamic":
        weights = (layer.conv.weight, layer.conv.squeeze.weight, layer.conv.expand.weight)
        out = out + dynamic_convolution_reference(values, *weights, grid=layout.grid, prefix=layout.prefix)
    elif layer.around["conv"] != "0":
        out = out + convolved(values, layer.conv.weight, layout)
    if layer.around["gate"] != "none":
        gate = layer.gate.linear(x)
        out = out * (gate if layer.around["gate"] == "linear" else 2 / (1 + (-gate).exp()))
    return layer.proj(out)


def convolved(v: Tensor, weight: Tensor, layout: Layout) -> Tensor:
    """(batch, tokens, dim) one tap at a time; weight (dim, 1, rows, columns)."""
    out, (rows, columns) = torch.zeros_like(v), weight.shape[2:]
    for token in range(layout.prefix, v.shape[1]):
        for r in range(rows):
            for c in range(columns):
                if layout.grid is None:
                    other = token - (columns - 1) + c
                    inside = other >= 0
                else:
                    row, column = divmod(token - layout.prefix, layout.grid[1])
                    row, column = row + r - rows // 2, column + c - columns // 2
                    inside = 0 <= row < layout.grid[0] and 0 <= column < layout.grid[1]
                    other = layout.prefix + row * layout.grid[1] + column
                if inside:
                    out[:, token] = out[:, token] + weight[:, 0, r, c] * v[:, other]
    return out
