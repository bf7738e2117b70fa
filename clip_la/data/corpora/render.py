"""SVG drawings to PNG bytes, the same on every machine: resvg draws and encodes; no system fonts, no zlib."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
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


def squared(text: str) -> str:
    """An SVG text whose drawing is not square, put in the middle of a square one; others unchanged."""
    box = _VIEW_BOX.search(text)
    if box is None or float(box[1]) == float(box[2]):
        return text
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1">{text[text.index("<svg") :]}</svg>'


def render(svg: Svg, size_px: int, background: str | None = "white") -> bytes:
    """One drawing as a square PNG of `size_px` (RGBA; opaque unless `background` is None)."""
    import resvg_py

    text = squared(svg.read_text(encoding="utf-8") if isinstance(svg, Path) else svg)
    png = resvg_py.svg_to_bytes(
        svg_string=text,
        width=size_px,
        height=size_px,
        background=background,
        skip_system_fonts=True,
        dpi=PIXELS_AN_INCH,
    )
    return bytes(png)


def _render(job: tuple[Svg, int]) -> bytes:
    return render(*job)


def render_all(svgs: Sequence[Svg], size_px: int, workers: int = 1) -> Iterator[bytes]:
    """PNGs of all drawings on white, in their order, by `workers` processes, at most 8."""
    jobs = [(svg, size_px) for svg in svgs]
    num = min(workers, 8)
    if num == 1 or len(jobs) < _SERIAL_BELOW:
        yield from map(_render, jobs)
        return
    # spawn: the caller may have threads (torch), which fork does not survive reliably.
    with ProcessPoolExecutor(num, mp_context=Spawned()) as pool:
        yield from pool.map(_render, jobs, chunksize=_CHUNK)


def pixels(png: bytes) -> bytes:
    """The RGB bytes of a picture, row by row, after its width and height: what pixel hashes are made of."""
    from PIL import Image

    with Image.open(BytesIO(png)) as image:
        return f"{image.width}x{image.height} ".encode() + image.convert("RGB").tobytes()


def covered(png: bytes) -> float:
    """The share of a picture's pixels that are not white."""
    from PIL import Image

    with Image.open(BytesIO(png)) as image:
        histogram = image.convert("L").histogram()
    return 1 - histogram[-1] / sum(histogram)


def pixel_hash(png: bytes) -> str:
    """SHA-256 of `pixels`, as hexadecimal digits."""
    return hashlib.sha256(pixels(png)).hexdigest()


def combined_hash(hashes: Iterable[str]) -> str:
    """SHA-256 over a sequence of hashes, in order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
