"""Scenes: several drawings on one background, with a caption that says what is where. As many pairs as wanted.

Scene number `i` of a seed is a pure function of the two: its layout, drawings, places and colours are read off hashed
numbers, so that any shard can be made anywhere, and a longer corpus begins with the shorter one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clip_la.data.corpora.artists import STARTER_ARTISTS, Artist
from clip_la.data.corpora.build import Record, existing, write_manifest
from clip_la.data.corpora.concepts import Concept, Deal
from clip_la.data.corpora.inputs import renderer_version, starter_inputs
from clip_la.data.corpora.packages import require
from clip_la.data.corpora.png import encode_png
from clip_la.data.corpora.scene_maker import NUM_DRAWS, Actor, Scene, SceneMaker, Thing, background_pixels
from clip_la.data.corpora.starter import TRAIN, starter_concepts
from clip_la.data.stream.order import uniforms
from clip_la.data.tools.pack import pack
from clip_la.data.tools.pack_sources import Raw
from clip_la.errors import UserError
from clip_la.fingerprint import file_hashes

# Scenes are found here as well, with the corpus that is made of them.
__all__ = ["Actor", "Scene", "SceneMaker", "SceneSource", "Thing", "background_pixels", "build_scenes", "cast_of"]

DEFAULT_SIZE_PX = 96
MIN_SIZE_PX, MAX_SIZE_PX = 32, 1024
PER_SHARD = 2000
# What hashed numbers are drawn for, apart from the uses in `order`.
SCENES = 1000
PNG_LEVEL = 1


def cast_of(concepts: Sequence[Concept], dealt: Deal, artists: Sequence[Artist] = STARTER_ARTISTS) -> list[Actor]:
    """All drawings that training may see."""
    return [
        Actor(concept.name.name, concept.name.phrase, artist.name, concept.id, concept.drawings[artist.name])
        for concept in concepts
        for artist in artists
        if dealt.allows(concept.id, artist.name)
    ]


@dataclass
class SceneSource:
    """Scenes 0 to `pairs` of a seed as a source that `pack` can write."""

    cast: list[Actor]
    pairs: int
    seed: int
    size_px: int
    kind: str = "scenes"
    note: str = ""
    _maker: SceneMaker | None = field(default=None, repr=False)

    def names(self) -> Iterable[str]:
        """The settings, what draws, and every drawing of the cast with its names and content."""
        yield f"{self.pairs} {self.seed} {self.size_px} {renderer_version()}"
        hashes = file_hashes(actor.svg for actor in self.cast if isinstance(actor.svg, Path))
        for actor in self.cast:
            yield f"{actor[:-1]} {next(hashes) if isinstance(actor.svg, Path) else actor.svg}"

    def sizes(self) -> list[int]:
        """Pieces of PER_SHARD scenes."""
        return [min(PER_SHARD, self.pairs - start) for start in range(0, self.pairs, PER_SHARD)]

    def read(self, piece: int, start: int, stop: int) -> Iterator[Raw]:
        """Scenes `start` to `stop` of a piece."""
        maker = self._maker = self._maker or SceneMaker(self.cast, self.size_px)
        numbers = np.arange(piece * PER_SHARD + start, piece * PER_SHARD + stop, dtype=np.int64)
        for number, draws in zip(numbers, uniforms((SCENES, self.seed), numbers, NUM_DRAWS).tolist(), strict=True):
            scene = maker.scene(draws)
            png = encode_png(maker.draw(scene), PNG_LEVEL)
            yield Raw(f"scene {self.seed}/{number}", png, ".png", scene.caption, scene.meta())


def build_scenes(
    out: Path,
    *,
    pairs: int,
    seed: int = 0,
    size_px: int = DEFAULT_SIZE_PX,
    workers: int = 1,
    quiet: bool = False,
) -> Record:
    """Writes scenes 0 to `pairs` into `out/train`; a stopped call goes on where it was.

    Raises:
        UserError: numbers out of range, packages missing, `out` taken by something else.
    """
    if pairs < 1:
        raise UserError(f"--pairs {pairs} must be at least 1")
    if not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
        raise UserError(f"--size {size_px} is out of range: {MIN_SIZE_PX} to {MAX_SIZE_PX} pixels")
    settings: dict[str, Any] = {"corpus": "scenes", "pairs": pairs, "seed": seed, "size_px": size_px}
    if (manifest := existing(out, settings, (TRAIN,), starter_inputs())) is not None:
        return {**manifest, "built": False}
    packages = require()
    concepts, dealt, _ = starter_concepts(workers=workers, quiet=quiet)
    source = SceneSource(cast_of(concepts, dealt), pairs, seed, size_px)
    packed = pack(source, out / TRAIN, per_shard=PER_SHARD, workers=workers, check_pixels=False, quiet=quiet)
    shards = [{"name": path.name, "bytes": path.stat().st_size} for path in sorted((out / TRAIN).glob("*.tar"))]
    manifest = write_manifest(
        out,
        settings,
        {TRAIN: {"pairs": packed["packed"], "shards": shards}},
        made_from=starter_inputs(),
        packages=packages,
        artists={artist.name: artist.credit() for artist in STARTER_ARTISTS},
        drawings=len(source.cast),
    )
    return {**manifest, "built": True}
