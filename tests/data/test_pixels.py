"""The rule by which pictures of every mode become 8-bit RGB, against arithmetic on the arrays that they hold."""

import struct
import subprocess
import sys
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from clip_la.data.images import jpeg
from clip_la.data.images.augment import NUM_UNIFORMS, Augmentation
from clip_la.data.images.decode import as_rgb, decode_as_stored, decode_image
from clip_la.data.images.transforms import eval_transform
from clip_la.data.shards import problems
from clip_la.data.shards.problems import BadSample
from clip_la.data.stream.samples import Limits, SampleDecoder
from clip_la.data.text.captions import Captions

GREY = (np.arange(35 * 29, dtype=np.int64) * 7 % 256).reshape(29, 35)
COLOURS = np.stack([GREY, 255 - GREY, GREY // 2], 2).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    data = BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray, depth: int, color: int, extra: bytes = b"") -> bytes:
    """A PNG of rows of big-endian 16-bit numbers, or of bytes that hold the packed pixels."""
    height = len(values)
    width = values.shape[1] if depth >= 8 else values.shape[1] * 8 // depth
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + chunk(b"IEND", b"")


def tiff(values: np.ndarray, bits: int, photometric: int = 1) -> bytes:
    """An uncompressed grey TIFF; numbers of 12 bits are packed, two in three bytes. A third axis holds grey and alpha
    by which it is multiplied already."""
    height, width = values.shape[:2]
    if bits == 12:
        first, second = values[:, ::2], values[:, 1::2]
        triples = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 2)
        pixels = triples.astype(np.uint8).tobytes()
    else:
        pixels = values.astype(f"<u{bits // 8}").tobytes()
    samples = values.shape[2] if values.ndim == 3 else 1
    tags = [(256, 1, width), (257, 1, height), (258, samples, bits | bits << 16 if samples == 2 else bits), (259, 1, 1)]
    tags += [(262, 1, photometric), (273, 1, 8), (277, 1, samples), (278, 1, height), (279, 1, len(pixels))]
    tags += [(338, 1, 1)] if samples == 2 else []
    entries = b"".join(struct.pack("<HHII", tag, 3 if count == 2 else 4, count, value) for tag, count, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


def both(data: bytes) -> np.ndarray:
    """The decoded picture, once it is the same for the ways of training and of evaluation."""
    decoded = np.asarray(decode_image(data))
    height, width, _ = decoded.shape
    draws = [0.5] * NUM_UNIFORMS
    pixels, _ = SampleDecoder(Captions(), Augmentation(64, 1.0), Limits()).decode({"png": data}, draws)
    assert np.array_equal(pixels, decoded)
    side = min(height, width)
    evaluated = eval_transform(side)(data)
    assert evaluated.shape == (3, side, side)
    return decoded


def as_grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None], 3, 2)


WIDE = GREY * 257
SMALL_12 = (GREY[:, :34] * 16 + 3)[:, :34]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (saved(Image.fromarray(WIDE.astype(np.uint16)), "PNG"), GREY),
        (saved(Image.fromarray(WIDE.astype(np.uint16)), "TIFF"), GREY),
        (saved(Image.fromarray(WIDE.astype(np.int32)), "TIFF"), GREY),
        (saved(Image.fromarray(WIDE.astype(np.int32)), "PPM"), GREY),
        # Of values that fit in 8 bits the upper byte would be black.
        (saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), GREY),
        (saved(Image.fromarray(GREY.astype(np.uint16)), "TIFF"), GREY),
        (saved(Image.fromarray(GREY.astype(np.uint16)), "PNG"), GREY),
        (tiff(GREY, 32), GREY),
        (tiff(WIDE, 16), GREY),
        (tiff(65535 - WIDE, 16, photometric=0), GREY),
        (tiff(255 - GREY, 8, photometric=0), GREY),
        (tiff(SMALL_12, 12), SMALL_12 >> 4),
        (tiff(SMALL_12 >> 4, 12), SMALL_12 >> 8),
    ],
    ids=lambda value: "file" if isinstance(value, bytes) else "",
)
def test_wide_integers_keep_their_grey_values(data, expected):
    assert np.array_equal(both(data), as_grey(expected))
    assert np.array_equal(np.asarray(as_rgb(Image.open(BytesIO(data)))), as_grey(expected))


@pytest.mark.parametrize("values", [GREY - 1, GREY * 300, GREY.astype(np.float32) / 255])
def test_numbers_without_a_stated_range_are_refused(values):
    kind = np.float32 if values.dtype == np.float32 else np.int32
    data = saved(Image.fromarray(values.astype(kind)), "TIFF")
    for decode in (decode_image, lambda data: as_rgb(Image.open(BytesIO(data)))):
        with pytest.raises(BadSample) as caught:
            decode(data)
        assert caught.value.reason == problems.PIXELS_NOT_SUPPORTED


def transparent(*values: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


ROW_16 = np.array([[0x1203, 0xEA60, 0xEA61, 0]], ">u2")
RGB_16 = np.array([[[0x1203, 0, 0xFF00], [0xEA60, 0x8000, 0x0100]]], ">u2")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(ROW_16, 16, 0, transparent(0xEA60)), [[0x12] * 3, [255] * 3, [0xEA] * 3, [0] * 3]),
        (png(RGB_16, 16, 2, transparent(0xEA60, 0x8000, 0x0100)), [[0x12, 0, 0xFF], [255] * 3]),
        (png(np.array([[3, 9, 200]], np.uint8), 8, 0, transparent(9)), [[3] * 3, [255] * 3, [200] * 3]),
        (png(np.array([[0b00011011]], np.uint8), 2, 0, transparent(1)), [[0] * 3, [255] * 3, [170] * 3, [255] * 3]),
        (png(np.array([[0x29]], np.uint8), 4, 0, transparent(2)), [[255] * 3, [153] * 3]),
        (png(np.array([[0b01000000]], np.uint8), 1, 0, transparent(0)), [[255] * 3] * 8),
        (png(np.array([[0b01000000]], np.uint8), 1, 0), [[0] * 3, [255] * 3, *[[0] * 3] * 6]),
    ],
    ids=lambda value: "file" if isinstance(value, bytes) else "",
)
def test_a_transparent_colour_shows_white_at_every_depth(data, expected):
    assert both(data)[0].tolist() == expected


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_every_kind_of_alpha_shows_white(mode):
    alpha = (255 - GREY).astype(np.uint8)
    image = Image.fromarray(COLOURS if mode == "RGBA" else COLOURS[:, :, 0])
    image = image.convert("P") if mode == "PA" else image
    image.putalpha(Image.fromarray(alpha))
    assert image.mode == mode
    weight = alpha[:, :, None] / 255
    expected = np.asarray(image.convert("RGB")) * weight + 255 * (1 - weight)
    assert np.abs(both(saved(image, "TIFF")) - expected).max() <= 1


def test_colours_multiplied_by_alpha_show_white():
    alpha = np.maximum(GREY, 128)
    data = tiff(np.stack([alpha // 2, alpha], 2), 8)
    assert Image.open(BytesIO(data)).mode == "La"
    assert np.abs(both(data) - as_grey(alpha // 2 + 255 - alpha)).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture(kind, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    # Large flat quarters, which JPEG keeps.
    quarters = np.kron([[10, 90, 90], [170, 250, 250]], np.ones((16, 16), int)).astype(np.uint8)
    rows = {1: quarters, 2: quarters[:, ::-1], 3: quarters[::-1, ::-1], 4: quarters[::-1], 5: quarters.T}
    rows |= {6: quarters.T[:, ::-1], 7: quarters.T[::-1, ::-1], 8: quarters.T[::-1]}
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    data = saved(Image.fromarray(as_grey(quarters)), kind, exif=tags, **options)
    assert np.abs(both(data).astype(int) - as_grey(rows[orientation])).max() <= (3 if kind == "JPEG" else 0)


def test_exif_is_found_behind_other_segments_and_damaged_exif_says_nothing():
    tags = Image.Exif()
    tags[0x0112] = 6
    data = saved(Image.fromarray(COLOURS), "JPEG", exif=tags)
    filler = b"\xff\xed" + struct.pack(">H", 60002) + bytes(60000)
    late = data[:2] + 2 * filler + data[2:]
    assert jpeg.plain_size(late) is None
    assert both(late).shape == (35, 29, 3)
    broken = data.replace(b"Exif\0\0MM\0*", b"Exif\0\0MX\0*")
    assert broken != data
    assert both(broken).shape == (29, 35, 3)


def test_a_picture_that_is_open_is_left_as_it_is():
    tags = Image.Exif()
    tags[0x0112] = 6
    image = Image.open(BytesIO(saved(Image.fromarray(COLOURS), "PNG", exif=tags)))
    seen = as_rgb(image)
    assert (image.size, seen.size) == ((35, 29), (29, 35))
    assert image.info["exif"]
    # What was turned is not turned again.
    assert np.array_equal(np.asarray(as_rgb(seen)), np.asarray(seen))


def test_as_stored_is_what_pillow_opens():
    alpha = Image.fromarray(COLOURS).convert("RGBA")
    for image, kind in ((alpha, "PNG"), (Image.fromarray(WIDE.astype(np.uint16)), "PNG"), (alpha.convert("1"), "TIFF")):
        data = saved(image, kind)
        stored = decode_as_stored(data)
        assert stored.mode == Image.open(BytesIO(data)).mode
        assert np.array_equal(np.asarray(stored), np.asarray(Image.open(BytesIO(data))))


def test_a_picture_too_thin_to_resize_is_refused_for_evaluation():
    with pytest.raises(BadSample) as caught:
        eval_transform(224)(saved(Image.new("L", (1, 20_000)), "PNG"))
    assert caught.value.reason == problems.IMAGE_TOO_LONG
    assert eval_transform(224)(saved(Image.new("L", (300, 5)), "PNG")).shape == (3, 224, 224)


BOMB = zlib.compress(bytes(70 << 20), 9)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(np.zeros((1, 3), np.uint8), 8, 0, chunk(b"zTXt", b"a\0\0" + BOMB)), problems.IMAGE_DAMAGED),
        (png(np.zeros((1, 3), np.uint8), 8, 0, chunk(b"iCCP", b"a\0\0" + BOMB)), problems.IMAGE_DAMAGED),
        (tiff(GREY, 16)[:-150], problems.NOT_AN_IMAGE),
        (saved(Image.new("L", (9000, 9000)), "PNG"), problems.IMAGE_TOO_LARGE),
        (saved(Image.new("1", (16000, 16000)), "TIFF", compression="group4"), problems.IMAGE_TOO_LARGE),
    ],
)
def test_bombs_are_skipped_with_a_reason(data, reason):
    with pytest.raises(BadSample) as caught:
        decode_image(data)
    assert caught.value.reason == reason


LOUD = """
import logging, sys, warnings
from io import BytesIO
import numpy as np
from PIL import Image
from clip_la.data.images.decode import decode_as_stored, decode_image
from clip_la.data.shards.problems import BadSample
warnings.simplefilter("always")
logging.basicConfig()
rng = np.random.default_rng(0)
noise = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
tags = Image.Exif()
tags[0x010E] = "x" * 40
kinds = [(noise, "TIFF", {"compression": "tiff_lzw"}), (noise, "TIFF", {"compression": "tiff_deflate"})]
kinds += [(noise.convert("1"), "TIFF", {"compression": "group4"}), (noise, "TIFF", {"compression": "jpeg"})]
kinds += [(noise, "TIFF", {}), (noise, "WEBP", {"exif": tags}), (noise.quantize(9), "PNG", {"transparency": b"\\0a"})]
for image, kind, options in kinds:
    data = BytesIO()
    image.save(data, kind, **options)
    for _ in range(60):
        broken = bytearray(data.getvalue())
        for place in rng.integers(0, min(len(broken), int(rng.choice([200, len(broken)]))), 2):
            broken[place] = rng.integers(256)
        for decode in (decode_image, decode_as_stored):
            try:
                decode(bytes(broken))
            except BadSample:
                print("skipped")
"""


def test_decoders_are_silent_about_damage():
    done = subprocess.run([sys.executable, "-c", LOUD], capture_output=True, text=True, check=True)
    assert done.stdout.count("skipped") > 100
    assert done.stderr == ""
