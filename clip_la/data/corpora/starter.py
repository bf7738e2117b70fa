"""The starter corpus: emoji drawings by independent artists with their names, from pinned packages.

Splits: `train`; `renditions-ARTIST`, that artist's drawings of concepts which training knows by other artists only;
`concepts`, drawings of concepts that training never sees. Every build gives the same bytes.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from clip_la.data.corpora.artists import STARTER_ARTISTS, Artist
from clip_la.data.corpora.build import Classes, Record, existing, write_manifest, write_split
from clip_la.data.corpora.captions import caption_fields
from clip_la.data.corpora.concepts import Concept, Deal, deal, drawn_by_all, merge
from clip_la.data.corpora.packages import require
from clip_la.data.corpora.render import Svg, pixel_hash, render_all
from clip_la.errors import UserError

# Drawings that coincide at this size count as one concept; smaller corpora could show one picture under two names.
MERGE_SIZE_PX = 64
DEFAULT_SIZE_PX = 64
MAX_SIZE_PX = 1024
TRAIN, CONCEPTS = "train", "concepts"


class Pair(NamedTuple):
    """One drawing of one concept by one artist, and the split it belongs to."""

    split: str
    concept: Concept
    artist: Artist


def renditions(artist: str) -> str:
    """The name of the split that holds out this artist's renditions."""
    return f"renditions-{artist}"


def split_names(artists: Iterable[Artist] = STARTER_ARTISTS) -> list[str]:
    """All splits of the corpus, training first."""
    return [TRAIN, *(renditions(artist.name) for artist in artists), CONCEPTS]


def starter_concepts(
    artists: Sequence[Artist] = STARTER_ARTISTS, workers: int = 1, quiet: bool = False
) -> tuple[list[Concept], Deal, dict[Svg, bytes]]:
    """The merged concepts, which of them are held out, and each drawing's PNG at MERGE_SIZE_PX (by its SVG)."""
    concepts = drawn_by_all({artist.name: artist.drawings() for artist in artists})
    svgs = [concept.drawings[artist.name] for concept in concepts for artist in artists]
    bar = tqdm(render_all(svgs, MERGE_SIZE_PX, workers), "drawing", total=len(svgs), unit="img", disable=quiet or None)
    pngs = dict(zip(svgs, bar, strict=True))
    marks = [
        [f"name {c.name.name.lower()}", *(f"{artist} {pixel_hash(pngs[svg])}" for artist, svg in c.drawings.items())]
        for c in concepts
    ]
    merged = merge(concepts, marks)
    return merged, deal(merged, [artist.name for artist in artists]), pngs


def deal_pairs(concepts: Sequence[Concept], dealt: Deal, artists: Sequence[Artist] = STARTER_ARTISTS) -> list[Pair]:
    """Every drawing with its split, in an order that mixes concepts and artists (that of a hash)."""
    pairs = []
    for concept in concepts:
        for artist in artists:
            if concept.id in dealt.concepts:
                split = CONCEPTS
            else:
                split = TRAIN if dealt.allows(concept.id, artist.name) else renditions(artist.name)
            pairs.append(Pair(split, concept, artist))
    return sorted(pairs, key=lambda p: hashlib.sha256(f"order {p.concept.id} {p.artist.name}".encode()).digest())


def make_sample(pair: Pair, png: bytes) -> Record:
    """The parts of one sample: `.png`, `.txt` (the main caption) and `.json`."""
    concept, artist = pair.concept, pair.artist
    texts = caption_fields(concept.name, f"{concept.id} {artist.name}")
    meta = {
        **texts,
        "name": concept.name.name,
        "class": concept.name.name,
        "artist": artist.name,
        "licence": artist.licence,
        "code_point": concept.id,
    }
    return {".png": png, ".txt": texts["caption"], ".json": meta}


def _samples(pairs: Sequence[Pair], pngs: Iterable[bytes]) -> Iterator[Record]:
    yield from map(make_sample, pairs, pngs)


def build_starter(out: Path, *, size_px: int = DEFAULT_SIZE_PX, workers: int = 1, quiet: bool = False) -> Record:
    """Builds the corpus in `out` unless it is there already, and returns its manifest with `"built": bool` added.

    Raises:
        UserError: packages missing or of another version, size out of range, `out` taken by something else.
    """
    if not MERGE_SIZE_PX <= size_px <= MAX_SIZE_PX:
        raise UserError(f"--size {size_px} is out of range: {MERGE_SIZE_PX} to {MAX_SIZE_PX} pixels")
    settings: dict[str, Any] = {"corpus": "starter", "size_px": size_px}
    if (manifest := existing(out, settings, split_names())) is not None:
        return {**manifest, "built": False}
    packages = require()
    concepts, dealt, pngs = starter_concepts(workers=workers, quiet=quiet)
    pairs = deal_pairs(concepts, dealt)
    splits = {}
    for split in split_names():
        own = [pair for pair in pairs if pair.split == split]
        svgs = [pair.concept.drawings[pair.artist.name] for pair in own]
        drawn = (pngs[svg] for svg in svgs) if size_px == MERGE_SIZE_PX else render_all(svgs, size_px, workers)
        bar = tqdm(_samples(own, drawn), split, total=len(own), unit="img", disable=quiet or None)
        classes = None if split == TRAIN else Classes(sorted({pair.concept.name.name for pair in own}))
        splits[split] = write_split(out / split, bar, classes)
    manifest = write_manifest(
        out,
        settings,
        splits,
        packages=packages,
        artists={artist.name: artist.credit() for artist in STARTER_ARTISTS},
        concepts={"all": len(concepts), "held_out": len(dealt.concepts), "held_out_renditions": len(dealt.renditions)},
        merged={concept.name.name: list(concept.merged) for concept in concepts if concept.merged},
    )
    return {**manifest, "built": True}
