import json

import pytest

from clip_la.data.corpora import imagenet_names as names
from clip_la.errors import UserError
from clip_la.zeroshot.labels import classes, prompts


def test_catalog_sizes():
    sizes = {name: len(classes.imagenet(name)) for name in classes.CATALOG}
    assert sizes == {
        "imagenet1k": 1000,
        "imagenet_a": 200,
        "imagenet_r": 200,
        "mini_imagenet": 100,
        "imagenet12k": 11821,
        "imagenet21k": 21841,
        "imagenet21k_google": 21843,
        "imagenet21k_ms": 21842,
        "imagenet21k_p": 11221,
        "imagenet21k_p_w21": 10450,
    }


def test_curated_names_go_with_the_right_ids():
    # Pairs that are known independently of any list's order, beginning, middle and end.
    known = {
        "n01440764": "tench",
        "n02123045": "tabby cat",
        "n03017168": "bell or wind chime",
        "n15075141": "toilet paper",
    }
    assert {key: names.curated()[key] for key in known} == known


def test_curated_names_agree_with_timm_on_most_lemmas():
    lemmas = {key: [lemma.lower() for lemma in own] for key, own in names.lemmas().items()}
    agreeing = sum(name.lower() in lemmas[key] for key, name in names.curated().items())
    # Position by position OpenAI's hand-written names are WordNet's in most cases; shifted by one, hardly ever.
    assert agreeing > 700


def test_raw_names_are_those_before_openais_changes():
    raw, curated = (classes.class_set(f"imagenet1k/{naming}") for naming in ("raw", "curated"))
    assert raw.ids == curated.ids
    # The examples that OpenAI gives of its changes, and the crane of the CLIP paper's section 3.1.4.
    changed = {
        "n03804744": ("nail", "metal nail"),
        "n01608432": ("kite", "kite (bird of prey)"),
        "n02114712": ("red wolf", "red wolf or maned wolf"),
        "n03126707": ("crane", "construction crane"),
    }
    for key, pair in changed.items():
        assert (raw.names[raw.index[key]], curated.names[curated.index[key]]) == tuple((name,) for name in pair)
    assert not raw.collisions()
    # Shifted by one, hardly any would be a lemma of its synset.
    assert sum(own[0] in names.lemmas()[key] for key, own in zip(raw.ids, raw.names, strict=True)) == 998


def test_open_clip_and_clip_benchmark_have_the_same_curated_names():
    benchmark = pytest.importorskip("clip_benchmark")
    from pathlib import Path

    lists = json.loads((Path(benchmark.__file__).parent / "datasets" / "en_classnames.json").read_text())
    assert [own[0] for own in classes.imagenet("imagenet1k").names] == lists["imagenet1k"]


def test_naming():
    assert classes.imagenet("imagenet1k").naming == "curated"
    assert classes.imagenet("imagenet_r").naming == "curated"
    assert classes.imagenet("imagenet21k").naming == "lemma"
    dog = classes.class_set("imagenet21k/lemmas")
    position = dog.index["n02084071"]
    assert dog.names[position] == ("dog", "domestic dog", "Canis familiaris")
    assert classes.imagenet("imagenet21k").names[position] == ("dog",)
    assert dog.definitions[position].startswith("a member of the genus Canis")


def test_subsets_name_classes_as_the_whole_does():
    whole, part = classes.imagenet("imagenet1k"), classes.imagenet("imagenet_a")
    for key, own in zip(part.ids, part.names, strict=True):
        assert whole.names[whole.index[key]] == own


def test_collisions_are_reported():
    assert set(classes.imagenet("imagenet1k").collisions()) == {"missile", "sunglasses"}
    shared = classes.imagenet("imagenet21k").collisions()
    assert len(shared) == 1444
    assert set(shared["crane"]) == {"n02012849", "n03126707"}
    crane = classes.imagenet("imagenet21k")
    assert crane.positions(["crane"]) == [-1]


def test_hash_changes_with_order_names_and_definitions():
    def make(entries):
        return classes.from_entries(entries, name="x", path="x")

    first = make(["a", "b"])
    assert first.hash == make(["a", "b"]).hash
    others = [make(["b", "a"]), make(["a", {"id": "b", "name": "c"}]), make(["a", {"name": "b", "definition": "d"}])]
    assert len({first.hash, *(other.hash for other in others)}) == 4
    # The set's name and naming are stated beside the hash, not in it.
    assert classes.from_entries(["a", "b"], name="y", path="x").hash == first.hash


def test_hashes_are_pinned():
    # Published results carry these: a change of content must be noticed.
    assert prompts.built_in("openai80").hash == "2232c7c5ea53d860"
    assert prompts.built_in("simple7").hash == "c3a02c3f9ef4e95c"
    assert classes.imagenet("imagenet1k").hash == "028d2d631d050fed"
    assert classes.imagenet("imagenet1k", "raw").hash == "c94121b9520a95d6"
    assert classes.imagenet("imagenet21k").hash == "e1ef33a8c425a57c"
    assert classes.imagenet("imagenet21k_p_w21").hash == "6da3a04e0ffa5a54"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('["cat", "dog"]', (("cat",), ("dog",))),
        ('{"classes": ["cat", {"names": ["dog", "hound"], "id": "n1"}]}', (("cat",), ("dog", "hound"))),
        ('{"n1": "cat", "n2": ["dog", "hound"]}', (("cat",), ("dog", "hound"))),
    ],
)
def test_class_files(tmp_path, content, expected):
    path = tmp_path / "classes.json"
    path.write_text(content)
    assert classes.class_set(str(path)).names == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not JSON"),
        ("3", "no list"),
        ("[]", "no classes"),
        ('["a", "a"]', "twice"),
        ('["a", ""]', "empty name"),
        ('["a", 3]', "a class is a name"),
    ],
)
def test_bad_class_files(tmp_path, content, message):
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        classes.class_set(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagenet1", "imagenet1k"),
        ("imagenet21k/lema", "lemma"),
        ("imagenet21k/curated", "ImageNet-1K only"),
        ("imagenet12k/raw", "no raw name for"),
        ("nowhere.json", "no class file"),
    ],
)
def test_unknown_class_sets(text, message):
    with pytest.raises(UserError, match=message):
        classes.class_set(text)


def test_prompts_of_a_class():
    templates = prompts.PromptSet("two", ("a {c}.", "{c}: {d}"))
    made = templates.prompts(("cat", "tom {c}"), "purrs")
    assert made == ["a cat.", "cat: purrs", "a tom {c}.", "tom {c}: purrs"]


def test_built_in_prompts():
    sizes = {name: len(prompts.built_in(name).templates) for name in prompts.BUILT_IN}
    assert sizes == {"openai80": 80, "simple7": 7, "plain": 1, "name": 1, "definition": 1}
    assert set(prompts.built_in("simple7").templates) <= set(prompts.built_in("openai80").templates)


def test_prompt_files(tmp_path):
    (tmp_path / "t.json").write_text('["a {c}", "the {c}"]')
    (tmp_path / "t.txt").write_text("a {c}\n\nthe {c}\n")
    as_json, as_text = (prompts.prompt_set(str(tmp_path / name)) for name in ("t.json", "t.txt"))
    assert as_json.templates == as_text.templates == ("a {c}", "the {c}")
    assert as_json.hash == as_text.hash
    assert prompts.prompt_set("just a {c}").templates == ("just a {c}",)


def test_bad_prompts(tmp_path):
    (tmp_path / "t.json").write_text('["no slot"]')
    for text, message in (
        (str(tmp_path / "t.json"), "no {c}"),
        ("openai8", "openai80"),
        ("gone.txt", "no template file"),
    ):
        with pytest.raises(UserError, match=message):
            prompts.prompt_set(text)


def test_definitions_are_refused_where_there_are_none():
    with pytest.raises(UserError, match="definitions"):
        prompts.built_in("definition").check(classes.from_entries(["a"], name="x", path="x"))
    prompts.built_in("definition").check(classes.imagenet("imagenet12k"))
