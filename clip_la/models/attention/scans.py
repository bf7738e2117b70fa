"""Gated scans, both ways on a grid and causal in text: `gla` (arXiv 2312.06635) and `gated_delta` (2412.06464).

In chunks of at most 64 tokens, a chunk as products of all its pairs, a state between chunks: 65 image tokens are one
chunk and no loop. Layout (batch, heads, tokens, width) inside.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_la.models.attention.base import Attention
from clip_la.models.attention.costs import GATE_RANK, INVERSE_BASE, scan_chunk
from clip_la.models.attention.feature_maps import unit, widened
from clip_la.models.attention.layout import Layout
from clip_la.models.attention.surroundings import Uniform

# GLA divides the logarithm of its gate by this.
GATE_NORMALISER = 16.0
# The gate of one token is at least exp(-1): products within a chunk then stay within the range of float32 by far.
LEAST_LOG_GATE = -1.0
# Decays of gated_delta start between these, spread over the heads: a memory of ten to a thousand tokens.
FAST, SLOW = 0.1, 0.001


def _chunked(x: Tensor) -> Tensor:
    """(..., tokens, width) -> (..., chunks, size, width), zeros at the end."""
    tokens = x.shape[-2]
    count, size = scan_chunk(tokens)
    if count * size != tokens:
        x = F.pad(x, (0, 0, 0, count * size - tokens))
    return x.unflatten(-2, (count, size))


def gla_scan(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, inclusive: bool) -> Tensor:
    """o_t = S_t^T q_t, S_t = diag(exp(log_gate_t)) S_{t-1} + k_t v_t^T; without token t's own term if not inclusive.

    q, k, log_gate, v: (batch, heads, tokens, width); log_gate in float32, between LEAST_LOG_GATE and 0.
    """
    tokens, dtype = q.shape[2], v.dtype
    q, k, v, log_gate = (_chunked(x) for x in (q, k, v, log_gate))
    count, size = q.shape[2], q.shape[3]
    total = log_gate.cumsum(-2)
    # Decays relative to the middle of the chunk; it cancels, so no gradient goes through it.
    middle = total[..., size // 2 : size // 2 + 1, :].detach()
    inner = (q * (total - middle).exp()).to(dtype) @ (k * (middle - total).exp()).to(dtype).transpose(-1, -2)
    out = inner.tril(0 if inclusive else -1) @ v
    if count > 1:
        whole = total[..., -1:, :]
        added = (k * (whole - total).exp()).to(dtype).transpose(-1, -2) @ v
        decay = whole.exp().transpose(-1, -2)
        # The state before each chunk: chunks are few, and what they add is worked out at once above.
        state = torch.zeros_like(added[:, :, 0], dtype=decay.dtype)
        before = []
        for index in range(count):
            before.append(state.to(dtype))
            state = decay[:, :, index] * state + added[:, :, index]
        out = out + (q * total.exp()).to(dtype) @ torch.stack(before, 2)
    return out.flatten(2, 3)[:, :, :tokens]


def unit_lower_inverse(lower: Tensor) -> Tensor:
    """(I + lower)^-1 of strictly lower triangular matrices (..., n, n), in their dtype, with its gradient.

    Diagonal blocks of 16 by products of powers, which are zero from the 16th on, then blocks of twice the size from
    pairs: the powers of a larger matrix grow beyond the digits of float32.
    """

    def diagonal(matrix: Tensor, block: int) -> Tensor:
        # (..., n, n) -> its diagonal blocks (..., n / block, block, block)
        spans = [slice(start, start + block) for start in range(0, matrix.shape[-1], block)]
        return torch.stack([matrix[..., span, span] for span in spans], -3)

    size, block = lower.shape[-1], INVERSE_BASE
    with torch.no_grad():
        padded = block
        while padded < size:
            padded *= 2
        whole = F.pad(lower, (0, padded - size, 0, padded - size))
        # (I + L)^-1 = (I - L)(I + L^2)(I + L^4)(I + L^8), as L^16 = 0.
        power = diagonal(whole, block)
        inverse = torch.eye(block, dtype=lower.dtype, device=lower.device) - power
        for _ in range(3):
            power = power @ power
            inverse = inverse + inverse @ power
        # [A 0; B C]^-1 = [A^-1 0; -C^-1 B A^-1 C^-1]
        while block < padded:
            below = diagonal(whole, 2 * block)[..., block:, :block]
            first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
            corner = -(second @ below @ first)
            inverse = torch.cat([F.pad(first, (0, block)), torch.cat([corner, second], -1)], -2)
            block *= 2
        inverse = inverse[..., 0, :size, :size]
    # One step of Newton: it sharpens the digits, and its derivative by `lower` is that of the inverse.
    eye = torch.eye(size, dtype=lower.dtype, device=lower.device)
    return 2 * inverse - inverse @ ((eye + lower) @ inverse)


def delta_scan(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, step: Tensor, inclusive: bool) -> Tensor:
    """o_t = S_t^T q_t, S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, a = exp(log_gate), b = step.

    Without token t's own term if not inclusive. q, k, v: (batch, heads, tokens, width), rows of k of length one;
    log_gate <= 0 and step in [0, 1]: (batch, heads, tokens, 1) in float32.
    """
    tokens, dtype = q.shape[2], v.dtype
    q, k, v, log_gate, step = (_chunked(x) for x in (q, k, v, log_gate, step))
    count, size = q.shape[2], q.shape[3]
    total = log_gate.cumsum(-2)
    lower = torch.ones(size, size, dtype=torch.bool, device=q.device).tril_()
    # Masked before the exponential: above the diagonal it might be infinite.
    decay = (total - total.transpose(-1, -2)).masked_fill(~lower, float("-inf")).exp()
    among = (step * widened(k @ k.transpose(-1, -2)) * decay).tril(-1)
    solve = unit_lower_inverse(among).to(dtype)
    read = (widened(q @ k.transpose(-1, -2)) * decay).tril(0 if inclusive else -1).to(dtype)
    if count == 1:
        return (read @ (solve @ (step * v).to(dtype)))[:, :, 0, :tokens]
    grown, left = total.exp(), (total[..., -1:, :] - total).exp()
    reading, correcting, writing = (q * grown).to(dtype), (k * grown).to(dtype), (k * left).to(dtype)
    state = torch.zeros(*k.shape[:2], k.shape[-1], v.shape[-1], dtype=total.dtype, device=v.device)
    out = []
    for c in range(count):
        low = state.to(dtype)
        # A chunk's values without what the state before it holds for their keys already.
        values = solve[:, :, c] @ (step[:, :, c] * (v[:, :, c] - correcting[:, :, c] @ low)).to(dtype)
        out.append(reading[:, :, c] @ low + read[:, :, c] @ values)
        state = grown[:, :, c, -1:, :] * state + writing[:, :, c].transpose(-1, -2) @ values
    return torch.stack(out, 2).flatten(2, 3)[:, :, :tokens]


class ScanAttention(Attention):
    """What both scans share: two directions on a grid, the diagonal counted once; one in text.

    Prefix tokens take no part in the scans: they read all tokens, and all others read them, with the undecayed
    products q.k. The norm of heads (norm=rms, on by default) takes the place of a denominator.
    """

    needs_layout = True

    def __init__(self, dim: int, **timm_arguments: Any) -> None:
        super().__init__(dim, **timm_arguments)
        self.directions = 2

    def set_layout(self, layout: Layout) -> None:
        """As Attention.set_layout."""
        super().set_layout(layout)
        self.directions = 1 if layout.causal else 2
        self.make_gates({"device": self.qkv.weight.device, "dtype": self.qkv.weight.dtype})

    def make_gates(self, factory: dict[str, Any]) -> None:
        """Makes the layers that compute gates from tokens, once the number of directions is known."""
        raise NotImplementedError

    def gates(self, x: Tensor) -> list[tuple[Tensor, ...]]:
        """For each direction the gates that `scan` takes, in float32, (batch, heads, tokens, ...)."""
        raise NotImplementedError

    def prepared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q and k as the scan wants them."""
        raise NotImplementedError

    def scan(self, parts: Sequence[Tensor], gates: Sequence[Tensor], inclusive: bool) -> Tensor:
        """One direction; `parts` are q, k, v."""
        raise NotImplementedError

    def core(self, x: Tensor, qkv: Tensor, is_causal: bool) -> Tensor:
        """As Attention.core."""
        prefix = self.placed().prefix
        gates = self.gates(x[:, prefix:])
        with torch.autocast(qkv.device.type, enabled=False):
            q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
            q, k = self.prepared(q, k)
            patches = [part[:, :, prefix:] for part in (q, k, v)]
            out = self.scan(patches, gates[0], True)
            # The way back leaves out each token's own term: counted twice it would weigh double beside all others.
            if self.directions == 2:
                turned = [part.flip(2) for part in patches]
                out = out + self.scan(turned, [gate.flip(2) for gate in gates[1]], False).flip(2)
            if prefix:
                out = out + (patches[0] @ k[:, :, :prefix].transpose(-1, -2)) @ v[:, :, :prefix]
                read = (q[:, :, :prefix] @ k.transpose(-1, -2)) @ v
                out = torch.cat([read, out], 2)
            return out.transpose(1, 2).to(qkv.dtype)


class GlaAttention(ScanAttention):
    """Gated linear attention: a gate a key feature, sigmoid(low-rank of x)^(1/16), other gates for each direction."""

    def make_gates(self, factory: dict[str, Any]) -> None:
        """As ScanAttention.make_gates."""
        width = self.qkv.in_features
        self.gate_down = nn.Linear(width, GATE_RANK, bias=False, **factory)
        self.gate_up = nn.Linear(GATE_RANK, self.directions * width, **factory)

    def gates(self, x: Tensor) -> list[tuple[Tensor, ...]]:
        """As ScanAttention.gates."""
        logits = widened(self.gate_up(self.gate_down(x)))
        logs = (F.logsigmoid(logits) / GATE_NORMALISER).clamp(min=LEAST_LOG_GATE)
        logs = logs.unflatten(-1, (self.directions, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return [(log,) for log in logs.unbind(0)]

    def prepared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """As ScanAttention.prepared."""
        return q * self.head_dim**-0.5, k

    def scan(self, parts: Sequence[Tensor], gates: Sequence[Tensor], inclusive: bool) -> Tensor:
        """As ScanAttention.scan."""
        q, k, v = parts
        return gla_scan(q, k, v, gates[0], inclusive)

    def draw_extra(self, uniform: Uniform) -> None:
        """As Attention.draw_extra; the gates start near 0.96, a memory of 23 tokens."""
        super().draw_extra(uniform)
        for layer in (self.gate_down, self.gate_up):
            uniform(layer.weight, layer.in_features**-0.5)
        nn.init.zeros_(self.gate_up.bias)


class GatedDeltaAttention(ScanAttention):
    """The gated delta rule: what the state holds for a key is replaced, not added to; q and k unit vectors of silu."""

    def make_gates(self, factory: dict[str, Any]) -> None:
        """As ScanAttention.make_gates."""
        self.rates = nn.Linear(self.qkv.in_features, 2 * self.directions * self.num_heads, **factory)

    def gates(self, x: Tensor) -> list[tuple[Tensor, ...]]:
        """As ScanAttention.gates: the logarithm of the decay and the step."""
        rates = widened(self.rates(x)).unflatten(-1, (self.directions, 2, self.num_heads, 1)).permute(2, 3, 0, 4, 1, 5)
        return [(-F.softplus(rates[d, 0]), rates[d, 1].sigmoid()) for d in range(self.directions)]

    def prepared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """As ScanAttention.prepared."""
        return unit(F.silu(widened(q))).to(q.dtype), unit(F.silu(widened(k))).to(k.dtype)

    def scan(self, parts: Sequence[Tensor], gates: Sequence[Tensor], inclusive: bool) -> Tensor:
        """As ScanAttention.scan."""
        (q, k, v), (log_gate, step) = parts, gates
        return delta_scan(q, k, v, log_gate, step, inclusive)

    def draw_extra(self, uniform: Uniform) -> None:
        """As Attention.draw_extra; decays spread over the heads, steps start at one half."""
        super().draw_extra(uniform)
        uniform(self.rates.weight, self.rates.in_features**-0.5 / 4)
        bias = self.rates.bias.view(self.directions, 2, self.num_heads)
        nn.init.zeros_(bias)
        for head in range(self.num_heads):
            share = head / max(self.num_heads - 1, 1)
            decay = math.exp(math.log(FAST) + share * math.log(SLOW / FAST))
            bias[:, 0, head] = math.log(math.expm1(decay))
