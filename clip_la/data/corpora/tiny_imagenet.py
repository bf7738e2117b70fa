"""Tiny-ImageNet from its unpacked folder: photographs of 64 px in 200 classes, 40 of which training never sees.

A fifth of the classes, those whose ids come first by SHA-256 of "unseen WNID", are held out (zero-shot proper).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from clip_la.data.corpora.build import Classes, Record, existing, write_manifest, write_split
from clip_la.data.corpora.captions import PHOTO_TEMPLATES, pick
from clip_la.data.corpora.imagenet_names import definitions, lemmas
from clip_la.data.corpora.inputs import MadeFrom, files_state
from clip_la.data.corpora.names import with_article
from clip_la.data.corpora.tiny_imagenet_folder import TRAIN, VAL, Picture, read_folder
from clip_la.data.images.decode import decode_image
from clip_la.data.shards.problems import BadSample
from clip_la.data.shards.spawned import Spawned
from clip_la.data.tools.pack import image_suffix
from clip_la.errors import UserError, unknown

UNSEEN, UNSEEN_LARGE = "unseen", "unseen-large"
SPLITS = (TRAIN, VAL, UNSEEN, UNSEEN_LARGE)
# One class in so many is held out.
HELD_OUT_SHARE = 5
ORIGINAL, WEBP = "original", "webp"
FORMATS = (ORIGINAL, WEBP)
DEFAULT_QUALITY = 70
PER_SHARD = 5000
MAX_NAMES = 3
_CHUNK = 256
TEMPLATES = (
    "a photo of {}",
    "a photo of {}",
    "a photo of {}",
    "a picture of {}",
    "a small photo of {}",
    "a low resolution photo of {}",
    "a photo that shows {}",
    "an image of {}",
    "{}",
)
GREY_TEMPLATE = "a black and white photo of {}"
CREDIT = {
    "title": "Tiny-ImageNet",
    "licence": "ImageNet's terms: non-commercial research and education",
    "attribution": "Tiny-ImageNet (Stanford CS231N), of ImageNet (Russakovsky et al. 2015); words of WordNet 3.0",
    "source": "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "package": "none: an unpacked folder",
}


class EncodedImage(NamedTuple):
    """A picture as it goes into a shard: the part's name, its bytes, whether it is grey; or why it cannot be used."""

    part: str = ""
    data: bytes = b""
    grey: bool = False
    problem: str = ""


def unseen_classes(wnids: Iterable[str]) -> set[str]:
    """The held-out fifth of the classes, rounded down; the same whatever their order and on every machine."""
    order = sorted(set(wnids), key=lambda wnid: hashlib.sha256(f"unseen {wnid}".encode()).digest())
    return set(order[: len(order) // HELD_OUT_SHARE])


def class_names(wnids: Sequence[str]) -> dict[str, str]:
    """WordNet id -> a name that no other of these classes has: the first such lemma, or the first with the id.

    Raises:
        UserError: WordNet's table has no such id.
    """
    known = lemmas()
    strange = next((wnid for wnid in wnids if wnid not in known), None)
    if strange is not None:
        raise UserError(f"'{strange}' is none of the WordNet ids that timm lists; is it a class of ImageNet?")
    owners = Counter(lemma for wnid in wnids for lemma in known[wnid])
    return {
        wnid: next((lemma for lemma in known[wnid] if owners[lemma] == 1), f"{known[wnid][0]} ({wnid})")
        for wnid in wnids
    }


def captions_of(name: str, wnid: str, identity: str, grey: bool) -> list[str]:
    """Several wordings for one picture, the main one first; which ones hangs on a hash of the picture's identity."""
    phrase = with_article(name)
    main = pick(TEMPLATES, "tiny-imagenet", identity).format(phrase)
    others = sorted({template for template in TEMPLATES if template.format(phrase) != main})
    also = [lemma for lemma in lemmas()[wnid][:MAX_NAMES] if lemma != name]
    texts = [
        main,
        pick(others, "other", identity).format(phrase),
        *(pick(TEMPLATES, "lemma", identity, lemma).format(with_article(lemma)) for lemma in also),
        f"{name}: {definitions()[wnid]}",
        *([GREY_TEMPLATE.format(phrase)] if grey else []),
    ]
    return list(dict.fromkeys(texts))


def show(path: Path, format: str, quality: int) -> EncodedImage:
    """The picture's own bytes or, as WebP, its pixels; every picture is decoded, so that all of them can be read."""
    data = path.read_bytes()
    try:
        part = image_suffix(data)
        image = decode_image(data)
    except BadSample as bad:
        return EncodedImage(problem=bad.reason)
    red, green, blue = image.split()
    grey = red.tobytes() == green.tobytes() == blue.tobytes()
    if format == ORIGINAL:
        return EncodedImage(part, data, grey)
    stream = BytesIO()
    image.save(stream, "WEBP", quality=quality, method=4)
    return EncodedImage(".webp", stream.getvalue(), grey)


def _shown(paths: Sequence[Path], format: str, quality: int, workers: int) -> Iterator[EncodedImage]:
    job = partial(show, format=format, quality=quality)
    if workers == 1 or len(paths) < _CHUNK:
        yield from map(job, paths)
        return
    with ProcessPoolExecutor(workers, Spawned()) as pool:
        yield from pool.map(job, paths, chunksize=_CHUNK)


def _dealt(pictures: Sequence[Picture], wnids: Sequence[str]) -> dict[str, list[Picture]]:
    """The pictures of each split, in the order of a hash, which mixes the classes."""
    unseen = unseen_classes(wnids)
    splits: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for picture in pictures:
        held = {TRAIN: UNSEEN_LARGE, VAL: UNSEEN}
        splits[held[picture.half] if picture.wnid in unseen else picture.half].append(picture)
    for own in splits.values():
        own.sort(key=lambda picture: hashlib.sha256(f"order {picture.path.name}".encode()).digest())
    return splits


def _samples(
    pictures: Sequence[Picture], shown: Iterable[EncodedImage], names: Mapping[str, str], counts: Counter[str]
) -> Iterator[Record]:
    """The samples of one split; `counts` gets how many are grey, have no box, or are left out and why."""
    for picture, image in zip(pictures, shown, strict=True):
        if image.problem:
            counts[image.problem] += 1
            continue
        counts["grey"] += image.grey
        counts["without box"] += picture.box is None
        name = names[picture.wnid]
        texts = captions_of(name, picture.wnid, picture.path.name, image.grey)
        meta: dict[str, Any] = {
            "caption": texts[0],
            "captions": texts,
            "name": name,
            "class": name,
            "wnid": picture.wnid,
            "origin": picture.path.name,
            "grey": image.grey,
        }
        if picture.box is not None:
            meta["box_px"] = list(picture.box)
        yield {image.part: image.data, ".txt": texts[0], ".json": meta}


def _inputs(folder: Path) -> MadeFrom | None:
    """What the corpus would be made from here; None where the folder is gone."""
    if not folder.is_dir():
        return None
    files = (path for path in folder.rglob("*") if path.is_file() and "test" not in path.relative_to(folder).parts)
    return {"folder": files_state(folder, files)}


def build_tiny_imagenet(
    folder: Path,
    out: Path,
    *,
    format: str = ORIGINAL,
    quality: int = DEFAULT_QUALITY,
    workers: int = 1,
    quiet: bool = False,
) -> Record:
    """Builds the splits in `out` unless they are there: `train` and `val` of the seen classes; of the unseen ones
    `unseen`, their pictures in the folder's `val`, and `unseen-large`, those in its `train`.

    Args:
        folder: the unpacked data set, see `tiny_imagenet_folder`.
        format: "original" keeps the pictures' own bytes, "webp" encodes them anew at `quality` (1 to 100).
        workers: processes.

    Raises:
        UserError: unknown format, quality out of range, no data set in `folder`, `out` taken by something else.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if not 1 <= quality <= 100:
        raise UserError(f"--quality {quality} is out of range: 1 to 100")
    settings: Record = {"corpus": "tiny-imagenet", "format": format} | ({"quality": quality} if format == WEBP else {})
    if (manifest := existing(out, settings, SPLITS, inputs := _inputs(folder))) is not None:
        return {**manifest, "built": False}
    contents = read_folder(folder)
    names = class_names(contents.wnids)
    left_out, splits = Counter(contents.left_out), {}
    for split, own in _dealt(contents.pictures, contents.wnids).items():
        ids = sorted({picture.wnid for picture in own})
        classes = None if split == TRAIN else Classes([names[wnid] for wnid in ids], ids, PHOTO_TEMPLATES)
        shown = _shown([picture.path for picture in own], format, quality, workers)
        counts: Counter[str] = Counter({"grey": 0, "without box": 0})
        bar = tqdm(_samples(own, shown, names, counts), split, total=len(own), unit="img", disable=quiet or None)
        splits[split] = write_split(out / split, bar, classes, PER_SHARD)
        splits[split] |= {"grey": counts.pop("grey"), "without_box": counts.pop("without box")}
        left_out += counts
    more = {"left_out": dict(sorted(left_out.items())), "unseen": sorted(unseen_classes(contents.wnids))}
    credits = {"tiny-imagenet": CREDIT}
    return {**write_manifest(out, settings, splits, made_from=inputs, artists=credits, **more), "built": True}
