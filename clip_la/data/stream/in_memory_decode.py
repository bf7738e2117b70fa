"""A corpus decoded for a pool, by many processes where there are many shards. Free of torch: such processes start soon.

Threads decode at one and a half times the speed of one, however many there are: PNGs of a hundred pixels leave most of
the time to Python, which runs one thread at a time.
"""

import fcntl
import os
import pickle
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clip_la.atomic import DISK_FULL
from clip_la.data.images.limits import Limits, read_image
from clip_la.data.shards.crew import Lost, Skips, run_jobs
from clip_la.data.shards.formats import KEY, URL
from clip_la.data.shards.problems import BadSample, Problem
from clip_la.data.shards.reader import read_samples
from clip_la.data.shards.watch import TimeLimit, sample_seconds, took_too_long
from clip_la.data.text.captions import Captions
from clip_la.errors import UserError
from clip_la.launched import core_share

OPAQUE = 255.0
# Fewer shards than this for each process, and the start of the processes takes longer than what they save.
SHARDS_A_PROCESS, LEAST_BYTES = 2, 32 << 20
SCRATCH = "clip_la_decoding_"
# A folder is younger than this when it has just been made and its maker has not locked it yet.
ABANDONED_S = 60.0

Opener = Callable[[str], IO[bytes]]
Sample = tuple[str, str, list[list[str]]]
"""Key, shard, captions by field."""


class Recipe(NamedTuple):
    """All that a decoded sample follows from, besides its bytes. `side` is that of the square, in pixels."""

    captions: Captions
    limits: Limits
    side: int

    def decode(self, sample: dict[str, Any]) -> tuple[list[list[str]], UInt8[np.ndarray, "side channels side"]]:
        """The captions and the centre square of the image; raises BadSample.

        Transparent images keep their alpha, with colours multiplied by it.
        """
        captions = self.captions.read(sample)
        image = read_image(sample, self.limits)
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        box = (left, top, left + short, top + short)
        square = image.resize((self.side, self.side), Image.Resampling.BICUBIC, box=box)
        pixels = np.asarray(square)
        if square.mode == "RGBA":
            # Colours times alpha: laid on a background, what is transparent then adds nothing.
            alpha = pixels[:, :, 3:].astype(np.float32) / OPAQUE
            pixels = np.concatenate([(pixels[:, :, :3] * alpha).round().astype(np.uint8), pixels[:, :, 3:]], axis=2)
        return captions, pixels.transpose(0, 2, 1)


class DecodedShard(NamedTuple):
    """What one shard holds, as a process sends it: the pixels lie in `file`, image after image, of `channels` each."""

    samples: list[Sample]
    channels: list[int]
    problems: list[Problem]
    file: str

    def images(self, side: int) -> Iterator[UInt8[np.ndarray, "side channels side"]]:
        """The images, read into memory; the file itself is gone."""
        if not self.channels:
            return
        # Not mapped: each mapping keeps a file open, and a process may have fewer files open than there are shards.
        pixels = np.fromfile(self.file, np.uint8)
        os.unlink(self.file)
        start = 0
        for channels in self.channels:
            end = start + channels * side * side
            yield pixels[start:end].reshape(side, channels, side)
            start = end


def num_processes(urls: Sequence[str], cores: int) -> int:
    """How many processes are worth their start; 1: none besides this one. Shards that are not local count as large."""
    sizes = [os.path.getsize(url) if os.path.isfile(url) else LEAST_BYTES for url in urls]
    if sum(sizes) < LEAST_BYTES:
        return 1
    return max(1, min(cores, len(urls) // SHARDS_A_PROCESS))


def can_travel(*parts: object) -> bool:
    """Whether other processes can be given these: all that pickles and does not come from the script that is run."""
    try:
        return b"__main__" not in pickle.dumps(parts)
    except Exception:  # pickle raises whatever the parts' own methods do
        return False


def decode_shards(
    urls: Sequence[str], recipe: Recipe, opener: Opener, workers: int, folder: str | None
) -> Generator[DecodedShard, None, None]:
    """The shards in order, decoded by so many processes; each result is to be read before the next is asked for.

    A sample that takes too long or that processes die at is skipped, with its reason among the problems.

    Args:
        opener: gives a shard's bytes; pickles.
        folder: where pixels lie until they are read; None: where temporary files do.

    Raises UserError as read_samples does, and where the folder has no room.
    """
    try:
        yield from _decode_shards(urls, recipe, opener, workers, folder)
    except OSError as error:
        mend = "make room, or name" if error.errno in DISK_FULL else "name"
        raise UserError(
            f"{folder or tempfile.gettempdir()}: {error.strerror or error}; decoded images lie there until they are in "
            f"memory: {mend} another folder by local_cache or TMPDIR"
        ) from error


def _decode_shards(
    urls: Sequence[str], recipe: Recipe, opener: Opener, workers: int, folder: str | None
) -> Iterator[DecodedShard]:
    with _scratch(Path(folder or tempfile.gettempdir())) as scratch:
        work = partial(_decode_shard, recipe=recipe, opener=opener, folder=scratch)
        for url, result in zip(urls, run_jobs(work, list(urls), workers), strict=True):
            if isinstance(result, Lost):
                result = DecodedShard([], [], [Problem(result.reason, url, result.at.key or None)], "")
            yield result


@contextmanager
def _scratch(parent: Path) -> Iterator[str]:
    """A folder for the block, locked by this process; what killed processes have left of theirs is removed first."""
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(f"{SCRATCH}*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime >= ABANDONED_S:
                with _locked(old):
                    shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=parent) as folder, _locked(Path(folder)):
        yield folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises BlockingIOError where another process has the lock, which ends with that process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _decode_shard(url: str, skips: Skips, *, recipe: Recipe, opener: Opener, folder: str) -> DecodedShard:
    handle, file = tempfile.mkstemp(dir=folder)
    found = DecodedShard([], [], [], file)
    with open(handle, "wb") as pixels:
        samples = read_samples(url, on_problem=found.problems.append, opener=opener)
        for number, sample in enumerate(samples):
            try:
                if number in skips:
                    raise BadSample(skips[number])
                with TimeLimit(url, sample[KEY], number):
                    captions, image = recipe.decode(sample)
            except BadSample as bad:
                found.problems.append(Problem(bad.reason, url, sample[KEY]))
                continue
            pixels.write(image.tobytes())
            found.samples.append((sample[KEY], url, captions))
            found.channels.append(image.shape[1])
    return found


class DecodingThreads:
    """Threads that decode, one a processor. A decoder that does not come back costs its sample, not the run."""

    def __init__(self, decode: Callable[[dict[str, Any]], Any]) -> None:
        self._decode = decode
        self._tasks: SimpleQueue[tuple[dict[str, Any], Future[Any]] | None] = SimpleQueue()
        # Not those of a ThreadPoolExecutor, which the end of the process would wait for.
        self._started = 0

    def __enter__(self) -> "DecodingThreads":
        for _ in range(core_share()):
            self._start()
        return self

    def __exit__(self, *exit_info: object) -> None:
        for _ in range(self._started):
            self._tasks.put(None)

    def _start(self) -> None:
        self._started += 1
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            sample, result = task
            try:
                result.set_result(self._decode(sample))
            except BaseException as error:  # raised where the result is waited for
                result.set_exception(error)

    def results(self, samples: Sequence[dict[str, Any]]) -> Iterator[Any]:
        """What `decode` returns for each; a BadSample for one that is waited for longer than a sample may take."""
        waiting: list[Future[Any]] = [Future() for _ in samples]
        tasks = list(zip(samples, waiting, strict=True))
        for task in tasks:
            self._tasks.put(task)
        for sample, result in tasks:
            done, _ = wait([result], sample_seconds())
            if done:
                yield result.result()
            else:
                self._start()  # in the place of the one that is stuck, or those behind it would wait for ever
                yield took_too_long(sample[URL], sample[KEY])
