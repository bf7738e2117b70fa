"""Writing a corpus: splits of shards, class lists, and a manifest, written last: its presence means whole."""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from clip_la.atomic import atomic_write
from clip_la.data.corpora.captions import DRAWING_TEMPLATES
from clip_la.data.corpora.render import pixel_hash
from clip_la.data.shards.reader import ShardWriter
from clip_la.data.tools.json_files import write_json
from clip_la.errors import UserError

# Raised when the same input gives another corpus: what was built before is then not taken for it.
FORMAT = 1
SAMPLES_PER_SHARD = 500
MANIFEST = "manifest.json"
IMAGE_PARTS = (".png", ".jpg", ".webp")
Record = dict[str, Any]


@dataclass(frozen=True)
class Classes:
    """The classes of a test split: names in order, WordNet ids where there are any, and prompts for them."""

    names: Sequence[str]
    wnids: Sequence[str] = ()
    templates: Sequence[str] = DRAWING_TEMPLATES

    def write(self, folder: Path) -> None:
        """Writes `classes.json`, and the two text files that CLIP_benchmark reads beside its webdatasets."""
        pairs = zip(self.wnids, self.names, strict=True) if self.wnids else ()
        write_json(folder / "classes.json", [{"id": i, "names": [n]} for i, n in pairs] or list(self.names))
        for name, lines in (("classnames.txt", self.names), ("zeroshot_classification_templates.txt", self.templates)):
            with atomic_write(folder / name, "w") as stream:
                stream.write("\n".join(lines) + "\n")


def write_split(
    folder: Path, samples: Iterable[Record], classes: Classes | None = None, per_shard: int = SAMPLES_PER_SHARD
) -> Record:
    """Writes the samples of one split as `00000.tar`, ... with `sizes.json`, and returns its entry in the manifest.

    A sample is the parts of `ShardWriter.write` without a key; its `.json` gets the key and the pixel hash. With
    `classes` each needs `json["class"]` and gets `.cls` (its index); the class list and prompts are written as well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = {name: number for number, name in enumerate(classes.names if classes else ())}
    shards: list[Record] = []
    rest = iter(samples)
    while batch := list(islice(rest, per_shard)):
        shards.append(_write_shard(folder, len(shards), batch, index))
    written = {shard["name"] for shard in shards}
    for path in folder.iterdir():  # of an earlier build that was stopped or made with other settings
        if (path.suffix == ".tar" and path.name not in written) or path.suffix == ".part":
            path.unlink()
    write_json(folder / "sizes.json", {shard["name"]: shard["samples"] for shard in shards})
    record: Record = {"pairs": sum(shard["samples"] for shard in shards), "shards": shards}
    if classes is None:
        return record
    classes.write(folder)
    return {**record, "classes": len(classes.names)}


def _write_shard(folder: Path, number: int, samples: list[Record], index: Mapping[str, int]) -> Record:
    path = folder / f"{number:05d}.tar"
    hashes = []
    with ShardWriter(path) as writer:
        for position, sample in enumerate(samples):
            hashes.append(pixel_hash(next(sample[part] for part in IMAGE_PARTS if part in sample)))
            # Keys are positions: equal samples make equal shards, byte for byte.
            key = f"{number:05d}{position:04d}"
            meta = {**sample[".json"], "key": key, "pixels_sha256": hashes[-1]}
            parts = {**sample, "__key__": key, ".json": meta}
            if index:
                parts[".cls"] = str(index[meta["class"]])
            writer.write(parts)
    return {
        "name": path.name,
        "samples": len(samples),
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        # What zlib or libwebp wrote may differ from machine to machine; the pixels do not.
        "pixels_sha256": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
    }


def existing(
    out: Path, settings: Record, splits: Iterable[str], made_from: Mapping[str, str] | None = None
) -> Record | None:
    """The manifest of a whole corpus in `out` made of the same with the same settings; None where one is to be built.

    Args:
        made_from: hashes of packages and drawings as they are here; None where they are not, and a line says so.

    Raises:
        OSError: `out` cannot be made.
        UserError: `out` is no folder, holds files that are not ours, or a whole corpus made of other packages, with
            other settings or by another version.
    """
    if not out.exists():
        # Whether it can be made is better known now than after all drawings are done.
        out.mkdir(parents=True)
        return None
    if not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the corpus")
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or "format" not in manifest:
        foreign = sorted(p.name for p in out.iterdir() if p.name not in set(splits) and p.suffix != ".part")
        if foreign:
            raise UserError(f"{out} holds other files ('{foreign[0]}'); name a new or empty folder for the corpus")
        return None
    if manifest["format"] != FORMAT:
        raise UserError(f"{out} holds a corpus made by another version of clip-la; name another folder or remove it")
    if manifest.get("settings") != settings:
        made = ", ".join(f"{key}={value}" for key, value in sorted(manifest.get("settings", {}).items()))
        raise UserError(f"{out} holds a corpus made with other settings ({made}); name another folder or remove it")
    before = manifest.get("made_from")
    if before is None or made_from is None:
        why = "its manifest does not say" if before is None else "they are not here, or not all"
        print(f"{out}: whether its packages have changed since is not known ({why}); kept as it is", file=sys.stderr)
    elif different := sorted(name for name in {*before, *made_from} if before.get(name) != made_from.get(name)):
        raise UserError(
            f"{out} holds a corpus made from other content of {', '.join(different)}; name another folder or remove it"
        )
    # Hashing every shard would take as long as building them: presence and size show a copy that was cut short.
    files = [(out / split / s["name"], s["bytes"]) for split, r in manifest["splits"].items() for s in r["shards"]]
    return manifest if all(path.is_file() and path.stat().st_size == size for path, size in files) else None


def write_manifest(out: Path, settings: Record, splits: Mapping[str, Record], **more: Any) -> Record:
    """Writes `manifest.json`, the last file of a corpus, and returns its content."""
    manifest = {"format": FORMAT, "settings": settings, "splits": dict(splits), **more}
    write_json(out / MANIFEST, manifest)
    return manifest
