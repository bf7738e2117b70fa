"""SVG drawings to PNG bytes, the same on every machine: resvg draws and encodes; no system fonts, no zlib."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

from clip_la.data.shards.spawned import Spawned

Svg = Path | str
"""A drawing: the path of an SVG file, or the text of one."""

# Starting processes costs about as much as this many drawings.
_SERIAL_BELOW = 400
_CHUNK = 64
# CSS's own: the package's default of 0 makes lengths in points or inches vanish.
PIXELS_AN_INCH = 96
_VIEW_BOX = re.compile(r'<svg[^>]*?\sviewBox="\S+ \S+ (\S+) (\S+)"')


def render(svg: Svg, size_px: int, background: str | None = "white") -> bytes:
    """One drawing as a square PNG of `size_px` (RGBA; opaque unless `background` is None).

    A drawing that is not square stands in the middle of the square.
    """
    import resvg_py

    text = svg.read_text(encoding="utf-8") if isinstance(svg, Path) else svg
    box = _VIEW_BOX.search(text)
    if box is not None and float(box[1]) != float(box[2]):
        # Nested in a square one it is scaled to fit and centred, as SVG's default has it.
        text = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1">{text[text.index("<svg") :]}</svg>'
    png = resvg_py.svg_to_bytes(
        svg_string=text,
        width=size_px,
        height=size_px,
        background=background,
        skip_system_fonts=True,
        dpi=PIXELS_AN_INCH,
    )
    return bytes(png)


def render_all(svgs: Sequence[Svg], size_px: int, workers: int = 1) -> Iterator[bytes]:
    """PNGs of all drawings on white, in their order, by `workers` processes, at most 8.

    Args:
        svgs: files, or the texts of drawings.
        size_px: side of the square images.
        workers: processes; few drawings are drawn here all the same.
    """
    draw = partial(render, size_px=size_px)
    num = min(workers, 8)
    if num == 1 or len(svgs) < _SERIAL_BELOW:
        yield from map(draw, svgs)
        return
    # spawn: the caller may have threads (torch), which fork does not survive reliably.
    with ProcessPoolExecutor(num, mp_context=Spawned()) as pool:
        yield from pool.map(draw, svgs, chunksize=_CHUNK)


def pixel_hash(png: bytes) -> str:
    """SHA-256, as hexadecimal digits, of an image's width and height and its RGB bytes row by row.

    Equal images have equal hashes whatever encoder wrote them.
    """
    from PIL import Image

    with Image.open(BytesIO(png)) as image:
        size = f"{image.width}x{image.height} ".encode()
        return hashlib.sha256(size + image.convert("RGB").tobytes()).hexdigest()
