import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_la.data.images.decode import decode_image
from clip_la.data.images.transforms import eval_transform, normalize_pixels
from clip_la.errors import UserError
from clip_la.models.clip import CLIP
from clip_la.zeroshot.datasets.find import default_name, open_dataset
from clip_la.zeroshot.labels import classes, prompts
from clip_la.zeroshot.model.classifier import ClassifierCache, build_classifier, length_sorted_batches, plan_chunks
from clip_la.zeroshot.model.eval_model import EvalModel, of_model
from clip_la.zeroshot.runner import loop
from clip_la.zeroshot.runner.batches import share_of
from clip_la.zeroshot.runner.rows import Predictions
from clip_la.zeroshot.tasks.classification import evaluate_zeroshot

from .conftest import NAMES, WNIDS, folder_labels, picture

TEMPLATES = prompts.PromptSet("two", ("a photo of a {c}.", "the {c}"))
ARRAYS = tuple(each.name for each in fields(Predictions) if each.name != "skipped")


def reference_classifier(model: CLIP, class_set: classes.ClassSet, templates: prompts.PromptSet) -> torch.Tensor:
    """Class by class, untrimmed, in float64."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=model.spec.context_length)
    model = model.double()
    rows = []
    with torch.no_grad():
        for own in class_set.names:
            texts = [template.replace("{c}", name) for name in own for template in templates.templates]
            features = model.encode_text(tokenizer(texts))
            mean = (features / features.norm(dim=-1, keepdim=True)).mean(0)
            rows.append(mean / mean.norm())
    model.float()
    return torch.stack(rows)


def test_classifier_is_the_mean_of_its_prompts(tiny_model: CLIP):
    several = {"names": ["x", "yy zz", "a very long name of many words"], "id": "m"}
    class_set = classes.from_entries(["a", "bb cc dd ee", several], name="c", path=Path())
    found = build_classifier(of_model(tiny_model), class_set, TEMPLATES, progress=False)
    expected = reference_classifier(tiny_model, class_set, TEMPLATES)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def test_batches_of_texts_keep_within_their_budget_and_lose_none():
    lengths = torch.tensor([3, 9, 4, 4, 12, 3, 7, 20])
    batches = list(length_sorted_batches(lengths, 18))
    assert sorted(i for rows, _ in batches for i in rows.tolist()) == list(range(8))
    for rows, longest in batches:
        assert lengths[rows].max() == longest
        assert len(rows) * longest <= 18 or len(rows) == 1


def test_chunks_cover_all_classes_once():
    class_set = classes.imagenet("imagenet_r")
    chunks = plan_chunks(class_set, prompts.PromptSet("many", tuple(f"{{c}} {i}" for i in range(401))))
    assert len(chunks) > 3
    assert [i for chunk in chunks for i in chunk] == list(range(len(class_set)))


@pytest.mark.parametrize(("num_sources", "num_consumers"), [(1, 1), (1, 5), (3, 2), (3, 7), (7, 3), (4, 4), (2, 9)])
def test_every_unit_has_exactly_one_consumer(num_sources: int, num_consumers: int):
    for source in range(num_sources):
        for unit in range(23):
            takers = [
                consumer
                for consumer in range(num_consumers)
                for own, turn, turns in share_of(num_sources, consumer, num_consumers)
                if own == source and unit % turns == turn
            ]
            assert len(takers) == 1


def folder_reference(model: CLIP, root: Path, class_set: classes.ClassSet) -> torch.Tensor:
    """Scores of all pictures of the image folder, one by one."""
    transform = eval_transform(model.spec.image_size)
    classifier = reference_classifier(model, class_set, TEMPLATES).float()
    rows = []
    with torch.no_grad():
        for file, _ in folder_labels():
            image = normalize_pixels(transform(decode_image((root / file).read_bytes()))[None])
            rows.append(model.encode_image(image)[0] @ classifier.T)
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_image_folder_by_wordnet_id(tiny_model: CLIP, image_folder: Path, batch_size: int):
    # Of some fifty classes only seven have folders: positions among the folders are not positions in the class set.
    whole = classes.imagenet("imagenet1k")
    entries = [
        {"id": key, "name": own[0]}
        for i, (key, own) in enumerate(zip(whole.ids, whole.names, strict=True))
        if key in WNIDS or i % 25 == 3
    ]
    class_set = classes.from_entries(entries, name="some", path=Path())
    found = evaluate_zeroshot(
        tiny_model, str(image_folder), classes=class_set, templates=TEMPLATES, batch_size=batch_size, progress=False
    )
    scores = folder_reference(tiny_model, image_folder, class_set)
    labels = [class_set.index[file.split("/")[0]] for file, _ in folder_labels()]
    assert found.predictions.labels.tolist() == labels
    assert found.predictions.keys.tolist() == [file for file, _ in folder_labels()]
    np.testing.assert_allclose(found.predictions.scores, scores.sort(1, descending=True).values[:, :5], atol=2e-6)
    top = scores.argsort(1, descending=True)
    assert found.predictions.top.tolist() == top[:, :5].tolist()
    hit = top[:, 0].numpy() == labels
    assert found.line["metrics"]["top1"]["value"] == hit.mean()
    assert found.line["metrics"]["top5"]["value"] == np.mean([y in row[:5] for y, row in zip(labels, top, strict=True)])
    recalls = [hit[np.array(labels) == y].mean() for y in set(labels)]
    assert found.line["metrics"]["mean_per_class_recall"]["value"] == pytest.approx(np.mean(recalls), abs=1e-12)
    assert (found.line["num_samples"], found.line["num_classes"]) == (len(labels), len(class_set))
    assert found.line["classes_with_pictures"] == 7


def test_shards_in_clip_benchmarks_layout(tiny_model: CLIP, shard_folder: Path):
    found = evaluate_zeroshot(tiny_model, str(shard_folder), batch_size=4, progress=False)
    assert found.line["dataset"] == "things"
    assert found.line["num_samples"] == 18
    assert found.predictions.labels.tolist() == [number * 5 % 6 for number in range(18)]
    assert found.predictions.keys.tolist() == [f"s{number:04d}" for number in range(18)]
    templates = prompts.PromptSet("", ("a photo of a {c}.", "an odd drawing of one {c}"))
    assert found.line["templates_hash"] == templates.hash
    transform = eval_transform(tiny_model.spec.image_size)
    with torch.no_grad():
        images = torch.stack([transform(picture(100 + number)) for number in range(18)])
        features = tiny_model.encode_image(normalize_pixels(images))
    class_set = classes.from_entries(NAMES, name="", path=Path())
    scores = features @ reference_classifier(tiny_model, class_set, templates).float().T
    assert found.predictions.top[:, 0].tolist() == scores.argmax(1).tolist()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_no_digit(tiny_model: CLIP, shard_folder: Path, image_folder: Path, num_workers: int):
    for data in (shard_folder, image_folder):
        alone = evaluate_zeroshot(tiny_model, str(data), templates=TEMPLATES, batch_size=2, progress=False)
        shared = evaluate_zeroshot(
            tiny_model, str(data), templates=TEMPLATES, batch_size=2, num_workers=num_workers, progress=False
        )
        for name in ARRAYS:
            assert np.array_equal(getattr(alone.predictions, name), getattr(shared.predictions, name)), name
        assert alone.line["metrics"] == shared.line["metrics"]


def test_unreadable_pictures_are_skipped_and_counted(tiny_model: CLIP, image_folder: Path):
    whole = evaluate_zeroshot(tiny_model, str(image_folder), templates=TEMPLATES, batch_size=4, progress=False)
    files = [file for file, _ in folder_labels()]
    (image_folder / files[2]).write_bytes(b"no picture")
    (image_folder / files[9]).write_bytes((image_folder / files[9]).read_bytes()[:60])
    (image_folder / files[11]).write_bytes(b"")
    found = evaluate_zeroshot(tiny_model, str(image_folder), templates=TEMPLATES, batch_size=4, progress=False)
    assert found.line["num_samples"] == len(files) - 3
    assert found.line["skipped"] == {"image damaged": 1, "image empty": 1, "not an image": 1}
    kept = [i for i in range(len(files)) if i not in (2, 9, 11)]
    assert found.predictions.keys.tolist() == [files[i] for i in kept]
    # The others' digits do not move.
    assert np.array_equal(found.predictions.scores, whole.predictions.scores[kept])


def test_nothing_readable_is_an_error(tiny_model: CLIP, image_folder: Path):
    for file, _ in folder_labels():
        (image_folder / file).write_bytes(b"x")
    with pytest.raises(UserError, match=r"no image that can be evaluated .*not an image: 23"):
        evaluate_zeroshot(tiny_model, str(image_folder), templates=TEMPLATES, progress=False)


def test_result_line_has_its_origin(tiny_model: CLIP, image_folder: Path):
    meta = {"run_id": "r1", "seed": 7, "samples_seen": 640, "budget_samples": 640, "schedule": "cosine"}
    line = evaluate_zeroshot(tiny_model, str(image_folder), templates="plain", meta=meta, progress=False).line
    from clip_la.scaling.results import EVALUATION_FIELDS, FIELDS

    assert set(FIELDS) | set(EVALUATION_FIELDS) <= set(line)
    assert {key: line[key] for key in meta} == meta
    assert line["attention"] == line["image_attention"] == "softmax"
    assert line["flops_per_sample"] > 0
    side = tiny_model.spec.image_size // tiny_model.spec.patch_size
    assert (line["image_size"], line["tokens"]) == (tiny_model.spec.image_size, side * side + 1)
    assert line["names"] == "imagenet1k/curated"
    assert line["task"] == "zeroshot_classification"
    json.dumps(line, allow_nan=False)


def test_model_keeps_its_mode(tiny_model: CLIP, image_folder: Path):
    tiny_model.train()
    evaluate_zeroshot(tiny_model, str(image_folder), templates="name", progress=False)
    assert tiny_model.training


class Interrupted(Exception):
    pass


class Breaking:
    """A preprocess that stops the evaluation after some pictures, as a kill would."""

    def __init__(self, inner, after: int) -> None:
        self.inner, self.left = inner, after

    def __repr__(self) -> str:
        # It prepares pictures as the inner one does, so what was evaluated with either is the same.
        return repr(self.inner)

    def __call__(self, image):
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        return self.inner(image)


def test_interrupted_evaluation_goes_on(eval_model: EvalModel, image_folder: Path, tmp_path: Path, monkeypatch):
    import dataclasses

    monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", -1.0)
    arguments = {"templates": TEMPLATES, "batch_size": 3, "progress": False}
    whole = evaluate_zeroshot(eval_model, str(image_folder), **arguments)
    breaking = dataclasses.replace(eval_model, preprocess=Breaking(eval_model.preprocess, 13))
    with pytest.raises(Interrupted):
        evaluate_zeroshot(breaking, str(image_folder), state=tmp_path / "state", **arguments)
    # Twelve pictures, four units, are kept: twelve more to go.
    counting = dataclasses.replace(eval_model, preprocess=Breaking(eval_model.preprocess, 11))
    again = evaluate_zeroshot(counting, str(image_folder), state=tmp_path / "state", **arguments)
    assert counting.preprocess.left == 0
    assert {**again.line, "date": ""} == {**whole.line, "date": ""}
    for name in ARRAYS:
        assert np.array_equal(getattr(again.predictions, name), getattr(whole.predictions, name)), name
    stored = Predictions.load(tmp_path / "state" / f"{again.line['evaluation']}.npz")
    assert np.array_equal(stored.scores, whole.predictions.scores)
    assert not list((tmp_path / "state").glob("*.parts"))


def test_damaged_part_is_done_again(eval_model: EvalModel, image_folder: Path, tmp_path: Path, monkeypatch, capsys):
    import dataclasses

    monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", -1.0)
    arguments = {"templates": TEMPLATES, "batch_size": 3, "progress": False, "state": tmp_path}
    breaking = dataclasses.replace(eval_model, preprocess=Breaking(eval_model.preprocess, 13))
    with pytest.raises(Interrupted):
        evaluate_zeroshot(breaking, str(image_folder), **arguments)
    part = sorted(tmp_path.glob("*.parts/*.npz"))[0]
    part.write_bytes(part.read_bytes()[:100])
    found = evaluate_zeroshot(eval_model, str(image_folder), **arguments)
    assert found.line["num_samples"] == 23
    assert "evaluated again" in capsys.readouterr().err


def test_evaluation_id_changes_with_all_it_depends_on(eval_model: EvalModel, image_folder: Path):
    def identify(**changes):
        arguments = {"templates": TEMPLATES, "batch_size": 3, "progress": False, **changes}
        return evaluate_zeroshot(arguments.pop("model", eval_model), str(image_folder), **arguments).line["evaluation"]

    some = classes.from_entries([{"id": key, "name": key} for key in WNIDS], name="some", path=Path())
    ids = [identify(), identify(templates="name"), identify(batch_size=4), identify(classes=some)]
    (image_folder / "n02123045" / "7.png").write_bytes(picture(77))
    ids.append(identify())
    with torch.no_grad():
        eval_model.module.image.projection.weight.mul_(1.5)
    ids.append(identify(model=of_model(eval_model.module)))
    assert len(set(ids)) == len(ids)
    assert identify(model=of_model(eval_model.module)) == ids[-1]


def test_cache_gives_the_same_and_notices_damage(eval_model: EvalModel, tmp_path: Path, capsys):
    class_set = classes.from_entries(["a", "b", "c c"], name="x", path=Path())
    cache = ClassifierCache(tmp_path)
    built = build_classifier(eval_model, class_set, TEMPLATES, cache=cache, progress=False)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    calls: list[int] = []
    original = eval_model.module.encode_text
    eval_model.module.encode_text = lambda *a, **k: calls.append(1) or original(*a, **k)  # type: ignore[method-assign]

    def build() -> torch.Tensor:
        return build_classifier(eval_model, class_set, TEMPLATES, cache=cache, progress=False)

    assert torch.equal(build(), built)
    assert not calls
    for damaged in (whole[: len(whole) // 2], whole[:-4], b"", whole[:-2] + b"\x00\x01"):
        file.write_bytes(damaged)
        calls.clear()
        assert torch.equal(build(), built)
        assert calls
        assert "damaged" in capsys.readouterr().err


def test_stale_cache_is_noticed(eval_model: EvalModel, tmp_path: Path, capsys):
    cache = ClassifierCache(tmp_path)
    first = classes.from_entries(["a", "b"], name="x", path=Path())
    second = classes.from_entries(["a", "c"], name="x", path=Path())
    build_classifier(eval_model, first, TEMPLATES, cache=cache, progress=False)
    (file,) = tmp_path.iterdir()
    build_classifier(eval_model, second, TEMPLATES, cache=cache, progress=False)
    (other,) = set(tmp_path.iterdir()) - {file}
    expected = build_classifier(eval_model, second, TEMPLATES, progress=False)
    other.write_bytes(file.read_bytes())
    assert torch.equal(build_classifier(eval_model, second, TEMPLATES, cache=cache, progress=False), expected)
    assert "stale" in capsys.readouterr().err


def test_open_test_set_names():
    assert default_name("/data/imagenet/val") == "imagenet-val"
    assert default_name("/data/things/{000..003}.tar") == "things"
    with pytest.raises(UserError, match="no data at /nowhere/at/all; expected class folders"):
        open_dataset("/nowhere/at/all")
