"""Scenes of 32 pixels drawn from six shapes, and a softmax model that was trained on them for a few steps."""

import itertools

import pytest
import torch

from clip_la.convert.cli import main as convert
from clip_la.convert.options import STAGES
from clip_la.data.corpora.scenes import Actor, SceneSource
from clip_la.data.tools.pack import pack
from clip_la.train.cli import main as train

from .stages import BATCH, of_stages

SHAPES = ('<circle cx="5" cy="5" r="5" fill="{}"/>', '<rect width="10" height="10" fill="{}"/>')
COLORS = {"crimson": "#dc143c", "navy": "#000080", "olive": "#808000"}


def cast():
    drawings = itertools.product(COLORS.items(), zip(("disc", "square"), SHAPES, strict=True))
    return [
        Actor(
            f"{name} {shape}",
            f"a {name} {shape}",
            "test",
            f"{number:04X}",
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10">{svg.format(color)}</svg>',
        )
        for number, ((name, color), (shape, svg)) in enumerate(drawings)
    ]


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A folder of one shard of 128 scenes."""
    folder = tmp_path_factory.mktemp("scenes") / "train"
    pack(SceneSource(cast(), 128, 0, 32), folder, per_shard=128, workers=1, check_pixels=False, quiet=True)
    return str(folder)


@pytest.fixture(scope="session")
def unseen():
    """(png, caption) of scenes of the same cast that are in no shard."""
    return [(raw.image, raw.caption) for raw in SceneSource(cast(), 40, 1, 32).read(0, 0, 40)]


@pytest.fixture(scope="session")
def data(shards):
    """Options of the data, as the command line has them."""
    cached = ("--data.cache", "memory", "--data.workers", "0", "--data.batch_size", str(BATCH))
    return ["--data.shards", shards, *cached, "--accelerator", "cpu"]


def trained(out, data, *more):
    """The folder of a run of vit_nano, 20 steps long."""
    options = ["--model.name", "vit_nano", "--model.lr", "0.002", "--budget_samples", str(20 * BATCH)]
    assert train([*options, *data, "--tensorboard", "false", "--out", str(out), *more]) == 0
    return out


@pytest.fixture(scope="session")
def teacher(data, tmp_path_factory):
    """A softmax run."""
    return trained(tmp_path_factory.mktemp("runs") / "teacher", data)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Sums in one order, hence equal bits."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared(teacher, data):
    rates = ["--layers.lr", "0.001", "--features.lr", "0.0005", "--save_every_samples", str(3 * BATCH)]
    stages = ["--stages", ",".join(STAGES)]
    return [str(teacher), "--attention", "linear_mean", *stages, *data, *of_stages(), *rates]


@pytest.fixture(scope="session")
def converted(shared, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    assert convert([*shared, "--log_every_samples", str(2 * BATCH), "--out", str(out)]) == 0
    return out
