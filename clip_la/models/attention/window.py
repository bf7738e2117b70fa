"""Softmax within windows beside linear attention over all tokens, on the same q, k, v."""

from typing import Any

import torch
import torch.nn.functional as F
from clip_la_kernels import linear_attention
from torch import Tensor, nn

from clip_la.models.attention.base import Attention
from clip_la.models.attention.surroundings import Uniform


class WindowLinearAttention(Attention):
    """g softmax in the token's window + (1 - g) mean of (1 + cos(q, k)) v over all tokens, g learned a head, 1/2 first.

    Windows are `window` x `window` patches from the top left, ragged at the far edges; each also sees the prefix, whose
    own row is softmax over all tokens. Text has causal windows of window^2 tokens. Linear in the tokens. A window that
    is wider than what there is costs no more than all of it.

    Args:
        dim: as for Attention, and so are the rest of timm's arguments.
        window: side of a window in patches.
    """

    needs_layout = True

    def __init__(self, dim: int, *, window: float, **timm_arguments: Any) -> None:
        super().__init__(dim, **timm_arguments)
        self.window = int(window)
        like = self.qkv.weight
        self.share = nn.Parameter(torch.empty(self.num_heads, 1, device=like.device, dtype=like.dtype))

    def attend(self, qkv: Tensor, is_causal: bool) -> Tensor:
        """As Attention.attend."""
        # Both read the same q, k, v: the window sees what is near sharply, the mean sees all at a cost linear in them.
        everywhere = linear_attention(qkv, denominator="length", causal=is_causal)
        local = self._causal_windows(qkv) if is_causal else self._grid_windows(qkv)
        share = self.share.sigmoid()
        return (share * local + (1 - share) * everywhere).to(everywhere.dtype)

    def _causal_windows(self, qkv: Tensor) -> Tensor:
        batch, tokens = qkv.shape[:2]
        size = min(self.window**2, self.placed().max_tokens)
        padded = F.pad(qkv, (0, 0, 0, 0, 0, 0, 0, -tokens % size))
        q, k, v = padded.unflatten(1, (-1, size)).flatten(0, 1).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return out.unflatten(0, (batch, -1)).flatten(1, 2)[:, :tokens]

    def _grid_windows(self, qkv: Tensor) -> Tensor:
        layout = self.placed()
        assert layout.grid is not None
        (rows, columns), batch = layout.grid, qkv.shape[0]
        high, wide = min(self.window, rows), min(self.window, columns)
        down, across = -(-rows // high), -(-columns // wide)
        grid = qkv[:, layout.prefix :].unflatten(1, layout.grid)
        # (batch, down, across, high * wide, 3, heads, width)
        grid = F.pad(grid, (0, 0, 0, 0, 0, 0, 0, across * wide - columns, 0, down * high - rows))
        grid = grid.unflatten(2, (across, wide)).unflatten(1, (down, high)).transpose(2, 3).flatten(3, 4)
        # The prefix belongs to every window, as keys alone.
        prefix = qkv[:, None, None, : layout.prefix].expand(-1, down, across, -1, -1, -1, -1)
        seen = torch.cat([prefix, grid], 3).flatten(0, 2)
        q = grid.flatten(0, 2)[:, :, 0].transpose(1, 2)
        k, v = (seen[:, :, part].transpose(1, 2) for part in (1, 2))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self._real(batch, (down, high), (across, wide), qkv.device)
        )
        out = out.transpose(1, 2).unflatten(0, (batch, down, across)).unflatten(3, (high, wide)).transpose(2, 3)
        patches = out.flatten(3, 4).flatten(1, 2)[:, :rows, :columns].flatten(1, 2)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        read = F.scaled_dot_product_attention(q[:, :, : layout.prefix], k, v).transpose(1, 2)
        return torch.cat([read, patches], 1)

    def _real(
        self, batch: int, rows_of: tuple[int, int], columns_of: tuple[int, int], device: torch.device
    ) -> Tensor | None:
        """Which keys of each window are tokens, (batch * windows, 1, 1, keys); None if all are.

        `rows_of` and `columns_of` are the windows along an axis and the patches of each.
        """
        layout = self.placed()
        assert layout.grid is not None
        rows, columns = layout.grid
        (down, high), (across, wide) = rows_of, columns_of
        if rows == down * high and columns == across * wide:
            return None
        row = torch.arange(down * high, device=device).view(down, 1, high, 1) < rows
        column = torch.arange(across * wide, device=device).view(1, across, 1, wide) < columns
        real = F.pad((row & column).flatten(2), (layout.prefix, 0), value=True)
        return real.expand(batch, -1, -1, -1).flatten(0, 2)[:, None, None, :]

    def draw_extra(self, uniform: Uniform) -> None:
        """As Attention.draw_extra; both shares start at one half."""
        super().draw_extra(uniform)
        nn.init.zeros_(self.share)

    def extra_repr(self) -> str:
        return f"window={self.window}"
