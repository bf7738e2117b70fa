"""Class lists, labels, captions and folders made at random: one line or the right answer, never a traceback.

The answers are worked out here again, by the shortest way, from what the files were made of.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_la.data.shards.reader import ShardWriter
from clip_la.errors import UserError
from clip_la.models.clip import model_from_spec
from clip_la.models.spec import ModelSpec
from clip_la.zeroshot.datasets.find import open_dataset
from clip_la.zeroshot.datasets.records import Record, Skipped
from clip_la.zeroshot.datasets.shards import open_caption_shards
from clip_la.zeroshot.labels import classes
from clip_la.zeroshot.model.eval_model import EvalModel, of_model
from clip_la.zeroshot.tasks.classification import evaluate_zeroshot

from .conftest import NAMES, picture
from .reference import Reference

QUICK = settings(
    max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
WORDS = st.sampled_from(
    ["red", "Red", "tea pot", "n01440764", "n99999999", "0", "1", "2", "-1", "1.0", "", " ", "caf\u00e9"]
)
TEXT = WORDS | st.text(st.characters(codec=None), max_size=6)
SCALARS = st.none() | st.booleans() | st.integers(-2, 4) | st.floats() | TEXT | st.integers(10**20, 10**21)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXT | st.sampled_from(["id", "name", "names", "classes", "label"]), inner, max_size=4)
    ),
    max_leaves=12,
)
PICTURE = picture(0, (8, 8))


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def one_line(error: UserError) -> None:
    assert str(error).strip()
    assert len(str(error).splitlines()) == 1


@QUICK
@given(st.one_of(VALUES.map(json.dumps), st.lists(TEXT).map("\n".join)), st.sampled_from(["c.json", "c.txt"]))
def test_any_class_list(content: str, file: str):
    with folder() as root:
        (root / file).write_bytes(content.encode("utf-8", "surrogatepass"))
        try:
            found = classes.class_set(str(root / file))
        except UserError as error:
            one_line(error)
        else:
            assert all(name.strip() for own in found.names for name in own)
            # Every name stands in the file, or is the curated one of a WordNet id that does.
            # Text that is JSON is read as JSON, whatever the file is called: "\\u00e9" is a sign there.
            texts = content
            with suppress(ValueError):
                texts += json.dumps(json.loads(content), ensure_ascii=False)
            assert all(
                name in texts or json.dumps(name, ensure_ascii=False)[1:-1] in texts or key in texts
                for key, own in zip(found.ids, found.names, strict=True)
                for name in own
            )


LISTS = {
    "list": lambda meant, order: json.dumps(meant),
    "number to name": lambda meant, order: json.dumps({str(n): meant[n] for n in order}),
    "name to number": lambda meant, order: json.dumps({meant[n]: n for n in order}),
    "name to digits": lambda meant, order: json.dumps({meant[n]: str(n) for n in order}),
    "number to list": lambda meant, order: json.dumps({str(n): [f"n{n:08d}", meant[n]] for n in order}),
    "objects": lambda meant, order: json.dumps([{"id": n, "name": meant[n]} for n in order]),
    "lines": lambda meant, order: "\n".join(meant) + "\n",
    "numbered lines": lambda meant, order: "\r\n".join(f"{n}\t{meant[n]}" for n in order),
}
NAME = st.text(st.characters(categories=("Ll", "Lu", "So", "Pd")), min_size=1, max_size=8)


@QUICK
@given(st.data(), st.sampled_from(list(LISTS)), st.lists(NAME, min_size=2, max_size=12, unique=True))
def test_class_lists_of_every_form_in_any_order(data: st.DataObject, form: str, meant: list[str]):
    order = data.draw(st.permutations(range(len(meant))))
    with folder() as root:
        path = root / ("c.txt" if "lines" in form else "c.json")
        path.write_text(LISTS[form](meant, order), encoding="utf-8")
        assert [own[0] for own in classes.class_set(str(path)).names] == meant


def label_meant(value: Any) -> Any:
    """What a label means for NAMES: a class, "no label", "class not in the class set", or an error (None)."""
    text = value.strip() if isinstance(value, str) else None
    if value is None or value != value or text == "":
        return "no label"
    if text in NAMES:
        return NAMES.index(text)
    if text is not None and not text.lstrip("-").replace(".", "", 1).isdecimal():
        return "class not in the class set"
    number = float(value)
    if isinstance(value, bool) or number != int(number) or not -1 <= number < len(NAMES):
        return None
    return "no label" if number == -1 else int(number)


LABELS = st.none() | st.booleans() | st.integers(-2, 7) | st.integers(0, 5).map(float)
LABELS |= st.sampled_from(
    [*NAMES, *(f" {name}\n" for name in NAMES), "cat", "", " ", "3", "-1", "2.0", "9", "1.5", 1.5]
)
LABELS |= st.just(float("nan"))


@pytest.fixture(scope="module")
def scored(tiny_spec: ModelSpec) -> tuple[EvalModel, list[int]]:
    """A model, and the class that open_clip's module with its weights gives to each of six pictures."""
    model = model_from_spec(tiny_spec, seed=3).eval()
    with torch.no_grad():
        model.text.token_embedding.weight.mul_(20)
    return of_model(model), Reference(model).predictions(list(map(picture, range(6))), NAMES, "a photo of a {c}.")


@settings(QUICK, max_examples=60)
@given(st.lists(st.tuples(LABELS, st.sampled_from(["cls", "json"])), min_size=1, max_size=6))
def test_any_labels_score_as_they_are_meant(scored: tuple[EvalModel, list[int]], labels: list[tuple[Any, str]]):
    eval_model, predicted = scored
    # .cls holds text, whatever was written into it.
    written = [own if part == "json" else "" if own is None else str(own) for own, part in labels]
    meant = list(map(label_meant, written))
    usable = [(n, own) for n, own in enumerate(meant) if isinstance(own, int)]
    with folder() as root:
        (root / "classnames.txt").write_text("\n".join(NAMES))
        with ShardWriter(root / "0.tar") as writer:
            for n, (own, (_, part)) in enumerate(zip(written, labels, strict=True)):
                field = {".json": {"label": own}} if part == "json" else {".cls": own}
                writer.write({"__key__": f"k{n}", ".png": picture(n), **field})
        try:
            line = evaluate_zeroshot(eval_model, str(root), progress=False).line
        except UserError as error:
            one_line(error)
            assert None in meant or not usable
            return
    assert None not in meant
    reasons = [own for own in meant if isinstance(own, str)]
    assert line["num_samples"] == len(usable)
    assert line["skipped"] == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    assert line["metrics"]["top1"]["value"] == pytest.approx(
        sum(predicted[n] == own for n, own in usable) / len(usable)
    )


CAPTION_FIELD = st.none() | st.text(max_size=8) | st.integers() | st.lists(st.none() | st.text(max_size=5), max_size=4)
CAPTION_JSON = st.fixed_dictionaries(
    {}, optional={"captions": CAPTION_FIELD, "caption": CAPTION_FIELD, "other": VALUES}
)
CAPTION_PARTS = st.fixed_dictionaries(
    {},
    optional={
        ".txt": st.text(max_size=20).map(str.encode) | st.binary(max_size=6),
        ".json": CAPTION_JSON | st.binary(max_size=6),
    },
)


def captions_meant(parts: dict[str, Any]) -> list[str] | None:
    """The captions of a sample: "captions" of .json, else the lines of .txt, else "caption"; None: not usable."""
    fields = parts.get(".json", {})
    if isinstance(fields, bytes):
        try:
            fields = json.loads(fields)
        except ValueError:
            fields = None
    damaged = not isinstance(fields, dict)
    if found := texts_in({} if damaged else fields, "captions"):
        return found
    if ".txt" in parts:
        try:
            lines = parts[".txt"].decode("utf-8-sig")
        except UnicodeDecodeError:
            return None
        if found := texts_in({"lines": lines.split("\n")}, "lines"):
            return found
    return None if damaged else texts_in(fields, "caption")


def texts_in(fields: dict[str, Any], name: str) -> list[str] | None:
    """The texts under a name that are not empty; None where there is none."""
    value = fields.get(name)
    texts = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
    return [clean for each in texts if (clean := each.replace("\0", "").strip())] or None


@QUICK
@given(st.lists(CAPTION_PARTS, min_size=1, max_size=4))
def test_any_captions(samples: list[dict[str, Any]]):
    with folder() as root:
        with ShardWriter(root / "0.tar") as writer:
            for n, parts in enumerate(samples):
                writer.write({"__key__": f"k{n}", ".png": PICTURE, **parts})
        (source,) = open_caption_shards(str(root), "x").sources
        found = list(source.records())
    assert [list(own.captions) if isinstance(own, Record) else None for own in found] == list(
        map(captions_meant, samples)
    )


FOLDERS = [
    "cat",
    "dog_house",
    "train",
    "val",
    "test",
    "n01440764",
    "n02123045",
    "0",
    "1",
    "__MACOSX",
    ".x",
    "lost+found",
]
FILES = ["a.png", "B.JPG", "._a.png", "Thumbs.db", "c.txt", "d.tiff"]
PATHS = st.lists(st.sampled_from(FOLDERS), min_size=1, max_size=3).map("/".join)
TREES = st.sets(st.tuples(PATHS, st.sampled_from(FILES)), min_size=1, max_size=8)
LIST_BESIDE = st.sampled_from(["", "cat\ndog house\n", "cat\n\ndog house", "n01440764\nn02123045"])


def is_there(path: Path, base: Path) -> bool:
    """Whether a file is a picture of the data, not a system's."""
    parts = path.relative_to(base).parts
    own = not any(part.startswith(".") or part in ("__MACOSX", "lost+found") for part in parts)
    return own and len(parts) > 1 and path.suffix.lower() in (".png", ".jpg", ".tiff")


@settings(QUICK, max_examples=80)
@given(TREES, LIST_BESIDE)
def test_any_tree_of_folders(tree: set[tuple[str, str]], listed: str):
    with folder() as root:
        for place, file in tree:
            (root / place).mkdir(parents=True, exist_ok=True)
            (root / place / file).write_bytes(PICTURE)
        if listed:
            (root / "classnames.txt").write_text(listed)
        try:
            test_set = open_dataset(str(root))
        except UserError as error:
            one_line(error)
            return
        base = test_set.sources[0].root  # type: ignore[attr-defined]
        files = [Path(above) / name for above, _, names in os.walk(base) for name in names]
        assert base == root or (base.parent == root and base.name in ("val", "test"))
        records = [own for source in test_set.sources for own in source.records()]
        assert sorted(own.key for own in records) == sorted(
            path.relative_to(base).as_posix() for path in files if is_there(path, base)
        )
        for own in records:
            top = own.key.split("/")[0]
            if isinstance(own, Skipped):
                assert top not in {*test_set.classes.ids}
                continue
            (label,) = own.labels
            names = {test_set.classes.ids[label], *test_set.classes.names[label], str(label)}
            assert {top, top.replace("_", " ")} & names
