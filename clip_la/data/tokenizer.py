"""Captions to tokens and to stable numbers."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache

import torch
from jaxtyping import Int64
from torch import Tensor

from clip_la.errors import unknown

Tokenizer = Callable[[Sequence[str]], Int64[Tensor, "batch context_length"]]
CAPTION_ID_BYTES = 8


@cache
def _clip(context_length: int) -> Tokenizer:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=context_length)
    return lambda captions: tokenizer(list(captions))


TOKENIZERS = {"clip": _clip}


def get_tokenizer(name: str = "clip", context_length: int = 77) -> Tokenizer:
    """A function from captions to tokens: start, byte pairs, end, then zeros; longer captions are cut, the end kept.

    `"clip"` is CLIP's byte-pair encoding (Radford et al. 2021), as open_clip implements it.

    Raises:
        UserError: unknown name.
    """
    if name not in TOKENIZERS:
        raise unknown("tokenizer", name, TOKENIZERS)
    return TOKENIZERS[name](context_length)


def trim(tokens: Int64[Tensor, "batch context_length"]) -> Int64[Tensor, "batch longest"]:
    """Leaves out the columns that are zero in every row."""
    longest = int((tokens != 0).sum(1).max()) if len(tokens) else 0
    return tokens[:, :longest].contiguous()


def caption_id(caption: str) -> int:
    """A signed 64-bit number that is equal for captions that read the same: case and spacing do not count."""
    plain = " ".join(caption.lower().split()).encode()
    return int.from_bytes(hashlib.blake2b(plain, digest_size=CAPTION_ID_BYTES).digest(), "big", signed=True)


def caption_ids(captions: Sequence[str]) -> Int64[Tensor, " batch"]:
    """`caption_id` of each caption."""
    return torch.tensor([caption_id(caption) for caption in captions], dtype=torch.int64)
