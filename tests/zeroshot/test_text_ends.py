"""Texts in which "!" has token 0, which also fills up: features and classifiers are open_clip's, in any company."""

import dataclasses
import string
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.zero_shot_classifier import build_zero_shot_classifier

from clip_la.data.text.tokenizer import CaptionEncoder
from clip_la.models.clip import CLIP
from clip_la.models.interop import to_open_clip, to_open_clip_config
from clip_la.zeroshot.labels.classes import ClassSet
from clip_la.zeroshot.labels.prompts import PromptSet
from clip_la.zeroshot.model.classifier import build_classifier
from clip_la.zeroshot.model.eval_model import EvalModel, of_model
from clip_la.zeroshot.model.open_clip import wrap_open_clip
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.tasks.retrieval import encode_texts

TEXTS = [
    "a cat",
    "a != b",
    "Thanks!:-)",
    "!",
    "Sale!$5 today only",
    "Happy Birthday!\U0001f382",
    "",
    "!)(",
    "<!-- x -->",
]
TEXTS += ["Yahoo!\xae " * 30, "a much longer caption than all of the others, if not the longest"]
TOLERANCE = 1e-5


@pytest.fixture
def theirs(tiny_model: CLIP) -> Any:
    """The tiny model as open_clip's own module."""
    module = open_clip.CLIP(**to_open_clip_config(tiny_model.spec))
    module.load_state_dict(to_open_clip(tiny_model))
    return module.eval()


@pytest.fixture(params=["ours", "open_clip"])
def either(request: pytest.FixtureRequest, tiny_model: CLIP, theirs: Any) -> EvalModel:
    """The same model evaluated by our towers, and by open_clip's module."""
    if request.param == "ours":
        return of_model(tiny_model)
    theirs.visual.preprocess_cfg = {"size": tiny_model.spec.image_size}
    tokenizer = open_clip.SimpleTokenizer(context_length=tiny_model.spec.context_length)
    return dataclasses.replace(wrap_open_clip(theirs, "tiny", ""), tokenize=tokenizer)


@torch.no_grad()
def expected(theirs: Any, texts: list[str]) -> torch.Tensor:
    tokenizer = open_clip.SimpleTokenizer(context_length=theirs.context_length)
    return theirs.encode_text(tokenizer(texts), normalize=True)


@pytest.mark.parametrize("companions", [1, 3, len(TEXTS)])
def test_training_batches_have_open_clips_features(tiny_model: CLIP, theirs: Any, companions: int) -> None:
    encode = CaptionEncoder("clip", tiny_model.spec.context_length)
    batches = [TEXTS[start : start + companions] for start in range(0, len(TEXTS), companions)]
    with torch.no_grad():
        features = torch.cat([tiny_model.encode_text(encode(batch)[0]) for batch in batches])
    assert (features - expected(theirs, TEXTS)).abs().max() < TOLERANCE


SIGNS = st.sampled_from([*string.printable, *"!!!!!!", "!:-)", "\U0001f382", "\u2764\ufe0f", "\xae", " a photo of "])


def test_random_texts_have_open_clips_features_in_any_company(tiny_model: CLIP, theirs: Any) -> None:
    encode, eval_model = CaptionEncoder("clip", tiny_model.spec.context_length), of_model(tiny_model)

    @settings(derandomize=True, deadline=None, max_examples=12)
    @given(st.lists(st.lists(SIGNS, max_size=25).map("".join) | st.sampled_from(TEXTS), min_size=1, max_size=7))
    def check(texts: list[str]) -> None:
        reference = expected(theirs, texts)
        with torch.no_grad():
            together = tiny_model.encode_text(encode(texts)[0])
            alone = torch.cat([tiny_model.encode_text(encode([text])[0]) for text in texts])
        for features in (together, alone, encode_texts(eval_model, texts, EvalSettings(progress=False))):
            assert (features - reference).abs().max() < TOLERANCE

    check()


def test_retrieval_texts_have_open_clips_features(either: EvalModel, theirs: Any) -> None:
    for texts in (TEXTS, TEXTS[:1], TEXTS[1:2], TEXTS[::-1]):
        features = encode_texts(either, texts, EvalSettings(progress=False))
        assert (features - expected(theirs, texts)).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    "template", ["a photo of a {c}!:-)", "wow!\u2122 a {c}", "{c}!\U0001f382", "a {c} (not!)", "{c}"]
)
def test_classifiers_are_open_clips(either: EvalModel, theirs: Any, template: str) -> None:
    names = ("red", "green", "blue", "sky-blue pink", "Yahoo!", "!important")
    classes = ClassSet("colours", "own", names, tuple((name,) for name in names), ("",) * len(names))
    ours = build_classifier(either, classes, PromptSet("own", (template,)), progress=False)
    tokenizer = open_clip.SimpleTokenizer(context_length=theirs.context_length)
    templates = [lambda name: template.replace("{c}", name)]
    reference = build_zero_shot_classifier(theirs, tokenizer, names, templates, num_classes_per_batch=None)
    assert (ours - reference.T).abs().max() < TOLERANCE
