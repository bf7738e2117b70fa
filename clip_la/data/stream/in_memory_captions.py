"""The captions of a pool, tokenised once: those of a batch are then two look-ups in a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from clip_la.data.text.captions import Captions
from clip_la.data.text.tokenizer import caption_lengths, encode_captions, order_of


class CaptionTable:
    """Each sample's captions by field, and the tokens and number of each different caption.

    Args:
        captions: how one of a sample's captions is drawn.
        samples: of each sample what `captions.read` gave.
        tokenizer, context_length: as for encode_captions.
    """

    def __init__(
        self, captions: Captions, samples: Sequence[list[list[str]]], tokenizer: str, context_length: int
    ) -> None:
        self._captions = captions
        numbers: dict[str, int] = {}
        flat: list[int] = []
        spans: list[list[tuple[int, int]]] = []
        for fields in samples:
            own = []
            for texts in fields:
                own.append((len(flat), len(texts)))
                flat += [numbers.setdefault(text, len(numbers)) for text in texts]
            # Where the drawn field is empty, the first one that is not stands in.
            filled = next((span for span in own if span[1]), (0, 0))
            spans.append([span if span[1] else filled for span in own])
        self._flat = np.array(flat, np.int64)
        self._spans = np.array(spans, np.int64).reshape(len(samples), len(captions.fields), 2)
        # An empty pool has no batches, but a table of the right shape.
        self._tokens, self._ids = encode_captions(list(numbers) or [""], tokenizer, context_length)
        self._lengths = caption_lengths(self._tokens)

    def batch(self, numbers: Int64[np.ndarray, " batch"], uniforms: Float64[np.ndarray, "batch 2"]) -> dict[str, Any]:
        """Tokens, `caption_id` and order of one caption of each sample, picked by its two uniform numbers."""
        first, count = self._spans[numbers, self._captions.drawn_fields(uniforms[:, 0])].T
        chosen = torch.from_numpy(self._flat[first + (uniforms[:, 1] * count).astype(np.int64)])
        longest = int(self._lengths[chosen].max())
        tokens = self._tokens[chosen, :longest]
        return {"tokens": tokens, "caption_id": self._ids[chosen], **order_of(tokens)}
