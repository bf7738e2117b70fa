"""Decoded corpora on the disk: the first process decodes, others and later runs map the file and share its pages."""

import errno
import fcntl
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from clip_la.atomic import atomic_write
from clip_la.data.shards.problems import Problem
from clip_la.data.shards.sources import GIB

# Changes whenever decoding or the form of the files does, so that what an older version kept is not used.
FORM = 1
HASH_DIGITS = 32
# Images copied at a time: a page fault for each one would be slow.
COPIED_AT_ONCE = 1024

Kept = tuple[list[tuple[str, str, list[list[str]]]], UInt8[np.ndarray, "samples side channels side"], Any, Any]


class DecodedStore:
    """A folder of decoded corpora, each under a hash of what it was decoded from and how.

    Args:
        folder: made if missing.
        recipe: all that the decoded pixels and captions follow from, as JSON has it.
    """

    def __init__(self, folder: str | os.PathLike[str], recipe: Any) -> None:
        digest = hashlib.sha256(json.dumps([FORM, recipe]).encode()).hexdigest()[:HASH_DIGITS]
        self._base = Path(folder) / "decoded" / digest
        self._base.parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time, so that one decodes and the others wait for it; the lock ends with its process."""
        with open(self._base.with_suffix(".lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def load(self) -> Kept | None:
        """Samples (key, shard, captions by field), images, number ranges of the sources and their problems; None for
        what is not there or not whole."""
        try:
            kept = json.loads(self._base.with_suffix(".json").read_bytes())
            # Copy on write: PyTorch wants memory that it may write to, and never does.
            images = np.load(self._base.with_suffix(".npy"), mmap_mode="c", allow_pickle=False)
            samples = [(key, shard, captions) for key, shard, captions in kept["samples"]]
            if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(samples):
                return None
            members = tuple(range(first, last) for first, last in kept["members"])
            problems = tuple(tuple(Problem(*fields) for fields in found) for found in kept["problems"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return samples, images, members, problems

    def save(
        self,
        samples: Sequence[tuple[str, str, list[list[str]]]],
        images: Sequence[UInt8[np.ndarray, "side channels side"]],
        fill: int,
        members: Sequence[range],
        problems: Sequence[Sequence[Problem]],
    ) -> None:
        """Keeps a corpus; channels that an image lacks are filled.

        A full disk is no error: nothing is kept then, and the first process of the job says so.
        """
        if not images:
            return
        channels = max(image.shape[1] for image in images)
        side = images[0].shape[0]
        try:
            self._save_images(images, (len(images), side, channels, side), fill)
            with atomic_write(self._base.with_suffix(".json"), "w") as stream:
                json.dump(
                    {
                        "samples": samples,
                        "members": [(own.start, own.stop) for own in members],
                        "problems": [[astuple(problem) for problem in found] for found in problems],
                    },
                    stream,
                )
        except OSError as error:
            self._base.with_suffix(".npy").unlink(missing_ok=True)
            # The others do as this one does, and would say the same.
            if int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0:
                print(
                    f"local_cache {self._base.parent.parent}: {error.strerror or error}, so what cache 'memory' "
                    "decodes is not kept there: it is decoded in this process only, and in each other one anew",
                    file=sys.stderr,
                )

    def _save_images(self, images: Sequence[np.ndarray], shape: tuple[int, ...], fill: int) -> None:
        free = os.statvfs(self._base.parent)
        if math.prod(shape) > free.f_bavail * free.f_frsize:
            # A write through a mapping that finds no room ends the process.
            raise OSError(errno.ENOSPC, f"no room for {math.prod(shape) / GIB:.2g} GiB of decoded images")
        handle, name = tempfile.mkstemp(dir=self._base.parent, prefix=f".{self._base.name}.npy.", suffix=".part")
        os.close(handle)
        try:
            mapped = np.lib.format.open_memmap(name, "w+", np.uint8, shape)
            for first in range(0, shape[0], COPIED_AT_ONCE):
                some = images[first : first + COPIED_AT_ONCE]
                block = np.full((len(some), *shape[1:]), fill, np.uint8)
                for place, image in zip(block, some, strict=True):
                    place[:, : image.shape[1]] = image
                mapped[first : first + len(some)] = block
            mapped.flush()
            os.replace(name, self._base.with_suffix(".npy"))
        finally:
            Path(name).unlink(missing_ok=True)
