"""A tiny model, and pictures of plain colours whose class is in the colour."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_la.data.shards.reader import ShardWriter
from clip_la.models.clip import CLIP, model_from_spec
from clip_la.models.spec import ModelSpec
from clip_la.zeroshot.model.eval_model import EvalModel, of_model

# Seven ids of ImageNet-1K, neither sorted nor neighbours.
WNIDS = ("n02123045", "n01440764", "n03017168", "n07753592", "n02085620", "n04507155", "n03950228")
PER_CLASS = (5, 3, 4, 1, 6, 2, 2)


def picture(seed: int, size: tuple[int, int] = (41, 37)) -> bytes:
    """A PNG of low-frequency noise; equal seeds, equal bytes."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    return ModelSpec(
        name="tiny",
        embed_dim=24,
        image_size=32,
        patch_size=16,
        image_width=32,
        image_layers=2,
        image_heads=2,
        text_width=32,
        text_layers=2,
        text_heads=2,
        context_length=40,
    )


@pytest.fixture
def tiny_model(tiny_spec: ModelSpec) -> CLIP:
    model = model_from_spec(tiny_spec, seed=3)
    with torch.no_grad():
        # Initial features are nearly parallel; larger token embeddings spread them, so that classes differ.
        model.text.token_embedding.weight.mul_(20)
    return model.eval()


@pytest.fixture
def eval_model(tiny_model: CLIP) -> EvalModel:
    return of_model(tiny_model)


def folder_labels() -> list[tuple[str, int]]:
    """(file, class by position in the sorted ids) of `image_folder`, in the order of the engine."""
    order = sorted(WNIDS)
    counts = dict(zip(WNIDS, PER_CLASS, strict=True))
    return [(f"{wnid}/{i}.png", order.index(wnid)) for wnid in order for i in range(counts[wnid])]


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    root = tmp_path / "colours"
    for number, (file, _) in enumerate(folder_labels()):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return root


NAMES = ("red panda", "tea pot", "umbrella", "zebra", "oak", "violin")


def write_shards(folder: Path, sizes: tuple[int, ...] = (7, 5, 6)) -> None:
    """Shards in CLIP_benchmark's layout: test/N.tar with .cls, classnames.txt and templates beside."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nan odd drawing of one {c}\n")
    (folder / "test").mkdir(exist_ok=True)
    (folder / "test" / "nshards.txt").write_text(str(len(sizes)))
    number = 0
    for shard, size in enumerate(sizes):
        with ShardWriter(folder / "test" / f"{shard}.tar") as writer:
            for _ in range(size):
                label = number * 5 % len(NAMES)
                fields = {"class": NAMES[label]}
                parts = {".png": picture(100 + number), ".cls": str(label), ".json": json.dumps(fields)}
                writer.write({"__key__": f"s{number:04d}", **parts})
                number += 1


@pytest.fixture
def shard_folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "things")
    return tmp_path / "things"
