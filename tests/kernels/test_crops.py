"""Cropping and resizing in one launch gives what PyTorch and Pillow give picture by picture."""

import numpy as np
import torch
from clip_la_kernels.ops.crops.crops import crop_resize
from PIL import Image
from torch.nn.functional import interpolate

from tests.kernels.checks import DEVICE


def picture(rng, height, width):
    """Smooth colours with an edge: what Pillow rounds between rows and columns stays small."""
    across, down = np.linspace(0, 200, width)[None], np.linspace(0, 50, height)[:, None]
    pixels = np.stack(np.broadcast_arrays(across + down, 255 * (across > 80), 255 - across), 2)
    return (pixels + rng.integers(-5, 6, pixels.shape)).clip(0, 255).astype(np.uint8)


# Shrunk, enlarged, shrunk in one direction only, a single pixel, the whole picture, up to its very edges.
CASES = [
    ((14, 19), (2, 1, 18, 14)),
    ((6, 5), (1, 1, 5, 6)),
    ((23, 6), (0, 0, 6, 23)),
    ((5, 5), (4, 4, 5, 5)),
    ((7, 7), (0, 0, 7, 7)),
    ((12, 30), (20, 1, 30, 12)),
]


def test_equals_pytorch_and_pillow():
    size = 7
    rng = np.random.default_rng(0)
    pictures = [picture(rng, *shape) for shape, _ in CASES]
    boxes = torch.tensor([box for _, box in CASES], dtype=torch.float32)
    mirrored = torch.tensor([i % 2 == 1 for i in range(len(CASES))])
    planes = [torch.from_numpy(p).permute(2, 0, 1).contiguous().to(DEVICE) for p in pictures]
    got = crop_resize(planes, boxes, mirrored, size).cpu()
    assert got.shape == (len(CASES), 3, size, size)
    for pixels, (_, box), is_mirrored, result in zip(pictures, CASES, mirrored, got, strict=True):
        result = result.flip(2) if is_mirrored else result
        left, top, right, bottom = box
        crop = torch.from_numpy(pixels[top:bottom, left:right].astype(np.float32)).permute(2, 0, 1)[None]
        exact = interpolate(crop, (size, size), mode="bicubic", antialias=True)[0].clamp(0, 255)
        assert (result - exact).abs().max() <= 0.51
        theirs = Image.fromarray(pixels).crop(box).resize((size, size), Image.Resampling.BICUBIC)
        error = np.abs(result.permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs))
        assert error.max() <= 2  # Pillow rounds between rows and columns too
        assert error.mean() < 0.5


def test_a_crop_does_not_look_beyond_its_box():
    pixels = torch.zeros(3, 10, 10, dtype=torch.uint8)
    pixels[:, 2:8, 3:9] = 77
    got = crop_resize([pixels.to(DEVICE)], torch.tensor([[3.0, 2.0, 9.0, 8.0]]), torch.tensor([False]), 4)
    assert got.unique().tolist() == [77]
