from pathlib import Path

import networkx
import numpy as np
import pytest

from clip_la.errors import UserError
from clip_la.models.clip import CLIP
from clip_la.zeroshot.labels import classes, wordnet
from clip_la.zeroshot.runner.rows import Predictions
from clip_la.zeroshot.tasks.classification import evaluate_zeroshot

from .conftest import picture

# Two lines of WordNet 3.0's data.noun, shortened at the end, a licence line, and one with an instance hypernym.
LINES = """  1 This software and database is being provided to you, the LICENSEE, by
00001740 03 n 01 entity 0 002 ~ 00001930 n 0000 ~ 04424418 n 0000 | that which is perceived
00001930 03 n 01 physical_entity 0 002 @ 00001740 n 0000 ~ 00002452 n 0000 | an entity that exists; "x | y"
00002137 03 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 003 @ 00001740 n 0000 @ 00001930 n 0000 + 00692347 v 0101 | q
00002452 03 n 01 Everest 0 001 @i 00002137 n 0000 | a mountain
"""


def test_reading_the_file(tmp_path: Path):
    (tmp_path / "data.noun").write_text(LINES)
    assert wordnet.read_hypernyms(tmp_path / "data.noun") == {
        "n00001740": (),
        "n00001930": ("n00001740",),
        "n00002137": ("n00001740", "n00001930"),
        "n00002452": ("n00002137",),
    }


def graph(seed: int, size: int = 40) -> dict[str, tuple[str, ...]]:
    generator = np.random.default_rng(seed)
    parents: dict[str, tuple[str, ...]] = {"0": ()}
    for node in range(1, size):
        above = generator.choice(node, size=min(node, int(generator.integers(1, 4))), replace=False)
        parents[str(node)] = tuple(map(str, above))
    return parents


def reference_similarity(parents: dict[str, tuple[str, ...]], a: str, b: str) -> float:
    up = networkx.DiGraph([(node, above) for node, own in parents.items() for above in own])
    best = 0.0
    for common in parents:
        if networkx.has_path(up, a, common) and networkx.has_path(up, b, common):
            depth = 1 + networkx.shortest_path_length(up, common, "0")
            steps = networkx.shortest_path_length(up, a, common) + networkx.shortest_path_length(up, b, common)
            best = max(best, 2 * depth / (2 * depth + steps))
    return best


def test_similarity_in_graphs_with_several_parents():
    parents = graph(0)
    hierarchy = wordnet.Hierarchy(parents)
    for a in list(parents)[::3]:
        for b in list(parents)[::4]:
            assert hierarchy.similarity(a, b) == pytest.approx(reference_similarity(parents, a, b))
            assert hierarchy.similarity(a, b) == hierarchy.similarity(b, a)
    assert all(hierarchy.similarity(node, node) == 1 for node in parents)


def test_nodes_without_common_ancestor():
    assert wordnet.Hierarchy({"a": (), "b": ()}).similarity("a", "b") == 0


def test_scores_of_pictures():
    hierarchy = wordnet.Hierarchy({"animal": (), "dog": ("animal",), "husky": ("dog",), "cat": ("animal",)})
    ids = ("cat", "husky", "dog", "animal")
    labels, predicted = np.array([1, 1, 1, 2, 0, 1]), np.array([1, 2, 0, 1, 0, 2])
    similar, above = wordnet.scores(hierarchy, ids, labels, predicted)
    # husky and dog: 2 * 2 / (2 * 2 + 1); husky and cat meet at the root: 2 / (2 + 2 + 1).
    assert similar.tolist() == pytest.approx([1, 0.8, 0.4, 0.8, 1, 0.8])
    assert above.tolist() == [True, True, False, False, True, True]


def test_another_version_is_refused(monkeypatch, tmp_path: Path):
    (tmp_path / "data.noun").write_text(LINES)
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    wordnet.installed.cache_clear()
    try:
        assert wordnet.hierarchy_of(["n00002452"]) is not None
        with pytest.raises(UserError, match=r"not WordNet 3\.0"):
            wordnet.hierarchy_of(["n00002452", "n02084071"])
    finally:
        monkeypatch.undo()
        wordnet.installed.cache_clear()


def test_without_wordnet_there_is_no_hierarchy(monkeypatch):
    monkeypatch.setattr(wordnet, "FOLDERS", ())
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    monkeypatch.delenv("WNHOME", raising=False)
    wordnet.installed.cache_clear()
    try:
        assert wordnet.hierarchy_of(["n02084071"]) is None
    finally:
        monkeypatch.undo()
        wordnet.installed.cache_clear()


@pytest.mark.skipif(wordnet.find() is None, reason="WordNet (wordnet-base) is not installed")
def test_installed_wordnet_has_every_class_of_imagenet():
    hierarchy = wordnet.installed()
    assert hierarchy is not None
    for name in classes.CATALOG:
        assert all(key in hierarchy.parents for key in classes.imagenet(name).ids), name
    dog, husky, tench = "n02084071", "n02109961", "n01440764"
    assert hierarchy.is_ancestor(dog, husky)
    assert not hierarchy.is_ancestor(husky, dog)
    assert hierarchy.similarity(dog, husky) > hierarchy.similarity(dog, tench) > 0
    assert hierarchy.depth("n00001740") == 1


# The part of WordNet 3.0 above dog, cat, husky and coffee maker, ids as they are there.
ABOVE = {
    "n00001740": (),  # entity
    "n00001930": ("n00001740",),  # physical entity
    "n00002684": ("n00001930",),  # object
    "n00003553": ("n00002684",),  # whole
    "n00004258": ("n00003553",),  # living thing
    "n00004475": ("n00004258",),  # organism
    "n00015388": ("n00004475",),  # animal
    "n01317541": ("n00015388",),  # domestic animal
    "n01466257": ("n00015388",),  # chordate
    "n01471682": ("n01466257",),  # vertebrate
    "n01861778": ("n01471682",),  # mammal
    "n01886756": ("n01861778",),  # placental
    "n02075296": ("n01886756",),  # carnivore
    "n02083346": ("n02075296",),  # canine
    "n02084071": ("n02083346", "n01317541"),  # dog
    "n02103406": ("n02084071",),  # working dog
    "n02109961": ("n02103406",),  # husky
    "n02120997": ("n02075296",),  # feline
    "n02121620": ("n02120997",),  # cat
}
DOG, CAT, HUSKY = "n02084071", "n02121620", "n02109961"


@pytest.fixture
def some_of_wordnet(tmp_path: Path, monkeypatch):
    """A WordNet folder with `ABOVE`, in the format that wndb(5) describes, as the one that is installed."""
    lines = ["  1 This line stands for the licence.  "]
    for key, parents in ABOVE.items():
        pointers = " ".join(f"@ {parent[1:]} n 0000" for parent in parents)
        lines.append(" ".join(f"{key[1:]} 03 n 01 some_word 0 {len(parents):03d} {pointers} | a gloss".split()))
    folder = tmp_path / "dict"
    folder.mkdir()
    (folder / "data.noun").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("WNSEARCHDIR", str(folder))
    wordnet.installed.cache_clear()
    yield
    wordnet.installed.cache_clear()


def test_similarity_of_dog_and_cat_is_the_published_one(some_of_wordnet):
    hierarchy = wordnet.hierarchy_of([DOG, CAT, HUSKY])
    assert hierarchy is not None
    # As in the WordNet chapter of NLTK's documentation: dog.wup_similarity(cat) is 0.857...
    assert hierarchy.similarity(DOG, CAT) == pytest.approx(6 / 7)
    assert hierarchy.depth(DOG) == 9  # entity, ..., animal, domestic animal, dog
    assert hierarchy.is_ancestor(DOG, HUSKY)
    assert not hierarchy.is_ancestor(HUSKY, DOG)


def test_a_result_tells_how_wrong_the_wrong_ones_are(some_of_wordnet, tiny_model: CLIP, tmp_path: Path):
    for number, key in enumerate([DOG] * 4 + [CAT] * 3 + [HUSKY] * 5):
        path = tmp_path / "pets" / key / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    entries = [{"id": DOG, "name": "dog"}, {"id": CAT, "name": "cat"}, {"id": HUSKY, "name": "husky"}]
    class_set = classes.from_entries(entries, name="pets", path=tmp_path)
    found = evaluate_zeroshot(tiny_model, str(tmp_path / "pets"), classes=class_set, templates="name", progress=False)
    said = [(class_set.ids[y], class_set.ids[top[0]]) for y, top in zip(*_columns(found.predictions), strict=True)]
    # Wu and Palmer by hand: dog is at depth 9 and two above husky; carnivore is at 12, two above cat, four above husky.
    similarity = {frozenset((DOG, CAT)): 6 / 7, frozenset((DOG, HUSKY)): 18 / 20, frozenset((CAT, HUSKY)): 24 / 30}
    expected = [1.0 if truth == guess else similarity[frozenset((truth, guess))] for truth, guess in said]
    metrics = found.line["metrics"]
    assert metrics["wordnet_similarity"]["value"] == pytest.approx(np.mean(expected))
    above = [guess == truth or (truth, guess) == (HUSKY, DOG) for truth, guess in said]
    assert metrics["top1_or_hypernym"]["value"] == pytest.approx(np.mean(above))
    # The figures say more than top-1 does.
    assert 0 < metrics["top1"]["value"] < metrics["top1_or_hypernym"]["value"] < 1


def _columns(found: Predictions) -> tuple[np.ndarray, np.ndarray]:
    return found.labels, found.top


def test_scores_in_every_set_of_classes_need_no_wordnet(monkeypatch, tiny_model: CLIP, image_folder: Path):
    monkeypatch.setattr(wordnet, "installed", lambda: None)
    line = evaluate_zeroshot(tiny_model, str(image_folder), templates="name", progress=False).line
    assert set(line["metrics"]) == {"top1", "top5", "mean_per_class_recall"}
