"""Batches put on the device in the background: copied there, their JPEGs decoded and cropped there.

Two threads work ahead of the training loop, each batch through both: one collects from the workers and copies into
page-locked memory, the other decodes (nvJPEG), crops and resizes in a CUDA stream of its own.
"""

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from clip_la_kernels.ops.crops.crops import crop_resize, crop_resize_stacked
from clip_la_kernels.runtime.dispatch import runs_kernels
from jaxtyping import UInt8
from torch import Tensor

from clip_la.data.images.augment import Augmentation, jitter_colors
from clip_la.data.images.decode import decode_image
from clip_la.data.images.resample import resample
from clip_la.data.shards import problems
from clip_la.data.shards.problems import BadSample
from clip_la.data.stream.encoded import EncodedBatch
from clip_la.data.stream.in_memory_pool import Crops
from clip_la.data.text.tokenizer import order_of

# JPEGs decoded in one call. nvJPEG is quicker with many; their pixels lie on the device together.
CHUNK = 256
# Where Triton is not, a chunk lies on canvases of its largest image's size: float32, so fewer at a time.
CANVASES = 64
UINT8_MAX = 255.0
# What stands for an image that could not be decoded, until another sample takes its place: one grey pixel.
GREY = 128
GREY_BOX = (0.0, 0.0, 1.0, 1.0)
READY = "ready"
POOLED = "pooled"
ENCODED = "encoded"

Timer = Callable[[str], AbstractContextManager[Any]]


@dataclass
class DeviceDecoder:
    """Puts batches of a stream on a device; images left encoded by `DeferredDecoder` are decoded there.

    Args:
        augmentation: the one that the samples were made with.
        device: a CUDA device; on the CPU it works too, slowly, by another decoder.
        timed: called with the name of each part of the work; the part runs inside the context that it returns.
        chunk: how many JPEGs are decoded in one call.
    """

    augmentation: Augmentation
    device: torch.device
    timed: Timer = nullcontext
    chunk: int = CHUNK
    _stream: "torch.cuda.Stream | None" = field(init=False, default=None, repr=False)
    _held: "deque[tuple[torch.cuda.Event, list[Tensor]]]" = field(init=False, default_factory=deque, repr=False)

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)

    def stage(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch in page-locked memory, from where it can be copied while other work runs."""
        if self._stream is None:
            return batch
        # One thread: the copy would otherwise wait for processors that the workers have.
        torch.set_num_threads(1)
        with torch.cuda.device(self.device), self.timed("page-locked copy"):
            if POOLED in batch:
                batch[POOLED] = self._staged(batch[POOLED])
            encoded = batch.get(ENCODED)
            if encoded is not None:
                batch[ENCODED] = encoded._replace(payload=encoded.payload.pin_memory())
            return {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in batch.items()}

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its tensors on the device, and `image` UInt8[batch, 3, size, size] in place of `encoded`.

        On CUDA the work may still be under way: `hand_over` lets the taker's stream wait for it.

        A JPEG that looked whole but does not decode is found too late to be skipped: another sample of the same batch
        takes its place, caption included, and it is counted as skipped.
        """
        with self._own_stream():
            with self.timed("copy to device"):
                batch = {name: self._moved(v) if isinstance(v, Tensor) else v for name, v in batch.items()}
            if POOLED in batch:
                with self.timed("crop and resize"):
                    batch["image"] = self._pooled_images(batch.pop(POOLED))
            if ENCODED in batch:
                images, failed = self._images(batch.pop(ENCODED))
                batch["image"] = images
                batch = _without(batch, failed) if failed else batch
            if self._stream is not None:
                batch[READY] = self._stream.record_event()
        return batch

    def hand_over(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The thread that uses a finished batch calls this first."""
        ready = batch.pop(READY, None)
        if ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(ready)
            for value in batch.values():
                if isinstance(value, Tensor):
                    value.record_stream(stream)
        return batch

    def _staged(self, crops: Crops) -> Crops:
        # A pool on the host gives its images here, and the device makes images of them.
        return (crops if crops.pool.on_gpu else crops.taken()).map(Tensor.pin_memory)

    def _pooled_images(self, crops: Crops) -> UInt8[Tensor, "batch 3 size size"]:
        crops = crops.map(self._moved)
        images = crops.pool.planes if crops.squares is None else crops.squares
        if images is None or crops.boxes is None or crops.colors is not None or not runs_kernels(images):
            return crops.images()
        numbers = crops.numbers if crops.squares is None else None
        size = self.augmentation.image_size
        return crops.jittered(crop_resize_stacked(images, numbers, crops.boxes, crops.mirrored, size))

    def _own_stream(self) -> AbstractContextManager[Any]:
        if self._stream is None:
            return nullcontext()
        stack = ExitStack()
        # A new thread's device is the first one, whatever the thread that made it has set.
        stack.enter_context(torch.cuda.device(self.device))
        stack.enter_context(torch.cuda.stream(self._stream))
        return stack

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _images(self, encoded: EncodedBatch) -> tuple[UInt8[Tensor, "batch 3 size size"], list[int]]:
        """All images of a batch, and the places of those that could not be decoded."""
        size = self.augmentation.image_size
        images = torch.empty(len(encoded.mirrored), 3, size, size, dtype=torch.uint8, device=self.device)
        split = len(encoded.made) * size * size * 3
        with self.timed("copy to device"):
            squares = self._moved(encoded.payload[:split]).view(-1, size, size, 3)
            images[self._moved(torch.from_numpy(encoded.made))] = squares.permute(0, 3, 1, 2)
        waiting = torch.from_numpy(encoded.waiting)
        data = encoded.payload[split:].split(encoded.lengths.tolist())
        failed: list[int] = []
        for first in range(0, len(waiting), self.chunk):
            part = slice(first, first + self.chunk)
            with self.timed("decode"):
                decoded = self._decode(list(data[part]))
            with self.timed("crop and resize"):
                failed += [int(waiting[first + i]) for i, image in enumerate(decoded) if image is None]
                grey = torch.full((3, 1, 1), GREY, dtype=torch.uint8, device=self.device)
                whole = [grey if image is None else image for image in decoded]
                boxes = torch.from_numpy(encoded.boxes[part])
                boxes[torch.tensor([image is None for image in decoded])] = torch.tensor(GREY_BOX)
                mirrored = torch.from_numpy(encoded.mirrored[encoded.waiting[part]])
                images[self._moved(waiting[part])] = self._crop(whole, boxes, mirrored)
                self._hold(whole)
        if self.augmentation.jitter:
            with self.timed("jitter"):
                uniforms = self._moved(torch.from_numpy(encoded.jitter))
                images = jitter_colors(images, self.augmentation.jitter, uniforms)
        return images, failed

    def _hold(self, images: list[Tensor]) -> None:
        """Keeps a chunk's images until they are cropped: nvJPEG writes in a stream of its own, which knows nothing of
        reads in ours, so memory that is given back before them would be written over too soon."""
        if self._stream is None:
            return
        self._held.append((self._stream.record_event(), images))
        while len(self._held) > 1:
            cropped, _ = self._held[0]
            cropped.synchronize()
            self._held.popleft()

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
        return torch.from_numpy(pixels).permute(2, 0, 1).to(self.device).contiguous()

    def _crop(self, images: list[Tensor], boxes: Tensor, mirrored: Tensor) -> UInt8[Tensor, "chunk 3 size size"]:
        size = self.augmentation.image_size
        if runs_kernels(images[0]):
            return crop_resize(images, boxes, mirrored, size)
        squares = []
        for first in range(0, len(images), CANVASES):
            some = images[first : first + CANVASES]
            height, width = (max(image.shape[side] for image in some) for side in (1, 2))
            canvas = torch.zeros(len(some), 3, height, width, dtype=torch.uint8, device=self.device)
            for place, image in zip(canvas, some, strict=True):
                place[:, : image.shape[1], : image.shape[2]] = image
            resized = resample(canvas.float(), self._moved(boxes[first : first + CANVASES]), size)
            squares.append(resized.round_().clamp_(0, UINT8_MAX).to(torch.uint8))
        joined = torch.cat(squares)
        return torch.where(self._moved(mirrored)[:, None, None, None], joined.flip(3), joined)


def _without(batch: dict[str, Any], failed: list[int]) -> dict[str, Any]:
    """Each failed row replaced by the first good one."""
    good = next((i for i in range(len(batch["keys"])) if i not in set(failed)), None)
    if good is None:
        raise RuntimeError("not one JPEG of a batch could be decoded on the device")
    lost = [(problems.IMAGE_DAMAGED, batch["shards"][i], batch["keys"][i]) for i in failed]
    for name in ("image", "tokens", "caption_id"):
        batch[name][failed] = batch[name][good].clone()
    batch.update(order_of(batch["tokens"]))
    for name in ("keys", "shards"):
        batch[name] = [batch[name][good] if i in failed else value for i, value in enumerate(batch[name])]
    batch["problems"] = batch["problems"] + lost
    batch["skipped"] = {
        **batch["skipped"],
        problems.IMAGE_DAMAGED: batch["skipped"].get(problems.IMAGE_DAMAGED, 0) + len(lost),
    }
    return batch
