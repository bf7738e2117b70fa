"""The contrastive loss of held-out pairs against open_clip's own, and what else a line says for scaling laws."""

import math
from pathlib import Path

import open_clip
import pytest
import torch

from clip_la.data.shards.reader import ShardWriter
from clip_la.models.clip import CLIP
from clip_la.zeroshot.datasets.shards import open_caption_shards
from clip_la.zeroshot.model.eval_model import of_model
from clip_la.zeroshot.model.open_clip import wrap_open_clip
from clip_la.zeroshot.options import SuiteEntry
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.suite import prepare
from clip_la.zeroshot.tasks import retrieval
from clip_la.zeroshot.tasks.retrieval import Retrieval, pair_losses

from .conftest import picture
from .reference import Reference

SETTINGS = EvalSettings(batch_size=4, progress=False)
LOGIT_SCALE = 37.0
# Of each image, in two shards; the loss takes the first.
CAPTIONS = [[f"a thing {n}", f"more of {n * n}"][: 1 + n % 2] for n in range(11)]


@pytest.fixture
def model(tiny_model: CLIP) -> CLIP:
    with torch.no_grad():
        tiny_model.logit_scale.fill_(math.log(LOGIT_SCALE))
    return tiny_model


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    (tmp_path / "pairs").mkdir()
    for shard, numbers in enumerate((range(6), range(6, 11))):
        with ShardWriter(tmp_path / "pairs" / f"{shard}.tar") as writer:
            for n in numbers:
                writer.write({"__key__": f"k{n}", ".png": picture(n), ".txt": "\n".join(CAPTIONS[n])})
    return str(tmp_path / "pairs")


@pytest.mark.parametrize(("size", "num_pairs"), [(4, 8), (11, 11), (256, 11)])
def test_it_is_open_clips_loss(model: CLIP, pairs: str, size: int, num_pairs: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retrieval, "PAIRS_PER_BATCH", size)
    line = Retrieval(open_caption_shards(pairs, "x")).run(of_model(model), SETTINGS).line
    theirs, loss = Reference(model), open_clip.ClipLoss()
    images = theirs.images([picture(n) for n in range(11)]).double()
    texts = theirs.texts([own[0] for own in CAPTIONS]).double()
    step = min(size, 11)
    losses = [
        float(loss(images[start : start + step], texts[start : start + step], torch.tensor(LOGIT_SCALE).double()))
        for start in range(0, num_pairs, step)
    ]
    found = line["metrics"]["contrastive_loss"]
    assert found["value"] == pytest.approx(sum(losses) / len(losses), abs=2e-5)
    assert found["low"] < found["value"] < found["high"]
    assert (line["contrastive_batch_size"], line["contrastive_pairs"]) == (step, num_pairs)
    assert line["logit_scale"] == pytest.approx(LOGIT_SCALE, rel=1e-6)


def test_it_is_exact_in_float64():
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(600, 9, generator=generator), dim=1) for _ in range(2))
    found, loss = pair_losses(images, texts, LOGIT_SCALE), open_clip.ClipLoss()
    assert len(found) == 512
    for start in (0, 256):
        rows = slice(start, start + 256)
        expected = loss(images[rows].double(), texts[rows].double(), LOGIT_SCALE)
        assert found[rows].mean() == pytest.approx(float(expected), rel=1e-13)


def test_another_scale_is_another_result(model: CLIP, pairs: str):
    task = Retrieval(open_caption_shards(pairs, "x"))
    first = task.run(of_model(model), SETTINGS).line
    with torch.no_grad():
        model.logit_scale.fill_(0.0)
    second = task.run(of_model(model), SETTINGS).line
    assert first["evaluation"] != second["evaluation"]
    assert second["metrics"]["contrastive_loss"]["value"] == pytest.approx(math.log(11), abs=0.05)
    ranks = [name for name in first["metrics"] if name != "contrastive_loss"]
    assert [first["metrics"][name] for name in ranks] == [second["metrics"][name] for name in ranks]


def test_lines_say_how_large_the_image_tower_is(model: CLIP, pairs: str, shard_folder: Path):
    data = str(shard_folder)
    entries = [SuiteEntry(pairs, task="zeroshot_retrieval"), SuiteEntry(data), SuiteEntry(data, task="knn", train=data)]
    for entry in entries:
        line = prepare(entry).run(of_model(model), SETTINGS).line
        # 32 pixels in patches of 16, and the class token.
        assert (line["tokens"], line["image_size"]) == (5, 32)
        assert line["image_attention"] == line["text_attention"] == "softmax"
        assert line["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("ViT-S-32", {"tokens": 50, "image_size": 224}),
        ("vit_medium_patch16_gap_256", {"tokens": 256, "image_size": 256}),
        ("RN50", {"tokens": None, "image_size": 224}),
    ],
)
def test_sizes_of_open_clips_towers(name: str, sizes: dict):
    module = open_clip.create_model(name)
    assert wrap_open_clip(module, name, "").sizes == sizes
    if sizes["tokens"] is not None:
        seen: list[torch.Size] = []
        transformer = module.visual.trunk.blocks[0] if hasattr(module.visual, "trunk") else module.visual.transformer
        transformer.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape))
        with torch.no_grad():
            module.encode_image(torch.zeros(1, 3, sizes["image_size"], sizes["image_size"]))
        assert seen[0][1] == sizes["tokens"]
