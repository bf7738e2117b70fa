"""A pool: the decoded images of a small corpus in one tensor, from which tensor operations alone make batches.

Decoding 128 small PNGs and augmenting them one by one takes longer than a training step of a small model; from the pool
a batch takes a few milliseconds, of which hardly any is the processor's where the pool lies on a GPU.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from torch import Tensor

from clip_la.data.images.augment import CAPTION, FLIP, JITTER, Augmentation, jitter_colors, random_crops
from clip_la.data.images.limits import Limits
from clip_la.data.images.resample import resample
from clip_la.data.options import StreamOptions
from clip_la.data.shards.formats import KEY, URL
from clip_la.data.shards.problems import BadSample, OnProblem, Problem
from clip_la.data.shards.sources import GIB
from clip_la.data.stream.in_memory_captions import CaptionTable
from clip_la.data.stream.in_memory_decode import OPAQUE, DecodedShard, DecodingThreads, Recipe, Sample
from clip_la.data.stream.in_memory_store import DecodedStore
from clip_la.data.text.captions import Captions
from clip_la.errors import UserError

# Decoded pixels that a pool may take unless more is asked for; beyond, streaming is the right way.
DEFAULT_POOL_GB = StreamOptions.cache_gb
# The share of a GPU's memory that a pool may take; a larger one stays in the host's.
GPU_SHARE = 0.25
# Samples that threads decode between two looks at the shard.
DECODED_AT_ONCE = 1024


class Crops(NamedTuple):
    """Images of a pool and what is to be made of them: all that a batch's images are, until they are made."""

    pool: "InMemoryDataset"
    numbers: Int64[Tensor, " batch"]
    """Which images."""
    boxes: Float32[Tensor, "batch 4"] | None
    """What to keep of each: left, top, right, bottom in pixels; None: all."""
    mirrored: Bool[Tensor, " batch"] | None
    colors: Float32[Tensor, "batch 3"] | None
    """Behind transparent images."""
    jitter: Float32[Tensor, "batch 3"] | None
    squares: UInt8[Tensor, "batch channels side side"] | None = None
    """The images themselves, once taken from the pool."""

    def map(self, move: Callable[[Tensor], Tensor]) -> "Crops":
        """With each tensor moved."""
        moved: dict[str, Any] = {
            name: move(value) for name, value in self._asdict().items() if isinstance(value, Tensor)
        }
        return self._replace(**moved)

    def taken(self) -> "Crops":
        """With the images taken from the pool."""
        return self if self.squares is not None else self._replace(squares=self.pool.take(self.numbers))

    def images(self) -> UInt8[Tensor, "batch 3 size size"]:
        """The images, where the tensors are."""
        squares = self.taken().squares
        assert squares is not None
        augmentation, images = self.pool.augmentation, squares.float()
        if self.colors is not None:
            images = torch.addcmul(images[:, :3], self.colors[:, :, None, None], 1 - images[:, 3:] / OPAQUE)
        if self.boxes is not None:
            images = resample(images, self.boxes, augmentation.image_size)
        if self.mirrored is not None:
            images = torch.where(self.mirrored[:, None, None, None], images.flip(3), images)
        return self.jittered(images.round().clamp_(0, OPAQUE).to(torch.uint8).contiguous())

    def jittered(self, images: UInt8[Tensor, "batch 3 size size"]) -> UInt8[Tensor, "batch 3 size size"]:
        """The images with their colours varied, if asked for."""
        return images if self.jitter is None else jitter_colors(images, self.pool.augmentation.jitter, self.jitter)


class InMemoryDataset:
    """All samples of some sources, decoded: centre squares of the side that random crops of the model's size need.

    Transparent images keep their alpha, with colours multiplied by it, so that each time another background can show.
    """

    def __init__(
        self, captions: Captions, augmentation: Augmentation, limits: Limits, max_bytes: float = DEFAULT_POOL_GB * GIB
    ) -> None:
        self.augmentation = augmentation
        self._captions = captions
        self._max_bytes = max_bytes
        # Of the decoded squares, in pixels.
        self.side = math.ceil(augmentation.image_size / math.sqrt(augmentation.min_crop_area))
        self.recipe = Recipe(captions, limits, self.side)
        self._samples: list[Sample] = []
        self._images: list[UInt8[np.ndarray, "side channels side"]] = []
        self._channels = 3
        self._mapped: UInt8[np.ndarray, "samples side channels side"] | None = None
        # On the host rows, channels, columns, which resampling reads as it lies; on a GPU channels come first.
        self._canvas: UInt8[Tensor, "samples side channels side"] | UInt8[Tensor, "samples channels side side"]

    def add(self, samples: Iterable[dict[str, Any]], on_problem: OnProblem) -> range:
        """Decodes samples into the pool and returns the numbers they got; what cannot be used goes to `on_problem`."""
        first = len(self._samples)
        for sample, found in self._decoded(samples):
            if isinstance(found, BadSample):
                on_problem(Problem(found.reason, sample[URL], sample[KEY]))
                continue
            captions, image = found
            self._append((sample[KEY], sample[URL], captions), image)
        return range(first, len(self._samples))

    def add_decoded(self, shard: DecodedShard) -> None:
        """Takes what another process has decoded."""
        for sample, image in zip(shard.samples, shard.images(self.side), strict=True):
            self._append(sample, image)

    def _append(self, sample: Sample, image: UInt8[np.ndarray, "side channels side"]) -> None:
        self._images.append(image)
        self._samples.append(sample)
        # One image with alpha gives all of them a fourth channel, once they lie in one tensor.
        self._channels = max(self._channels, image.shape[1])
        self._check_size(len(self._samples) * self._channels * self.side**2)

    def __len__(self) -> int:
        return len(self._samples)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise UserError(
                f"cache 'memory': more than cache_gb {self._max_bytes / GIB:g} of decoded images; "
                "allow more, or use cache 'none'"
            )

    def keep(self, store: DecodedStore, members: Sequence[range], problems: Sequence[Sequence[Problem]]) -> None:
        """Writes what has been decoded to `store`; before `seal`."""
        store.save(self._samples, self._images, int(OPAQUE), members, problems)

    def restore(self, samples: list[Sample], images: UInt8[np.ndarray, "samples side channels side"]) -> None:
        """Takes what a store has kept instead of decoding."""
        self._check_size(images.size)
        self._samples, self._images = samples, list(images)
        self._channels, self._mapped = images.shape[2], images

    def _decoded(self, samples: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Any]]:
        """In the order of the samples, each with its parts or a BadSample. Decoding lets other threads run."""
        remaining = iter(samples)
        with DecodingThreads(self._decode) as threads:
            while some := list(islice(remaining, DECODED_AT_ONCE)):
                yield from zip(some, threads.results(some), strict=True)

    def _decode(self, sample: dict[str, Any]) -> tuple[list[list[str]], np.ndarray] | BadSample:
        try:
            return self.recipe.decode(sample)
        except BadSample as bad:
            return bad

    def seal(self, tokenizer: str, context_length: int, device: torch.device | None = None) -> None:
        """Tokenises the captions and puts all images into one tensor, on `device` if it has room; nothing can be
        added afterwards."""
        self._keys, self._shards = (np.array([s[i] for s in self._samples], object) for i in (0, 1))
        self._table = CaptionTable(self._captions, [s[2] for s in self._samples], tokenizer, context_length)
        shape = (len(self._images), self.side, self._channels, self.side)
        self.on_gpu = device is not None and _has_room(device, math.prod(shape))
        if self._mapped is not None and not self.on_gpu:
            # The pages of the file, which other processes share.
            self._canvas, self._images = torch.from_numpy(self._mapped), []
            return
        self._canvas = torch.empty(shape, dtype=torch.uint8, device=device if self.on_gpu else "cpu")
        if self.on_gpu:
            self._canvas = self._canvas.view(len(self._images), self._channels, self.side, self.side)
        self._fill(self._canvas.transpose(1, 2) if self.on_gpu else self._canvas)
        self._mapped = None
        if self._canvas.is_cuda:
            # Batches are made in another stream than this one.
            torch.cuda.synchronize(device)

    def _fill(self, canvas: UInt8[Tensor, "samples side channels side"]) -> None:
        # From the end, so that the host's memory of an image is free as soon as it has its place.
        for last in range(len(self._images), 0, -DECODED_AT_ONCE):
            first = max(last - DECODED_AT_ONCE, 0)
            some = np.full((last - first, *canvas.shape[1:]), int(OPAQUE), np.uint8)
            for place, image in zip(some, self._images[first:last], strict=True):
                place[:, : image.shape[1]] = image
            canvas[first:last] = torch.from_numpy(some)
            del self._images[first:]

    def take(self, numbers: Int64[Tensor, " batch"]) -> UInt8[Tensor, "batch channels side side"]:
        """These images, where the pool is."""
        squares = self._canvas.index_select(0, numbers)
        return squares if self.on_gpu else squares.transpose(1, 2)

    @property
    def planes(self) -> UInt8[Tensor, "samples channels side side"] | None:
        """All images as they lie on a GPU; None on the host."""
        return self._canvas if self.on_gpu else None

    def batch(
        self, numbers: Int64[np.ndarray, " batch"], uniforms: Float64[np.ndarray, "batch uniforms"]
    ) -> dict[str, Any]:
        """The samples of these numbers, each varied by its own uniform numbers.

        Keys are `pooled` (Crops), tokens, caption_id and their order, keys, shards.
        """
        augmentation = self.augmentation
        has_alpha = self._canvas.shape[1 if self.on_gpu else 2] == 4
        crops = Crops(
            self,
            torch.from_numpy(numbers),
            random_crops(self.side, augmentation.min_crop_area, uniforms) if augmentation.min_crop_area < 1 else None,
            torch.from_numpy(uniforms[:, FLIP] < 0.5) if augmentation.flip else None,
            augmentation.background_colors(uniforms) if has_alpha else None,
            torch.from_numpy(uniforms[:, JITTER].astype(np.float32)) if augmentation.jitter else None,
        )
        return {
            "pooled": crops,
            **self._table.batch(numbers, uniforms[:, CAPTION]),
            "keys": self._keys[numbers].tolist(),
            "shards": self._shards[numbers].tolist(),
        }


def _has_room(device: torch.device, size: int) -> bool:
    return device.type == "cuda" and size <= GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
