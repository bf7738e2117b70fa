"""Text classifiers on disk, each under the hash of all that it depends on; what is stale or damaged is built anew."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from clip_la.atomic import atomic_write
from clip_la.zeroshot.labels.classes import content_hash

# Raised when the way a classifier is computed changes: older files are then stale.
FORMAT = "2"
ROWS = "classifier"


def default_folder() -> Path:
    """$XDG_CACHE_HOME/clip_la/classifiers, or ~/.cache/clip_la/classifiers."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "clip_la" / "classifiers"


class ClassifierCache:
    """A folder of classifiers. Keys are small dictionaries of strings; they stand in the file, beside its checksum."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, key: Mapping[str, str]) -> Path:
        """Where the classifier of `key` lies or would lie."""
        return self.folder / f"{content_hash(dict(key))}.safetensors"

    def load(self, key: Mapping[str, str]) -> Float[Tensor, "classes embed_dim"] | None:
        """The rows of `key`, float32 on the CPU, or None; says in one line on stderr why a file is not used."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata() or {}
                rows = file.get_tensor(ROWS)
        except (SafetensorError, OSError) as error:
            _passed_over(path, f"damaged ({error})")
            return None
        if notes.get("key") != _canonical(key):
            _passed_over(path, "stale: made from other weights, names or templates, or by another version")
            return None
        if notes.get("checksum") != _checksum(rows):
            _passed_over(path, "damaged (checksum)")
            return None
        return rows

    def store(self, key: Mapping[str, str], rows: Float[Tensor, "classes embed_dim"]) -> Path:
        """Writes the rows of `key`, whole or not at all."""
        path = self.path(key)
        data = save({ROWS: rows.contiguous()}, {"key": _canonical(key), "checksum": _checksum(rows)})
        with atomic_write(path) as stream:
            stream.write(data)
        return path


def _canonical(key: Mapping[str, str]) -> str:
    return json.dumps({**key, "format": FORMAT}, sort_keys=True)


def _checksum(rows: Tensor) -> str:
    return hashlib.blake2b(rows.contiguous().numpy().tobytes()).hexdigest()


def _passed_over(path: Path, why: str) -> None:
    print(f"cached classifier {path} is {why}; building it anew", file=sys.stderr)
