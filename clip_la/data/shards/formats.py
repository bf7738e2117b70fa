"""The one list of image suffixes and of sample parts, and how the name of a file or a member splits into the two.

Everything that reads samples uses it: training, `data pack`, `verify`, `read` and `show`, evaluation of shards and of
folders. Names say where an image is, its bytes which format it has. Case does not count anywhere.

A *suffix* ends the name of a file (`.jpg`); a *part* is the key of a sample's value (`jpg`), as webdataset names it.
"""

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from PIL import Image, features

# Formats whose decoders run inside Pillow (EPS and its like would start other programs), with the suffixes of each;
# `data pack` writes the first one.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
# Pillow has it from 11.3 on, where it was built with libavif.
if "avif" in features.modules and features.check("avif"):
    SUFFIXES["AVIF"] = (".avif",)
FORMATS = tuple(SUFFIXES)
Image.init()  # `formats=` finds only plugins that are loaded

# Of several images in one sample the first of these is used: the first four in open_clip's order.
FIRST_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")
IMAGE_SUFFIXES = FIRST_SUFFIXES + tuple(
    suffix for own in SUFFIXES.values() for suffix in own if suffix not in FIRST_SUFFIXES
)
IMAGE_PARTS = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
TEXT_PART, CLASS_PART, JSON_PART = "txt", "cls", "json"
# webdataset's names for what a sample is, beside its parts.
KEY, URL, RESERVED = "__key__", "__url__", "__"
# Where and how macOS keeps what other systems have no place for, beside each file.
SYSTEM_FOLDER, APPLE_DOUBLE = "__MACOSX", "._"


def split_name(name: str) -> tuple[str, str]:
    """`"a/b.c.PNG"` -> `("a/b", "c.png")`: key and part of a member's name, split at the first dot of its last path
    component and the part in lower case, as webdataset has it; either is empty where the name lacks it."""
    folder, slash, base = name.rpartition("/")
    stem, _, part = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem else "", part.lower())


def parts_of(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a sample without `__key__`, `__url__` and other reserved names."""
    return {name: value for name, value in sample.items() if not name.startswith(RESERVED)}


def image_part(sample: Mapping[str, Any]) -> str | None:
    """The part that is the sample's image; None where it has none."""
    return next((part for part in IMAGE_PARTS if part in sample), None)


def is_image(name: str) -> bool:
    """Whether a file name, with or without folders, ends as images do."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_apple_double(name: str) -> bool:
    """Whether macOS put this beside another file when it packed them: in `__MACOSX/`, or as `._a.jpg`."""
    parts = PurePosixPath(name).parts
    return SYSTEM_FOLDER in parts or any(part.startswith(APPLE_DOUBLE) for part in parts[-1:])


def is_hidden(name: str) -> bool:
    """Whether a relative path is to be ignored: a dot file, in a hidden folder, or left behind by macOS."""
    parts = [part for part in PurePosixPath(name).parts if part not in (".", "..")]
    return SYSTEM_FOLDER in parts or any(part.startswith(".") for part in parts)


def merged_keys(parts: Collection[str]) -> list[str]:
    """What follows the key in the names of samples that were taken for parts of another one.

    `a.b.jpg` and `a.b.txt` are parts `b.jpg` and `b.txt` of `a`, though `a.b` was meant: gives `b`. An `a.seg.png`
    without such company is a part as it should be, and so is an `a.seg.json` where there is an `a.jpg`.
    """
    has_own_image = any(part in parts for part in IMAGE_PARTS)
    companions = (TEXT_PART, CLASS_PART) if has_own_image else (TEXT_PART, CLASS_PART, JSON_PART)
    images = (part.rpartition(".") for part in parts if part.endswith(IMAGE_SUFFIXES))
    return list(dict.fromkeys(stem for stem, _, _ in images if any(f"{stem}.{c}" in parts for c in companions)))
