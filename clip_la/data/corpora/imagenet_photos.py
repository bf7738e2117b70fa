"""Photographs of ImageNet's classes from folders that people have: Tiny-ImageNet, and ImageNet-1K's sample images.

Of Tiny-ImageNet a fifth of the classes, those whose ids come first by SHA-256 of "unseen WNID", are held out (zero-shot
proper). The sample images, one a class, are a test set as a whole. Captions come from WordNet: names, definitions and
templates, chosen by a hash of the file's name, so that every build gives the same bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from clip_la.data.corpora.build import Classes, Record, existing, write_manifest, write_split
from clip_la.data.corpora.captions import PHOTO_TEMPLATES, pick
from clip_la.data.corpora.imagenet_names import definitions, lemmas
from clip_la.data.corpora.inputs import files_state
from clip_la.data.corpora.names import with_article
from clip_la.data.corpora.photo_folders import TRAIN, VAL, Contents, FolderImage, read_folder, read_sample_images
from clip_la.data.images.decode import decode_image
from clip_la.data.shards.problems import BadSample
from clip_la.data.shards.spawned import Spawned
from clip_la.data.tools.pack import image_suffix
from clip_la.errors import UserError, unknown

UNSEEN, UNSEEN_LARGE = "unseen", "unseen-large"
SPLITS = (TRAIN, VAL, UNSEEN, UNSEEN_LARGE)
# The only split of the sample images.
SAMPLES = "samples"
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
_TERMS = "ImageNet's terms: non-commercial research and education"
_WORDS = "ImageNet (Russakovsky et al. 2015); words of WordNet 3.0"
CREDITS = {
    "tiny-imagenet": {
        "title": "Tiny-ImageNet",
        "licence": _TERMS,
        "attribution": f"Tiny-ImageNet (Stanford CS231N), of {_WORDS}",
        "source": "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "package": "none: an unpacked folder",
    },
    "imagenet-samples": {
        "title": "Sample images of ImageNet-1K, one a class",
        "licence": _TERMS,
        "attribution": _WORDS,
        "source": "https://www.image-net.org",
        "package": "none: a folder",
    },
}


class EncodedImage(NamedTuple):
    """An image as it goes into a shard: the part's name, its bytes, whether it is grey; or why it cannot be used."""

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
    """Several wordings for one image, the main one first; which ones depends on a hash of the image's identity."""
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


def encode(path: Path, format: str, quality: int) -> EncodedImage:
    """The image's own bytes or, as WebP, its pixels; every image is decoded, so that all of them can be read."""
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


class _Builder(NamedTuple):
    """Builds corpora of photographs: in which format, quality of WebP (1 to 100), processes, whether without bars."""

    format: str
    quality: int
    workers: int
    quiet: bool

    def build(
        self,
        corpus: str,
        folder: Path,
        files: Iterable[Path],
        out: Path,
        splits: Sequence[str],
        read: Callable[[], Contents],
        deal: Callable[[Contents], tuple[dict[str, list[FolderImage]], Record]],
    ) -> Record:
        """Writes the corpus to `out` unless it is there, and returns its manifest with `"built": bool`.

        Args:
            files: what of `folder` is read; a corpus made of other content is not taken for this one.
            read: what the folder holds.
            deal: the images of each split, and what else the manifest should say. All but `train` are test sets.

        Raises UserError for an unknown format, a quality out of range, and as `existing` and `read` do.
        """
        if self.format not in FORMATS:
            raise unknown("format", self.format, FORMATS)
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality} is out of range: 1 to 100")
        settings: Record = {"corpus": corpus, "format": self.format}
        settings |= {"quality": self.quality} if self.format == WEBP else {}
        made_from = None
        if folder.is_dir():
            made_from = {"folder": files_state(folder, (path for path in files if path.is_file()))}
        if (manifest := existing(out, settings, splits, made_from)) is not None:
            return {**manifest, "built": False}
        contents = read()
        names, left_out = class_names(contents.wnids), Counter(contents.left_out)
        dealt, more = deal(contents)
        written = {
            split: self.write(out / split, own, names, left_out, is_test=split != TRAIN) for split, own in dealt.items()
        }
        more = {"artists": {corpus: CREDITS[corpus]}, "left_out": dict(sorted(left_out.items())), **more}
        return {**write_manifest(out, settings, written, made_from=made_from, **more), "built": True}

    def encoded(self, paths: Sequence[Path]) -> Iterator[EncodedImage]:
        """Each image, in order; in processes of their own where there are many."""
        job = partial(encode, format=self.format, quality=self.quality)
        if self.workers == 1 or len(paths) < _CHUNK:
            yield from map(job, paths)
            return
        with ProcessPoolExecutor(self.workers, Spawned()) as pool:
            yield from pool.map(job, paths, chunksize=_CHUNK)

    def write(
        self,
        folder: Path,
        photos: Sequence[FolderImage],
        names: Mapping[str, str],
        left_out: Counter[str],
        is_test: bool,
    ) -> Record:
        """Writes a split, mixed by a hash, and returns its entry in the manifest; `left_out` counts bad images."""
        order = sorted(photos, key=lambda p: hashlib.sha256(f"order {p.path.name}".encode()).digest())
        ids = sorted({photo.wnid for photo in order})
        classes = Classes([names[wnid] for wnid in ids], ids, PHOTO_TEMPLATES) if is_test else None
        counts = Counter({"grey": 0, "without_box": 0})

        def samples() -> Iterator[Record]:
            shown = self.encoded([photo.path for photo in order])
            for photo, image in zip(order, shown, strict=True):
                if image.problem:
                    left_out[image.problem] += 1
                    continue
                counts["grey"] += image.grey
                counts["without_box"] += photo.box is None
                name = names[photo.wnid]
                texts = captions_of(name, photo.wnid, photo.path.name, image.grey)
                meta: dict[str, Any] = {
                    "caption": texts[0],
                    "captions": texts,
                    "name": name,
                    "class": name,
                    "wnid": photo.wnid,
                    "origin": photo.path.name,
                    "grey": image.grey,
                }
                if photo.box is not None:
                    meta["box_px"] = list(photo.box)
                yield {image.part: image.data, ".txt": texts[0], ".json": meta}

        bar = tqdm(samples(), folder.name, total=len(order), unit="img", disable=self.quiet or None)
        return {**write_split(folder, bar, classes, PER_SHARD), **counts}


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
    `unseen`, their images in the folder's `val`, and `unseen-large`, those in its `train`.

    Args:
        folder: the unpacked data set, see `photo_folders`.
        format: "original" keeps the images' own bytes, "webp" encodes them anew at `quality` (1 to 100).
        workers: processes.

    Raises:
        UserError: unknown format, quality out of range, no data set in `folder`, `out` taken by something else.
    """

    def deal(contents: Contents) -> tuple[dict[str, list[FolderImage]], Record]:
        unseen = unseen_classes(contents.wnids)
        held = {TRAIN: UNSEEN_LARGE, VAL: UNSEEN}
        dealt: dict[str, list[FolderImage]] = {split: [] for split in SPLITS}
        for photo in contents.images:
            dealt[held[photo.half] if photo.wnid in unseen else photo.half].append(photo)
        return dealt, {"unseen": sorted(unseen)}

    # `test` has no labels and is not read.
    files = [path for path in folder.rglob("*") if "test" not in path.relative_to(folder).parts]
    builder = _Builder(format, quality, workers, quiet)
    return builder.build("tiny-imagenet", folder, files, out, SPLITS, partial(read_folder, folder), deal)


def build_imagenet_samples(
    folder: Path,
    out: Path,
    *,
    format: str = ORIGINAL,
    quality: int = DEFAULT_QUALITY,
    workers: int = 1,
    quiet: bool = False,
) -> Record:
    """Builds the test split `samples` in `out` unless it is there: images of ImageNet's classes with their WordNet ids.

    Its own classes are those in the folder; any class set of WordNet ids evaluates it (`--classes imagenet1k`,
    `imagenet21k/lemma`).

    Args:
        folder: `WNID_name.JPEG` or `WNID/name.JPEG`, at any depth, such as ImageNet-1K's 1,000 sample images.
        format: as for `build_tiny_imagenet`, and so are the rest.

    Raises:
        UserError: as `build_tiny_imagenet`.
    """

    def deal(contents: Contents) -> tuple[dict[str, list[FolderImage]], Record]:
        return {SAMPLES: contents.images}, {}

    files = [p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    builder = _Builder(format, quality, workers, quiet)
    read = partial(read_sample_images, folder, SAMPLES)
    return builder.build("imagenet-samples", folder, files, out, (SAMPLES,), read, deal)
