"""Test images with the five best names a model has for them, and their scores: a PNG, and an HTML page."""

import base64
import html
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from clip_la.atomic import atomic_write
from clip_la.data.images.decode import decode_image
from clip_la.zeroshot.datasets.records import EvalDataset, Record
from clip_la.zeroshot.runner.rows import Predictions

NUM_IMAGES = 48
COLUMNS = 8
TILE_PX = 144
MARGIN_PX = 6
LINE_PX = 15
FONT_PX = 12
RIGHT, NEAR, WRONG, INK, FAINT = "#1a7f37", "#9a6700", "#cf222e", "#1f2328", "#656d76"
SHEET_SEED = 0


@dataclass(frozen=True)
class Tile:
    """One image of a sheet: itself, its own class, and the best guesses with their cosine similarities."""

    image: Image.Image
    truth: str
    guesses: tuple[tuple[str, float], ...]
    rank: int

    @property
    def colour(self) -> str:
        """Green for a hit, amber for one among the guesses, red for a miss."""
        return RIGHT if self.rank == 0 else NEAR if self.rank < len(self.guesses) else WRONG


def tiles(predictions: Predictions, test_set: EvalDataset, rows: Sequence[int]) -> list[Tile]:
    """Reads the images of some rows again; sources are read only as far as needed."""
    names = test_set.classes.names
    wanted: dict[int, dict[int, int]] = defaultdict(dict)
    for row in rows:
        wanted[int(predictions.sources[row])][int(predictions.positions[row])] = row
    # By source, since a shard is read from its beginning.
    made: dict[int, Tile] = {}
    for source, positions in wanted.items():
        last = max(positions)
        for position, record in enumerate(test_set.sources[source].records()):
            if position in positions and isinstance(record, Record):
                row = positions[position]
                best = zip(predictions.top[row], predictions.scores[row], strict=True)
                guesses = tuple((names[index][0], float(score)) for index, score in best)
                image = decode_image(record.read())
                fitted = ImageOps.contain(image, (TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
                made[row] = Tile(fitted, names[predictions.labels[row]][0], guesses, int(predictions.ranks[row]))
            if position >= last:
                break
    return [made[row] for row in rows if row in made]


def contact_sheet(
    predictions: Predictions, test_set: EvalDataset, path: Path, *, title: str, num_images: int = NUM_IMAGES
) -> tuple[Path, Path]:
    """Writes PATH.png and PATH.html (`path` without suffix) and returns the two paths.

    The images are drawn at random, the same for every model on the same test set, and stand in the test set's order.
    """
    count = min(num_images, len(predictions))
    rows = np.random.default_rng(SHEET_SEED).choice(len(predictions), count, replace=False)
    chosen = tiles(predictions, test_set, sorted(rows.tolist()))
    image_path, page_path = (path.with_name(path.name + end) for end in (".png", ".html"))
    with atomic_write(image_path) as stream:
        draw_sheet(chosen, title).save(stream, format="PNG")
    with atomic_write(page_path, "w") as stream:
        stream.write(page(chosen, title))
    return image_path, page_path


def draw_sheet(chosen: Sequence[Tile], title: str) -> Image.Image:
    """A grid of images, under each its own name and, the hit in green, the best guesses with their scores."""
    font = ImageFont.load_default(FONT_PX)

    def fit(text: str, width_px: float) -> str:
        """The text, cut where it is too long."""
        if font.getlength(text) <= width_px:
            return text
        while text and font.getlength(text + "...") > width_px:
            text = text[:-1]
        return text + "..."

    columns = max(1, min(COLUMNS, len(chosen)))
    num_lines = 1 + max((len(tile.guesses) for tile in chosen), default=0)
    cell_width, cell_height = TILE_PX + 2 * MARGIN_PX, TILE_PX + 2 * MARGIN_PX + num_lines * LINE_PX
    rows = -(-len(chosen) // columns)
    head = LINE_PX + 2 * MARGIN_PX
    # A long title must not be cut off.
    width = max(columns * cell_width, round(font.getlength(title)) + 2 * MARGIN_PX)
    sheet = Image.new("RGB", (width, head + rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN_PX, MARGIN_PX), title, fill=INK, font=font)
    for number, tile in enumerate(chosen):
        left, top = number % columns * cell_width + MARGIN_PX, head + number // columns * cell_height + MARGIN_PX
        inset = ((TILE_PX - tile.image.width) // 2, (TILE_PX - tile.image.height) // 2)
        sheet.paste(tile.image, (left + inset[0], top + inset[1]))
        top += TILE_PX
        draw.text((left, top), fit(tile.truth, TILE_PX), fill=tile.colour, font=font)
        for place, (name, score) in enumerate(tile.guesses):
            top += LINE_PX
            figure = f"{score:.3f}"
            figure_px = font.getlength(figure)
            colour = RIGHT if place == tile.rank else INK
            draw.text((left, top), fit(name, TILE_PX - figure_px - MARGIN_PX), fill=colour, font=font)
            draw.text((left + TILE_PX - figure_px, top), figure, fill=FAINT, font=font)
    return sheet


STYLE = """body{font:14px system-ui,sans-serif;color:#1f2328;margin:24px}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(210px,1fr));gap:16px}
figure{margin:0;border:1px solid #d0d7de;border-radius:6px;padding:10px}
img{display:block;margin:0 auto 8px;height:144px;object-fit:contain}
ol{margin:4px 0 0;padding-left:20px} li span{float:right;color:#656d76;font-variant-numeric:tabular-nums}"""


def page(chosen: Sequence[Tile], title: str) -> str:
    """The same images as one HTML page that needs no other file."""
    figures = []
    for tile in chosen:
        buffer = io.BytesIO()
        tile.image.save(buffer, format="PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        truth = html.escape(tile.truth)
        guesses = "".join(
            f'<li style="color:{RIGHT if place == tile.rank else INK}">{html.escape(name)}<span>{score:.3f}</span></li>'
            for place, (name, score) in enumerate(tile.guesses)
        )
        figures.append(
            f'<figure><img alt="{truth}" src="data:image/png;base64,{data}">'
            f'<b style="color:{tile.colour}">{truth}</b><ol>{guesses}</ol></figure>'
        )
    joined = "\n".join(figures)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n<h1>{html.escape(title)}</h1>\n<main>\n{joined}\n</main></html>\n"
    )
