"""A corpus of sixteen kinds of coloured shapes, drawn here and written as real shards."""

import io
import itertools

import pytest
import torch
from PIL import Image, ImageDraw

from clip_la.data.shards.reader import ShardWriter
from clip_la.runs import RunFolder
from tests.train.runs import BATCH, BUDGET, train

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (230, 200, 20)}
SHAPES = ("circle", "square", "triangle", "bar")
SIDE_PX = 40
PER_KIND = 6


def drawing(colour, shape, number):
    """One PNG: the shape in its colour, at a place and size that depend on the number."""
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
    x, size = 4 + 2 * (number % 3), 20 + 3 * (number // 3)
    box = (x, x, x + size, x + size)
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "triangle":
        draw.polygon([(x, x + size), (x + size, x + size), (x + size / 2, x)], fill=COLOURS[colour])
    else:
        draw.rectangle(box if shape == "square" else (x, x, x + size / 3, x + size), fill=COLOURS[colour])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Two shards of 48 pairs each, 16 captions in all; the pattern that names both."""
    folder = tmp_path_factory.mktemp("shapes")
    kinds = list(itertools.product(COLOURS, SHAPES, range(PER_KIND)))
    for shard in range(2):
        with ShardWriter(folder / f"{shard:05d}.tar") as writer:
            for number, (colour, shape, variant) in enumerate(kinds[shard::2]):
                png = drawing(colour, shape, variant)
                writer.write({"__key__": f"{number:04d}", ".png": png, ".txt": f"a {colour} {shape}"})
    return str(folder / "{00000..00001}.tar")


@pytest.fixture
def run_options(shards):
    """Options of a small run, as the command line has them."""
    return [
        *("--model.name", "vit_pico", "--model.lr", "0.003", "--data.shards", shards, "--data.batch_size", "16"),
        *("--data.workers", "0", "--data.cache", "memory", "--tensorboard", "false", "--accelerator", "cpu"),
    ]


@pytest.fixture(scope="session")
def shared(shards):
    """Options of a run that is cut in many ways: a row each two batches, a checkpoint for resuming each three."""
    return [
        *("--model.name", "vit_pico", "--model.lr", "0.003", "--data.shards", shards, "--data.batch_size", str(BATCH)),
        *("--data.workers", "0", "--data.cache", "memory", "--tensorboard", "false", "--accelerator", "cpu"),
        *("--budget_samples", str(BUDGET), "--log_every_samples", str(2 * BATCH)),
        *("--save_every_samples", str(3 * BATCH), "--checkpoint_samples", f"[{4 * BATCH}, {7 * BATCH - 3}]"),
        *("--model.patch_dropout", "0.25"),
    ]


@pytest.fixture(scope="session")
def uninterrupted(shared, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(out, shared) == 0
    # Decided for this hardware, and kept by a run that goes on elsewhere.
    assert RunFolder(out).read_config()["model"]["compile"] is False
    return out


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Sums in one order, hence equal bits."""
    torch.set_num_threads(1)
