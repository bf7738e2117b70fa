"""The starter corpus: the same bytes everywhere, no leak between splits, natural captions, clear errors."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from clip_la.data.corpora import inputs, packages
from clip_la.data.corpora.artists import TWEMOJI
from clip_la.data.corpora.concepts import Concept, deal, merge
from clip_la.data.corpora.names import Name, describe, format_code_point, is_convention, parse_code_point
from clip_la.data.corpora.scenes import build_scenes
from clip_la.data.corpora.starter import build_starter
from clip_la.data.shards.reader import read_samples
from clip_la.errors import UserError

GOLDEN = {
    "train": "6a4793e57ce62c70",
    "renditions-twemoji": "4bba2c5b12328faa",
    "renditions-openmoji": "7d791950b07cdfc8",
    "concepts": "ac29c4621668ca54",
}
SPLITS = ("train", "renditions-twemoji", "renditions-openmoji", "concepts")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A build in a process of its own, begun before the one in this process so that both run at once."""
    code = "import os; os.umask(0o077); from clip_la.cli import main; raise SystemExit(main())"
    env = {**os.environ, "PYTHONHASHSEED": "77", "LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONPATH": os.getcwd()}
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-c", code, "data", "starter", "elsewhere", "--workers", "1"]
    with subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True) as process:
        yield process, folder / "elsewhere"


@pytest.fixture(scope="module")
def corpus(elsewhere, tmp_path_factory):
    out = tmp_path_factory.mktemp("starter") / "corpus"
    build_starter(out, workers=1, quiet=True)
    return out


@pytest.fixture(scope="module")
def samples(corpus):
    def read(split):
        shards = sorted((corpus / split).glob("*.tar"))
        return [
            {**json.loads(s["json"]), "png": s["png"], "txt": s["txt"].decode(), "cls": s.get("cls")}
            for shard in shards
            for s in read_samples(str(shard))
        ]

    return {split: read(split) for split in SPLITS}


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_bytes_do_not_depend_on_place_locale_umask_or_hash_seed(corpus, elsewhere):
    process, out = elsewhere
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert files(out) == files(corpus)


def test_bytes_are_those_of_every_other_machine(corpus):
    """Known digests: another version of a drawing, a name or the renderer would show here. Change them knowingly."""
    digests = {
        split: hashlib.sha256(b"".join(p.read_bytes() for p in sorted((corpus / split).glob("*.tar")))).hexdigest()[:16]
        for split in SPLITS
    }
    assert digests == GOLDEN


def test_counts(samples, corpus):
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert {split: len(own) for split, own in samples.items()} == {
        split: record["pairs"] for split, record in manifest["splits"].items()
    }
    assert [len(samples[split]) for split in SPLITS[1:]] == [380, 380, 300]
    assert len(samples["train"]) > 2500
    for split, record in manifest["splits"].items():
        for shard in record["shards"]:
            data = (corpus / split / shard["name"]).read_bytes()
            assert shard["sha256"] == hashlib.sha256(data).hexdigest()


def test_no_leak_by_name_or_pixels(samples):
    train = {(s["name"], s["artist"]) for s in samples["train"]}
    names = {name for name, _ in train}
    for artist, other in (("twemoji", "openmoji"), ("openmoji", "twemoji")):
        held = samples[f"renditions-{artist}"]
        assert {s["artist"] for s in held} == {artist}
        # Training knows the concept, by the other artist only.
        assert all((s["name"], other) in train and (s["name"], artist) not in train for s in held)
    assert not names & {s["name"] for s in samples["concepts"]}
    assert not {s["code_point"] for s in samples["train"]} & {s["code_point"] for s in samples["concepts"]}
    seen: dict[str, str] = {}
    for split in SPLITS:
        for sample in samples[split]:
            image = Image.open(io.BytesIO(sample["png"])).convert("RGB").resize((64, 64))
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            # One picture, one concept, one split.
            assert seen.setdefault(digest, (split, sample["name"])) == (split, sample["name"])


def test_no_name_in_training_is_a_merged_name_of_a_held_out_concept(samples, corpus):
    merged = json.loads((corpus / "manifest.json").read_text())["merged"]
    held = {s["name"] for s in samples["concepts"]}
    others = {other for name, group in merged.items() if name in held for other in group}
    assert not others & {s["name"] for s in samples["train"]}


def test_no_skin_tones(samples):
    tones = {f"{value:X}" for value in range(0x1F3FB, 0x1F400)}
    assert not any(tones & set(s["code_point"].split("-")) for own in samples.values() for s in own)


def test_samples_carry_their_origin(samples):
    licences = {"twemoji": "CC-BY-4.0", "openmoji": "CC-BY-SA-4.0"}
    for own in samples.values():
        for sample in own:
            assert sample["licence"] == licences[sample["artist"]]
            assert sample["txt"] == sample["caption"] == sample["captions"][0]
            assert len(set(sample["captions"])) == len(sample["captions"]) >= 2
            assert Image.open(io.BytesIO(sample["png"])).size == (64, 64)
    assert len({s["txt"].split(sample["name"])[0] for s in samples["train"]}) > 5


def test_classes_match_samples(samples, corpus):
    for split in SPLITS[1:]:
        classes = json.loads((corpus / split / "classes.json").read_text())
        assert classes == sorted(set(classes)) == (corpus / split / "classnames.txt").read_text().splitlines()
        assert all(classes[int(s["cls"])] == s["class"] for s in samples[split])
        assert {s["class"] for s in samples[split]} == set(classes)


def test_second_call_does_nothing_and_damage_is_rebuilt(corpus, capsys):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*.tar")}
    assert build_starter(corpus, workers=1, quiet=True)["built"] is False
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*.tar")} == before
    with pytest.raises(UserError, match="other settings"):
        build_starter(corpus, size_px=96, quiet=True)


@pytest.mark.parametrize("name", ["twemoji", "openmoji", "emoji", "resvg-py"])
def test_a_corpus_of_other_drawings_or_packages_is_not_taken(corpus, monkeypatch, name):
    now = inputs.starter_inputs()
    assert now is not None
    monkeypatch.setattr("clip_la.data.corpora.starter.starter_inputs", lambda: {**now, name: "other"})
    with pytest.raises(UserError, match=f"made from other content of {name};"):
        build_starter(corpus, quiet=True)


def test_what_a_corpus_is_made_from_goes_by_content(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a.svg", "b.svg")]
    for path in paths:
        path.write_text("<svg/>")
    artist = dataclasses.replace(TWEMOJI, drawings=lambda: dict(enumerate(paths)))
    monkeypatch.setattr(inputs, "STARTER_ARTISTS", (artist,))
    before = inputs.starter_inputs()
    assert before == inputs.starter_inputs()
    assert set(before) == {*packages.CORPUS_PACKAGES, "twemoji"}
    paths[1].write_text("<gvs/>")
    now = inputs.starter_inputs()
    assert [name for name in before if before[name] != now[name]] == ["twemoji"]
    monkeypatch.setattr(inputs, "CORPUS_PACKAGES", {"no-such-package": "1"})
    assert inputs.starter_inputs() is None


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear to someone")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        build_starter(tmp_path, quiet=True)
    with pytest.raises(UserError, match="is a file"):
        build_starter(tmp_path / "thesis.tex", quiet=True)
    with pytest.raises(UserError, match="out of range"):
        build_starter(tmp_path / "new", size_px=8, quiet=True)


def test_scenes_are_cast_from_training_alone(samples, tmp_path):
    out = tmp_path / "scenes"
    assert build_scenes(out, pairs=60, seed=5, size_px=32, quiet=True)["built"] is True
    assert build_scenes(out, pairs=60, seed=5, size_px=32, quiet=True)["built"] is False
    train = {(s["name"], s["artist"]) for s in samples["train"]}
    scenes = list(read_samples(str(out / "train" / "00000.tar")))
    things = [thing for s in scenes for thing in json.loads(s["json"])["objects"]]
    assert len(scenes) == 60
    assert json.loads((out / "manifest.json").read_text())["drawings"] == len(train)
    assert {(thing["name"], thing["artist"]) for thing in things} <= train
    with pytest.raises(UserError, match="other settings"):
        build_scenes(out, pairs=61, seed=5, size_px=32, quiet=True)


def test_missing_or_other_packages(monkeypatch):
    with pytest.raises(UserError, match=r"no-such-package 1\.0.*clip_la\[corpus\]"):
        packages.require({"no-such-package": "1.0"})
    with pytest.raises(UserError, match=r"emoji 0\.0\.1, but 2\."):
        packages.require({"emoji": "0.0.1"})
    with pytest.raises(UserError, match="no_such_module"):
        packages.package_folder("no_such_module")


@pytest.mark.parametrize(
    ("stem", "raw", "name", "phrase"),
    [
        ("1F34E", ":red_apple:", "red apple", "a red apple"),
        ("1F1EB-1F1F7", ":France:", "flag of France", "the flag of France"),
        ("1F1E7-1F1F8", ":Bahamas:", "flag of the Bahamas", "the flag of the Bahamas"),
        ("1F55E", ":three-thirty:", "clock showing three-thirty", "a clock showing three-thirty"),
        ("1F468-200D-1F9B0", ":man_red_hair:", "man with red hair", "a man with red hair"),
        ("1F468-200D-1F467-200D-1F466", ":family_man_girl_boy:", "family of man, girl and boy", None),
        ("1F347", ":grapes:", "grapes", "grapes"),
        ("1F419", ":octopus:", "octopus", "an octopus"),
        ("1F984", ":unicorn:", "unicorn", "a unicorn"),
        ("231B", ":hourglass_done:", "hourglass done", "an hourglass done"),
        ("1F97C", ":woman’s_hat:", "woman's hat", "a woman's hat"),
    ],
)
def test_names(stem, raw, name, phrase):
    found = describe(parse_code_point(stem), raw)
    assert (found.name, found.phrase) == (name, phrase or f"a {name}")


def test_code_points_ignore_variation_selectors():
    assert format_code_point(parse_code_point("2764-fe0f-200d-1f525")) == "2764-200D-1F525"
    assert format_code_point(parse_code_point("a9")) == "00A9"
    with pytest.raises(ValueError, match="invalid literal"):
        parse_code_point("not-a-code")


def concept(code_point: int, name: str) -> Concept:
    return Concept((code_point,), Name(name, f"a {name}"), {"a": f"svg {name}"})


def test_merge_is_transitive_and_keeps_the_shortest_name():
    concepts = [concept(i, name) for i, name in enumerate(["man cook", "cook", "chef", "pear"], start=1)]
    merged = merge(concepts, [["x"], ["x", "y"], ["y"], ["z"]])
    assert [(c.name.name, c.merged) for c in merged] == [("chef", ("cook", "man cook")), ("pear", ())]


def test_deal_is_fair_stable_and_leaves_conventions_in():
    concepts = [concept(0x1F400 + i, f"thing {i}") for i in range(200)] + [concept(0x1F1E6, "letter")]
    dealt = deal(concepts, ["a", "b"], num_concepts=20, num_renditions=60)
    assert len(dealt.concepts) == 20
    assert sorted(dealt.renditions.values()) == ["a"] * 30 + ["b"] * 30
    assert not dealt.concepts & set(dealt.renditions)
    assert not any(is_convention(parse_code_point(code)) for code in dealt.concepts)
    # Dealing goes by hash, not by place in the list.
    assert deal(concepts[::-1], ["a", "b"], 20, 60) == dealt
