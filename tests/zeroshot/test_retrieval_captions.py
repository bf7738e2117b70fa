"""Captions in the forms that people have: the figures of open_clip's own module on what a person means by them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_la.data.shards.problems import BadSample
from clip_la.data.shards.reader import ShardWriter, read_samples
from clip_la.data.text.captions import Captions
from clip_la.errors import UserError
from clip_la.models.clip import CLIP
from clip_la.zeroshot.datasets.shards import open_caption_shards
from clip_la.zeroshot.model.eval_model import of_model
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.tasks.retrieval import Retrieval

from .conftest import picture
from .reference import Reference

COUNT = 9
WORDS = ("red", "green", "blue", "cat", "house", "river", "tall", "tiny", "old")
MEANT = [
    [f"{WORDS[n]} {WORDS[(3 * n + i) % COUNT]}", f"the {WORDS[n]} one, {i}"][i:] for n in range(COUNT) for i in [n % 2]
]
ODD = "\u2028square\x0bnow\x85here\x1cthere"
Form = Callable[[int, list[str]], dict[str, Any]]
FORMS: dict[str, Form] = {
    "lines": lambda n, own: {".txt": "\n".join(own)},
    "mark and returns": lambda n, own: {".txt": b"\xef\xbb\xbf" + "\r\n".join(own).encode() + b"\r\n"},
    "list": lambda n, own: {".json": {"captions": own}},
    "string": lambda n, own: {".json": {"captions": own[0]}},
    "img2dataset": lambda n, own: {".json": {"caption": own[0], "status": "success", "key": str(n)}},
    "list of caption": lambda n, own: {".json": {"caption": own}},
    "null and empty": lambda n, own: {".json": {"captions": [*own, None, "", " \n", 7]}},
    "text empty": lambda n, own: {".txt": " \n", ".json": {"captions": own}},
    "captions null": lambda n, own: {".json": {"captions": None, "caption": own}},
    "json damaged beside text": lambda n, own: {".txt": "\n".join(own), ".json": b"{"},
}


def shard(path: Path, parts: list[dict[str, Any]]) -> Path:
    with ShardWriter(path) as writer:
        for n, own in enumerate(parts):
            writer.write({"__key__": f"k{n}", ".png": picture(n), **own})
    return path


def line_of(model: CLIP, path: Path) -> dict[str, Any]:
    task = Retrieval(open_caption_shards(str(path), "x"))
    return task.run(of_model(model), EvalSettings(batch_size=4, progress=False)).line


def check(model: CLIP, line: dict[str, Any], meant: dict[int, list[str]]) -> None:
    """The figures are those of these captions of these pictures."""
    assert (line["num_samples"], line["num_captions"]) == (len(meant), sum(map(len, meant.values())))
    for k in (1, 5):
        expected = Reference(model).recall([picture(n) for n in meant], list(meant.values()), k)
        found = [line["metrics"][f"{way}_retrieval_recall@{k}"]["value"] for way in ("image", "text")]
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_captions(tiny_model: CLIP, tmp_path: Path, form: str):
    only_first = form in ("string", "img2dataset")
    meant = {n: own[:1] if only_first else own for n, own in enumerate(MEANT)}
    line = line_of(tiny_model, shard(tmp_path / "0.tar", [FORMS[form](n, own) for n, own in enumerate(MEANT)]))
    assert line["skipped"] == {}
    check(tiny_model, line, meant)


def test_only_line_ends_part_captions(tiny_model: CLIP, tmp_path: Path):
    meant = {n: [own[0] + ODD] for n, own in enumerate(MEANT)}
    check(
        tiny_model, line_of(tiny_model, shard(tmp_path / "0.tar", [{".txt": own[0]} for own in meant.values()])), meant
    )


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "Latin-1": ({".txt": "caf\xe9".encode("latin-1")}, "caption not text"),
    "Latin-1 in json": ({".json": '{"caption": "caf\xe9"}'.encode("latin-1")}, "json damaged"),
    "damaged": ({".json": b"{"}, "json damaged"),
    "deep": ({".json": b"[" * 100_000}, "json damaged"),
    "a list": ({".json": ["a cat"]}, "json damaged"),
    "null": ({".json": {"captions": None, "caption": None}}, "no caption"),
    "number": ({".json": {"captions": 3}}, "empty caption"),
    "object": ({".json": {"captions": {"en": "a cat"}}}, "empty caption"),
    "empty": ({".txt": "\n \n", ".json": {"captions": ["", None]}}, "empty caption"),
    "nothing": ({}, "no caption"),
}


def test_one_bad_sample_costs_itself_and_is_counted(tiny_model: CLIP, tmp_path: Path):
    parts = [{".txt": "\n".join(own)} for own in MEANT]
    bad = list(BAD.values())
    line = line_of(tiny_model, shard(tmp_path / "0.tar", parts + [own for own, _ in bad]))
    reasons = [reason for _, reason in bad]
    assert line["skipped"] == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    check(tiny_model, line, dict(enumerate(MEANT)))


@pytest.mark.parametrize("form", BAD)
def test_training_skips_the_same_for_the_same_reason(tmp_path: Path, form: str):
    parts, reason = BAD[form]
    (sample,) = read_samples(str(shard(tmp_path / "0.tar", [parts])))
    with pytest.raises(BadSample) as bad:
        Captions(("txt", "json.captions", "json.caption")).read(sample)
    assert bad.value.reason == reason


def test_no_caption_at_all_is_one_line(tiny_model: CLIP, tmp_path: Path):
    path = shard(tmp_path / "0.tar", [{".json": json.dumps({"captions": None})}])
    with pytest.raises(UserError, match=r"no image that can be evaluated .*no caption.*1"):
        line_of(tiny_model, path)
