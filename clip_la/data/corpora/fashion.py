"""Fashion-MNIST from Debian's dataset-fashion-mnist: product photographs in ten classes, 28 px, grey."""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from clip_la.data.corpora.build import Classes, Record, existing, write_manifest, write_split
from clip_la.data.corpora.captions import PHOTO_TEMPLATES, pick
from clip_la.data.corpora.debian import find_package_files, package_files
from clip_la.data.corpora.inputs import MadeFrom, files_state
from clip_la.data.corpora.names import with_article
from clip_la.data.corpora.png import encode_png
from clip_la.errors import UserError

PACKAGE, FOLDER = "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"
# In the order of the labels; the names of the data set's own table, in words of a caption.
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
TEMPLATES = ("a photo of {}", "a product photo of {}", "a black and white photo of {}", "{}")
SPLITS = {"train": "train", "test": "t10k"}
SIDE_PX = 28
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
PER_SHARD = 5000
CREDIT = {
    "title": "Fashion-MNIST",
    "licence": "MIT",
    "attribution": "Fashion-MNIST, copyright 2017 Zalando SE",
    "source": "https://github.com/zalandoresearch/fashion-mnist",
    "package": f"{PACKAGE} (Debian)",
}


def read_idx(folder: Path, prefix: str) -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]:
    """Images and labels of one half ("train" or "t10k").

    Raises:
        UserError: a file is missing or damaged.
    """

    def read(name: str, magic: int, header: str) -> tuple[tuple[int, ...], bytes]:
        # IDX: a magic number that tells the kind, the sizes as big-endian integers, then the bytes.
        path = folder / f"{prefix}-{name}-ubyte.gz"
        try:
            with gzip.open(path) as stream:
                numbers = struct.unpack(f">I{header}", stream.read(4 + struct.calcsize(f">{header}")))
                data = stream.read()
        except (OSError, EOFError, struct.error) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        if numbers[0] != magic:
            raise UserError(f"{path} is no IDX file of the kind wanted (magic {numbers[0]}, not {magic})")
        return numbers[1:], data

    (num, height, width), pixels = read("images-idx3", IMAGES_MAGIC, "III")
    (num_labels,), labels = read("labels-idx1", LABELS_MAGIC, "I")
    if (height, width) != (SIDE_PX, SIDE_PX) or not num == num_labels == len(labels) or len(pixels) != num * SIDE_PX**2:
        raise UserError(f"{folder}: images and labels of '{prefix}' do not fit together; the files are damaged")
    return np.frombuffer(pixels, np.uint8).reshape(num, SIDE_PX, SIDE_PX), np.frombuffer(labels, np.uint8)


def build_fashion(out: Path, *, given: Path | None = None, quiet: bool = False) -> Record:
    """Builds `train` and `test` in `out` unless they are there. Images are as published: white things on black.

    Args:
        given: the unpacked package, where it is neither installed nor to be downloaded.

    Raises:
        UserError: the package is not to be had or damaged.
    """
    settings = {"corpus": "fashion-mnist"}

    def made_from() -> MadeFrom | None:
        # None where the package would have to be fetched first.
        found = find_package_files(PACKAGE, FOLDER, given)
        return None if found is None else {PACKAGE: files_state(found, found.glob("*-ubyte.gz"))}

    if (manifest := existing(out, settings, SPLITS, made_from())) is not None:
        return {**manifest, "built": False}

    def samples(split: str, images: np.ndarray, labels: np.ndarray) -> Iterator[Record]:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = CLASSES[label]
            phrase = "trousers" if name == "trouser" else with_article(name)
            caption = pick(TEMPLATES, "fashion", split, number).format(phrase)
            meta = {"name": name, "class": name, "caption": caption, "artist": "fashion-mnist", "licence": "MIT"}
            yield {".png": encode_png(image), ".txt": caption, ".json": meta}

    folder = package_files(PACKAGE, FOLDER, given)
    splits = {}
    for split, prefix in SPLITS.items():
        images, labels = read_idx(folder, prefix)
        bar = tqdm(samples(split, images, labels), split, total=len(images), unit="img", disable=quiet or None)
        splits[split] = write_split(out / split, bar, Classes(CLASSES, templates=PHOTO_TEMPLATES), PER_SHARD)
    manifest = write_manifest(out, settings, splits, made_from=made_from(), artists={"fashion-mnist": CREDIT})
    return {**manifest, "built": True}
