"""From a picture to the pixels a model sees."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from clip_la.data import problems
from clip_la.data.decode import MAX_PIXELS, as_rgb, decode_image
from clip_la.data.problems import BadSample

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
    offset = torch.tensor(mean, device=images.device, dtype=torch.float32).mul_(UINT8_MAX)
    scale = torch.tensor(std, device=images.device, dtype=torch.float32).mul_(UINT8_MAX)
    return images.float().sub_(offset[:, None, None]).div_(scale[:, None, None]).to(dtype)


def eval_transform(image_size: int) -> Callable[[Image.Image | bytes], UInt8[Tensor, "3 size size"]]:
    """open_clip's evaluation transform, in uint8: shortest side to `image_size` (bicubic), then the centre square.

    Pictures become RGB by the rule of `decode` first; on plain RGB pictures the pixels are open_clip's. The returned
    function takes a picture or its bytes and raises BadSample for what does not decode or is too long and thin.
    """

    def transform(image: Image.Image | bytes) -> UInt8[Tensor, "3 size size"]:
        image = decode_image(image) if isinstance(image, bytes) else as_rgb(image)
        check_shape(image, image_size)
        resized = F.resize(image, [image_size], InterpolationMode.BICUBIC)
        return F.pil_to_tensor(F.center_crop(resized, [image_size]))

    return transform


def check_shape(image: Image.Image, image_size: int) -> None:
    """Raises BadSample for a picture so thin that, its shortest side resized, it would fill the memory."""
    if image_size * image_size * max(image.size) > MAX_PIXELS * min(image.size):
        raise BadSample(problems.IMAGE_TOO_LONG)
