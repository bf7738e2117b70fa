"""Layouts of test sets, and what is said of wrong ones."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from clip_la.data.corpora import imagenet_names as names
from clip_la.data.shards.reader import ShardWriter
from clip_la.errors import UserError
from clip_la.zeroshot.datasets.find import open_dataset
from clip_la.zeroshot.datasets.records import EvalDataset, Record, Skipped
from clip_la.zeroshot.labels import classes

from .conftest import NAMES, WNIDS, picture


def read(test_set: EvalDataset) -> list[tuple[str, tuple[int, ...]]]:
    return [(r.key, r.labels) for s in test_set.sources for r in s.records() if isinstance(r, Record)]


def skipped(test_set: EvalDataset) -> list[tuple[str, str]]:
    return [(r.key, r.reason) for s in test_set.sources for r in s.records() if isinstance(r, Skipped)]


def put(root: Path, *files: str) -> Path:
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(picture(number))
    return root


def test_subset_of_folders_keeps_its_classes(tmp_path: Path):
    root = put(tmp_path / "some", "n02123045/a.png", "n01440764/b.JPEG", "n02123045/deep/c.png", "n02123045/notes.txt")
    test_set = open_dataset(str(root))
    whole = classes.imagenet("imagenet1k")
    assert test_set.classes is whole
    tench, cat = whole.index["n01440764"], whole.index["n02123045"]
    assert read(test_set) == [
        ("n01440764/b.JPEG", (tench,)),
        ("n02123045/a.png", (cat,)),
        ("n02123045/deep/c.png", (cat,)),
    ]


def test_folders_outside_imagenet1k_mean_imagenet21k(tmp_path: Path):
    root = put(tmp_path, "n02084071/dog.png", "n01440764/b.png")
    assert open_dataset(str(root)).classes.name == "imagenet21k"


def test_unknown_folders_are_named(tmp_path: Path):
    root = put(tmp_path / "x", "n01440764/a.png", "n02084071/b.png", "cats/c.png", "odd/d.png", "things/e.png")
    with pytest.raises(UserError, match=r"no class of imagenet1k/curated: cats, n02084071, odd and 1 more"):
        open_dataset(str(root), classes=classes.imagenet("imagenet1k"), unknown_classes="error")
    (tmp_path / "y" / "n99999999").mkdir(parents=True)
    with pytest.raises(UserError, match="no ImageNet has: n99999999"):
        open_dataset(str(tmp_path / "y"))


def test_folders_of_two_kinds_are_no_layout(tmp_path: Path):
    put(tmp_path, "n01440764/a.png", "n02084071/b.png", "cats/c.png")
    with pytest.raises(UserError, match=r"mixes folders named by WordNet ids with others: cats; move these away"):
        open_dataset(str(tmp_path))


def test_class_folders_without_pictures_are_named(tmp_path: Path):
    root = put(tmp_path, "n01440764/a.png", "n02123045/b.png", "n03017168/c.txt")
    (root / "n04507155").mkdir()
    test_set = open_dataset(str(root))
    assert [key for key, _ in read(test_set)] == ["n01440764/a.png", "n02123045/b.png"]
    assert test_set.notes[1:] == (f"{root}: class folders without images: n03017168, n04507155",)


def test_folders_named_by_class(tmp_path: Path):
    root = put(tmp_path / "pets", "tea_pot/a.png", "oak/b.png")
    test_set = open_dataset(str(root))
    assert test_set.classes.names == (("oak",), ("tea pot",))
    assert test_set.name == "pets"
    chosen = classes.from_entries(NAMES, name="n", path=Path())
    assert read(open_dataset(str(root), classes=chosen)) == [("oak/b.png", (4,)), ("tea_pot/a.png", (1,))]


def test_imagenet_v2s_numbered_folders(tmp_path: Path):
    root = put(tmp_path, "0/a.png", "10/b.png", "999/c.png")
    test_set = open_dataset(str(root), classes=classes.imagenet("imagenet1k"))
    assert read(test_set) == [("0/a.png", (0,)), ("10/b.png", (10,)), ("999/c.png", (999,))]
    put(tmp_path, "1000/d.png")
    with pytest.raises(UserError, match="1000"):
        open_dataset(str(root), classes=classes.imagenet("imagenet1k"))


@pytest.mark.parametrize(
    ("files", "message"),
    [((), "holds no test set"), (("a.png",), "holds no test set"), (("n01440764/a.txt",), "hold no images")],
)
def test_wrong_layouts(tmp_path: Path, files: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=message):
        open_dataset(str(put(tmp_path, *files)))


def test_real_labels(tmp_path: Path):
    real = names.real_labels()
    # Number 1 has no label, number 2 has two.
    assert real[:2] == ((), (970, 795))
    ids = classes.imagenet("imagenet1k").ids
    files = [
        f"{ids[65]}/ILSVRC2012_val_00000001.JPEG",
        f"{ids[795]}/ILSVRC2012_val_00000002.JPEG",
        f"{ids[3]}/ILSVRC2012_val_00000004.JPEG",
    ]
    test_set = open_dataset(str(put(tmp_path / "imagenet" / "val", *files)), labels="real")
    assert test_set.name == "imagenet-val-real"
    assert dict(read(test_set)) == {files[1]: (795, 970), files[2]: (809,)}
    assert skipped(test_set) == [(files[0], "no label")]


def test_real_labels_need_the_validation_sets_names(tmp_path: Path):
    with pytest.raises(UserError, match="ILSVRC2012_val_00000001"):
        open_dataset(str(put(tmp_path, "n01440764/a.png")), labels="real")
    with pytest.raises(UserError, match="for imagenet1k"):
        open_dataset(str(put(tmp_path / "b", "x/a.png", "y/b.png")), labels="real")
    with pytest.raises(UserError, match="did you mean real"):
        open_dataset(str(tmp_path), labels="rael")


def test_objectnet(tmp_path: Path):
    mappings = tmp_path / "objectnet-1.0" / "mappings"
    mappings.mkdir(parents=True)
    folders = {"air_freshener": "Air freshener", "banana": "Banana", "tv": "TV"}
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(folders))
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps({"TV": "television", "Banana": "banana"}))
    put(tmp_path / "objectnet-1.0" / "images", "tv/a.png", "banana/b.png", "air_freshener/c.png")
    for data in (tmp_path, tmp_path / "objectnet-1.0", tmp_path / "objectnet-1.0" / "images"):
        test_set = open_dataset(str(data))
        assert test_set.classes.names == (("banana",), ("tv",))
        assert read(test_set) == [("banana/b.png", (0,)), ("tv/a.png", (1,))]


def write(path: Path, *samples: dict) -> None:
    with ShardWriter(path) as writer:
        for number, parts in enumerate(samples):
            writer.write({"__key__": f"k{number}", **parts})


def test_shards_by_json(tmp_path: Path):
    write(
        tmp_path / "0.tar",
        {".png": picture(0), ".json": {"wnid": "n02123045"}, ".cls": "0"},
        {".png": picture(1), ".json": {"wnids": ["n01440764", "n99999999", "n02123045"]}},
        {".png": picture(2), ".json": {"class": "umbrella"}},
        {".png": picture(3), ".json": {"wnid": "n02084071", "class": "dog"}},
        {".png": picture(4), ".json": {"other": 1}},
        {".txt": "no picture", ".json": {"wnid": "n02123045"}},
    )
    whole = classes.imagenet("imagenet1k")
    cat, tench = whole.index["n02123045"], whole.index["n01440764"]
    test_set = open_dataset(str(tmp_path), classes=whole)
    assert read(test_set) == [("k0", (cat,)), ("k1", (tench, cat)), ("k2", (whole.index["n04507155"],))]
    assert skipped(test_set) == [("k3", "class not in the class set"), ("k4", "no label"), ("k5", "no image")]


def test_class_numbers_mean_nothing_in_another_list(tmp_path: Path):
    write(tmp_path / "0.tar", {".png": picture(0), ".cls": "1"})
    (tmp_path / "classes.json").write_text(json.dumps(list(NAMES)))
    assert read(open_dataset(str(tmp_path))) == [("k0", (1,))]
    with pytest.raises(UserError, match="only a class number"):
        read(open_dataset(str(tmp_path), classes=classes.imagenet("imagenet1k")))


@pytest.mark.parametrize("label", ["6", "-2", "7.0"])
def test_labels_outside_the_classes(tmp_path: Path, label: str):
    write(tmp_path / "0.tar", {".png": picture(0), ".cls": label})
    (tmp_path / "classes.json").write_text(json.dumps(list(NAMES)))
    with pytest.raises(UserError, match=r"label .* of sample k0 is outside the 6 classes"):
        read(open_dataset(str(tmp_path)))


def test_shards_without_classes(tmp_path: Path):
    write(tmp_path / "0.tar", {".png": picture(0), ".cls": "1"})
    with pytest.raises(UserError, match=r"no classes\.json"):
        open_dataset(str(tmp_path))


def test_shard_cut_short(tmp_path: Path):
    write(tmp_path / "0.tar", *({".png": picture(n), ".cls": str(n)} for n in range(5)))
    (tmp_path / "classes.json").write_text(json.dumps(list(NAMES)))
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: len(whole) // 2])
    test_set = open_dataset(str(tmp_path))
    kept = read(test_set)
    assert 0 < len(kept) < 5
    assert kept == [(f"k{n}", (n,)) for n in range(len(kept))]
    assert "shard truncated" in [reason for _, reason in skipped(test_set)]


def parquet(path: Path, labels: list, class_names: list[str] | None, pictures: list | None = None) -> Path:
    pictures = pictures or [{"bytes": picture(n), "path": None} for n in range(len(labels))]
    table = pyarrow.table({"image": pictures, "label": labels})
    if class_names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": class_names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    return path


def test_parquet_as_on_the_hub(tmp_path: Path):
    parquet(tmp_path / "data" / "test-00000.parquet", [2, 0, -1], list(NAMES))
    parquet(tmp_path / "data" / "test-00001.parquet", [5], list(NAMES), [None])
    test_set = open_dataset(str(tmp_path))
    assert test_set.classes.names == tuple((name,) for name in NAMES)
    assert test_set.num_records == 4
    assert read(test_set) == [("test-00000.parquet:0", (2,)), ("test-00000.parquet:1", (0,))]
    assert skipped(test_set) == [("test-00000.parquet:2", "no label"), ("test-00001.parquet:0", "no image")]
    record = next(iter(test_set.sources[0].records()))
    assert isinstance(record, Record)
    assert record.read() == picture(0)


def test_parquet_of_imagenet_is_matched_by_its_lemmas(tmp_path: Path):
    whole = classes.imagenet("imagenet1k")
    hub = [", ".join(names.lemmas()[key]) for key in whole.ids]
    # Two pairs of classes have equal lemmas; as all others stand at their own numbers, so do these.
    path = parquet(tmp_path / "a.parquet", [0, 134, 517, 999], hub)
    assert [own for _, own in read(open_dataset(str(path), classes=whole))] == [(0,), (134,), (517,), (999,)]
    some = [hub[whole.index[key]] for key in WNIDS]
    path = parquet(tmp_path / "b.parquet", list(range(7)), some)
    assert [own for _, own in read(open_dataset(str(path), classes=whole))] == [(whole.index[key],) for key in WNIDS]


def test_bad_parquet(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match="damaged"):
        open_dataset(str(tmp_path / "a.parquet"))
    path = parquet(tmp_path / "b.parquet", [0], None)
    with pytest.raises(UserError, match="does not name its classes"):
        open_dataset(str(path))
    path = parquet(tmp_path / "c.parquet", [9], list(NAMES))
    with pytest.raises(UserError, match=r"label 9 .* outside the 6 classes"):
        read(open_dataset(str(path)))
    with pytest.raises(UserError, match="none of its 6 classes"):
        open_dataset(str(path), classes=classes.from_entries(["q", "r"], name="n", path=Path()))
    pyarrow.parquet.write_table(pyarrow.table({"label": [1]}), tmp_path / "d.parquet")
    with pytest.raises(UserError, match="no column image or"):
        open_dataset(str(tmp_path / "d.parquet"))
