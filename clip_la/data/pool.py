"""A small corpus decoded once into memory; batches are then made by tensor operations alone.

Decoding 128 small PNGs and augmenting them one by one takes longer than a training step of a small model; from the pool
a batch takes a few milliseconds.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from clip_la.data.augment import CAPTION, Augmentation, random_crops
from clip_la.data.captions import Captions
from clip_la.data.problems import BadSample, OnProblem, Problem
from clip_la.data.resample import resample
from clip_la.data.rows import Limits, Row, jitter_batch, read_picture
from clip_la.data.shards import KEY, SHARD, read_samples
from clip_la.data.watch import TimeLimit
from clip_la.errors import UserError

# Decoded pixels that a pool may take; beyond, streaming is the right way.
MAX_POOL_BYTES = 8 << 30
OPAQUE = 255.0


class Pool:
    """All samples of some sources, decoded: centre squares of the side that random crops of the model's size need.

    Transparent pictures keep their alpha, with colours multiplied by it, so that each time another background can show.
    """

    def __init__(self, captions: Captions, augmentation: Augmentation, limits: Limits) -> None:
        self._captions = captions
        self._augmentation = augmentation
        self._limits = limits
        self._side = math.ceil(augmentation.image_size / math.sqrt(augmentation.min_crop_area))
        self._samples: list[tuple[str, str, list[list[str]]]] = []
        self._pictures: list[UInt8[np.ndarray, "side channels side"]] = []
        self._canvas: UInt8[Tensor, "samples side channels side"] | None = None

    def add(self, samples: Iterable[dict[str, Any]], on_problem: OnProblem) -> range:
        """Decodes samples into the pool and returns the numbers they got; what cannot be used goes to `on_problem`."""
        first = len(self._samples)
        for sample in samples:
            try:
                with TimeLimit(sample[SHARD], sample[KEY]):
                    captions = self._captions.read(sample)
                    picture = _premultiplied(_square(read_picture(sample, self._limits), self._side))
            except BadSample as bad:
                on_problem(Problem(bad.reason, sample[SHARD], sample[KEY]))
                continue
            self._pictures.append(picture)
            self._samples.append((sample[KEY], sample[SHARD], captions))
            if len(self._samples) * self._pictures[-1].size > MAX_POOL_BYTES:
                raise UserError(
                    f"cache 'memory': more than {MAX_POOL_BYTES >> 30} GiB of decoded pictures; use cache 'none'"
                )
        return range(first, len(self._samples))

    def seal(self) -> None:
        """Puts all pictures into one tensor; nothing can be added afterwards."""
        channels = max((picture.shape[1] for picture in self._pictures), default=3)
        canvas = np.full((len(self._pictures), self._side, channels, self._side), int(OPAQUE), np.uint8)
        for place, picture in zip(canvas, self._pictures, strict=True):
            place[:, : picture.shape[1]] = picture
        self._canvas = torch.from_numpy(canvas)
        self._pictures = []

    def row(self, number: int, draws: Sequence[float]) -> Row:
        """The row of sample `number`; its picture is that number."""
        key, shard, captions = self._samples[number]
        return Row(key, shard, self._captions.pick(captions, draws[CAPTION]), number)

    def pictures(self, rows: Sequence[Row], draws: np.ndarray) -> dict[str, Any]:
        """`image` UInt8[batch, 3, size, size] of a batch, each augmented by its own draws."""
        return {"image": self._images(rows, draws)}

    def _images(self, rows: Sequence[Row], draws: np.ndarray) -> UInt8[Tensor, "batch 3 size size"]:
        assert self._canvas is not None
        augmentation, numbers = self._augmentation, torch.tensor([row.picture for row in rows])
        canvas = self._canvas[numbers].float()
        if canvas.shape[2] == 4:
            colors = augmentation.background_colors(draws)[:, None, :, None]
            canvas = torch.addcmul(canvas[:, :, :3], colors, 1 - canvas[:, :, 3:] / OPAQUE)
        # Stored rows, channels, columns: the transpose gives the usual order without moving anything.
        images = canvas.transpose(1, 2)
        if augmentation.min_crop_area < 1:
            boxes = random_crops(self._side, augmentation.min_crop_area, draws)
            images = resample(images, boxes, augmentation.image_size)
        if augmentation.flip:
            mirrored = torch.tensor([augmentation.is_flipped(row) for row in draws])
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        pixels = images.round().clamp_(0, OPAQUE).to(torch.uint8).contiguous()
        return jitter_batch(pixels, augmentation, draws) if augmentation.jitter else pixels


class Filled(NamedTuple):
    """A sealed pool, and for each source the numbers of its samples and what could not be used."""

    pool: Pool
    members: tuple[range, ...]
    problems: tuple[tuple[Problem, ...], ...]


def fill_pool(
    sources: Sequence[tuple[str, ...]],
    captions: Captions,
    augmentation: Augmentation,
    limits: Limits,
    opener: Callable[[str], IO[bytes]],
) -> Filled:
    """Decodes the shards of each source into one pool.

    The last pool is kept: runs that follow each other in one process on the same, unchanged shards share it.
    """
    stamps = tuple(_stamp(url) for urls in sources for url in urls)
    return _fill(tuple(sources), stamps, captions, augmentation, limits, opener)


def _stamp(url: str) -> tuple[int, int] | None:
    """Tells another state of a local file: size and time of change; None for what is no local file."""
    if not os.path.isfile(url):
        return None
    state = os.stat(url)
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=1)
def _fill(
    sources: tuple[tuple[str, ...], ...],
    stamps: tuple[tuple[int, int] | None, ...],
    captions: Captions,
    augmentation: Augmentation,
    limits: Limits,
    opener: Callable[[str], IO[bytes]],
) -> Filled:
    pool = Pool(captions, augmentation, limits)
    members, problems = [], []
    for urls in sources:
        found: list[Problem] = []
        reads = [read_samples(url, on_problem=found.append, opener=opener) for url in urls]
        members.append(pool.add(chain.from_iterable(reads), found.append))
        problems.append(tuple(found))
    pool.seal()
    return Filled(pool, tuple(members), tuple(problems))


def _square(image: Image.Image, side: int) -> Image.Image:
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    return image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))


def _premultiplied(image: Image.Image) -> UInt8[np.ndarray, "side channels side"]:
    pixels = np.asarray(image)
    if image.mode == "RGBA":
        alpha = pixels[:, :, 3:].astype(np.float32) / OPAQUE
        pixels = np.concatenate([(pixels[:, :, :3] * alpha).round().astype(np.uint8), pixels[:, :, 3:]], axis=2)
    return pixels.transpose(0, 2, 1)
