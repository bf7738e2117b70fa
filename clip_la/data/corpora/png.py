"""A small, fast PNG encoder for 8-bit grey and RGB arrays.

Stored (`level=0`), the bytes are the same everywhere. Compressed, they depend on the zlib that Python was built with,
the pixels do not.
"""

import struct
import zlib

import numpy as np
from jaxtyping import UInt8

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, BITS = 0, 2, 8
NO_FILTER, UP_FILTER = 0, 2
# Of a stored deflate block.
MAX_BLOCK_BYTES = 0xFFFF
# Deflate with a 32 KiB window, no dictionary, fastest level: the header that goes with stored blocks.
ZLIB_HEADER = b"\x78\x01"


def encode_png(pixels: UInt8[np.ndarray, "height width *channels"], level: int = 0) -> bytes:
    """A PNG file of a grey [height, width] or RGB [height, width, 3] array.

    Args:
        level: 0 stores, 1 to 9 compress rows as differences to the row above.

    Raises:
        ValueError: another shape.
    """
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] != 3):
        raise ValueError(f"pixels of shape {pixels.shape}: wanted [height, width] or [height, width, 3]")
    height, width = pixels.shape[:2]
    flat = pixels.reshape(height, -1)
    rows = np.empty((height, flat.shape[1] + 1), np.uint8)
    rows[:, 0] = UP_FILTER if level else NO_FILTER
    rows[:, 1:] = flat
    if level:
        rows[1:, 1:] -= flat[:-1]
    data = rows.tobytes()
    if level:
        body = zlib.compress(data, level)
    else:
        # A zlib stream of uncompressed blocks, cut here: where zlib.compress(data, 0) cuts is its own affair.
        blocks = [ZLIB_HEADER]
        for start in range(0, len(data), MAX_BLOCK_BYTES):
            block = data[start : start + MAX_BLOCK_BYTES]
            last = start + MAX_BLOCK_BYTES >= len(data)
            blocks.append(struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF) + block)
        body = b"".join(blocks) + struct.pack(">I", zlib.adler32(data))
    header = struct.pack(">IIBBBBB", width, height, BITS, GRAY if pixels.ndim == 2 else RGB, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    # Each chunk is its length, its kind, its data, and a checksum of the last two.
    return SIGNATURE + b"".join(
        struct.pack(">I", len(own)) + kind + own + struct.pack(">I", zlib.crc32(kind + own)) for kind, own in chunks
    )
