"""From an image to the pixels a model sees."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from clip_la.data.images.decode import MAX_PIXELS, as_rgb, decode_image
from clip_la.data.shards import problems
from clip_la.data.shards.problems import BadSample

# Of OpenAI's CLIP, on the 0..1 scale; open_clip's default.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
UINT8_MAX = 255.0


def normalize_pixels(
    images: UInt8[Tensor, "batch 3 height width"],
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch 3 height width"]:
    """`(images / 255 - mean) / std` a channel, on the device of the images; mean and std are on the 0..1 scale."""
    return scale_pixels(images, *channel_constants(tuple(mean), tuple(std), images.device), dtype)


@lru_cache
def channel_constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Float32[Tensor, "3 1 1"], Float32[Tensor, "3 1 1"]]:
    """Mean and std on the 0..255 scale. Remembered: copying numbers to a GPU waits for all that it has to do."""
    with torch.inference_mode(False):
        offset, scale = (torch.tensor(each, device=device, dtype=torch.float32) for each in (mean, std))
        return offset.mul_(UINT8_MAX)[:, None, None], scale.mul_(UINT8_MAX)[:, None, None]


def scale_pixels(
    images: UInt8[Tensor, "batch 3 height width"],
    offset: Float32[Tensor, "3 1 1"],
    scale: Float32[Tensor, "3 1 1"],
    dtype: torch.dtype,
) -> Float[Tensor, "batch 3 height width"]:
    """`(images - offset) / scale`, computed in float32."""
    return images.float().sub_(offset).div_(scale).to(dtype)


def eval_transform(image_size: int) -> Callable[[Image.Image | bytes], UInt8[Tensor, "3 size size"]]:
    """open_clip's evaluation transform, in uint8: shortest side to `image_size` (bicubic), then the centre square.

    Images become RGB by the rule of `decode` first; on plain RGB images the pixels are open_clip's. The returned
    function takes an image or its bytes and raises BadSample for what does not decode or is too long and thin.
    """

    def transform(image: Image.Image | bytes) -> UInt8[Tensor, "3 size size"]:
        image = decode_image(image) if isinstance(image, bytes) else as_rgb(image)
        check_shape(image, image_size)
        resized = F.resize(image, [image_size], InterpolationMode.BICUBIC)
        return F.pil_to_tensor(F.center_crop(resized, [image_size]))

    return transform


def check_shape(image: Image.Image, image_size: int) -> None:
    """Raises BadSample for an image so thin that, its shortest side resized, it would fill the memory."""
    if image_size * image_size * max(image.size) > MAX_PIXELS * min(image.size):
        raise BadSample(problems.IMAGE_TOO_LONG)
