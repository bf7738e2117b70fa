"""The same figures as CLIP_benchmark's own functions, on the same model and data."""

import io
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from clip_la import results
from clip_la.cli import main
from clip_la.data.shards.reader import ShardWriter
from clip_la.models.clip import CLIP
from clip_la.models.interop import to_open_clip, to_open_clip_config
from clip_la.zeroshot.datasets.shards import open_caption_shards
from clip_la.zeroshot.labels import classes, prompts
from clip_la.zeroshot.model.eval_model import EvalModel, of_model
from clip_la.zeroshot.model.open_clip import wrap_open_clip
from clip_la.zeroshot.report import tables
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.runner.rows import Predictions
from clip_la.zeroshot.tasks.classification import evaluate_zeroshot
from clip_la.zeroshot.tasks.retrieval import Retrieval

from .conftest import folder_labels, picture

classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")

NAMES = ("tench", "tabby cat", "umbrella", "bell", "banana", "chihuahua", "prison cell")
TEMPLATES = ("a photo of a {c}.", "the {c}", "a bad drawing of many {c} in the rain")


@pytest.fixture
def theirs(tiny_model: CLIP) -> torch.nn.Module:
    """open_clip's module with the weights of the tiny model."""
    config = to_open_clip_config(tiny_model.spec)
    module = open_clip.CLIP(**config).eval()
    missing, unexpected = module.load_state_dict(to_open_clip(tiny_model), strict=False)
    assert not unexpected
    assert set(missing) <= {"attn_mask"}
    return module


class Listed(Dataset):
    """Pictures from bytes with their targets, through open_clip's transform."""

    def __init__(self, entries: list[tuple[bytes, object]], size: int) -> None:
        self.entries, self.classes = entries, NAMES
        self.transform = open_clip.image_transform(size, is_train=False)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, object]:
        data, target = self.entries[index]
        return self.transform(Image.open(io.BytesIO(data))), target


def patched_accuracy(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """CLIP_benchmark's `accuracy` to the letter, but for a conversion that NumPy refuses since 2.4."""
    pred = output.topk(max(topk), 1, True, True)[1].t()
    correct = pred.eq(target.view(1, -1).expand_as(pred))
    n = len(target)
    return [float(correct[:k].reshape(-1).float().sum(0, keepdim=True).cpu().numpy()[0]) / n for k in topk]


def test_classification(tiny_model: CLIP, theirs: torch.nn.Module, image_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(classification, "accuracy", patched_accuracy)
    entries = [((image_folder / file).read_bytes(), label) for file, label in folder_labels()]
    tokenizer = open_clip.SimpleTokenizer(context_length=tiny_model.spec.context_length)
    loader = DataLoader(Listed(entries, tiny_model.spec.image_size), batch_size=5)
    expected = classification.evaluate(theirs, loader, tokenizer, list(NAMES), list(TEMPLATES), "cpu", amp=False)
    order = sorted({file.split("/")[0] for file, _ in folder_labels()})
    class_set = classes.from_entries(
        [{"id": key, "name": name} for key, name in zip(order, NAMES, strict=True)], name="x", path=Path()
    )
    found = evaluate_zeroshot(
        tiny_model,
        str(image_folder),
        classes=class_set,
        templates=prompts.PromptSet("t", TEMPLATES),
        batch_size=4,
        progress=False,
    )
    ours = json.loads(tables.write_clip_benchmark(found.line, tmp_path).read_text())["metrics"]
    assert 0 < expected["acc1"] < 1
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name


def test_open_clips_logits_and_top1(theirs: torch.nn.Module, tiny_model: CLIP, image_folder: Path):
    entries = [((image_folder / file).read_bytes(), label) for file, label in folder_labels()]
    tokenizer = open_clip.SimpleTokenizer(context_length=tiny_model.spec.context_length)
    images = torch.stack([image for image, _ in Listed(entries, tiny_model.spec.image_size)])  # type: ignore[attr-defined]
    with torch.no_grad():
        functions = [lambda c, t=t: t.format(c=c) for t in TEMPLATES]
        classifier = open_clip.build_zero_shot_classifier(theirs, tokenizer, NAMES, functions)
        logits = 100 * theirs.encode_image(images, normalize=True) @ classifier
    expected = logits.sort(1, descending=True)
    class_set = classes.from_entries(
        [
            {"id": key, "name": name}
            for key, name in zip(sorted({f.split("/")[0] for f, _ in folder_labels()}), NAMES, strict=True)
        ],
        name="x",
        path=Path(),
    )
    for eval_model in (of_model(tiny_model), wrapped(theirs, tiny_model)):
        found = evaluate_zeroshot(
            eval_model,
            str(image_folder),
            classes=class_set,
            templates=prompts.PromptSet("t", TEMPLATES),
            batch_size=4,
            progress=False,
        )
        np.testing.assert_allclose(100 * found.predictions.scores, expected.values[:, :5], atol=1e-4)
        assert found.predictions.top[:, 0].tolist() == expected.indices[:, 0].tolist()


def test_a_file_of_weights_of_any_open_clip_model(shard_folder: Path, tmp_path: Path, monkeypatch):
    """RN50, whose towers are not ours, by the command line."""
    monkeypatch.chdir(tmp_path)
    module, _, preprocess = open_clip.create_model_and_transforms("RN50")
    torch.save(module.eval().state_dict(), "weights.pt")
    arguments = ["--data", str(shard_folder), "--workers", "0", "--cache", "none", "--batch-size", "6"]
    assert main(["eval", "RN50:weights.pt", *arguments, "--device", "cpu", "--out", "results.jsonl"]) == 0
    (line,) = results.read("results.jsonl")
    found = Predictions.load(f"predictions/{line['evaluation']}.npz")
    assert (line["model"], line["checkpoint"], line["num_samples"]) == ("RN50", "RN50:weights.pt", 18)

    names = (shard_folder / "classnames.txt").read_text().split("\n")[:-1]
    templates = [lambda c: f"a photo of a {c}.", lambda c: f"an odd drawing of one {c}"]
    with torch.no_grad():
        classifier = open_clip.build_zero_shot_classifier(module, open_clip.get_tokenizer("RN50"), names, templates)
        images = torch.stack([preprocess(Image.open(io.BytesIO(picture(100 + n)))) for n in range(18)])
        expected = (100 * module.encode_image(images, normalize=True) @ classifier).sort(1, descending=True)
    np.testing.assert_allclose(100 * found.scores, expected.values[:, :5], atol=1e-4)
    assert found.top[:, 0].tolist() == expected.indices[:, 0].tolist()


def wrapped(module: torch.nn.Module, model: CLIP) -> EvalModel:
    """open_clip's module through our protocol; its registry lacks this size, so the tokenizer is set by hand."""
    import dataclasses

    settings = open_clip.transform.PreprocessCfg(size=model.spec.image_size)
    open_clip.model.set_model_preprocess_cfg(module, dataclasses.asdict(settings))
    eval_model = wrap_open_clip(module, "ViT-B-32", "")
    tokenizer = open_clip.SimpleTokenizer(context_length=model.spec.context_length)
    return dataclasses.replace(eval_model, tokenize=lambda texts: tokenizer(list(texts)))


CAPTIONS = (1, 3, 2, 5, 1, 4, 2, 2, 1, 3, 5, 1, 2)


@pytest.fixture
def caption_shards(tmp_path: Path) -> tuple[Path, list[tuple[bytes, list[str]]]]:
    entries = []
    folder = tmp_path / "captioned"
    folder.mkdir()
    words = ("red", "green", "blue", "cat", "house", "river", "tall", "tiny")
    for shard, numbers in enumerate((range(5), range(5, 13))):
        with ShardWriter(folder / f"{shard}.tar") as writer:
            for n in numbers:
                captions = [
                    f"{words[(n + i) % 8]} {words[(3 * n + i) % 8]} number {n * 7 + i}" for i in range(CAPTIONS[n])
                ]
                entries.append((picture(200 + n), captions))
                writer.write({"__key__": f"k{n:03d}", ".png": picture(200 + n), ".txt": "\n".join(captions)})
    return folder, entries


def collate(batch: list[tuple[torch.Tensor, list[str]]]) -> tuple[torch.Tensor, list[list[str]]]:
    return torch.stack([image for image, _ in batch]), [captions for _, captions in batch]


def test_retrieval(tiny_model: CLIP, theirs: torch.nn.Module, caption_shards):
    folder, entries = caption_shards
    tokenizer = open_clip.SimpleTokenizer(context_length=tiny_model.spec.context_length)
    loader = DataLoader(Listed(entries, tiny_model.spec.image_size), batch_size=4, collate_fn=collate)
    expected = retrieval.evaluate(theirs, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    task = Retrieval(open_caption_shards(str(folder), "x"))
    line = task.run(of_model(tiny_model), EvalSettings(batch_size=3, progress=False)).line
    assert line["num_samples"] == 13
    assert line["num_captions"] == sum(CAPTIONS)
    assert any(0 < value < 1 for value in expected.values())
    for name, value in expected.items():
        assert line["metrics"][name]["value"] == pytest.approx(value, abs=1e-6), name


def test_median_ranks(tiny_model: CLIP, theirs: torch.nn.Module, caption_shards):
    folder, entries = caption_shards
    tokenizer = open_clip.SimpleTokenizer(context_length=tiny_model.spec.context_length)
    with torch.no_grad():
        images = torch.stack([image for image, _ in Listed(entries, tiny_model.spec.image_size)])  # type: ignore[attr-defined]
        images = theirs.encode_image(images, normalize=True)
        texts = theirs.encode_text(tokenizer([c for _, own in entries for c in own]), normalize=True)
    owners = [n for n, count in enumerate(CAPTIONS) for _ in range(count)]
    scores = (texts @ images.T).numpy()
    by_text = [1 + int((row > row[owner]).sum()) for row, owner in zip(scores, owners, strict=True)]
    by_image = [
        1 + min(int((column > column[t]).sum()) for t, owner in enumerate(owners) if owner == n)
        for n, column in enumerate(scores.T)
    ]
    task = Retrieval(open_caption_shards(str(folder), "x"))
    line = task.run(of_model(tiny_model), EvalSettings(batch_size=3, progress=False)).line
    assert line["metrics"]["image_retrieval_median_rank"]["value"] == np.median(by_text)
    assert line["metrics"]["text_retrieval_median_rank"]["value"] == np.median(by_image)


def test_result_files_that_clip_benchmark_builds_from(tiny_model: CLIP, image_folder: Path, tmp_path: Path):
    import argparse

    from clip_benchmark.cli import main_build

    line = evaluate_zeroshot(tiny_model, str(image_folder), templates="name", progress=False).line
    path = tables.write_clip_benchmark({**line, "checkpoint": "runs/a/b.ckpt"}, tmp_path)
    assert set(json.loads(path.read_text())) == {"dataset", "model", "pretrained", "task", "metrics", "language"}
    main_build(argparse.Namespace(files=[str(path)], output=str(tmp_path / "table.csv")))
    header, row = (tmp_path / "table.csv").read_text().splitlines()
    assert {"acc1", "acc5", "mean_per_class_recall", "model_fullname"} <= set(header.split(","))
    assert "tiny runs/a/b.ckpt" in row
