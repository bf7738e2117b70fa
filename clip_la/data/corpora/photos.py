"""The photographic test set: cut-out photographs of Debian's tuxpaint-stamps-default, in classes curated by hand.

The images are read from the installed or unpacked package. Which of them is a true photograph of one plain thing, and
its WordNet id, stands in `photo_classes.tsv`: every image was looked at, drawings and signs are left out.
"""

import base64
import csv
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from clip_la.data.corpora.build import Classes, Record, existing, write_manifest, write_split
from clip_la.data.corpora.captions import PHOTO_TEMPLATES
from clip_la.data.corpora.debian import find_package_files, package_files
from clip_la.data.corpora.inputs import RENDERER, MadeFrom, files_state, renderer_version
from clip_la.data.corpora.names import with_article
from clip_la.data.corpora.packages import CORPUS_PACKAGES, require
from clip_la.data.corpora.render import render
from clip_la.errors import UserError
from clip_la.fingerprint import file_hash

PACKAGE, STAMPS = "tuxpaint-stamps-default", "usr/share/tuxpaint/stamps"
CLASS_MAP = Path(__file__).parent / "photo_classes.tsv"
ALL, KNOWN = "photos", "photos-starter"
LICENCE = "GPL-2.0"
CREDIT = {
    "title": "Tux Paint stamps",
    "licence": LICENCE,
    "attribution": "Tux Paint stamps, copyright 2002-2022 by Bill Kendrick and contributors; GPL version 2",
    "source": "https://tuxpaint.org",
    "package": f"{PACKAGE} (Debian)",
}


class Photo(NamedTuple):
    """One image: its path below the stamps' folder, class, WordNet id, and the starter corpus's name for it or ""."""

    path: str
    name: str
    wnid: str
    starter: str


def read_class_map(path: Path = CLASS_MAP) -> list[Photo]:
    """The curated table, in its order."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [Photo(r["path"], r["class"], r["wnid"], r["starter"]) for r in csv.DictReader(stream, delimiter="\t")]


def squared_photo(data: bytes) -> bytes:
    """A cut-out on white, padded to a square of its longer side, as a PNG in resvg's own bytes."""
    with Image.open(BytesIO(data)) as image:
        width, height = image.size
    side = max(width, height)
    x, y = (side - width) // 2, (side - height) // 2
    text = base64.b64encode(data).decode()
    # Through resvg rather than Pillow: its PNG bytes do not depend on the zlib of this Python.
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}"><image x="{x}" y="{y}" width="{width}" '
        f'height="{height}" href="data:image/png;base64,{text}"/></svg>'
    )
    return render(svg, side)


def _sample(folder: Path, photo: Photo) -> Record:
    path = folder / photo.path
    try:
        lines = path.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    # The first line beside a stamp is its English caption, those below are other languages'.
    caption = lines[0].strip() if lines and lines[0].strip() else with_article(photo.name)
    meta = {
        "name": photo.name,
        "class": photo.name,
        "wnid": photo.wnid,
        "starter": photo.starter,
        "caption": caption,
        "artist": "tuxpaint-stamps",
        "licence": LICENCE,
        "origin": photo.path,
    }
    return {".png": squared_photo(path.read_bytes()), ".txt": caption, ".json": meta}


def build_photos(out: Path, *, given: Path | None = None, quiet: bool = False) -> Record:
    """Builds the test set in `out` unless it is there: all classes, and those that the starter corpus has a name for.

    Args:
        given: the unpacked package, where it is neither installed nor to be downloaded.

    Raises:
        UserError: the package is not to be had, or lacks images of the class map.
    """
    settings = {"corpus": "photos"}
    photos = read_class_map()

    def made_from() -> MadeFrom | None:
        # None where the package would have to be fetched first.
        stamps = find_package_files(PACKAGE, STAMPS, given)
        if stamps is None or (renderer := renderer_version()) is None:
            return None
        paths = [stamps / photo.path for photo in photos]
        texts = [path.with_suffix(".txt") for path in paths]
        # An image may be in two classes, and is read once.
        state = files_state(stamps, [*dict.fromkeys([*paths, *texts])])
        return {PACKAGE: state, RENDERER: renderer, CLASS_MAP.name: file_hash(CLASS_MAP)}

    if (manifest := existing(out, settings, (ALL, KNOWN), made_from())) is not None:
        return {**manifest, "built": False}
    require({"resvg-py": CORPUS_PACKAGES["resvg-py"]})
    folder = package_files(PACKAGE, STAMPS, given)
    missing = [photo.path for photo in photos if not (folder / photo.path).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of {len(photos)} images, such as {missing[0]}")
    splits = {}
    for split, own in ((ALL, photos), (KNOWN, [photo for photo in photos if photo.starter])):
        ids = {photo.name: photo.wnid for photo in own}
        classes = Classes(list(ids), list(ids.values()), PHOTO_TEMPLATES)
        samples = (_sample(folder, photo) for photo in own)
        bar = tqdm(samples, split, total=len(own), unit="img", disable=quiet or None)
        splits[split] = write_split(out / split, bar, classes)
    manifest = write_manifest(out, settings, splits, made_from=made_from(), artists={"tuxpaint-stamps": CREDIT})
    return {**manifest, "built": True}
