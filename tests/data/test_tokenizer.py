"""Tokens are open_clip's, whichever way a caption is cleaned."""

import string

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from clip_la.data.stream.in_memory_captions import CaptionTable
from clip_la.data.text import tokenizer as text_tokens
from clip_la.data.text.captions import Captions
from clip_la.data.text.tokenizer import (
    CaptionEncoder,
    caption_id,
    caption_lengths,
    encode_captions,
    get_tokenizer,
    trim,
)
from clip_la.errors import UserError

ODD = [
    "",
    "A photo of a CAT.",
    "  spaces \t and\nlines  ",
    "html &amp;amp; entities &lt;b&gt;",
    "sch\u00f6n mojibake: sch\u00c3\u00b6n",
    "\u201ccurly\u201d \u2014 dash \u00e9\u0301",
    "\x1b[31mred\x1b[0m \x07 bell",
    "don't <start_of_text> <end_of_text> it's",
    "emoji \U0001f469\u200d\U0001f373 and \u4e2d\u6587",
    "word " * 200,
    "\x7f\x00\x1f",
    "&",
]


def test_odd_captions_get_open_clips_tokens():
    theirs = open_clip.get_tokenizer("ViT-B-32")
    assert torch.equal(get_tokenizer()(ODD), theirs(ODD))


def test_random_ascii_gets_open_clips_tokens():
    rng = np.random.default_rng(0)
    letters = list(string.printable)
    captions = ["".join(rng.choice(letters, rng.integers(1, 60))) for _ in range(400)]
    plain = ["".join(rng.choice(letters[:95], rng.integers(1, 60))) for _ in range(400)]
    assert torch.equal(get_tokenizer()(captions + plain), open_clip.get_tokenizer("ViT-B-32")(captions + plain))


# "!" has token 0, which also fills up; alone, or before these, it stands for itself.
WITH_TOKEN_ZERO = ["a != b", "<!-- x -->", "Thanks!:-)", "Sale!$5", "Yahoo!\xae", "Happy Birthday!\U0001f382", "!)("]
SIGNS = st.sampled_from([*string.printable, *"!!!!!!", "!:-)", "\U0001f382", "\u2764\ufe0f", "\xae", "<end_of_text>"])
TEXTS = st.lists(SIGNS, max_size=30).map("".join)


@pytest.mark.parametrize("length", [7, 77])
def test_encoder_has_open_clips_tokens_whatever_stands_in_a_caption(length):
    theirs, encode = open_clip.SimpleTokenizer(context_length=length), CaptionEncoder("clip", length)
    assert all(0 in row[: row.tolist().index(49407)] for row in open_clip.tokenize(WITH_TOKEN_ZERO))

    @settings(derandomize=True, deadline=None, max_examples=80)
    @given(st.lists(TEXTS | st.sampled_from(WITH_TOKEN_ZERO), min_size=1, max_size=5))
    def check(captions):
        expected = theirs(captions)
        tokens, _ = encode(captions)
        assert torch.equal(tokens, expected[:, : tokens.shape[1]])
        assert not expected[:, tokens.shape[1] :].any()
        assert (tokens[:, -1] == 49407).any()
        ends = [max(place for place, token in enumerate(row) if token == 49407) for row in expected.tolist()]
        assert caption_lengths(expected).tolist() == [end + 1 for end in ends]

    check()


# Spaces that Python, the Unicode tables and the tokenizer's expression may see differently, inside of words.
SPACES = [f"a{chr(code)}b cat's{chr(code)}!!" for code in (0x1C, 0x1F, 0x85, 0xA0, 0x180E, 0x200B, 0x2028, 0x3000)]


@pytest.mark.parametrize("length", [5, 77])
def test_many_captions_get_the_tokens_and_numbers_that_each_gets_by_itself(length, monkeypatch):
    captions = [*ODD, *WITH_TOKEN_ZERO, *SPACES]
    expected = open_clip.SimpleTokenizer(context_length=length)(captions)
    # Several parts, whose longest captions differ.
    monkeypatch.setattr(text_tokens, "CAPTIONS_AT_ONCE", 4)
    tokens, ids = encode_captions(captions, "clip", length)
    assert torch.equal(tokens, trim(expected))
    assert (tokens.dtype, ids.dtype) == (torch.int64, torch.int64)
    assert ids.tolist() == [caption_id(caption) for caption in captions]
    one_by_one, their_ids = CaptionEncoder("clip", length)(captions)
    assert torch.equal(tokens, one_by_one)
    assert torch.equal(ids, their_ids)


class Operations(TorchDispatchMode):
    """How many tensor operations there were."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_a_corpus_is_tokenised_without_a_tensor_for_each_caption():
    counts = []
    for number in (10, 1000):
        with Operations() as operations:
            CaptionTable(Captions(), [[[f"cat {i}"]] for i in range(number)], "clip", 16)
        counts.append(operations.count)
    assert counts[0] == counts[1]


def test_rows_without_an_end_are_not_cut():
    rows = torch.tensor([[5, 0, 0, 0], [49406, 7, 49407, 0]])
    assert caption_lengths(rows).tolist() == [4, 3]
    assert torch.equal(trim(rows), rows)
    assert trim(rows[1:]).tolist() == [[49406, 7, 49407]]
    assert trim(rows[:0]).shape == (0, 0)


@pytest.mark.parametrize("length", [5, 32])
def test_encoder_trims_to_the_longest_and_cuts_at_the_context(length):
    captions = ["a cat", "", "a large dog on a very long road", "a cat"]
    tokens, ids = CaptionEncoder("clip", length)(captions)
    whole = get_tokenizer(context_length=length)(captions)
    assert torch.equal(tokens, trim(whole))
    assert not whole[:, tokens.shape[1] :].any()
    assert tokens[:, -1].any()
    assert ids.tolist() == [caption_id(caption) for caption in captions]
    assert (tokens.max(1).values == 49407).all()


def test_caption_numbers_do_not_see_case_and_spacing():
    assert caption_id(" A  Cat\n") == caption_id("a cat")
    assert caption_id("a cat") != caption_id("a cats")


def test_unknown_tokenizers_are_named():
    with pytest.raises(UserError, match="unknown tokenizer 'clop'; did you mean clip"):
        get_tokenizer("clop")
