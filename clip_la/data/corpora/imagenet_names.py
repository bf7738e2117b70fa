"""What the installed packages know of ImageNet's classes: WordNet ids, lemmas, definitions, curated names.

timm ships the lists of WordNet ids with WordNet's lemmas and definitions for 21,844 synsets, open_clip the names that
OpenAI wrote by hand for ImageNet-1K, torchvision those that ImageNet-1K had before. Everything is keyed
by WordNet id ("n02084071"), never by position.
"""

import functools
import importlib.util
import json
import re
from pathlib import Path

WORDNET_ID = re.compile(r"n\d{8}")


def is_wordnet_id(text: str) -> bool:
    """Whether `text` is a WordNet noun id: the letter n and eight digits."""
    return WORDNET_ID.fullmatch(text) is not None


def _timm_text(name: str) -> str:
    # The files are read where they lie: `import timm.data` would cost seconds for three text files.
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "data" / "_info" / name).read_text(encoding="utf-8")


@functools.cache
def wordnet_ids(file: str) -> tuple[str, ...]:
    """The ids of one of timm's lists (`imagenet12k` for imagenet12k_synsets.txt), in the list's order.

    Raises FileNotFoundError for a list that this timm lacks.
    """
    return tuple(_timm_text(f"{file}_synsets.txt").split())


@functools.cache
def lemmas() -> dict[str, tuple[str, ...]]:
    """WordNet id -> its lemmas, the commonest first ("dog", "domestic dog", "Canis familiaris"); 21,844 ids.

    Several ids may share a lemma, even their first: the crane is a bird and a machine.
    """
    rows = (line.split("\t", 1) for line in _timm_text("imagenet_synset_to_lemma.txt").splitlines())
    return {key: tuple(text.split(", ")) for key, text in rows}


@functools.cache
def definitions() -> dict[str, str]:
    """WordNet id -> WordNet's definition in one sentence, for the same ids as `lemmas`."""
    return dict(line.split("\t", 1) for line in _timm_text("imagenet_synset_to_definition.txt").splitlines())


@functools.cache
def curated() -> dict[str, str]:
    """WordNet id -> the name OpenAI chose for it (open_clip's IMAGENET_CLASSNAMES), ImageNet-1K only.

    It is the list of the notebook Prompt_Engineering_for_ImageNet that OpenAI published with CLIP, name for name.
    """
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    # open_clip lists them in the order of ImageNet's sorted WordNet ids; a test pins well-known pairs of it.
    return dict(zip(wordnet_ids("imagenet"), IMAGENET_CLASSNAMES, strict=True))


@functools.cache
def raw() -> dict[str, str]:
    """WordNet id -> ImageNet-1K's own label, as torchvision lists it: "cock", "kite", "nail", each only once."""
    from torchvision.models import ResNet18_Weights

    # The outputs of torchvision's classifiers, in the order of ImageNet's sorted WordNet ids.
    labels = ResNet18_Weights.DEFAULT.meta["categories"]
    return dict(zip(wordnet_ids("imagenet"), labels, strict=True))


@functools.cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """The ReaL labels of ImageNet-1K's 50,000 validation images (Beyer et al. 2020, "Are we done with ImageNet?").

    Entry i belongs to ILSVRC2012_val_{i + 1:08d}; its numbers are positions in the sorted WordNet ids; it may be empty.
    """
    rows = json.loads(_timm_text("imagenet_real_labels.json"))
    return tuple(tuple(row) for row in rows)
