"""Rows whose JPEGs are decoded later, on the GPU: workers only read, check and choose; `finish` decodes and crops.

nvJPEG decodes batches; crop and resize are two batched matrix products. Pictures that nvJPEG is not for (other formats,
turned or CMYK JPEGs, very large ones) are made by the worker, as without a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from clip_la.data import jpeg, problems
from clip_la.data.augment import JITTER, Augmentation, Box, jitter_colors
from clip_la.data.decode import decode_image
from clip_la.data.problems import BadSample
from clip_la.data.resample import resample
from clip_la.data.rows import StreamedRows, image_bytes

# All pictures of a chunk lie on canvases of the largest one's size, so a large one is left to the worker.
MAX_SIDE_PX = 1024
CHUNK = 256
UINT8_MAX = 255.0


class Encoded(NamedTuple):
    """A JPEG still to be decoded, and what is wanted of it."""

    data: bytes
    box: Box


class EncodedRows(StreamedRows):
    """As StreamedRows, with plain JPEGs left as they are."""

    def pictures(self, rows: Sequence[Any], draws: np.ndarray) -> dict[str, Any]:
        """The pictures of a batch, as `finish` wants them."""
        pictures = [row.picture for row in rows]
        waiting = [i for i, picture in enumerate(pictures) if isinstance(picture, Encoded)]
        made = [i for i, picture in enumerate(pictures) if not isinstance(picture, Encoded)]
        size = self._augmentation.image_size
        joined = b"".join(pictures[i].data for i in waiting) or b"\0"  # an empty buffer is refused
        squares = [torch.from_numpy(np.ascontiguousarray(pictures[i])) for i in made]
        return {
            "encoded": {
                "bytes": torch.frombuffer(bytearray(joined), dtype=torch.uint8),
                "lengths": [len(pictures[i].data) for i in waiting],
                "boxes": torch.tensor([pictures[i].box for i in waiting], dtype=torch.float32).reshape(-1, 4),
                "waiting": torch.tensor(waiting, dtype=torch.int64),
                "made": torch.tensor(made, dtype=torch.int64),
                "squares": torch.stack(squares) if squares else torch.empty(0, size, size, 3, dtype=torch.uint8),
                "mirrored": torch.tensor([self._augmentation.is_flipped(row) for row in draws]),
                "jitter": torch.from_numpy(draws[:, JITTER].astype(np.float32)),
            }
        }

    def _picture(self, sample: dict[str, Any], draws: Sequence[float]) -> Any:
        data = image_bytes(sample)
        size = jpeg.plain_size(data)
        if size is None or max(size) > MAX_SIDE_PX or not jpeg.has_end(data):
            return super()._picture(sample, draws)
        self._limits.check(*size)
        return Encoded(data, self._augmentation.crop(*size, draws))


@dataclass(frozen=True)
class DeviceDecoder:
    """Turns the pictures of a batch from `EncodedRows` into pixels on a device.

    Args:
        augmentation: the one that the rows were made with.
        device: a CUDA device; on the CPU it works too, slowly, by another decoder.
    """

    augmentation: Augmentation
    device: torch.device

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with `image` UInt8[batch, 3, size, size] on the device, in place of `encoded`.

        A JPEG that looked whole and does not decode is found out too late to be passed over: its place is taken by
        another sample of the same batch, caption and all, and it is counted as skipped.
        """
        encoded = batch.pop("encoded")
        size = self.augmentation.image_size
        total = len(encoded["mirrored"])
        images = torch.empty(total, 3, size, size, dtype=torch.uint8, device=self.device)
        images[encoded["made"].to(self.device)] = encoded["squares"].to(self.device).permute(0, 3, 1, 2)
        waiting = encoded["waiting"]
        data = encoded["bytes"][: sum(encoded["lengths"])].split(encoded["lengths"])
        failed: list[int] = []
        for first in range(0, len(waiting), CHUNK):
            part = slice(first, first + CHUNK)
            pictures = self._decode(list(data[part]))
            failed += [int(waiting[first + i]) for i, picture in enumerate(pictures) if picture is None]
            squares = self._crop([_grey(self.device) if p is None else p for p in pictures], encoded["boxes"][part])
            mirrored = encoded["mirrored"][waiting[part]].to(self.device)
            squares = torch.where(mirrored[:, None, None, None], squares.flip(3), squares)
            images[waiting[part].to(self.device)] = squares
        if self.augmentation.jitter:
            images = jitter_colors(images, self.augmentation.jitter, encoded["jitter"].to(self.device))
        batch["image"] = images
        return _without(batch, failed) if failed else batch

    def _decode(self, data: list[Tensor]) -> list[UInt8[Tensor, "3 height width"] | None]:
        from torchvision.io import ImageReadMode, decode_jpeg

        try:
            return decode_jpeg(data, mode=ImageReadMode.RGB, device=self.device)
        except RuntimeError:
            # One of them is damaged; nvJPEG does not say which.
            return [self._decode_one(each) for each in data]

    def _decode_one(self, data: Tensor) -> UInt8[Tensor, "3 height width"] | None:
        try:
            pixels = np.array(decode_image(data.numpy().tobytes()))
        except BadSample:
            return None
        return torch.from_numpy(pixels).permute(2, 0, 1).to(self.device)

    def _crop(self, pictures: list[Tensor], boxes: Tensor) -> UInt8[Tensor, "chunk 3 size size"]:
        height, width = (max(picture.shape[side] for picture in pictures) for side in (1, 2))
        canvas = torch.zeros(len(pictures), 3, height, width, dtype=torch.uint8, device=self.device)
        for place, picture in zip(canvas, pictures, strict=True):
            place[:, : picture.shape[1], : picture.shape[2]] = picture
        squares = resample(canvas.float(), boxes.to(self.device), self.augmentation.image_size)
        return squares.round_().clamp_(0, UINT8_MAX).to(torch.uint8)


def _grey(device: torch.device) -> UInt8[Tensor, "3 1 1"]:
    return torch.full((3, 1, 1), 128, dtype=torch.uint8, device=device)


def _without(batch: dict[str, Any], failed: list[int]) -> dict[str, Any]:
    """Each failed row replaced by the first good one."""
    good = next((i for i in range(len(batch["keys"])) if i not in set(failed)), None)
    if good is None:
        raise RuntimeError("not one JPEG of a batch could be decoded on the device")
    lost = [(problems.IMAGE_DAMAGED, batch["shards"][i], batch["keys"][i]) for i in failed]
    for name in ("image", "tokens", "caption_id"):
        batch[name][failed] = batch[name][good].clone()
    for name in ("keys", "shards"):
        batch[name] = [batch[name][good] if i in failed else value for i, value in enumerate(batch[name])]
    batch["problems"] = batch["problems"] + lost
    batch["skipped"] = {
        **batch["skipped"],
        problems.IMAGE_DAMAGED: batch["skipped"].get(problems.IMAGE_DAMAGED, 0) + len(lost),
    }
    return batch
