"""Stages of small conversions: their sizes as options, and what they leave in their folders."""

import csv
import itertools
from pathlib import Path

import torch

from clip_la.models import load_checkpoint
from clip_la.runs import RunFolder
from clip_la.zeroshot.model.eval_model import of_model

BATCH = 16
SAMPLES = {"layers": 12 * BATCH, "features": 10 * BATCH, "tune": 6 * BATCH}
PATIENCE_S = 120


def of_stages(samples=SAMPLES):
    return [*itertools.chain.from_iterable((f"--{name}.samples", str(number)) for name, number in samples.items())]


def end(out, stage):
    """The newest checkpoint of a stage."""
    return next(reversed(RunFolder(Path(out) / stage).saved_checkpoints().values()))


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def rows(out, stage):
    with (Path(out) / stage / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@torch.no_grad()
def features(path, pairs):
    """Of pictures and of captions, by the model in a checkpoint."""
    eval_model = of_model(load_checkpoint(path)[0])
    images = torch.stack([eval_model.preprocess(png) for png, _ in pairs])
    tokens = eval_model.tokenize([caption for _, caption in pairs])
    return eval_model.encode_images(images, "float32"), eval_model.encode_texts(tokens, "float32")


def distances(one, other, pairs):
    """1 - cosine of image and of text features of two checkpoints."""
    both = zip(features(one, pairs), features(other, pairs), strict=True)
    return [1 - (a * b).sum(-1).mean().item() for a, b in both]
