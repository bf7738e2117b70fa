"""Image bytes to RGB pixels, safely: what it is is read from the bytes, how large it is from the header.

The rule, for training and evaluation alike: turned as EXIF says; transparency of any kind (alpha, of a palette, a
transparent colour) laid on a background; grey, palette, 1-bit and CMYK made RGB before anything is resized; of an
animation the first frame; colour profiles are not applied. Integers of 16 or 32 bits keep the upper 8 of 16 bits (of
12 where a TIFF declares 12), unless none exceeds 255: these are 8-bit values in a wide format, and would be black.
Negative integers, larger ones and floating point have no stated range and are refused.
"""

import ctypes
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError, _imaging

from clip_la.data.shards import problems
from clip_la.data.shards.formats import FORMATS
from clip_la.data.shards.problems import BadSample

# 8192 x 8192; below the size from which Pillow itself warns.
MAX_PIXELS = 1 << 26
WHITE = (255, 255, 255)
RGB = tuple[int, int, int]
UINT8_MAX, UINT16_MAX = 255, 65535
EXIF_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow keeps the EXIF block of a file, and that of a PNG by old versions of ImageMagick, as lines of hex digits.
EXIF, EXIF_IN_HEX = "exif", "Raw profile type exif"
PNG_DEPTH_BYTE = 24
TIFF_BITS, TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0


# A damaged image is reported by its reason: what Pillow logs and libtiff writes to stderr by itself is silenced.
logging.getLogger("PIL").setLevel(logging.CRITICAL)
for _name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
    # Found where the linker shows the symbols of Pillow's libraries: on Linux and macOS.
    _handler = getattr(ctypes.CDLL(_imaging.__file__), _name, None)
    if _handler is not None:
        _handler.argtypes, _handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        _handler(None)


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, background: RGB = WHITE) -> Image.Image:
    """The image as it should be seen, 8-bit RGB by the rule above.

    Args:
        data: a file of one of `FORMATS`.
        max_pixels: limit on width times height, checked before anything is decoded.
        background: red, green, blue in 0..255, behind what is transparent.

    Raises:
        BadSample: with the reason from `problems`.
    """
    return flatten(decode_keeping_alpha(data, max_pixels=max_pixels), background)


def decode_keeping_alpha(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As `decode_image`, but images with transparency stay RGBA."""
    image = decode_as_stored(data, max_pixels=max_pixels)
    with reasons():
        # Pillow brings the pixels of a PNG to 8 bits, but not the colour that the file calls transparent.
        if image.format == "PNG":
            depth, value = data[PNG_DEPTH_BYTE], image.info.get("transparency")
            if image.mode == "L" and isinstance(value, int) and depth < 8:
                image.info["transparency"] = value * UINT8_MAX // ((1 << depth) - 1)
            elif image.mode == "RGB" and isinstance(value, tuple) and depth == 16:
                image.info["transparency"] = tuple(each >> 8 for each in value)
        return _seen(image)


def decode_as_stored(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in the mode and the orientation in which Pillow opens it, for callers with a rule of their own.

    Raises:
        BadSample: it is empty, too large, of no format in `FORMATS`, or damaged.
    """
    if not data:
        raise BadSample(problems.IMAGE_EMPTY)
    with reasons():
        image = Image.open(BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise BadSample(problems.IMAGE_TOO_LARGE)
        image.load()
        return image


def as_rgb(image: Image.Image, background: RGB = WHITE) -> Image.Image:
    """An image that is open already, as `decode_image` gives it. Raises BadSample."""
    with reasons():
        return flatten(_seen(image), background)


def flatten(image: Image.Image, background: RGB) -> Image.Image:
    """An RGBA image laid on one colour, as RGB; an RGB one as it is."""
    if image.mode == "RGB":
        return image
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


@contextmanager
def reasons() -> Iterator[None]:
    """Turns what Pillow raises into BadSample, and what it warns of into nothing."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except BadSample:
        raise
    except UnidentifiedImageError as error:
        raise BadSample(problems.NOT_AN_IMAGE) from error
    except Image.DecompressionBombError as error:
        raise BadSample(problems.IMAGE_TOO_LARGE) from error
    # Damaged files make Pillow's decoders raise almost anything: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise BadSample(problems.IMAGE_DAMAGED) from error


def _seen(image: Image.Image) -> Image.Image:
    """RGB or RGBA, upright."""
    try:
        exif = Image.Exif()
        exif.load(image.info.get(EXIF) or bytes.fromhex("".join(image.info[EXIF_IN_HEX].split("\n")[3:])))
        # EXIF's number for how the pixels lie, 1 if upright; of a TIFF, Pillow has turned them already.
        turn = TURNS.get(exif.get(EXIF_ORIENTATION, 1))
    # No block, or a damaged one, says nothing; the pixels are what they are.
    except Exception:
        turn = None
    seen = _eight_bit(image)
    if turn is not None:
        seen = seen.transpose(turn)
    elif seen is image:
        return image
    # What described the file no longer describes these pixels.
    seen.info = {}
    return seen


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        image = _narrowed(image)
    elif image.mode == "F":
        raise BadSample(problems.PIXELS_NOT_SUPPORTED)
    elif image.mode == "La":
        image = image.convert("LA")  # straight to RGBA, Pillow would drop the alpha
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _narrowed(image: Image.Image) -> Image.Image:
    """A grey image of wide integers as 8-bit grey, with alpha where one value is transparent."""
    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})
    bits = 12 if tags.get(TIFF_BITS) == (12,) else 16
    if image.mode != "I" and tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO:
        values = (1 << bits) - 1 - values
    if values.min() < 0 or values.max() > UINT16_MAX:
        raise BadSample(problems.PIXELS_NOT_SUPPORTED)
    shift = 0 if bits == 16 and values.max() <= UINT8_MAX else bits - 8
    grey = Image.fromarray((values >> shift).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, UINT8_MAX).astype(np.uint8)))
    return grey
