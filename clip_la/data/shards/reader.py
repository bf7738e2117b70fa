"""Webdataset shards: tars in which the consecutive members KEY.jpg, KEY.txt, KEY.json make one sample.

Samples are webdataset's dicts, `{"__key__": "00001", "__url__": "a.tar", "jpg": bytes, "txt": bytes, "json": bytes}`;
keys and parts are split as webdataset does (`formats.split_name`).
"""

import importlib.util
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import ModuleType, TracebackType
from typing import IO, Any

from clip_la.atomic import atomic_write
from clip_la.data.shards import problems
from clip_la.data.shards.formats import KEY, URL, is_apple_double, merged_keys, parts_of, split_name
from clip_la.data.shards.problems import OnProblem, Problem, log_problem
from clip_la.data.shards.sources import expand_urls, open_shard
from clip_la.data.shards.tar import TarDamage, read_members
from clip_la.data.shards.watch import noted
from clip_la.errors import UserError

__all__ = ["KEY", "URL", "ShardWriter", "expand_urls", "read_samples", "split_name"]

Sample = dict[str, Any]


def read_samples(
    url: str, *, on_problem: OnProblem = log_problem, opener: Callable[[str], IO[bytes]] = open_shard
) -> Iterator[Sample]:
    """The samples of one shard in order: `{"__key__": str, "__url__": url, "png": bytes, "txt": bytes, ...}`.

    A damaged part costs its sample, a damaged header what lies before the next whole one. Each loss is reported to
    `on_problem`, and so is each skipped member. A part name that comes twice under one key begins a new sample, as in
    open_clip, and is reported; so is each sample that was merged into another because its key has a dot. What macOS
    puts beside files is ignored.

    Args:
        url: a path or an address, given to `opener`.
        on_problem: called with each Problem; the default logs a warning.
        opener: gives the shard's bytes.

    Raises:
        UserError: the shard does not exist or cannot be read.
    """
    with opener(url) as stream:
        try:
            yield from _group(stream, url, on_problem)
        except OSError as error:
            raise UserError(f"shard '{url}' cannot be read: {error.strerror or error}") from error


def _group(stream: IO[bytes], url: str, on_problem: OnProblem) -> Iterator[Sample]:
    sample: Sample = {}
    lost_key = ""  # of a sample that is not whole: one of its parts is damaged
    try:
        members = read_members(stream, lambda reason: on_problem(Problem(reason, url)))
        for member in noted(members, url):
            key, part = split_name(member.name)
            reason = member.reason or (None if key and part else problems.NAME_WITHOUT_PARTS)
            if reason:
                if not is_apple_double(member.name):
                    on_problem(Problem(reason, url, member.name or None))
                if reason == problems.SHARD_DAMAGED and key:
                    lost_key = key
                    sample = {} if sample.get(KEY) == key else sample
            elif key != lost_key:
                lost_key = ""
                if key != sample.get(KEY) or part in sample:
                    if part in sample and key == sample[KEY]:
                        on_problem(Problem(problems.PART_REPEATED, url, member.name))
                    yield from _unmerged(sample, on_problem)
                    sample = {KEY: key, URL: url}
                sample[part] = member.data
    except TarDamage as damage:
        on_problem(Problem(damage.reason, url, damage.name))
        if damage.name and split_name(damage.name)[0] == sample.get(KEY):
            sample = {}
    yield from _unmerged(sample, on_problem)


def _unmerged(sample: Sample, on_problem: OnProblem) -> Iterator[Sample]:
    """The sample, if it is one, without the parts of others whose keys have a dot; each of these is reported."""
    # Without compound parts, as nearly always, there is nothing to look for.
    if any("." in part for part in sample):
        for more in merged_keys(sample):
            on_problem(Problem(problems.MERGED, sample[URL], f"{sample[KEY]}.{more}"))
            sample = {part: value for part, value in sample.items() if not part.startswith(f"{more}.")}
    if parts_of(sample):
        yield sample


@cache
def _tar_writer() -> Any:
    """webdataset's TarWriter by its own file: the package imports torch, a second and 470 MiB in each process that
    `data pack` starts, which have no use for it."""
    spec = importlib.util.find_spec("webdataset")
    assert spec is not None, "webdataset is a dependency of clip_la"
    package = ModuleType("clip_la_webdataset")
    package.__path__ = spec.submodule_search_locations or []
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.writer").TarWriter


class ShardWriter:
    """Writes one shard by `webdataset.TarWriter`, whole or not at all; the same samples give the same bytes everywhere.

    Parts are bytes, text (UTF-8), or anything `json` writes (sorted keys). Members are sorted by part; times and owners
    are zero. Used as a context: the shard appears under its name when the context ends without an error.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.num_samples = 0
        self._file = atomic_write(path)
        owner: dict[str, Any] = {"user": "", "group": "", "mode": 0o644, "mtime": 0}
        self._tar = _tar_writer()(self._file.__enter__(), **owner, encoder=False, keep_meta=True)
        # TarWriter 1.0 accepts a format but ignores it, and Python's own default depends on its version.
        self._tar.tarstream.format = tarfile.GNU_FORMAT

    def write(self, sample: Mapping[str, Any]) -> None:
        """Adds one sample in the form of `read_samples`; part names may begin with a dot, as suffixes do.

        Raises:
            ValueError: a key that would read back as another one (empty, or with a dot in its last component).
        """
        key, parts = sample[KEY], {}
        for name, value in parts_of(sample).items():
            part = name.removeprefix(".")
            if split_name(f"{key}.{part}") != (key, part):
                raise ValueError(f"key '{key}' with part '{part}' would not read back as written")
            parts[part] = value if isinstance(value, bytes) else _encoded(value)
        self._tar.write({KEY: key, **parts})
        self.num_samples += 1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # After an error too: a tarfile that is dropped open writes its last block whenever it is collected.
            self._tar.close()
        except BaseException as late:
            self._file.__exit__(type(late), late, late.__traceback__)
            raise
        self._file.__exit__(kind, error, trace)


def _encoded(value: Any) -> bytes:
    """Text as UTF-8, anything else as JSON with sorted keys."""
    if isinstance(value, str):
        return value.encode()
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # Lone surrogates: from a name that is no UTF-8, or written as escapes in another JSON.
        return json.dumps(value, sort_keys=True).encode()
