"""Every way a picture can be stored gives the picture as it should be seen, or the reason why not."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image, ImageOps
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import functional as F

from clip_la.data.images import jpeg
from clip_la.data.images.augment import NUM_UNIFORMS, Augmentation, jitter_colors, random_crop, random_crops
from clip_la.data.images.decode import decode_image
from clip_la.data.images.resample import resample, resize_box
from clip_la.data.images.transforms import CLIP_MEAN, CLIP_STD, eval_transform, normalize_pixels
from clip_la.data.shards import problems
from clip_la.data.shards.problems import BadSample
from clip_la.data.stream.samples import Limits, SampleDecoder
from clip_la.data.text.captions import Captions

# Smooth, so that lossy formats keep it; no symmetry, so that turning it shows.
RAMP = np.stack(np.broadcast_arrays(np.linspace(0, 250, 37)[None], np.linspace(250, 0, 29)[:, None], 77.0), 2)
PICTURE = Image.fromarray(RAMP.astype(np.uint8))


@pytest.fixture(autouse=True)
def seeded():
    """The same numbers for each test, whichever ran before it."""
    global RNG
    RNG = np.random.default_rng(1)


def saved(image, kind, **options):
    data = BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def difference(image, expected):
    assert image.mode == "RGB"
    assert image.size == expected.size
    return np.abs(np.asarray(image).astype(int) - np.asarray(expected.convert("RGB")).astype(int)).max()


@pytest.mark.parametrize(
    ("data", "expected", "tolerance"),
    [
        (saved(PICTURE, "PNG"), PICTURE, 0),
        (saved(PICTURE, "BMP"), PICTURE, 0),
        (saved(PICTURE, "PPM"), PICTURE, 0),
        (saved(PICTURE, "TIFF"), PICTURE, 0),
        (saved(PICTURE, "WEBP", lossless=True), PICTURE, 0),
        (saved(PICTURE, "JPEG", quality=98), PICTURE, 8),
        (saved(PICTURE, "JPEG", quality=98, progressive=True), PICTURE, 8),
        (saved(PICTURE.convert("L"), "JPEG", quality=98), PICTURE.convert("L"), 4),
        (saved(PICTURE.convert("CMYK"), "JPEG", quality=98), PICTURE, 8),
        (saved(PICTURE.convert("CMYK"), "TIFF"), PICTURE, 2),
        (saved(PICTURE.convert("L"), "PNG"), PICTURE.convert("L"), 0),
        (saved(PICTURE.convert("1"), "PNG"), PICTURE.convert("1"), 0),
        (saved(PICTURE.convert("P"), "PNG"), PICTURE.convert("P"), 0),
        (saved(PICTURE.convert("P"), "GIF"), PICTURE.convert("P"), 0),
        (saved(PICTURE, "JPEG", quality=98, exif=exif(6)), PICTURE.transpose(Image.Transpose.ROTATE_270), 8),
        (saved(PICTURE, "PNG", exif=exif(3)), PICTURE.transpose(Image.Transpose.ROTATE_180), 0),
        (saved(PICTURE, "WEBP", lossless=True, exif=exif(2)), ImageOps.mirror(PICTURE), 0),
        (saved(PICTURE, "GIF", save_all=True, append_images=[ImageOps.invert(PICTURE)]), PICTURE, 60),
        (saved(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[ImageOps.invert(PICTURE)]), PICTURE, 0),
        (saved(PICTURE, "PNG", save_all=True, append_images=[ImageOps.invert(PICTURE)]), PICTURE, 0),
    ],
)
def test_formats(data, expected, tolerance):
    assert difference(decode_image(data), expected) <= tolerance


def test_sixteen_bits_keep_their_grey_values():
    grey = np.arange(29 * 37, dtype=np.uint16).reshape(29, 37) * 60
    expected = Image.fromarray((grey >> 8).astype(np.uint8))
    assert difference(decode_image(saved(Image.fromarray(grey), "PNG")), expected) == 0
    assert difference(decode_image(saved(Image.fromarray(grey), "TIFF")), expected) == 0


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_shows_the_background(kind):
    alpha = RNG.integers(0, 256, (29, 37), dtype=np.uint8)
    image = PICTURE.copy()
    image.putalpha(Image.fromarray(alpha))
    data = saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    weight = alpha[:, :, None] / 255
    for background in ((255, 255, 255), (10, 200, 30)):
        expected = np.asarray(PICTURE) * weight + np.array(background) * (1 - weight)
        got = np.asarray(decode_image(data, background=background))
        assert np.abs(got - expected).max() <= 1


def test_a_transparent_palette_colour_shows_the_background():
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 3).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    got = np.asarray(decode_image(saved(image, "PNG", transparency=1), background=(9, 9, 9)))
    assert got[0].tolist() == [[255, 0, 0], [9, 9, 9], [0, 0, 255], [255, 0, 0]]


def png_header(width, height):
    """A PNG that says how large it is and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def jpeg_of_size(width, height):
    """A JPEG whose header says another size than its data have."""
    data = bytearray(saved(PICTURE, "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", problems.IMAGE_EMPTY),
        (b"\0" * 500, problems.NOT_AN_IMAGE),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", problems.NOT_AN_IMAGE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", problems.NOT_AN_IMAGE),
        (saved(PICTURE, "JPEG")[:300], problems.IMAGE_DAMAGED),
        (saved(PICTURE, "JPEG")[:-100], problems.IMAGE_DAMAGED),
        (saved(PICTURE, "PNG")[:-100], problems.IMAGE_DAMAGED),
        (saved(PICTURE, "WEBP")[:-100], problems.IMAGE_DAMAGED),
        (png_header(30_000, 30_000), problems.IMAGE_TOO_LARGE),
        (png_header(2**31 - 1, 2**31 - 1), problems.IMAGE_TOO_LARGE),
        (jpeg_of_size(65_000, 65_000), problems.IMAGE_TOO_LARGE),
        (png_header(3000, 3000), problems.IMAGE_DAMAGED),
        (saved(Image.fromarray(RAMP[:, :, 0].astype(np.float32)), "TIFF"), problems.PIXELS_NOT_SUPPORTED),
    ],
)
def test_what_cannot_be_decoded_says_why(data, reason):
    with pytest.raises(BadSample) as caught:
        decode_image(data)
    assert caught.value.reason == reason
    rows = SampleDecoder(Captions(), Augmentation(16), Limits())
    with pytest.raises(BadSample) as caught:
        rows.sample({"__key__": "k", "__url__": "s", "jpg": data, "txt": b"text"}, [0.5] * NUM_UNIFORMS)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(min_side_px=30), problems.IMAGE_TOO_SMALL),
        (Limits(max_aspect=1.2), problems.IMAGE_TOO_LONG),
        (Limits(max_pixels=1000), problems.IMAGE_TOO_LARGE),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_limits(limits, reason, kind):
    with pytest.raises(BadSample) as caught:
        row_of(saved(PICTURE, kind), Augmentation(16), limits)
    assert caught.value.reason == reason


def row_of(data, augmentation, limits=Limits(), draws=(0.5,) * NUM_UNIFORMS):  # noqa: B008
    sample = {"__key__": "k", "__url__": "s", "img": data, "jpg": data, "txt": b"text"}
    return SampleDecoder(Captions(), augmentation, limits).sample(sample, draws).image


def photo(width, height):
    """Broad-band like a photograph: blurred noise of several sizes."""
    sizes = [(height // k + 1, width // k + 1, 3) for k in (1, 4, 16, 64)]
    layers = [torch.from_numpy(RNG.normal(0, 6 * (k + 1), size)).permute(2, 0, 1) for k, size in enumerate(sizes)]
    big = [F.resize(layer, [height, width], antialias=False).numpy() for layer in layers]
    return Image.fromarray((sum(big).transpose(1, 2, 0) + 128).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(300, 271), (260, 340), (224, 224)])
def test_a_training_picture_is_what_pillow_makes_of_the_same_crop(size):
    data = saved(photo(*size), "JPEG", quality=92)
    draws = RNG.random(NUM_UNIFORMS).tolist()
    augmentation = Augmentation(224)
    box = augmentation.crop(*size, draws)
    expected = Image.open(BytesIO(data)).convert("RGB").crop(box).resize((224, 224), Image.Resampling.BICUBIC)
    got = row_of(data, augmentation, draws=draws).astype(int)
    assert np.abs(got - np.asarray(expected)).mean() < 0.6
    assert np.abs(got - np.asarray(expected)).max() <= 12


@pytest.mark.parametrize(("side", "reduced"), [(279, 1), (560, 2), (1119, 2), (1120, 4), (2240, 8), (9000, 8)])
def test_reduction_keeps_more_pixels_than_are_wanted(side, reduced):
    assert jpeg.reduction(side, 224) == reduced


def test_reduced_decoding_gives_nearly_the_same_picture():
    data = saved(photo(901, 700), "JPEG", quality=92)
    full, half = (jpeg.pixels(data, (901, 700), k) for k in (1, 2))
    assert half.shape == (350, 451, 3)
    whole = resize_box(full, (0, 0, 901, 700), 224).astype(float)
    small = resize_box(half, (0, 0, 451, 350), 224).astype(float)
    assert 10 * np.log10(255**2 / ((whole - small) ** 2).mean()) > 38


def test_turned_and_odd_jpegs_leave_the_quick_way():
    assert jpeg.plain_size(saved(PICTURE, "JPEG")) == (37, 29)
    assert jpeg.plain_size(saved(PICTURE, "JPEG", exif=exif(1))) == (37, 29)
    assert jpeg.plain_size(saved(PICTURE, "JPEG", exif=exif(8))) is None
    assert jpeg.plain_size(saved(PICTURE.convert("CMYK"), "JPEG")) is None
    assert jpeg.plain_size(saved(PICTURE, "PNG")) is None
    assert jpeg.pixels(saved(PICTURE, "JPEG")[:-50], (37, 29)) is None


@pytest.mark.parametrize("box", [(0, 0, 40, 45), (3, 2, 37, 41), (5, 7, 20, 20)])
def test_batched_resampling_is_pytorchs(box):
    images = torch.rand(3, 4, 45, 40, dtype=torch.float64).float()
    left, top, right, bottom = box
    crop = images[:, :, top:bottom, left:right]
    expected = torch.nn.functional.interpolate(crop, (32, 32), mode="bicubic", antialias=True)
    assert torch.allclose(resample(images, torch.tensor([box] * 3).float(), 32), expected, atol=2e-6)


def test_crops_are_distributed_as_torchvisions():
    draws = RNG.random((4000, NUM_UNIFORMS))
    ours = np.array([random_crop(60, 45, 0.5, row) for row in draws.tolist()])
    theirs = np.array([RandomResizedCrop.get_params(torch.empty(3, 45, 60), [0.5, 1.0], [3 / 4, 4 / 3]) for _ in draws])
    assert ours.min() >= 0
    assert (ours[:, 2] <= 60).all()
    assert (ours[:, 3] <= 45).all()
    mine = np.stack([ours[:, 1], ours[:, 0], ours[:, 3] - ours[:, 1], ours[:, 2] - ours[:, 0]], 1)
    error = (mine.std(0) ** 2 / 4000 + theirs.std(0) ** 2 / 4000) ** 0.5
    assert (np.abs(mine.mean(0) - theirs.mean(0)) < 4 * error).all()
    assert np.allclose(mine.std(0), theirs.std(0), rtol=0.08)


def test_a_batch_of_crops_is_the_crops_one_by_one():
    draws = RNG.random((300, NUM_UNIFORMS))
    for min_area in (0.9, 0.999):
        expected = [random_crop(40, 40, min_area, row) for row in draws.tolist()]
        assert random_crops(40, min_area, draws).tolist() == [list(box) for box in expected]


def test_colours_change_as_torchvision_changes_them():
    images = torch.randint(90, 160, (4, 3, 23, 31), dtype=torch.uint8)
    draws = torch.tensor([[0.9, 0.5, 0.5], [0.5, 0.1, 0.5], [0.5, 0.5, 0.8], [0.2, 0.9, 0.3]])
    got = jitter_colors(images, 0.4, draws)
    for image, row, result in zip(images, draws, got, strict=True):
        brightness, contrast, saturation = (1 + 0.4 * (2 * row - 1)).tolist()
        expected = F.adjust_brightness(image.float() / 255, brightness)
        expected = F.adjust_saturation(F.adjust_contrast(expected, contrast), saturation) * 255
        # Values that stay within 0..255 all the way: torchvision's clamping after each step changes nothing.
        assert expected.min() > 1
        assert expected.max() < 254
        assert (result.float() - expected).abs().max() <= 1
    assert ColorJitter(0.4).brightness == (0.6, 1.4)


@pytest.mark.parametrize("size", [(61, 47), (40, 90), (32, 32)])
def test_evaluation_pixels_are_open_clips(size):
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ours = normalize_pixels(eval_transform(32)(saved(image, "PNG"))[None], CLIP_MEAN, CLIP_STD)[0]
    theirs = image_transform(32, is_train=False, mean=CLIP_MEAN, std=CLIP_STD)(image)
    assert (ours - theirs).abs().max() < 1e-6
