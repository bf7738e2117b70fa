"""Class lists in the forms that people have, against what a person means by them."""

import json
from pathlib import Path
from typing import Any

import pytest

from clip_la.data.corpora import imagenet_names as names
from clip_la.errors import UserError
from clip_la.zeroshot.labels import classes
from clip_la.zeroshot.labels.class_files import read_entries
from clip_la.zeroshot.suite import describe

from .conftest import WNIDS
from .reference import as_test_set

RED = ("red", "green", "blue")


def read(tmp_path: Path, content: Any, file: str = "classes.json") -> classes.ClassSet:
    path = tmp_path / file
    data = (
        content
        if isinstance(content, bytes)
        else content.encode()
        if isinstance(content, str)
        else json.dumps(content).encode()
    )
    path.write_bytes(data)
    return classes.class_set(str(path))


@pytest.mark.parametrize(
    "content",
    [
        ["red", "green", "blue"],
        {"2": "blue", "0": "red", "1": "green"},
        {"green": 1, "blue": 2, "red": 0},
        {"green": "1", "blue": "2", "red": "0"},
        {"green": 1.0, "blue": 2.0, "red": 0.0},
        [["red"], ["green"], ["blue"]],
        [["n00000001", "red"], ["n00000002", "green"], ["n00000003", "blue"]],
        {"1": ["n00000002", "green"], "0": ["n00000001", "red"], "2": ["n00000003", "blue"]},
        {"1": {"name": "green"}, "0": {"name": "red"}, "2": {"names": ["blue"]}},
        [{"id": 2, "name": "blue"}, {"id": 0, "name": "red"}, {"id": 1, "name": "green"}],
        {"_type": "ClassLabel", "num_classes": 3, "names": ["red", "green", "blue"]},
        {"class_label": {"names": {"0": "red", "2": "blue", "1": "green"}}},
        {
            "features": {
                "image": {"_type": "Image"},
                "label": {"names": ["red", "green", "blue"], "_type": "ClassLabel"},
            }
        },
        {"id2label": {"0": "red", "1": "green", "2": "blue"}, "label2id": {"red": 0, "green": 1, "blue": 2}},
        b"\xef\xbb\xbf" + json.dumps(RED).encode(),
    ],
)
def test_json_means_red_green_blue(tmp_path: Path, content: Any):
    assert read(tmp_path, content).names == (("red",), ("green",), ("blue",))


@pytest.mark.parametrize(
    "content",
    [
        "red\ngreen\nblue",
        "red\ngreen\nblue\n\n \n",
        b"\xef\xbb\xbfred\r\ngreen\r\nblue\r\n",
        "red\rgreen\rblue\r",
        "0 red\n1 green\n2 blue",
        "2: blue\n0: red\n1: green",
        "green 1\nred 0\nblue 2",
        "{0: 'red',\n 1: 'green',\n 2: 'blue'}\n",
        "['red', 'green', 'blue']",
        '{"red": 0, "blue": 2, "green": 1}',
        "n00000001 red\nn00000002\tgreen\nn00000003 blue",
    ],
)
def test_text_means_red_green_blue(tmp_path: Path, content: str | bytes):
    assert read(tmp_path, content, "classnames.txt").names == (("red",), ("green",), ("blue",))


def test_only_line_ends_end_a_line(tmp_path: Path):
    odd = "a\u2028b\x0bc\x85d\x1ce"
    assert read(tmp_path, f"{odd}\nred", "classnames.txt").names == ((odd,), ("red",))


def test_class_index_keeps_the_wordnet_ids(tmp_path: Path):
    found = read(tmp_path, {"1": ["n02123045", "tabby"], "0": ["n01440764", "tench"]})
    assert found.ids == ("n01440764", "n02123045")
    assert found.names == (("tench",), ("tabby",))


@pytest.mark.parametrize(
    "content", ["\n".join(WNIDS), json.dumps(WNIDS), json.dumps({k: i for i, k in enumerate(WNIDS)})]
)
def test_bare_wordnet_ids_are_not_prompts(tmp_path: Path, content: str):
    found = read(tmp_path, content, "classes.json" if content[0] in "[{" else "classes.txt")
    assert found.ids == WNIDS
    assert [own[0] for own in found.names] == [names.curated()[key] for key in WNIDS]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("c.txt", "red\n\ngreen", r"c\.txt, line 2: blank"),
        ("c.txt", "\nred", "line 1: blank"),
        ("c.txt", "red\ngreen".encode("utf-16"), "UTF-16"),
        ("c.txt", "red\ngreen".encode("utf-16-le"), "UTF-16"),
        ("c.txt", "red\ncaf\xe9".encode("latin-1"), r"line 2: not UTF-8"),
        ("c.txt", "1 red\n2 green", "numbered from 1"),
        ("c.json", '["red"]'.encode("utf-16"), "UTF-16"),
        ("c.json", {"1": "red", "2": "green"}, "from 1 to 2; they must begin at 0"),
        ("c.json", {"0": "red", "2": "green"}, "1 is missing"),
        ("c.json", {"0": "red", "00": "green"}, "0 comes twice"),
        ("c.json", {"red": 0, "green": 0}, "0 comes twice"),
        ("c.json", {"red": -1, "green": 0}, "0 is missing"),
        ("c.json", {"red": 0, "green": 5}, "1 is missing"),
        ("c.json", {"red": True, "green": False}, "a class is a name"),
        ("c.json", {"red": 0, "green": "lime"}, "for some of its classes only"),
        ("c.json", {"0": "red", "x": "green"}, "for some of its classes only"),
        ("c.json", '{"red": 0, "red": 1}', "the key 'red' twice"),
        ("c.json", '["red", "\\ud800"]', "surrogate"),
        ("c.json", ["red", " "], "empty name"),
        ("c.json", ["red", None], "a class is a name"),
        ("c.json", ["red", ["", "x"]], "empty name"),
        ("c.json", [{"names": ["red", None]}], "a class is a name"),
        ("c.json", [["0", "red"], ["1", "green"]], "a class is a name"),
        ("c.json", [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}], "from 1 to 2"),
        ("c.json", ["n99999999", "n01440764"], "no name is known for n99999999"),
        ("c.txt", "number,name\n0,red\n1,green", "line 1: not numbered"),
        ("c.txt", "[red, green]", "not JSON"),
        ("c.yaml", "names: [red, green]", "not .yaml"),
        ("c.txt", "n01440764\nn01440764", "'n01440764' twice"),
        ("c.json", ["a\nb", "a\nb"], "'a b' twice"),
        ("c.json", "[" * 100_000, "not JSON"),
        ("c.json", "[" + "1" * 5000 + "]", "not JSON"),
        ("c.json", "", "not JSON"),
        ("c.txt", "", "no classes"),
    ],
)
def test_refused_in_one_line(tmp_path: Path, file: str, content: Any, message: str):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, content, file)
    assert "\n" not in str(caught.value)


def test_a_name_of_two_classes_stays_with_its_numbers(tmp_path: Path):
    # ImageNet's own list has two such names, in CLIP_benchmark's classnames.txt too.
    listed = [own[0] for own in classes.imagenet("imagenet1k").names]
    found = read(tmp_path, "\n".join(listed), "classnames.txt")
    assert [own[0] for own in found.names] == listed
    assert set(found.collisions()) == {"missile", "sunglasses"}
    assert found.positions(["missile", "tench"]) == [-1, 0]


def test_names_that_are_one_for_the_tokenizer_are_reported(tmp_path: Path):
    found = read(tmp_path, ["Red", "red", "red ", "green", "caf\u00e9", "caf&eacute;"])
    assert found.read_alike() == {"red": ["Red", "red", "red "], "caf\u00e9": ["caf\u00e9", "caf&eacute;"]}
    assert found.sharing_a_name() == {"Red", "red", "red ", "caf\u00e9", "caf&eacute;"}
    said: list[str] = []
    describe(as_test_set(found), said.append)
    assert any("'Red', 'red', 'red '" in line for line in said)
    # As labels they still differ; what is equal to none of them and reads as several is none.
    assert found.positions(["Red", "red", "RED", "Green", "GREEN "]) == [0, 1, -1, 3, 3]


@pytest.mark.parametrize("lines", ["# colours\nred\ngreen", "red\n// warm ones\ngreen", "red\ngreen\n# end"])
def test_a_remark_is_not_a_class(tmp_path: Path, lines: str):
    path = tmp_path / "classnames.txt"
    path.write_text(lines)
    with pytest.raises(UserError, match=r"line \d: a remark within the list"):
        read_entries(path)


def test_names_may_begin_with_a_hash(tmp_path: Path):
    path = tmp_path / "classnames.txt"
    path.write_text("#1 dad\n#2 mum")
    assert [entry.names for entry in read_entries(path)] == [("#1 dad",), ("#2 mum",)]
