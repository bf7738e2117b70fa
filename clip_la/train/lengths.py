"""How long the captions are that the text tower sees: few lengths when compiled, short ones where captions are short.

Zeros behind the end-of-text token change no feature: causal attention lets no token see what follows it, and the
feature is the one at that token.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.nn import functional as F

# Captions are padded to multiples of this, so that a compiled text tower meets few lengths.
LENGTH_STEP = 16

Encode = Callable[[Int[Tensor, "batch tokens"]], Float[Tensor, "batch dim"]]


def padded_length(longest: int, context_length: int) -> int:
    """The length that captions of at most `longest` tokens are padded to: a multiple of LENGTH_STEP or the context."""
    return min(-(-longest // LENGTH_STEP) * LENGTH_STEP, context_length)


def pad_captions(tokens: Int[Tensor, "batch tokens"], length: int) -> Int[Tensor, "batch {length}"]:
    """The first `length` columns, with columns of zeros where there are fewer."""
    missing = length - tokens.shape[1]
    return F.pad(tokens, (0, missing)) if missing > 0 else tokens[:, :length]


def groups_by_length(lengths: Sequence[int], num_groups: int, context_length: int) -> list[tuple[slice, int]]:
    """Rows of each group and the length it is padded to, of captions whose `lengths` rise; sizes differ by one."""
    edges = [len(lengths) * group // num_groups for group in range(num_groups + 1)]
    return [
        (slice(first, last), padded_length(lengths[last - 1], context_length))
        for first, last in pairwise(edges)
        if last > first
    ]


def encode_by_length(
    encode: Encode,
    groups: Sequence[tuple[slice, int]],
    tokens: Int[Tensor, "batch tokens"],
    by_length: Int64[Tensor, " batch"],
) -> Float[Tensor, "batch dim"]:
    """Features of all captions, encoded group by group, each padded only to its own length.

    Args:
        encode: features of some captions.
        groups: as `groups_by_length` makes them, on the host, so that nothing waits for the device.
        tokens: zero-padded.
        by_length: places of the captions, shortest first.
    """
    ordered = tokens[by_length]
    features = torch.cat([encode(pad_captions(ordered[rows], length).contiguous()) for rows, length in groups])
    return torch.empty_like(features).index_copy(0, by_length, features)
