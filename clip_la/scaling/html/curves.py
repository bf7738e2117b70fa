"""What lies in the folders of runs besides result lines: learning curves (metrics.csv) and contact sheets (PNG)."""

import base64
import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_la.json_text import lines_in
from clip_la.scaling.run_folder import METRICS_NAME, read_config

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
    for path in _below(paths, METRICS_NAME):
        rows = _read(path)
        if rows:
            samples, losses = zip(*rows, strict=True)
            curves.append(Curve(str(path.parent), _kind(path.parent, by), samples, losses))
    each = max(12, MAX_VERTICES // max(len(curves), 1))
    return tuple(_thinned(curve, each) for curve in curves)


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


def _thinned(curve: Curve, most: int) -> Curve:
    """At most `most` vertices, each the mean over its neighbours, so that the noise of single rows does not decide."""
    num = len(curve.samples)
    if num <= most:
        return curve
    parts = np.array_split(np.arange(num), most)
    loss = np.array(curve.loss)
    return Curve(
        curve.name,
        curve.kind,
        tuple(curve.samples[part[-1]] for part in parts),
        tuple(float(loss[part].mean()) for part in parts),
    )


def _kind(folder: Path, by: str) -> str | None:
    try:
        first = next(iter(lines_in((folder / "results.jsonl").read_text(encoding="utf-8"))))
        return str(json.loads(first)[by])
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, StopIteration):
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
