"""A look into shards: a contact sheet as PNG and as a page of HTML, images with their captions."""

import base64
import html
import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from clip_la.atomic import atomic_write
from clip_la.data.images.decode import decode_image
from clip_la.data.images.limits import image_bytes
from clip_la.data.shards.formats import KEY
from clip_la.data.shards.problems import BadSample, Problem
from clip_la.data.shards.reader import read_samples
from clip_la.data.text.captions import Captions
from clip_la.data.tools.verify import FIRST_CHOICE
from clip_la.errors import UserError

COLUMNS = 8
TILE_PX = 128
MARGIN_PX = 8
FONT_PX = 11
LINE_PX = 14
CAPTION_LINES = 3
CHARS_A_LINE = 23
# Samples a shard is read for; deeper ones are as good.
MAX_READ_PER_SHARD = 2000
MAX_SHARDS = 32
INK, FAINT, PAPER, WRONG = "#1a1a1a", "#6b6b6b", "#ffffff", "#b00020"


@dataclass(frozen=True)
class Shown:
    """One sample on the sheet: its image, or why it has none."""

    key: str
    shard: str
    caption: str
    image: Image.Image | None

    @classmethod
    def from_sample(cls, sample: dict[str, Any], url: str) -> "Shown":
        """A raw sample with its first caption; what is wrong with it stands in brackets."""
        try:
            caption = Captions(("txt", "json.caption")).choose(sample, FIRST_CHOICE)
        except BadSample as bad:
            caption = f"[{bad.reason}]"
        try:
            image = decode_image(image_bytes(sample))
        except BadSample as bad:
            return cls(sample[KEY], Path(url).name, f"[{bad.reason}] {caption}", None)
        # Twice the size of a tile: the page of HTML is also looked at on finer screens.
        image.thumbnail((TILE_PX * 2, TILE_PX * 2))
        return cls(sample[KEY], Path(url).name, caption, image)

    def figure(self) -> str:
        """The sample as HTML, its image inside."""
        image = ""
        if self.image is not None:
            stream = BytesIO()
            self.image.save(stream, "PNG")
            image = f'<img alt="" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'
        return (
            f"<figure>{image}<figcaption>{html.escape(self.caption)}<br>"
            f"<small>{html.escape(f'{self.shard} {self.key}')}</small></figcaption></figure>"
        )


def choose(urls: Sequence[str], num: int, seed: int) -> list[Shown]:
    """`num` samples of up to MAX_SHARDS shards, drawn by `seed`, in the order of the shards; unusable ones too.

    Raises:
        UserError: the shards hold no sample at all.
    """
    rng = random.Random(seed)
    chosen = sorted(rng.sample(range(len(urls)), min(len(urls), MAX_SHARDS, num)))
    found: list[Shown] = []
    lost: list[Problem] = []
    for place, shard in enumerate(chosen):
        # What one shard lacks, the next ones give.
        share = -(-(num - len(found)) // (len(chosen) - place))
        samples = list(islice(read_samples(urls[shard], on_problem=lost.append), MAX_READ_PER_SHARD))
        picked = sorted(rng.sample(range(len(samples)), min(share, len(samples))))
        found += [Shown.from_sample(samples[i], urls[shard]) for i in picked]
    if not found:
        shards = urls[0] + (f" and {len(urls) - 1} more shards" if len(urls) > 1 else "")
        raise UserError(f"no samples in {shards}" + (f"; the first problem: {lost[0]}" if lost else ""))
    return found


def contact_sheet(shown: Sequence[Shown], columns: int = COLUMNS) -> Image.Image:
    """All samples on one RGB image, `columns` wide: image, caption (up to three lines), key."""
    cell_w, cell_h = TILE_PX + MARGIN_PX, TILE_PX + MARGIN_PX + LINE_PX * (CAPTION_LINES + 1)
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * cell_w + MARGIN_PX, rows * cell_h + MARGIN_PX), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_PX)
    for number, one in enumerate(shown):
        x, y = MARGIN_PX + number % columns * cell_w, MARGIN_PX + number // columns * cell_h
        if one.image is None:
            draw.rectangle((x, y, x + TILE_PX, y + TILE_PX), outline=WRONG)
        else:
            scale = TILE_PX / max(one.image.size)
            size = [max(1, round(side * scale)) for side in one.image.size]
            tile = one.image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
            sheet.paste(tile, (x + (TILE_PX - tile.width) // 2, y + (TILE_PX - tile.height) // 2))
        lines = textwrap.wrap(one.caption, CHARS_A_LINE, max_lines=CAPTION_LINES, placeholder="...") or [""]
        draw.multiline_text((x, y + TILE_PX + 2), "\n".join(lines), INK if one.image else WRONG, font, spacing=1)
        draw.text((x, y + TILE_PX + LINE_PX * CAPTION_LINES), one.key[-CHARS_A_LINE:], FAINT, font)
    return sheet


def page(shown: Sequence[Shown], title: str) -> str:
    """The same as one page of HTML that needs no other file."""
    figures = "\n".join(one.figure() for one in shown)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>
body {{ font: 14px/1.35 system-ui, sans-serif; color: {INK}; background: {PAPER}; margin: 24px }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax({TILE_PX + 32}px, 1fr)); gap: 20px }}
figure {{ margin: 0 }}
img {{ width: 100%; aspect-ratio: 1; object-fit: contain; background: #f4f4f4 }}
small {{ color: {FAINT}; overflow-wrap: anywhere }}
</style>
<h1>{html.escape(title)}</h1>
<main>
{figures}
</main></html>
"""


def show(urls: Sequence[str], out: Path, *, num: int, seed: int = 0, columns: int = COLUMNS) -> list[Path]:
    """Writes the contact sheet to `out` (.png) and the page beside it (.html), and returns both paths.

    Raises:
        UserError: `out` is no .png, nothing to show, or a missing shard.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out} must end in .png; the page of HTML is written beside it")
    if num < 1 or columns < 1:
        raise UserError(f"--num {num} and --columns {columns} must be at least 1")
    shown = choose(urls, num, seed)
    with atomic_write(out) as stream:
        contact_sheet(shown, min(columns, len(shown))).save(stream, "PNG")
    web = out.with_suffix(".html")
    with atomic_write(web, "w") as stream:
        stream.write(page(shown, f"{len(shown)} samples of {Path(urls[0]).parent}"))
    return [out, web]
