"""The quick way for plain JPEGs: libjpeg-turbo through simplejpeg, faster than Pillow and straight into an array.

Anything out of the ordinary (CMYK, turned by EXIF, damaged, or simplejpeg not installed) is left to `decode`, which
knows every case and gives every reason.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: Pillow decodes instead
    simplejpeg = None

START = b"\xff\xd8\xff"
END = b"\xff\xd9"
END_WITHIN_BYTES = 64
EXIF_MARK = b"Exif\0\0"
EXIF_BYTES = 1 << 16  # the most that one segment of a JPEG holds
ORIENTATION_TAG, UPRIGHT = 0x0112, 1
COLORS = ("YCbCr", "RGB", "Gray")
REDUCTIONS = (8, 4, 2)
# A reduced image keeps this many times the pixels a side that are wanted in the end: then the result is within 44 dB
# of that of the full image, on photographs.
REDUCED_AT_LEAST = 1.25


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels of a JPEG that `pixels` can decode, from its header alone; None for anything else."""
    if simplejpeg is None or not data.startswith(START):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colors not in COLORS:
        return None
    start = data.find(EXIF_MARK)
    if start >= 0:
        try:
            exif = Image.Exif()
            exif.load(data[start : start + EXIF_BYTES])
            is_upright = exif.get(ORIENTATION_TAG, UPRIGHT) == UPRIGHT
        # Damaged EXIF blocks raise almost anything; the careful decoder decides.
        except Exception:
            is_upright = False
        if not is_upright:
            return None
    return width, height


def has_end(data: bytes) -> bool:
    """Whether the end mark is there, but for padding behind it: its absence is how a cut file shows."""
    return END in data[-END_WITHIN_BYTES:]


def reduction(shorter_side_px: float, wanted_px: int) -> int:
    """By how much an image may be shrunk while decoding, 1, 2, 4 or 8, when a crop of this side is wanted smaller."""
    return next((k for k in REDUCTIONS if shorter_side_px / k >= REDUCED_AT_LEAST * wanted_px), 1)


def pixels(data: bytes, size: tuple[int, int], reduced: int = 1) -> UInt8[np.ndarray, "height width 3"] | None:
    """The image with both sides divided by `reduced` (rounded up); None when it has the slightest damage.

    Args:
        data: a file for which `plain_size` gave `size`.
        size: that width and height in pixels.
        reduced: 1, 2, 4 or 8; the transform's low frequencies alone are then computed, which saves time.
    """
    width, height = (-(-side // reduced) for side in size)
    try:
        return simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=reduced)
    except ValueError:
        return None
