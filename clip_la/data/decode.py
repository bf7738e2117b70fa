"""Image bytes to RGB pixels, safely: what it is is read from the bytes, how large it is from the header."""

import warnings
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from clip_la.data import problems
from clip_la.data.formats import FORMATS
from clip_la.data.problems import BadSample

# 8192 x 8192; below the size from which Pillow itself warns.
MAX_PIXELS = 1 << 26
WHITE = (255, 255, 255)
RGB = tuple[int, int, int]
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, background: RGB = WHITE) -> Image.Image:
    """The picture as it should be seen: 8-bit RGB, rotated as EXIF says, transparency laid on `background`.

    CMYK, palette, grey and 16-bit pictures are converted, of an animation the first frame is taken.

    Args:
        data: a file of one of `FORMATS`.
        max_pixels: limit on width times height, checked before anything is decoded.
        background: red, green, blue in 0..255.

    Raises:
        BadSample: with the reason from `problems`.
    """
    image = decode_keeping_alpha(data, max_pixels=max_pixels)
    return flatten(image, background) if image.mode == "RGBA" else image


def decode_keeping_alpha(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As `decode_image`, but pictures with transparency stay RGBA."""
    if not data:
        raise BadSample(problems.IMAGE_EMPTY)
    image = _open(data, max_pixels)
    try:
        if "exif" in image.info or image.format == "TIFF":
            ImageOps.exif_transpose(image, in_place=True)
        return _eight_bit(image)
    except BadSample:
        raise
    # Damaged files make Pillow's decoders raise almost anything: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise BadSample(problems.IMAGE_DAMAGED) from error


def flatten(image: Image.Image, background: RGB) -> Image.Image:
    """An RGBA picture laid on one colour, as RGB."""
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit decides
            image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise BadSample(problems.NOT_AN_IMAGE) from error
    except Image.DecompressionBombError as error:
        raise BadSample(problems.IMAGE_TOO_LARGE) from error
    except Exception as error:
        raise BadSample(problems.IMAGE_DAMAGED) from error
    if image.width * image.height > max_pixels:
        raise BadSample(problems.IMAGE_TOO_LARGE)
    return image


def _eight_bit(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in SIXTEEN_BIT_MODES:
        # Pillow's own conversion would clip everything above 255 to white.
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadSample(problems.PIXELS_NOT_SUPPORTED)
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
