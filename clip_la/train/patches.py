"""Patch dropout (FLIP, arXiv 2212.00794): which patches of an image a training step keeps, drawn on the device.

Like all that is random about a sample, it is a hash of the seed and of the sample's position in the run (see
clip_la/data/stream/order.py). So no state has to be saved: a resumed run draws what it would have drawn, on any device,
and a part that is encoded twice keeps the same patches both times, since the draw is an input of the tower.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from clip_la.data.stream.order import FIRST, GOLDEN, PATCHES, SECOND, key_state
from clip_la.errors import UserError
from clip_la.models.attention.kinds import attention_kind
from clip_la.models.clip import CLIP
from clip_la.train.hardware import note


def draw_kept(
    seed: int, first: int, num_samples: int, num_patches: int, num_kept: int, device: torch.device
) -> Int64[Tensor, "num_samples num_kept"]:
    """Numbers of the patches that each image keeps, ascending: a uniformly drawn subset, each image by itself.

    Args:
        seed: of the run.
        first: position in the run of the first sample; the others follow it.
        num_samples: images in this process's batch.
        num_patches: of an image.
        num_kept: how many of them stay.
        device: where the hashes are computed and the result lies; nothing waits for it.
    """
    counters = torch.arange(first * num_patches, (first + num_samples) * num_patches, device=device)
    order = _hashed(key_state((PATCHES, seed)), counters).view(num_samples, num_patches).argsort(dim=1, stable=True)
    return order[:, :num_kept].sort(dim=1).values


def _hashed(state: np.ndarray, counters: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """order.hashed on the device: the same 64 bits, of which PyTorch takes the first for the sign."""
    golden, first, second, start = (int(x.astype(np.int64)) for x in (GOLDEN, FIRST, SECOND, state[0]))
    x = (counters + 1) * golden + start
    for shift, factor in ((30, first), (27, second), (31, 1)):
        # Signed numbers shift their sign in; the mask takes it away.
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x


def check_patch_dropout(model: CLIP) -> None:
    """Raises UserError for a model whose image tower needs the whole grid; says where results grow with the tokens."""
    blocks: Any = model.image.trunk.blocks
    for choice, block in zip(model.spec.image_choices, blocks, strict=True):
        if block.attn.needs_grid:
            raise UserError(
                f"patch_dropout leaves holes in the grid, and image attention '{choice}' reads it: leave patch_dropout"
                " out, or take attention without convolution, rope, windows, blocks or scans, such as softmax"
            )
    growing = [c for c in model.spec.image_choices if attention_kind(c.kind).grows_with_tokens(c.options)]
    if growing:
        note(
            f"patch_dropout: '{growing[0]}' sums over the tokens without a denominator, so evaluation, on all patches,"
            " sees larger sums than training; take linear_mean or norm=rms, or end the training without patch_dropout"
        )
