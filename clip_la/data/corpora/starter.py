"""The starter corpus: emoji drawings by independent artists with their names, from pinned packages.

Splits: `train`; `renditions-ARTIST`, that artist's drawings of concepts which training knows by other artists only;
`concepts`, drawings of concepts that training never sees. Every build gives the same bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clip_la.data.corpora.artists import STARTER_ARTISTS, Artist
from clip_la.data.corpora.build import Classes, Record, existing, write_manifest, write_split
from clip_la.data.corpora.concepts import Concept, Deal, deal, drawn_by_all, merge
from clip_la.data.corpora.entries import Entry, drawing_entry, mixed
from clip_la.data.corpora.inputs import MadeFrom, joined, starter_inputs, wide_inputs
from clip_la.data.corpora.npm import NPM_PACKAGES, npm_modules
from clip_la.data.corpora.packages import require
from clip_la.data.corpora.render import Svg, pixel_hash, render_all
from clip_la.data.corpora.wide import wide_entries
from clip_la.errors import UserError

# Drawings that coincide at this size count as one concept; smaller corpora could show one picture under two names.
MERGE_SIZE_PX = 64
DEFAULT_SIZE_PX = 64
MAX_SIZE_PX = 1024
TRAIN, CONCEPTS = "train", "concepts"


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


def split_of(concept: Concept, artist: Artist, dealt: Deal) -> str:
    """The split that an artist's drawing of a concept belongs to."""
    if concept.id in dealt.concepts:
        return CONCEPTS
    return TRAIN if dealt.allows(concept.id, artist.name) else renditions(artist.name)


def starter_entries(concepts: Sequence[Concept], dealt: Deal) -> dict[str, list[Entry]]:
    """Every drawing of the starter's artists, by split."""
    entries: dict[str, list[Entry]] = {split: [] for split in split_names()}
    for concept in concepts:
        for artist in STARTER_ARTISTS:
            entry = drawing_entry(concept, artist, concept.drawings[artist.name])
            entries[split_of(concept, artist, dealt)].append(entry)
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
        size_px: side of the pictures.
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
    if (manifest := existing(out, settings, split_names(), _inputs(wide, npm, art))) is not None:
        return {**manifest, "built": False}
    packages = require()
    credits = {artist.name: artist.credit() for artist in STARTER_ARTISTS}
    modules = npm_modules(npm) if wide else None
    concepts, dealt, pngs = starter_concepts(workers=workers, quiet=quiet)
    entries = starter_entries(concepts, dealt)
    if modules is not None:
        tests = {pixel_hash(pngs[entry.svg]) for split in split_names()[1:] for entry in entries[split]}
        more = wide_entries(modules, art, concepts, dealt, tests, workers=workers, quiet=quiet)
        entries[TRAIN] += more.entries
        packages, credits = {**packages, **NPM_PACKAGES}, {**credits, **more.credits}
    known = pngs if size_px == MERGE_SIZE_PX else {}
    splits = {
        split: _write(out / split, own, None if split == TRAIN else _classes(own), size_px, known, workers, quiet)
        for split, own in entries.items()
    }
    manifest = write_manifest(
        out,
        settings,
        splits,
        made_from=_inputs(wide, npm, art),
        packages=packages,
        artists=credits,
        concepts={"all": len(concepts), "held_out": len(dealt.concepts), "held_out_renditions": len(dealt.renditions)},
        merged={concept.name.name: list(concept.merged) for concept in concepts if concept.merged},
    )
    return {**manifest, "built": True}


def _inputs(wide: bool, npm: Path | None, art: Path | None) -> MadeFrom | None:
    return joined(starter_inputs(), wide_inputs(npm, art)) if wide else starter_inputs()


def _classes(entries: Iterable[Entry]) -> Classes:
    return Classes(sorted({entry.meta["class"] for entry in entries}))


def _write(
    folder: Path,
    entries: Iterable[Entry],
    classes: Classes | None,
    size_px: int,
    known: Mapping[Svg, bytes],
    workers: int,
    quiet: bool,
) -> Record:
    """Renders, where that has not been done, and writes one split."""
    order = mixed(entries)
    drawn = iter(render_all([entry.svg for entry in order if entry.svg not in known], size_px, workers))
    pngs = (known[entry.svg] if entry.svg in known else next(drawn) for entry in order)
    samples = (entry.sample(png) for entry, png in zip(order, pngs, strict=True))
    bar = tqdm(samples, folder.name, total=len(order), unit="img", disable=quiet or None)
    return write_split(folder, bar, classes)
