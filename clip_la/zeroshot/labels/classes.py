"""Class sets: the ordered classes an image can belong to, with one or more names each, and a hash of exactly that."""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from clip_la.data.corpora import imagenet_names as known
from clip_la.errors import UserError, one_line, unknown
from clip_la.zeroshot.labels import class_files

HASH_DIGITS = 16


def content_hash(content: object) -> str:
    """The first 16 hex digits of the SHA-256 of `content` as canonical JSON: equal content, equal hash, everywhere."""
    text = json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


@dataclass(frozen=True)
class ClassSet:
    """Ordered classes. `ids` are WordNet ids or, where there are none, the names themselves; they are unique.

    `names[i]` holds the names of class i: prompts are made of each and their embeddings averaged. `definitions[i]` is a
    sentence or "". Several classes may share a name (see `collisions`): they cannot be told apart by their prompts.
    """

    name: str
    naming: str
    ids: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    definitions: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.ids:
            raise UserError(f"class set '{self.name}' has no classes")
        if len(set(self.ids)) != len(self.ids):
            twice = next(key for i, key in enumerate(self.ids) if key in self.ids[:i])
            raise UserError(f"class set '{self.name}' lists '{one_line(twice)}' twice; classes must differ")
        nameless = [key for key, own in zip(self.ids, self.names, strict=True) if not own or not all(own)]
        if nameless:
            raise UserError(f"class '{one_line(nameless[0])}' of class set '{self.name}' has an empty name")

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of_entries(cls, entries: Sequence[class_files.ClassEntry], name: str) -> Self:
        """The set of the classes of a file."""
        ids, names, texts = zip(*entries, strict=True) if entries else ((), (), ())
        return cls(name, "file", tuple(ids), tuple(names), tuple(texts))

    @property
    def label(self) -> str:
        """Name and naming as they stand in results: "imagenet21k/lemma"."""
        return f"{self.name}/{self.naming}"

    @functools.cached_property
    def hash(self) -> str:
        """Content hash of ids, names and definitions in their order."""
        return content_hash([self.ids, self.names, self.definitions])

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Id -> position."""
        return {key: i for i, key in enumerate(self.ids)}

    @functools.cached_property
    def index_by_name(self) -> dict[str, int]:
        """Name -> position, of the names that only one class has."""
        taken = self.collisions()
        return {name: i for i, own in enumerate(self.names) for name in own if name not in taken}

    @functools.cached_property
    def index_by_reading(self) -> dict[str, int]:
        """`reading` of an id or a name -> position, of the readings that only one class has."""
        owners: dict[str, set[int]] = {}
        for i, (key, own) in enumerate(zip(self.ids, self.names, strict=True)):
            for text in (key, *own):
                owners.setdefault(reading(text), set()).add(i)
        return {text: next(iter(found)) for text, found in owners.items() if len(found) == 1}

    def collisions(self) -> dict[str, list[str]]:
        """Name -> the ids of all classes it is a name of, for the names of two and more classes."""
        owners: dict[str, list[str]] = {}
        for key, own in zip(self.ids, self.names, strict=True):
            for name in dict.fromkeys(own):
                owners.setdefault(name, []).append(key)
        return {name: keys for name, keys in owners.items() if len(keys) > 1}

    def read_alike(self) -> dict[str, list[str]]:
        """Text -> the differing names of several classes that the tokenizer turns into it ("red": "Red", "red")."""
        names = {text: list(dict.fromkeys(name for name, _ in own)) for text, own in self._readings().items()}
        return {text: own for text, own in names.items() if len(own) > 1}

    def sharing_a_name(self) -> set[str]:
        """The ids of all classes with a name that is, for the tokenizer, another class's too."""
        return {key for own in self._readings().values() for _, key in own}

    def _readings(self) -> dict[str, list[tuple[str, str]]]:
        """Text -> (name, id) of all that the tokenizer turns into it, where these are several classes'."""
        from clip_la.data.text.tokenizer import cleaned

        owners: dict[str, list[tuple[str, str]]] = {}
        for key, own in zip(self.ids, self.names, strict=True):
            for name in own:
                owners.setdefault(cleaned(name), []).append((name, key))
        return {text: own for text, own in owners.items() if len({key for _, key in own}) > 1}

    def positions(self, keys: Iterable[str]) -> list[int]:
        """The positions of ids (or of unambiguous names) in this set; -1 where the set has no such class.

        An id or a name as it stands comes first; else case, spacing and "_" for a space do not count.
        """
        places = []
        for key in keys:
            place = self.index.get(key, self.index_by_name.get(key))
            places.append(self.index_by_reading.get(reading(key), -1) if place is None else place)
        return places


def reading(text: str) -> str:
    """What labels are compared by where they are not equal as they stand: case, spacing and "_" do not count."""
    from clip_la.data.text.tokenizer import cleaned  # late: it brings torch, which `--help` has no need of

    return cleaned(text.replace("_", " "))


# Name -> (timm's list, what it is). The ids of V2, Sketch and ReaL are those of ImageNet-1K itself.
CATALOG = {
    "imagenet1k": ("imagenet", "ILSVRC 2012; V2, Sketch and ReaL use the same classes"),
    "imagenet_a": ("imagenet_a", "the 200 classes of ImageNet-A"),
    "imagenet_r": ("imagenet_r", "the 200 classes of ImageNet-R"),
    "mini_imagenet": ("mini_imagenet", "100 classes of ImageNet-1K"),
    "imagenet12k": ("imagenet12k", "timm's 11,821 well-filled classes of fall11"),
    "imagenet21k": (
        "imagenet22k",
        "fall11.tar, 21,841 classes; of ImageNet-1K it lacks n04399382",
    ),
    "imagenet21k_google": ("imagenet21k_goog", "Google's and TFDS' 21,843 classes"),
    "imagenet21k_ms": ("imagenet22k_ms", "fall11 with all of ImageNet-1K, which comes first, 21,842 classes"),
    "imagenet21k_p": ("imagenet21k_miil", "ImageNet-21K-P of fall11, 11,221 classes"),
    "imagenet21k_p_w21": ("imagenet21k_miil_w21", "ImageNet-21K-P of winter21, 10,450 classes"),
}
EMOJI = "emoji"
NAMINGS = {
    "curated": "OpenAI's hand-written names (ImageNet-1K's classes only)",
    "raw": "ImageNet-1K's labels before OpenAI edited them (its classes only)",
    "lemma": "WordNet's first lemma",
    "lemmas": "all of WordNet's lemmas, averaged",
}


@functools.cache
def imagenet(name: str, naming: str | None = None) -> ClassSet:
    """A class set of the catalog; `naming` is by default curated within ImageNet-1K, else lemma."""
    if name not in CATALOG:
        raise unknown("class set", name, [*CATALOG, EMOJI])
    ids = known.wordnet_ids(CATALOG[name][0])
    if naming is None:
        naming = "curated" if set(ids) <= set(known.wordnet_ids("imagenet")) else "lemma"
    if naming not in NAMINGS:
        raise unknown("naming", naming, NAMINGS)
    # Curated and raw names are of ImageNet-1K only: a set beyond it has WordNet's alone.
    texts, lemmas = known.definitions(), known.lemmas()
    if naming in ("lemma", "lemmas"):
        names = tuple(lemmas[key][:1] if naming == "lemma" else lemmas[key] for key in ids)
    else:
        listed = known.raw() if naming == "raw" else known.curated()
        missing = next((key for key in ids if key not in listed), None)
        if missing:
            text = f"no {naming} name for {missing} of {name}: {naming} names cover ImageNet-1K only"
            raise UserError(f"{text}; use {name}/lemma")
        names = tuple((listed[key],) for key in ids)
    return ClassSet(name, naming, ids, names, tuple(texts[key] for key in ids))


def from_file(path: str | Path) -> ClassSet:
    """Reads a class list: a text file of one name a line, or JSON in one of the forms of `class_files.from_json`."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no class file '{path}'; expected a JSON list of names or a text file of one name a line")
    return ClassSet.of_entries(class_files.read_entries(path), path.parent.resolve().name)


def from_entries(content: Sequence[object], *, name: str, path: Path, numbered: bool = False) -> ClassSet:
    """A class set from the entries of a class file; `path` only names it in errors.

    Where classes are `numbered`, several may have one name and no other id; else that raises UserError.
    """
    entries = class_files.from_list(content, path)
    return ClassSet.of_entries(class_files.distinct(entries) if numbered else entries, name)


@functools.cache
def emoji() -> ClassSet:
    """The names of all emoji without skin tones, as the starter corpus says them.

    Raises:
        UserError: the package `emoji` is not installed.
    """
    try:
        from clip_la.data.corpora.concepts import all_names

        names = list(dict.fromkeys(name.name for name in all_names().values()))
    except ImportError:
        raise UserError("the class set emoji needs the package emoji: pip install 'clip_la[corpus]'") from None
    return ClassSet(EMOJI, "names", tuple(names), tuple((name,) for name in names), ("",) * len(names))


def class_set(text: str) -> ClassSet:
    """What `--classes` says: NAME or NAME/NAMING of the catalog ("imagenet21k/lemmas"), emoji, or a class file."""
    if text == EMOJI:
        return emoji()
    # The catalog first: a folder called imagenet1k in the working directory must not change what the name means.
    name, _, naming = text.partition("/")
    if name in CATALOG and (not naming or naming in NAMINGS):
        return imagenet(name, naming or None)
    if text.endswith((".json", ".txt")) or Path(text).is_file():
        return from_file(text)
    return imagenet(name, naming or None)
