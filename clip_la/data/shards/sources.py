"""Where shards come from: local paths, brace ranges, globs and lists; anything fsspec opens; `pipe:COMMAND`."""

import glob
import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import braceexpand

from clip_la.atomic import atomic_write, remove_unfinished
from clip_la.data.shards.problems import BadSample
from clip_la.data.shards.remote import PIPE, READ_AHEAD_BYTES, Resuming, is_remote
from clip_la.data.shards.watch import TimeLimit
from clip_la.errors import UserError

# How names of shards end; whether one is compressed is seen from its bytes.
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
HASH_DIGITS = 16
GIB = 1 << 30
# Another process may be fetching a shard; one that has not grown for so long was left by a killed process.
ABANDONED_S = 3600.0


def expand_urls(spec: str | Iterable[str]) -> list[str]:
    """One address a shard, from a path, a brace range (`{0000..0100}.tar`), a glob, `a::b`, or a list of these.

    Raises:
        UserError: a local shard is missing, a glob or a folder matches nothing, or the list is empty.
    """
    urls: list[str] = []
    for each in [spec] if isinstance(spec, str | os.PathLike) else spec:
        text = os.fspath(each)
        # In a command, "::" and "*" are the shell's own.
        is_pipe = text.startswith(PIPE)
        for one in [text] if is_pipe else text.split("::"):
            try:
                expanded = list(braceexpand.braceexpand(one))
            except ValueError as error:
                raise UserError(f"shards '{one}': braces do not balance; write '{{00000..00099}}.tar'") from error
            urls += expanded if is_pipe else [url for path in expanded for url in _matches(path)]
    if not urls:
        raise UserError("no shards given; name a path, a brace range like '/data/{00000..00099}.tar' or a glob")
    return urls


def check_cache_folder(folder: str) -> None:
    """Makes the folder of the option local_cache. Raises UserError where no file can be written into it."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"local_cache {folder}: {error.strerror or error}; name a folder that can be written to"
        ) from error


def check_weights(shards: str | Sequence[str], weights: Sequence[float]) -> None:
    """Raises UserError where these are not a positive number for each entry of `shards`."""
    num_entries = 1 if isinstance(shards, str) else len(shards)
    if len(weights) != num_entries:
        raise UserError(f"weights has {len(weights)} numbers for {num_entries} entries of shards")
    if not all(weight > 0 for weight in weights):
        raise UserError(f"weights {list(weights)} must be positive; leave out an entry of shards that is not wanted")


def check_sources(shards: str | Sequence[str], weights: Sequence[float] | None) -> None:
    """Raises UserError for weights as `check_weights` does, and for local shards that are not there.

    Buckets are not asked: that takes long, and is left to who reads them.
    """
    if weights is not None:
        check_weights(shards, weights)
    entries = [shards] if isinstance(shards, str) else shards
    if not any(is_remote(entry) for entry in entries):
        expand_urls(entries)


def _matches(path: str) -> list[str]:
    """The shards of one path, glob, folder or address without braces."""
    if is_remote(path):
        # The query of an address, behind "?", is no pattern.
        if not glob.has_magic(path.partition("://")[2].partition("?")[0]):
            return [path]
        import fsspec

        system, pattern = fsspec.core.url_to_fs(path)
        found = [system.unstrip_protocol(match) for match in sorted(system.glob(pattern))]
        if not found:
            raise UserError(f"no shard matches '{path}'")
        return found
    path = os.path.expanduser(path.removeprefix("file://"))
    if os.path.isdir(path):
        return _in_folder(Path(path))
    if os.path.exists(path):
        return [path]
    if not glob.has_magic(path):
        raise UserError(f"shard '{path}' does not exist")
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise UserError(f"no shard matches '{path}'{_deeper(Path(path).parent)}")
    return found


def is_shard_name(name: str) -> bool:
    """Whether a file of this name is a shard, by its ending in `SHARD_SUFFIXES`, in whatever case."""
    return name.lower().endswith(SHARD_SUFFIXES)


def shards_in(folder: Path) -> list[Path]:
    """The shards that lie in a folder, by name; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_shard_name(path.name) and not path.name.startswith("."))


def _in_folder(folder: Path) -> list[str]:
    found = shards_in(folder)
    if not found:
        raise UserError(f"no shard matches '{folder / '*.tar'}'{_deeper(folder)}")
    first: dict[str, str] = {}
    for path in found:
        stem = path.name[: -len(next(end for end in SHARD_SUFFIXES if path.name.lower().endswith(end)))]
        if stem in first:
            raise UserError(f"{folder} holds both {first[stem]} and {path.name}: is this one shard, twice?")
        first[stem] = path.name
    return list(map(str, found))


def _deeper(folder: Path) -> str:
    """Which folders below this one hold shards, for a message where the one above them was named."""
    below = sorted(below.name for below in folder.glob("*/") if shards_in(below))
    return f"; its folders {', '.join(below)} hold some" if below else ""


@dataclass(frozen=True)
class ShardOpener:
    """Opens shards for reading from front to back.

    Args:
        retries: how often a remote shard or a pipe that fails is tried again before the run stops; each time reading
            resumes at the byte where it failed, after a wait that doubles from `backoff_s` seconds.
        backoff_s: the first wait.
        cache_dir: folder in which remote shards are kept once read; None keeps none.
        cache_gb: least recently used shards go when the folder would hold more GiB than this.
    """

    retries: int = 8
    backoff_s: float = 0.5
    cache_dir: str | None = None
    cache_gb: float = 100.0

    def __call__(self, url: str) -> IO[bytes]:
        """The shard's bytes, buffered.

        Raises:
            UserError: the shard does not exist or cannot be read; the message names it.
        """
        if is_remote(url) or url.startswith(PIPE):
            if self.cache_dir is None:
                return io.BufferedReader(Resuming(url, self.retries, self.backoff_s), READ_AHEAD_BYTES)
            url = self._cached(url, Path(self.cache_dir))
        try:
            with TimeLimit(url, ""):
                return open(url, "rb", buffering=READ_AHEAD_BYTES)
        except BadSample as error:
            raise UserError(f"shard '{url}' does not open: is it a named pipe that nobody writes to?") from error
        except FileNotFoundError as error:
            raise UserError(f"shard '{url}' does not exist") from error
        except OSError as error:
            raise UserError(f"shard '{url}' cannot be read: {error.strerror}") from error

    def _cached(self, url: str, folder: Path) -> str:
        digest = hashlib.sha256(url.encode()).hexdigest()[:HASH_DIGITS]
        path = folder / f"{digest}-{'pipe' if url.startswith(PIPE) else shard_name(url)}"
        if not path.exists():
            with Resuming(url, self.retries, self.backoff_s) as remote, atomic_write(path) as local:
                shutil.copyfileobj(remote, local, READ_AHEAD_BYTES)
            self._evict(folder, keep=path)
        # The time of use is set by hand: file systems mounted with noatime do not.
        os.utime(path, (time.time(), path.stat().st_mtime))
        return str(path)

    def _evict(self, folder: Path, keep: Path) -> None:
        """Removes the least recently used shards; workers that read one continue on the file that they have open."""
        remove_unfinished(folder, older_than_s=ABANDONED_S)
        # Files alone: decoded corpora lie in a folder beside them, and are no shards.
        shards = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        cached = sorted(shards, key=lambda path: path.stat().st_atime)
        total = sum(path.stat().st_size for path in cached)
        for path in cached:
            if total > int(self.cache_gb * GIB) and path != keep:
                total -= path.stat().st_size
                path.unlink(missing_ok=True)


open_shard = ShardOpener()


def shard_name(url: str) -> str:
    """The short name of a shard in counts and messages: its file name; a pipe's is its whole command."""
    return url if url.startswith(PIPE) else Path(url.partition("?")[0]).name


def place_of(url: str, key: str | None) -> str:
    """Where something is, in messages: the shard's short name and the key, if it is known."""
    return f"{shard_name(url)}: {key}" if key else shard_name(url)
