"""Folders as people have them: which part, which classes, which files; and what is said of the choice."""

import json
import os
import shutil
from pathlib import Path

import pytest

from clip_la.data.corpora import imagenet_names as names
from clip_la.errors import UserError
from clip_la.models.clip import CLIP
from clip_la.zeroshot.datasets.find import open_dataset
from clip_la.zeroshot.datasets.records import Record
from clip_la.zeroshot.datasets.shards import open_caption_shards
from clip_la.zeroshot.labels import classes
from clip_la.zeroshot.suite import SuiteEntry, prepare
from clip_la.zeroshot.tasks.classification import evaluate_zeroshot
from clip_la.zeroshot.tasks.probe import Probe

from .conftest import NAMES, WNIDS, picture
from .reference import Reference
from .test_test_sets import parquet, put, read, skipped, write

PETS = ("cat/0.png", "dog/1.png", "dog/2.png")


def keys(data: Path, **how: object) -> list[str]:
    return [key for key, _ in read(open_dataset(str(data), **how))]  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["val", "validation", "test", "Val", "dev"])
def test_the_only_part_that_is_not_for_training_is_taken(tmp_path: Path, part: str):
    root = put(tmp_path / "pets", *(f"{own}/{file}" for own in ("train", part) for file in PETS))
    (root / "annotations").mkdir()
    test_set = open_dataset(str(root))
    assert [key for key, _ in read(test_set)] == list(PETS)
    assert test_set.classes.names == (("cat",), ("dog",))
    assert test_set.notes[0].endswith(f"taken is {root / part}")
    assert test_set.name == (f"pets-{part}" if part in ("val", "validation", "test") else part)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [f"{part}/{file}" for part in ("train", "val", "test") for file in PETS],
            "parts of a data set .test, train, val.*name one, as in --data '.*/test'",
        ),
        ([f"train/{file}" for file in PETS], "--data '.*/train'"),
        (["train/0.png", "val/1.png"], "named as parts of a data set"),
        (["train/cat/0.png", "train/dog/0.png", "test/1.png"], "--data '.*/train'"),
        ([f"wrapped/{file}" for file in PETS], "only folder of .* holds the class folders; name it: --data .*wrapped"),
        (["val/images/0.png", "train/cat/1.png"], "only one folder of .*val holds images, images"),
        (["Annotations/a.xml", "Data/val/0.png", "ImageSets/b.txt"], "only one folder of .* holds images, Data"),
        (["0/a.png", "10/b.png"], "are numbers .0, 10.; name the classes"),
    ],
)
def test_layouts_that_are_no_classes(tmp_path: Path, files: list[str], message: str):
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(str(put(tmp_path / "x", *files)))
    assert "\n" not in str(caught.value)


def test_a_probe_learns_from_the_part_for_training(tmp_path: Path):
    for name, where in (("folders", "{}/{}/{}.png"), ("shards", "{}/0.tar"), ("parquet", "data/{}-0.parquet")):
        root = tmp_path / name
        for part, seed in (("train", 1), ("test", 2)):
            if name == "folders":
                put(root, *(where.format(part, own, f"{part}{seed}") for own in ("cat", "dog")))
                continue
            path = root / where.format(part)
            path.parent.mkdir(parents=True, exist_ok=True)
            if name == "shards":
                write(path, {".png": picture(seed), ".cls": str(seed)})
            else:
                parquet(path, [seed], list(NAMES))
        if name == "shards":
            (root / "classnames.txt").write_text("\n".join(NAMES))
        job = prepare(SuiteEntry(str(root), task="knn", train=str(root)))
        assert isinstance(job, Probe)
        learnt, tested = (
            [(own.key, own.labels) for source in used.sources for own in source.records() if isinstance(own, Record)]
            for used in (job.train_set, job.test_set)
        )
        if name == "folders":
            assert [key for key, _ in learnt] == ["cat/train1.png", "dog/train1.png"]
            assert [key for key, _ in tested] == ["cat/test2.png", "dog/test2.png"]
        else:
            assert ([own for _, own in learnt], [own for _, own in tested]) == ([(1,)], [(2,)])


def test_a_class_may_be_called_train(tmp_path: Path):
    root = put(tmp_path, "train/a.png", "bus/b.png", "car/c.png")
    assert open_dataset(str(root)).classes.names == (("bus",), ("car",), ("train",))


def test_what_systems_leave_behind_is_no_class_and_no_picture(tmp_path: Path):
    root = put(
        tmp_path, *PETS, "__MACOSX/cat/._0.png", "@eaDir/x.png", "lost+found/y.png", ".git/z.png", "$RECYCLE.BIN/q.png"
    )
    put(tmp_path, "dog/._1.png", "dog/@eaDir/1.png/THUMB.jpg", "dog/.thumbs/1.png", "dog/Thumbs.db", "dog/.DS_Store")
    (root / ".DS_Store").write_bytes(b"x")
    test_set = open_dataset(str(root))
    assert [key for key, _ in read(test_set)] == list(PETS)
    assert not test_set.notes
    # Beside WordNet ids too.
    root = put(tmp_path / "w", "n01440764/a.JPEG", "__MACOSX/n01440764/._a.JPEG")
    assert keys(root) == ["n01440764/a.JPEG"]


def test_upper_case_and_links(tmp_path: Path):
    root = put(tmp_path / "pets", "cat/0.PNG", "dog/1.JpEg")
    put(tmp_path / "elsewhere", "birds/2.png", "deep/3.png", "x/n01440764/4.png")
    (root / "bird").symlink_to(tmp_path / "elsewhere" / "birds")
    (root / "dog" / "more").symlink_to(tmp_path / "elsewhere" / "deep")
    (root / "dog" / "circle").symlink_to(root)
    (root / "cat" / "5.png").symlink_to(tmp_path / "elsewhere" / "deep" / "3.png")
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "cat" / "folder.png").mkdir()
    os.mkfifo(root / "cat" / "pipe.png")
    expected = {
        "bird/2.png": 0,
        "cat/0.PNG": 1,
        "cat/5.png": 1,
        "cat/gone.png": 1,
        "dog/1.JpEg": 2,
        "dog/more/3.png": 2,
    }
    assert {key: own[0] for key, own in read(open_dataset(str(root)))} == expected


def test_a_link_to_nothing_is_counted(tiny_model: CLIP, tmp_path: Path):
    root = put(tmp_path / "pets", *PETS)
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    line = evaluate_zeroshot(tiny_model, str(root), progress=False).line
    assert (line["num_samples"], line["skipped"]) == (3, {"unreadable file": 1})


def test_nested_folders_count_for_the_top_one_and_it_is_said(tmp_path: Path):
    root = put(tmp_path, "animals/cat/a.png", "animals/dog/b.png", "plants/oak/c.png", "plants/d.png")
    (root / "stones").mkdir()
    test_set = open_dataset(str(root))
    assert [own for _, own in read(test_set)] == [(0,), (0,), (1,), (1,)]
    assert test_set.notes == (
        f"{root}: class folders without images: stones",
        f"{root}: images in folders below count for the top one: animals",
    )


@pytest.mark.parametrize("listed", ["beside", "--classes", "above"])
def test_numbered_folders_with_a_class_list_are_prompted_by_its_names(tiny_model: CLIP, tmp_path: Path, listed: str):
    pictures = [picture(n) for n in range(12)]
    predicted = Reference(tiny_model).predictions(pictures, NAMES, "a photo of a {c}.")
    assert len(set(predicted)) > 1
    root = tmp_path / "val"
    for n, (data, own) in enumerate(zip(pictures, predicted, strict=True)):
        # Half of the pictures lie where open_clip puts them, half beside it.
        path = root / str((own + n % 2) % len(NAMES)) / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    at = {"beside": root, "above": tmp_path, "--classes": tmp_path / "lists"}[listed] / "classes.json"
    at.parent.mkdir(exist_ok=True)
    at.write_text(json.dumps({str(n): NAMES[n] for n in (5, 0, 3, 1, 2, 4)}))
    line = evaluate_zeroshot(
        tiny_model, str(root), classes=str(at) if listed == "--classes" else None, progress=False
    ).line
    assert line["num_classes"] == 6
    assert line["metrics"]["top1"]["value"] == 0.5


def test_numbered_folders_outside_the_list(tmp_path: Path):
    root = put(tmp_path, *(f"{n}/a.png" for n in range(1, 7)))
    (root / "classnames.txt").write_text("\n".join(NAMES))
    with pytest.raises(UserError, match=r"folders outside the 6 classes .*: 6$"):
        open_dataset(str(root))
    with pytest.raises(UserError, match=r"no class of imagenet21k/lemma: 1, 2, 3 and 3 more"):
        open_dataset(str(root), classes=classes.imagenet("imagenet21k"))


def test_folder_numbers_count_in_the_list_beside_alone(tmp_path: Path):
    root = put(tmp_path, "0/a.png", "3/b.png")
    (root / "classnames.txt").write_text("\n".join(NAMES))
    turned = classes.from_entries(list(reversed(NAMES)), name="turned", path=Path())
    with pytest.raises(UserError, match=r"no class of turned/file: 0, 3$"):
        open_dataset(str(root), classes=turned)
    same = classes.from_entries(NAMES, name="same", path=Path())
    assert read(open_dataset(str(root), classes=same)) == [("0/a.png", (0,)), ("3/b.png", (3,))]
    (root / "classnames.txt").unlink()
    assert read(open_dataset(str(root), classes=turned)) == [("0/a.png", (0,)), ("3/b.png", (3,))]


def test_folders_of_digits_are_digits(tmp_path: Path):
    root = put(tmp_path, *(f"{n}/a.png" for n in range(10)))
    test_set = open_dataset(str(root))
    assert test_set.classes.names[7] == ("7",)
    assert "digits are taken for the names" in test_set.notes[0]
    chosen = classes.from_entries([str(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)], name="svhn", path=Path())
    assert dict(read(open_dataset(str(root), classes=chosen)))["0/a.png"] == (9,)


@pytest.fixture(scope="module")
def renditions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture for each of the classes of ImageNet-R."""
    return put(tmp_path_factory.mktemp("r"), *(f"{key}/a.png" for key in names.wordnet_ids("imagenet_r")))


def test_folders_that_are_exactly_a_set_of_the_catalog(renditions: Path):
    test_set = open_dataset(str(renditions))
    assert test_set.classes is classes.imagenet("imagenet_r")
    assert test_set.notes == (f"{renditions}: its 200 folders are exactly the classes of imagenet_r",)


def test_folders_that_several_sets_have(tmp_path: Path, renditions: Path):
    root = tmp_path / "some"
    shutil.copytree(renditions, root)
    shutil.rmtree(root / names.wordnet_ids("imagenet_r")[0])
    test_set = open_dataset(str(root))
    assert test_set.classes is classes.imagenet("imagenet1k")
    (note,) = test_set.notes
    assert "199 of the 1,000 classes of imagenet1k have folders" in note
    assert "imagenet_r" in note
    assert "imagenet_a" not in note


@pytest.mark.parametrize("explicit", [True, False])
def test_a_folder_that_the_class_set_lacks_is_skipped_and_counted(tiny_model: CLIP, tmp_path: Path, explicit: bool):
    # ImageNet-1K's teddy, which ImageNet-21K does not have.
    root = put(tmp_path, "n02084071/dog.png", "n04399382/a.png", "n04399382/b.png")
    chosen = classes.imagenet("imagenet21k")
    test_set = open_dataset(str(root), classes=chosen)
    assert skipped(test_set) == [(f"n04399382/{x}.png", "class not in the class set") for x in "ab"]
    assert test_set.notes == (f"{root}: skipped, since they are no class of imagenet21k/lemma: n04399382",)
    if explicit:
        with pytest.raises(UserError, match="no class of imagenet21k/lemma: n04399382"):
            prepare(SuiteEntry(str(root), classes="imagenet21k", unknown_classes="error"))
    small = classes.from_entries([{"id": key, "name": key} for key in ("n02084071", *WNIDS)], name="s", path=Path())
    line = evaluate_zeroshot(tiny_model, str(root), classes=small, progress=False).line
    assert (line["num_samples"], line["skipped"]) == (1, {"class not in the class set": 2})
    assert line["notes"] == [f"{root}: skipped, since they are no class of s/file: n04399382"]


def test_img2datasets_parquet_files_are_not_the_pictures(tmp_path: Path):
    write(tmp_path / "00000.tar", {".png": picture(0), ".cls": "1"})
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    (tmp_path / "00000.parquet").write_bytes(b"PAR1....PAR1")
    (tmp_path / "00000_stats.json").write_text("{}")
    assert read(open_dataset(str(tmp_path))) == [("k0", (1,))]
    parquet(tmp_path / "test.parquet", [0], list(NAMES))
    with pytest.raises(
        UserError, match=r"shards and Parquet files; name which: --data '.*\*\.tar' or --data .*test\.parquet"
    ):
        open_dataset(str(tmp_path))
    assert keys(tmp_path / "*.tar") == ["k0"]
    assert keys(tmp_path / "te*.parquet") == ["test.parquet:0"]


def test_parts_of_a_hub_data_set(tmp_path: Path):
    for part, label in (("train", 0), ("test", 4)):
        parquet(tmp_path / "data" / f"{part}-00000-of-00001.parquet", [label], list(NAMES))
    test_set = open_dataset(str(tmp_path))
    assert read(test_set) == [("test-00000-of-00001.parquet:0", (4,))]
    assert "taken is test: 1 of 2" in test_set.notes[0]
    parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", [2], list(NAMES))
    with pytest.raises(UserError, match=r"name one, as in --data '.*data/\*test\*\.parquet'"):
        open_dataset(str(tmp_path))
    assert read(open_dataset(str(tmp_path / "data" / "valid*.parquet")))[0][1] == (2,)


def test_parts_of_a_folder_of_shards(tmp_path: Path):
    for shard, label in (("imagenet-train-000000", 0), ("imagenet-train-000001", 0), ("imagenet-validation-00", 4)):
        write(tmp_path / f"{shard}.tar", {".png": picture(label), ".cls": str(label), ".txt": shard})
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    test_set = open_dataset(str(tmp_path))
    assert read(test_set) == [("k0", (4,))]
    assert "taken is val: 1 of 3" in test_set.notes[0]
    assert len(open_caption_shards(str(tmp_path), "x").sources) == 1


def test_parts_of_shards_in_folders(tmp_path: Path):
    for part, label in (("train", 0), ("val", 2)):
        (tmp_path / part).mkdir()
        write(tmp_path / part / "0.tar", {".png": picture(label), ".cls": str(label)})
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    assert read(open_dataset(str(tmp_path))) == [("k0", (2,))]
    (tmp_path / "test").mkdir()
    write(tmp_path / "test" / "0.tar", {".png": picture(5), ".cls": "5"})
    test_set = open_dataset(str(tmp_path))
    assert read(test_set) == [("k0", (5,))]
    assert "holds shards in test and val; taken is" in test_set.notes[0]


@pytest.mark.parametrize(
    ("folders", "prompted"),
    [
        (["001.Black_footed_Albatross", "002.Crow"], ["Black footed Albatross", "Crow"]),
        (["n02085620-Chihuahua", "n02085782-Japanese_spaniel"], ["Chihuahua", "Japanese spaniel"]),
        (["0 red", "1 green"], ["red", "green"]),
        # Numbers that do not count the classes may be part of their names.
        (["707-320", "747-400"], ["707-320", "747-400"]),
        (["3-wheeler", "7-seater"], ["3-wheeler", "7-seater"]),
    ],
)
def test_numbers_before_folders_names_are_not_prompted(tmp_path: Path, folders: list[str], prompted: list[str]):
    test_set = open_dataset(str(put(tmp_path, *(f"{folder}/a.png" for folder in folders))))
    assert [names[0] for names in test_set.classes.names] == prompted
    assert list(test_set.classes.ids) == folders
    assert any("left out of prompts" in note for note in test_set.notes) == (prompted[0] not in folders)
