"""Labels as people write them, in shards and in Parquet files: the same classes as open_clip's evaluation is given."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from clip_la.data.corpora import imagenet_names as names
from clip_la.data.shards.reader import ShardWriter
from clip_la.errors import UserError
from clip_la.models.clip import CLIP
from clip_la.zeroshot.datasets.find import open_dataset
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.labels import classes
from clip_la.zeroshot.tasks.classification import evaluate_zeroshot

from .conftest import NAMES, WNIDS, picture
from .reference import Reference
from .test_test_sets import parquet, read, skipped, write

TRUTH = (3, 0, 5, 1)


def labelled(folder: Path, *parts: dict[str, Any]) -> Path:
    """A shard with these parts beside the pictures 0, 1, ..., and the class list."""
    folder.mkdir(exist_ok=True)
    write(folder / "0.tar", *({".png": picture(n), **own} for n, own in enumerate(parts)))
    (folder / "classes.json").write_text(json.dumps(list(NAMES)))
    return folder


def named(n: int) -> str:
    return NAMES[n]


FORMS: dict[str, Any] = {
    "number": lambda n: {".cls": str(n)},
    "spaces": lambda n: {".cls": f" {n}\r\n"},
    "mark": lambda n: {".cls": b"\xef\xbb\xbf" + str(n).encode()},
    "float": lambda n: {".cls": f"{n}.0"},
    "name": lambda n: {".cls": named(n) + "\n"},
    "folder's name": lambda n: {".cls": named(n).replace(" ", "_").title()},
    "json number": lambda n: {".json": {"class": n}},
    "json float": lambda n: {".json": {"label": float(n)}},
    "json digits": lambda n: {".json": {"cls": str(n)}},
    "json name": lambda n: {".json": {"label": named(n)}},
    "json in another case": lambda n: {".json": {"class": named(n).upper()}},
    "json list": lambda n: {".json": {"classes": [n]}},
    "another json": lambda n: {".cls": str(n), ".json": {"class": "train", "label": 0.25, "w": 3}},
    "json is a list": lambda n: {".cls": str(n), ".json": [1, 2]},
    "json is damaged": lambda n: {".cls": str(n), ".json": b"{"},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_label_in_shards(tmp_path: Path, form: str):
    folder = labelled(tmp_path, *map(FORMS[form], TRUTH))
    assert read(open_dataset(str(folder))) == [(f"k{n}", (own,)) for n, own in enumerate(TRUTH)]


def test_class_numbers_of_every_form_score_as_open_clip_does(tiny_model: CLIP, tmp_path: Path):
    pictures = [picture(n) for n in range(24)]
    reference = Reference(tiny_model)
    # Labels by what open_clip predicts, every third one changed, so that the right score is 2/3.
    predicted = reference.predictions(pictures, NAMES, "a photo of a {c}.")
    truth = [(own + (n % 3 == 0)) % len(NAMES) for n, own in enumerate(predicted)]
    assert len(set(predicted)) > 1
    forms = list(FORMS.values())
    with ShardWriter(tmp_path / "0.tar") as writer:
        for n, (data, own) in enumerate(zip(pictures, truth, strict=True)):
            writer.write({"__key__": f"k{n:02d}", ".png": data, **forms[n % len(forms)](own)})
    (tmp_path / "classes.json").write_text(json.dumps({name: n for n, name in sorted(enumerate(NAMES), reverse=True)}))
    line = evaluate_zeroshot(tiny_model, str(tmp_path), progress=False).line
    assert (line["num_samples"], line["skipped"]) == (24, {})
    assert line["metrics"]["top1"]["value"] == pytest.approx(16 / 24)


def test_what_has_no_label_or_another_class_is_counted(tmp_path: Path):
    values = [{".cls": "-1"}, {".cls": ""}, {".json": {"class": None}}, {".json": {"class": float("nan")}}]
    values += [{".json": {}}, {".json": b"{"}, {".json": {"class": "cat"}}, {".cls": "cat"}, {".cls": "2"}]
    folder = labelled(tmp_path, *values)
    test_set = open_dataset(str(folder))
    assert read(test_set) == [("k8", (2,))]
    reasons = ["no label"] * 5 + ["json damaged"] + ["class not in the class set"] * 2
    assert skipped(test_set) == [(f"k{n}", reason) for n, reason in enumerate(reasons)]
    with pytest.raises(UserError, match=r"0\.tar: class 'cat' of sample k6 is not in"):
        read(open_dataset(str(folder), unknown_classes="error"))
    with pytest.raises(UserError, match="did you mean error"):
        open_dataset(str(folder), unknown_classes="errors")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({".json": {"class": 6}}, r"label 6 of sample k0 is outside the 6 classes"),
        ({".json": {"class": True}}, r"label True of sample k0 is neither"),
        ({".json": {"class": 1.5}}, r"label 1\.5 of sample k0 is neither"),
        ({".json": {"class": {"id": 3}}}, r"sample k0 is neither"),
        ({".json": {"class": [0, 0, 1, 0, 0, 0]}}, "zeros and ones"),
        (
            {".cls": "1", ".json": {"class": "umbrella"}},
            r"json of sample k0 says 'umbrella', its \.cls says 1 \('tea pot'\)",
        ),
    ],
)
def test_labels_that_can_be_no_class(tmp_path: Path, parts: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        read(open_dataset(str(labelled(tmp_path, parts))))


def test_digits_that_name_one_class_and_count_another(tmp_path: Path):
    write(tmp_path / "0.tar", {".png": picture(0), ".json": {"class": "1"}})
    (tmp_path / "classes.json").write_text(json.dumps(["1", "2", "0"]))
    with pytest.raises(UserError, match=r"label '1' of sample k0 is the name of class 0"):
        read(open_dataset(str(tmp_path)))
    (tmp_path / "classes.json").write_text(json.dumps(["7", "8", "1"]))
    write(tmp_path / "0.tar", {".png": picture(0), ".json": {"class": "8"}})
    assert read(open_dataset(str(tmp_path))) == [("k0", (1,))]
    # .cls is a number in webdataset.
    write(tmp_path / "0.tar", {".png": picture(0), ".cls": "1"})
    assert read(open_dataset(str(tmp_path))) == [("k0", (1,))]


def test_two_lists_beside_that_differ(tmp_path: Path):
    folder = labelled(tmp_path, {".cls": "1"})
    (folder / "classnames.txt").write_text("\n".join(NAMES).replace(" ", "_"))
    assert read(open_dataset(str(folder))) == [("k0", (1,))]
    (folder / "classnames.txt").write_text("\n".join(reversed(NAMES)))
    with pytest.raises(UserError, match=r"class 0 is 'red panda' in .*classes\.json, 'violin' in classnames\.txt"):
        open_dataset(str(folder))
    (folder / "classnames.txt").write_text("red panda")
    with pytest.raises(UserError, match=r"has 6 classes, classnames\.txt beside it 1"):
        open_dataset(str(folder))


LISTED = classes.from_entries(NAMES, name="n", path=Path())


@pytest.mark.parametrize("given", ["in the file", "--classes", "beside"])
@pytest.mark.parametrize(
    "labels",
    [
        list(TRUTH),
        [float(n) for n in TRUTH],
        [[n] for n in TRUTH],
        [str(n) for n in TRUTH],
        [NAMES[n] for n in TRUTH],
        [f" {NAMES[n].title()} " for n in TRUTH],
        [NAMES[n].encode() for n in TRUTH],
    ],
)
def test_forms_of_a_label_in_parquet(tmp_path: Path, labels: list[Any], given: str):
    parquet(tmp_path / "a.parquet", labels, list(NAMES) if given == "in the file" else None)
    if given == "beside":
        (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    test_set = open_dataset(str(tmp_path), classes=LISTED if given == "--classes" else None)
    assert read(test_set) == [(f"a.parquet:{n}", (own,)) for n, own in enumerate(TRUTH)]


def test_parquet_labels_that_are_none(tmp_path: Path):
    parquet(tmp_path / "a.parquet", [2.0, None, float("nan"), -1.0], list(NAMES))
    parquet(tmp_path / "b.parquet", [[2, 4], [], None, [-1]], list(NAMES))
    assert read(open_dataset(str(tmp_path))) == [("a.parquet:0", (2,)), ("b.parquet:0", (2, 4))]
    assert {reason for _, reason in skipped(open_dataset(str(tmp_path)))} == {"no label"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 6], r"a\.parquet: label 6 of a\.parquet:1 is outside the 6 classes"),
        ([0, -2], r"label -2 of a\.parquet:1 is outside"),
        ([0.0, 2.5], r"label 2\.5 of a\.parquet:1 is neither"),
        ([True, False], r"label True of a\.parquet:0 is neither"),
        ([{"a": 1}], "neither a class number nor a name"),
        ([[0, 1, 0, 0, 0, 0]], "zeros and ones"),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_parquet_labels_that_can_be_no_class(tmp_path: Path, labels: list[Any], message: str, given: bool):
    parquet(tmp_path / "a.parquet", labels, None if given else list(NAMES))
    with pytest.raises(UserError, match=message):
        read(open_dataset(str(tmp_path), classes=LISTED if given else None))


def hub_features(names: Any) -> dict[bytes, bytes]:
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def test_parquet_class_names_in_other_forms(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", [0, 2], None)
    table = pyarrow.parquet.read_table(path)
    numbered = {str(n): NAMES[n] for n in (2, 1, 0)}
    pyarrow.parquet.write_table(table.replace_schema_metadata(hub_features(numbered)), path)
    assert open_dataset(str(path)).classes.names == tuple((name,) for name in NAMES[:3])
    for broken, message in (({"1": "a", "2": "b"}, "begin at 0"), (["a", None], "a class is a name"), (3, "no list")):
        pyarrow.parquet.write_table(table.replace_schema_metadata(hub_features(broken)), path)
        with pytest.raises(UserError, match=message):
            open_dataset(str(path))


def test_parquet_of_imagenet_with_names_of_two_classes(tmp_path: Path):
    whole = classes.imagenet("imagenet1k")
    hub = [", ".join(names.lemmas()[key]) for key in whole.ids]
    path = parquet(tmp_path / "a.parquet", [0, 134, 517, 999], hub)
    assert [own for _, own in read(open_dataset(str(path)))] == [(0,), (134,), (517,), (999,)]


def test_parquet_with_wordnet_ids_for_names(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", [3, 0], list(WNIDS))
    test_set = open_dataset(str(path))
    assert (test_set.classes.ids, read(test_set)[0][1]) == (WNIDS, (3,))
    assert test_set.classes.names[1] == ("tench",)
    whole = classes.imagenet("imagenet1k")
    assert read(open_dataset(str(path), classes=whole))[0][1] == (whole.index[WNIDS[3]],)


def test_parquet_files_of_different_classes(tmp_path: Path):
    parquet(tmp_path / "a.parquet", [0], list(NAMES))
    parquet(tmp_path / "b.parquet", [0], list(reversed(NAMES)))
    with pytest.raises(UserError, match=r"b\.parquet has other columns or class names than .*a\.parquet"):
        open_dataset(str(tmp_path))


def test_parquet_damaged_within(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", list(range(6)), list(NAMES))
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"a\.parquet: damaged"):
        read(open_dataset(str(path)))


def test_columns_of_clip_benchmarks_sets_on_the_hub(tmp_path: Path):
    table = pyarrow.table({"webp": [picture(0)], "CLS": [4], "__key__": ["a"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read(open_dataset(str(tmp_path), classes=LISTED)) == [("a.parquet:0", (4,))]


def test_a_set_that_says_what_it_skipped(tiny_model: CLIP, tmp_path: Path):
    folder = labelled(tmp_path, {".cls": "1"}, {".cls": "cat"}, {".cls": "-1"})
    line = evaluate_zeroshot(tiny_model, str(folder), progress=False).line
    assert line["skipped"] == {"class not in the class set": 1, "no label": 1}
    test_set: EvalDataset = open_dataset(str(labelled(tmp_path / "x", {".cls": "cat"})))
    with pytest.raises(UserError, match=r"can be evaluated \(class not in the class set: 1 \(first: k0\)\)"):
        evaluate_zeroshot(tiny_model, test_set, progress=False)
