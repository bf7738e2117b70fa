"""MHLA (arXiv 2601.07832): linear attention whose queries read a learned mixture of the states of blocks of tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_la.models.attention.base import Attention
from clip_la.models.attention.costs import Mhla
from clip_la.models.attention.feature_maps import ZERO, widened
from clip_la.models.attention.layout import Layout
from clip_la.models.attention.surroundings import Uniform

# At first a block at a distance r (in blocks) counts exp(-r / this): the neighbour half, the far corner of 4 x 4 a
# twentieth.
LOCALITY = 1.4


class MhlaAttention(Attention):
    """o_i = sum_j M[b_i, b_j] phi(q_i).phi(k_j) v_j over the sum of the weights, phi = relu + 1e-6, b the blocks.

    Blocks are 2-D, `blocks` a side, of equal size but for those at the far edges; text has blocks^2 runs of tokens. The
    prefix is a block of its own, with a row and a column of M, which count 1 at first. M is positive, exp of what is
    learned (the authors' is free, which may bring a denominator to zero), and the same for all heads.

    Args:
        dim: as for Attention, and so are the rest of timm's arguments.
        blocks: blocks along a side of the grid.
    """

    needs_layout = True

    def __init__(self, dim: int, *, blocks: float, **timm_arguments: Any) -> None:
        super().__init__(dim, **timm_arguments)
        self.blocks = int(blocks)
        self.mixture = nn.Parameter(torch.empty(0))

    def set_layout(self, layout: Layout) -> None:
        """As Attention.set_layout."""
        super().set_layout(layout)
        count = self.blocks**2 + (layout.prefix > 0)
        like = self.qkv.weight
        self.mixture = nn.Parameter(torch.empty(count, count, device=like.device, dtype=like.dtype))

    def attend(self, qkv: Tensor, is_causal: bool) -> Tensor:
        """As Attention.attend."""
        layout = self.placed()
        with torch.autocast(qkv.device.type, enabled=False):
            q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
            # Never quite zero: a row whose features are all zero would divide by nothing.
            q, k = ((part.relu() + ZERO).to(v.dtype) for part in (q, k))
            mixture = widened(self.mixture).exp()
            form = self._pairs if Mhla.is_quadratic(layout, self.head_dim, {"blocks": self.blocks}) else self._states
            return form(q, k, v, mixture).transpose(1, 2)

    def _pairs(self, q: Tensor, k: Tensor, v: Tensor, mixture: Tensor) -> Tensor:
        """All pairs of tokens: the cheaper form for short sequences, and the causal one."""
        block = self._block_of_token(v.shape[2], v.device)
        weights = widened(q @ k.transpose(-1, -2)) * mixture[block[:, None], block]
        if self.placed().causal:
            weights = weights.tril()
        total = weights.sum(-1, keepdim=True)
        return (weights / total).to(v.dtype) @ v

    def _block_of_token(self, tokens: int, device: torch.device) -> Tensor:
        layout = self.placed()
        place = torch.arange(tokens, device=device)
        if layout.grid is None:
            return place // Mhla.blocks(layout, {"blocks": self.blocks})[1]
        rows, columns = (-(-extent // self.blocks) for extent in layout.grid)
        place = (place - layout.prefix).clamp(min=0)
        row, column = place // layout.grid[1], place % layout.grid[1]
        block = row // rows * self.blocks + column // columns
        if layout.prefix == 0:
            return block
        return torch.where(torch.arange(tokens, device=device) < layout.prefix, 0, block + 1)

    def _states(self, q: Tensor, k: Tensor, v: Tensor, mixture: Tensor) -> Tensor:
        """One state a block, (batch, heads, blocks, features, head_dim), mixed, and read by the block's queries."""
        q, k, v = (self._by_blocks(part) for part in (q, k, v))
        states = (k.transpose(-1, -2) @ v).flatten(3)
        sums = widened(k).sum(3)
        mixed = (mixture.to(states.dtype) @ states).unflatten(-1, (q.shape[-1], -1))
        total = widened(q) @ (mixture @ sums).unsqueeze(-1)
        # Spots without a token have no weights; what they hold is dropped, but must not be NaN.
        out = widened(q @ mixed) / torch.where(total == 0, 1.0, total)
        return self._by_tokens(out.to(v.dtype))

    def _by_blocks(self, x: Tensor) -> Tensor:
        """(batch, heads, tokens, width) -> (batch, heads, blocks, spots, width); spots without a token hold zeros."""
        layout = self.placed()
        assert layout.grid is not None
        (rows, columns), side = layout.grid, self.blocks
        high, wide = -(-rows // side), -(-columns // side)
        grid = F.pad(x[:, :, layout.prefix :].unflatten(2, layout.grid), (0, 0, 0, side * wide - columns))
        grid = F.pad(grid, (0, 0, 0, 0, 0, side * high - rows))
        grid = grid.unflatten(3, (side, wide)).unflatten(2, (side, high)).transpose(3, 4)
        blocks = grid.flatten(4, 5).flatten(2, 3)
        if not layout.prefix:
            return blocks
        spots = max(high * wide, layout.prefix)
        prefix = F.pad(x[:, :, : layout.prefix], (0, 0, 0, spots - layout.prefix)).unsqueeze(2)
        return torch.cat([prefix, F.pad(blocks, (0, 0, 0, spots - high * wide))], 2)

    def _by_tokens(self, x: Tensor) -> Tensor:
        """The inverse of _by_blocks."""
        layout = self.placed()
        assert layout.grid is not None
        (rows, columns), side = layout.grid, self.blocks
        high, wide = -(-rows // side), -(-columns // side)
        first = int(layout.prefix > 0)
        grid = x[:, :, first:, : high * wide].unflatten(3, (high, wide)).unflatten(2, (side, side)).transpose(3, 4)
        grid = grid.flatten(4, 5).flatten(2, 3)[:, :, :rows, :columns]
        patches = grid.flatten(2, 3)
        return torch.cat([x[:, :, 0, : layout.prefix], patches], 2) if first else patches

    def draw_extra(self, uniform: Uniform) -> None:
        """As Attention.draw_extra; M starts local."""
        super().draw_extra(uniform)
        layout = self.placed()
        block = torch.arange(self.blocks**2, dtype=torch.float32)
        side = self.blocks if layout.grid else 1
        place = torch.stack([block // side, block % side], 1)
        start = -torch.cdist(place, place) / LOCALITY
        if layout.prefix:
            start = F.pad(start, (1, 0, 1, 0))
        self.mixture.copy_(start)

    def extra_repr(self) -> str:
        return f"blocks={self.blocks}"
