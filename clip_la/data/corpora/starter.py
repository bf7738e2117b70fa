"""The starter corpus: emoji drawings by independent artists with their names, from pinned packages.

Splits: `train`; `renditions-ARTIST`, that artist's drawings of concepts which training knows by other artists only;
`concepts`, drawings of concepts that training never sees. Every build gives the same bytes.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clip_la.data.corpora.artists import STARTER_ARTISTS, Artist
from clip_la.data.corpora.build import Classes, Record, existing, write_manifest, write_split
from clip_la.data.corpora.concepts import Concept, Deal, all_names, deal, merge
from clip_la.data.corpora.entries import Entry, drawing_entry
from clip_la.data.corpora.inputs import MadeFrom, starter_inputs, wide_inputs
from clip_la.data.corpora.npm import NPM_PACKAGES, npm_modules
from clip_la.data.corpora.packages import require
from clip_la.data.corpora.render import Svg, pixel_hash, render_all
from clip_la.data.corpora.wide import wide_entries
from clip_la.errors import UserError

# Drawings that coincide at this size count as one concept; smaller corpora could show one image under two names.
MERGE_SIZE_PX = 64
DEFAULT_SIZE_PX = 64
MAX_SIZE_PX = 1024
TRAIN, CONCEPTS = "train", "concepts"
# The split that holds out an artist's renditions.
RENDITIONS = "renditions-{}"
SPLITS = (TRAIN, *(RENDITIONS.format(artist.name) for artist in STARTER_ARTISTS), CONCEPTS)


def starter_concepts(
    artists: Sequence[Artist] = STARTER_ARTISTS, workers: int = 1, quiet: bool = False
) -> tuple[list[Concept], Deal, dict[Svg, bytes]]:
    """The merged concepts, which of them are held out, and each drawing's PNG at MERGE_SIZE_PX (by its SVG).

    Concepts are those that every artist has drawn. Skin-tone variants are left out: one face would be six concepts.
    """
    drawings = {artist.name: artist.drawings() for artist in artists}
    concepts = [
        Concept(code_point, name, {artist: known[code_point] for artist, known in drawings.items()})
        for code_point, name in sorted(all_names().items())
        if all(code_point in known for known in drawings.values())
    ]
    svgs = [concept.drawings[artist.name] for concept in concepts for artist in artists]
    bar = tqdm(render_all(svgs, MERGE_SIZE_PX, workers), "drawing", total=len(svgs), unit="img", disable=quiet or None)
    pngs = dict(zip(svgs, bar, strict=True))
    marks = [
        [f"name {c.name.name.lower()}", *(f"{artist} {pixel_hash(pngs[svg])}" for artist, svg in c.drawings.items())]
        for c in concepts
    ]
    merged = merge(concepts, marks)
    return merged, deal(merged, [artist.name for artist in artists]), pngs


def starter_entries(concepts: Sequence[Concept], dealt: Deal) -> dict[str, list[Entry]]:
    """Every drawing of the starter's artists, by the split that it belongs to."""
    entries: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for concept in concepts:
        for artist in STARTER_ARTISTS:
            if concept.id in dealt.concepts:
                split = CONCEPTS
            else:
                split = TRAIN if dealt.allows(concept.id, artist.name) else RENDITIONS.format(artist.name)
            entries[split].append(drawing_entry(concept, artist, concept.drawings[artist.name]))
    return entries


def build_starter(
    out: Path,
    *,
    size_px: int = DEFAULT_SIZE_PX,
    wide: bool = False,
    npm: Path | None = None,
    art: Path | None = None,
    workers: int = 1,
    quiet: bool = False,
) -> Record:
    """Builds the corpus in `out` unless it is there already, and returns its manifest with `"built": bool` added.

    Args:
        size_px: side of the images.
        wide: add further artists, icons and clip art to the training split; the test splits stay as they are.
        npm: where their npm packages have been installed; None is the cache, filled when needed.
        art: where the clip art's Debian package has been unpacked; None is the system or the cache, filled when needed.
        workers: processes that draw.

    Raises:
        UserError: packages missing or of another version, size out of range, `out` taken by something else.
    """
    if not MERGE_SIZE_PX <= size_px <= MAX_SIZE_PX:
        raise UserError(f"--size {size_px} is out of range: {MERGE_SIZE_PX} to {MAX_SIZE_PX} pixels")
    settings: dict[str, Any] = {"corpus": "wide starter" if wide else "starter", "size_px": size_px}

    def made_from() -> MadeFrom | None:
        return wide_inputs(npm, art) if wide else starter_inputs()

    if (manifest := existing(out, settings, SPLITS, made_from())) is not None:
        return {**manifest, "built": False}
    packages = require()
    credits = {artist.name: artist.credit() for artist in STARTER_ARTISTS}
    modules = npm_modules(npm) if wide else None
    concepts, dealt, pngs = starter_concepts(workers=workers, quiet=quiet)
    entries = starter_entries(concepts, dealt)
    if modules is not None:
        tests = {pixel_hash(pngs[entry.svg]) for split in SPLITS[1:] for entry in entries[split]}
        more = wide_entries(modules, art, concepts, dealt, tests, workers=workers, quiet=quiet)
        entries[TRAIN] += more.entries
        packages, credits = {**packages, **NPM_PACKAGES}, {**credits, **more.credits}
    known = pngs if size_px == MERGE_SIZE_PX else {}
    splits = {split: _write(out / split, own, size_px, known, workers, quiet) for split, own in entries.items()}
    manifest = write_manifest(
        out,
        settings,
        splits,
        # Once more: what had to be fetched is there now.
        made_from=made_from(),
        packages=packages,
        artists=credits,
        concepts={"all": len(concepts), "held_out": len(dealt.concepts), "held_out_renditions": len(dealt.renditions)},
        merged={concept.name.name: list(concept.merged) for concept in concepts if concept.merged},
    )
    return {**manifest, "built": True}


def _write(
    folder: Path, entries: Iterable[Entry], size_px: int, known: Mapping[Svg, bytes], workers: int, quiet: bool
) -> Record:
    """Renders what is not `known` and writes one split, in the order of a hash, which mixes concepts and artists."""
    order = sorted(entries, key=lambda entry: hashlib.sha256(f"order {entry.identity}".encode()).digest())
    drawn = iter(render_all([entry.svg for entry in order if entry.svg not in known], size_px, workers))
    pngs = (known[entry.svg] if entry.svg in known else next(drawn) for entry in order)
    samples = (entry.sample(png) for entry, png in zip(order, pngs, strict=True))
    bar = tqdm(samples, folder.name, total=len(order), unit="img", disable=quiet or None)
    # Training has captions alone; the wide corpus's icons and clip art belong to no class.
    classes = None if folder.name == TRAIN else Classes(sorted({entry.meta["class"] for entry in order}))
    return write_split(folder, bar, classes)
