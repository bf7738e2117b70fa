"""What lies in the folders of runs besides result lines: learning curves (metrics.csv) and contact sheets (PNG)."""

import base64
import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_la import results
from clip_la.errors import counted
from clip_la.runs import METRICS, RunFolder
from clip_la.scaling.html.plots import Axis, Line, Mark, Plot, absent, limits
from clip_la.scaling.run_folder import read_config

NO_CURVES = "No metrics.csv was found: give the folders of the runs, and their loss is drawn against samples seen."
# The number of a kind that is none of the analysis': it is drawn in the palette's last colour, black or white.
OTHER = -1
# The first steps of a run are far above all that follows: the axis leaves out this share of the highest losses.
STEEP_SHARE = 0.02
# All curves of a page together: 40 bytes a vertex.
MAX_VERTICES = 12_000
SHEET_PATTERN = "*contact_sheet*.png"
MAX_SHEETS = 12
# Of all sheets of a page together; the page stays below 5 MB with them.
MAX_SHEET_BYTES = 2_500_000
SHEET_WIDTH_PX, SHEET_QUALITY = 1200, 80


@dataclass(frozen=True)
class Curve:
    """The training loss of one run against samples seen; `kind` is the value of the field that tells kinds apart."""

    name: str
    kind: str | None
    samples: tuple[int, ...]
    loss: tuple[float, ...]

    def thinned(self, most: int) -> "Curve":
        """At most `most` vertices, each the mean over its neighbours, so that no single noisy row decides."""
        num = len(self.samples)
        if num <= most:
            return self
        parts = np.array_split(np.arange(num), most)
        loss = np.array(self.loss)
        samples = tuple(self.samples[part[-1]] for part in parts)
        return Curve(self.name, self.kind, samples, tuple(float(loss[part].mean()) for part in parts))


@dataclass(frozen=True)
class Sheet:
    """A contact sheet as a data URI; where `uri` is empty, `why` says what hindered."""

    name: str
    uri: str
    size_px: tuple[int, int]
    why: str = ""


def _below(paths: Sequence[Path], pattern: str) -> Iterator[Path]:
    """Files of a pattern below folders and beside files, each once, in the order of their names."""
    found: dict[Path, None] = {}
    for path in paths:
        inside = path.rglob(pattern) if path.is_dir() else path.parent.glob(pattern)
        found |= dict.fromkeys(sorted(each for each in inside if each.is_file()))
    yield from found


def find_curves(paths: Sequence[Path], by: str) -> tuple[Curve, ...]:
    """The learning curve of every run folder below (or, for a file, around) some paths; damaged rows are skipped.

    Args:
        paths: result files and folders, as given to `result_points`.
        by: the field of a point that tells kinds apart; read from the run's result lines, else from its config.yaml.
    """
    curves = []
    for path in _below(paths, METRICS):
        rows = _read(path)
        if rows:
            samples, losses = zip(*rows, strict=True)
            curves.append(Curve(str(path.parent), _kind(path.parent, by), samples, losses))
    each = max(12, MAX_VERTICES // max(len(curves), 1))
    return tuple(curve.thinned(each) for curve in curves)


def _read(path: Path) -> list[tuple[int, float]]:
    """(samples seen, loss) of each whole row."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    found = []
    for row in rows:
        try:
            samples, loss = int(row["samples_seen"]), float(row["loss"])
        except (KeyError, TypeError, ValueError):
            # A row that a kill cut short.
            continue
        if samples > 0 and math.isfinite(loss):
            found.append((samples, loss))
    return found


def _kind(folder: Path, by: str) -> str | None:
    try:
        return str(next(results.read(RunFolder(folder).results, skip_damaged=True))[by])
    except (OSError, ValueError, KeyError, StopIteration):
        # No result lines of its own: those of several runs may lie in one file elsewhere.
        pass
    config = read_config(folder)
    model: Any = config.get("model") if isinstance(config.get("model"), dict) else {}
    data: Any = config.get("data") if isinstance(config.get("data"), dict) else {}
    known = {
        "attention": model.get("attention"),
        "image_attention": model.get("image_attention") or model.get("attention"),
        "text_attention": model.get("text_attention") or model.get("attention"),
        "model": model.get("name"),
        "train_data": data.get("shards"),
    }
    return None if known.get(by) is None else str(known[by])


def curves_plot(curves: Sequence[Curve], kinds: Sequence[str]) -> Plot:
    """Training loss against samples seen, a curve a run; `kinds` are the names whose place is a kind's number."""
    name, title = "learning-curves", "Learning curves"
    if not curves:
        return absent(name, title, NO_CURVES)
    marks, lines = [], []
    for curve in curves:
        kind = kinds.index(curve.kind) if curve.kind in kinds else OTHER
        lines.append(Line(curve.samples, curve.loss, kind, thin=True))
        text = f"{curve.name}\nloss {curve.loss[-1]:.4g} after {curve.samples[-1]:,} samples"
        marks.append(Mark(curve.samples[-1], curve.loss[-1], kind, text))
    losses = sorted(loss for curve in curves for loss in curve.loss)
    highest = losses[int((1 - STEEP_SHARE) * (len(losses) - 1))]
    # No run's end lies outside.
    shown = [losses[0], highest, *(mark.y for mark in marks)]
    caption = f"Training loss of {counted(len(curves), 'run')}, from their metrics.csv; a mark at each run's end."
    if any(mark.kind == OTHER for mark in marks):
        caption += " Black or white: of another kind."
    samples = (each for curve in curves for each in curve.samples)
    x = Axis("samples seen", *limits(samples, log=True), log=True)
    return Plot(name, title, caption, x, Axis("training loss", *limits(shown, log=False)), tuple(marks), tuple(lines))


def find_sheets(paths: Sequence[Path]) -> tuple[Sheet, ...]:
    """The contact sheets below folders and beside files, made small enough to lie in the page together."""
    files = list(_below(paths, SHEET_PATTERN))
    sheets = []
    left = MAX_SHEET_BYTES
    for number, path in enumerate(files[:MAX_SHEETS]):
        sheet = _encoded(path, left // (min(len(files), MAX_SHEETS) - number))
        left -= len(sheet.uri)
        sheets.append(sheet)
    sheets += [Sheet(str(path), "", (0, 0), f"not shown: {MAX_SHEETS} are") for path in files[MAX_SHEETS:]]
    return tuple(sheets)


def _encoded(path: Path, most_bytes: int) -> Sheet:
    """The sheet as a JPEG of at most so many bytes in base64, its width halved until it fits."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Sheet(str(path), "", (0, 0), f"damaged: {error}")
    width = min(image.width, SHEET_WIDTH_PX)
    while True:
        size = (width, max(1, round(image.height * width / image.width)))
        stream = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(stream, "JPEG", quality=SHEET_QUALITY)
        text = base64.b64encode(stream.getvalue()).decode("ascii")
        if len(text) <= most_bytes or width < 100:
            return Sheet(str(path), f"data:image/jpeg;base64,{text}", size)
        width //= 2
