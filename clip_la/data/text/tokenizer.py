"""Captions to tokens and to stable numbers."""

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clip_la.errors import UserError, unknown

Tokenizer = Callable[[Sequence[str]], Int64[Tensor, "batch context_length"]]
TOKENIZERS = ("clip",)
CAPTION_ID_BYTES = 8
# A small corpus has no more; of a large one nearly every caption is new, and this many take some 20 MB.
REMEMBERED_CAPTIONS = 1 << 14
# Nearly all that stand in any text; some 10 MB.
REMEMBERED_WORDS = 1 << 16
# Captions of a corpus that are tokenised together.
CAPTIONS_AT_ONCE = 1 << 14
# The last number of CLIP's vocabulary. Where it stands is where a caption ends: 0, which fills up, is also "!".
END_OF_TEXT = 49407


@cache
def _open_clip_tokenizer() -> ModuleType:
    """open_clip's tokenizer file by itself: importing the package would bring timm and transformers into every loader
    process, which is four seconds and 260 MB each where processes are spawned."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise UserError("the 'clip' tokenizer needs the package open_clip_torch; pip install open_clip_torch")
    path = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("clip_la_open_clip_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cleaned(text: str) -> str:
    """What the "clip" tokenizer makes of a text before it splits it: equal results are the same text to a model."""
    # Mending of mis-decoded text and of HTML changes nothing in plain ASCII, and takes most of a caption's time.
    if text.isascii() and text.isprintable() and "&" not in text:
        return " ".join(text.split()).lower()
    mended: str = _open_clip_tokenizer().get_clean_fn("lower")(text)
    return mended


@cache
def get_tokenizer(name: str = "clip", context_length: int = 77) -> Tokenizer:
    """A function from captions to Int64[batch, context_length]: start, byte pairs, end, then zeros.

    Longer captions are cut, the end kept. `"clip"` is CLIP's byte-pair encoding (Radford et al. 2021), as open_clip
    implements it.

    Raises:
        UserError: unknown name.
    """
    if name not in TOKENIZERS:
        raise unknown("tokenizer", name, TOKENIZERS)
    pairs = _byte_pairs()

    def tokenize(captions: Sequence[str]) -> Int64[Tensor, "batch context_length"]:
        flat: list[int] = []
        lengths = []
        for caption in captions:
            ids = [pairs.start]
            # No pair reaches over a space, so what stands between spaces is looked up as a whole.
            for word in cleaned(caption).split(" "):
                ids += pairs.ids(word)
            # The end is kept of one that is too long.
            del ids[context_length - 1 :]
            flat += ids
            flat.append(pairs.end)
            lengths.append(len(ids) + 1)
        # Filled at once: a tensor for each caption would take longer than its words do.
        tokens = np.zeros((len(lengths), context_length), np.int64)
        tokens[np.arange(context_length) < np.array(lengths, np.int64)[:, None]] = flat
        return torch.from_numpy(tokens)

    return tokenize


class _BytePairs(NamedTuple):
    """CLIP's byte pairs by open_clip's tables: the numbers of a cleaned text's pairs, of its start and its end."""

    ids: Callable[[str], tuple[int, ...]]
    start: int
    end: int


@cache
def _byte_pairs() -> _BytePairs:
    tables = _open_clip_tokenizer().SimpleTokenizer()

    @lru_cache(maxsize=REMEMBERED_WORDS)
    def ids(text: str) -> tuple[int, ...]:
        found: list[int] = []
        for word in tables.pat.findall(text):
            spelt = "".join(tables.byte_encoder[byte] for byte in word.encode("utf-8"))
            found += (tables.encoder[pair] for pair in tables.bpe(spelt).split(" "))
        return tuple(found)

    return _BytePairs(ids, tables.sot_token_id, tables.eot_token_id)


def encode_captions(
    captions: Sequence[str], tokenizer: str, context_length: int
) -> tuple[Int64[Tensor, "captions longest"], Int64[Tensor, " captions"]]:
    """What a CaptionEncoder gives for these captions, many of them, each worked out once; raises as get_tokenizer."""
    tokenize = get_tokenizer(tokenizer, context_length)
    starts = range(0, len(captions), CAPTIONS_AT_ONCE)
    # Cut to their longest before the next are made: most captions are far shorter than the context.
    parts = [trim(tokenize(captions[start : start + CAPTIONS_AT_ONCE])) for start in starts]
    tokens = torch.zeros(len(captions), max((part.shape[1] for part in parts), default=0), dtype=torch.int64)
    for start, part in zip(starts, parts, strict=True):
        tokens[start : start + len(part), : part.shape[1]] = part
    return tokens, caption_ids(captions)


class CaptionEncoder:
    """Captions to trimmed tokens and caption numbers; a caption that is still remembered is not worked out again."""

    def __init__(self, tokenizer: str, context_length: int) -> None:
        tokenize = get_tokenizer(tokenizer, context_length)

        @lru_cache(maxsize=REMEMBERED_CAPTIONS)
        def encode(caption: str) -> tuple[Int64[Tensor, " tokens"], int]:
            return trim(tokenize([caption]))[0], caption_id(caption)

        self._encode = encode

    def __call__(self, captions: Sequence[str]) -> tuple[Int64[Tensor, "batch longest"], Int64[Tensor, " batch"]]:
        """Tokens, zero-padded to the longest of these captions, and `caption_id` of each."""
        tokens, ids = zip(*map(self._encode, captions), strict=True)
        return pad_sequence(list(tokens), batch_first=True), torch.tensor(ids, dtype=torch.int64)


def caption_lengths(tokens: Int[Tensor, "batch context_length"]) -> Int64[Tensor, " batch"]:
    """How many tokens each caption of the "clip" tokenizer has, its end-of-text token included.

    Of several, as in a caption that spells `<end_of_text>`, the last one counts; a row without any is taken whole.
    """
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    lengths = torch.where(tokens == END_OF_TEXT, places, 0).amax(1)
    return lengths.masked_fill_(lengths == 0, tokens.shape[1])


def trim(tokens: Int[Tensor, "batch context_length"]) -> Int[Tensor, "batch longest"]:
    """Leaves out the columns in which no caption has a token."""
    longest = int(caption_lengths(tokens).max()) if len(tokens) else 0
    return tokens[:, :longest].contiguous()


def order_of(tokens: Int64[Tensor, "batch longest"]) -> dict[str, Int64[Tensor, " batch"] | list[int]]:
    """`by_length`, the places of the captions, shortest first, and `sorted_lengths`, their lengths in that order."""
    lengths, by_length = caption_lengths(tokens).sort(stable=True)
    return {"by_length": by_length, "sorted_lengths": lengths.tolist()}


def caption_id(caption: str) -> int:
    """A signed 64-bit number that is equal for captions that read the same: case and spacing do not count."""
    plain = " ".join(caption.lower().split()).encode()
    return int.from_bytes(hashlib.blake2b(plain, digest_size=CAPTION_ID_BYTES).digest(), "big", signed=True)


def caption_ids(captions: Sequence[str]) -> Int64[Tensor, " batch"]:
    """`caption_id` of each caption."""
    return torch.tensor([caption_id(caption) for caption in captions], dtype=torch.int64)
