"""Verifies shards: reads every sample, decodes each image, counts what is wrong, writes `sizes.json`."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from tqdm import tqdm

from clip_la.data.images.limits import Limits, image_bytes, read_image
from clip_la.data.shards.crew import Lost, run_jobs
from clip_la.data.shards.formats import KEY
from clip_la.data.shards.problems import BadSample, Problem
from clip_la.data.shards.reader import read_samples
from clip_la.data.shards.sources import is_remote, place_of, shard_name
from clip_la.data.shards.watch import TimeLimit
from clip_la.data.text.captions import Captions
from clip_la.data.tools.json_files import write_json
from clip_la.errors import UserError

SIZES = "sizes.json"
_NUMBERED = re.compile(r"(.*?)(\d+)(\.tar(?:\.gz)?|\.tgz)$")
# Missing shards named one by one in a report; more are counted.
MAX_NAMED = 20
# The numbers with which the first caption field and the first of its texts are drawn.
FIRST_CHOICE = (0.0, 0.0)


# Comes back from a worker process, so it holds numbers and no samples.
@dataclass
class ShardReport:
    """One shard. `samples` counts the whole samples in it, usable or not: what `sizes.json` says of it."""

    shard: str
    samples: int = 0
    usable: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    # The first key or member met with each reason.
    examples: dict[str, str] = field(default_factory=dict)
    caption_chars: list[int] = field(default_factory=list)
    caption_words: list[int] = field(default_factory=list)
    # 64-bit hashes, for duplicates across shards: 24 bytes a sample in all.
    key_hashes: list[int] = field(default_factory=list)
    caption_hashes: list[int] = field(default_factory=list)
    image_hashes: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)

    def add_problem(self, problem: Problem) -> None:
        """Counts a sample or member that cannot be used."""
        self.skipped[problem.reason] += 1
        self.examples.setdefault(problem.reason, problem.key or "")

    def add_usable(self, sample: dict[str, Any], captions: Captions) -> None:
        """Decodes a sample and measures it; raises BadSample."""
        caption = captions.choose(sample, FIRST_CHOICE)
        image = read_image(sample, Limits())
        self.usable += 1
        self.widths.append(image.width)
        self.heights.append(image.height)
        self.caption_chars.append(len(caption))
        self.caption_words.append(len(caption.split()))
        self.caption_hashes.append(_hash(caption.encode()))
        self.image_hashes.append(_hash(image_bytes(sample)))


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def verify_shard(
    url: str, skips: Mapping[int, str] = MappingProxyType({}), *, captions: Captions | None = None
) -> ShardReport:
    """Reads one shard through: every member, every caption, every pixel. Damage is counted, never raised.

    Usable is what training uses with its own limits on images as they stand by default.

    Args:
        skips: samples, by their place in the shard, that are not decoded, and the reason to count them under.
        captions: where captions are; None: KEY.txt.

    Raises:
        UserError: the shard does not exist.
    """
    captions = captions or Captions()
    report = ShardReport(url)
    for place, sample in enumerate(read_samples(url, on_problem=report.add_problem)):
        report.samples += 1
        report.key_hashes.append(_hash(sample[KEY].encode("utf-8", "surrogateescape")))
        try:
            if place in skips:
                raise BadSample(skips[place])
            with TimeLimit(url, sample[KEY], place):
                report.add_usable(sample, captions)
        except BadSample as bad:
            report.add_problem(Problem(bad.reason, url, sample[KEY]))
    return report


def verify(
    urls: list[str], *, captions: Captions | None = None, workers: int = 1, quiet: bool = False
) -> dict[str, Any]:
    """Verifies shards in parallel and summarizes what they hold.

    Args:
        captions: where captions are; None: KEY.txt.
        workers: processes.
        quiet: without a progress bar.

    Returns:
        `{"shards", "samples", "usable", "skipped": {reason: count}, "examples": {reason: "SHARD: KEY"},
        "duplicates": {"keys", "captions", "images"}, "missing_shards", "captions": {...}, "pictures": {...},
        "by_shard": {name: {...}}}`; duplicates count samples beyond the first of their kind.
    """
    reports: list[ShardReport] = []
    results = run_jobs(partial(verify_shard, captions=captions), urls, workers)
    with tqdm(desc="verifying", total=len(urls), unit="shard", disable=quiet or None) as bar:
        for url, result in zip(urls, results, strict=True):
            report = result if isinstance(result, ShardReport) else ShardReport(url)
            if isinstance(result, Lost):
                report.add_problem(Problem(result.reason, url, result.at.key))
            reports.append(report)
            bar.update()
            bar.set_postfix_str(f"{sum(r.samples for r in reports)} samples", refresh=False)
    return summarize(reports)


def summarize(reports: list[ShardReport]) -> dict[str, Any]:
    """The summary that `verify` returns, from the shards' reports."""
    skipped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for report in reports:
        skipped.update(report.skipped)
        examples = {reason: place_of(report.shard, key) for reason, key in report.examples.items()} | examples
    return {
        "shards": len(reports),
        "samples": sum(report.samples for report in reports),
        "usable": sum(report.usable for report in reports),
        "skipped": dict(sorted(skipped.items())),
        "examples": dict(sorted(examples.items())),
        "duplicates": {
            "keys": _duplicates(report.key_hashes for report in reports),
            "captions": _duplicates(report.caption_hashes for report in reports),
            "images": _duplicates(report.image_hashes for report in reports),
        },
        "missing_shards": missing_shards([shard_name(report.shard) for report in reports]),
        "captions": {
            "characters": _spread(report.caption_chars for report in reports),
            "words": _spread(report.caption_words for report in reports),
        },
        "pictures": {
            "width_px": _spread(report.widths for report in reports),
            "height_px": _spread(report.heights for report in reports),
        },
        "by_shard": {
            report.shard: {
                "samples": report.samples,
                "usable": report.usable,
                "skipped": dict(sorted(report.skipped.items())),
            }
            for report in reports
        },
    }


def _duplicates(hashes: Iterable[list[int]]) -> int:
    joined = np.fromiter(chain.from_iterable(hashes), np.uint64)
    return int(len(joined) - len(np.unique(joined)))


def _spread(parts: Iterable[list[int]]) -> dict[str, float]:
    values = np.fromiter(chain.from_iterable(parts), np.int64)
    if not len(values):
        return {}
    return {
        "min": int(values.min()),
        "median": float(np.median(values)),
        "mean": round(float(values.mean()), 2),
        "p95": float(np.quantile(values, 0.95)),
        "max": int(values.max()),
    }


def missing_shards(names: list[str]) -> list[str]:
    """Numbers missing between the smallest and the largest of shards named PREFIX + digits + .tar, as file names."""
    groups: dict[tuple[str, int, str], set[int]] = {}
    for name in names:
        if match := _NUMBERED.match(name):
            groups.setdefault((match[1], len(match[2]), match[3]), set()).add(int(match[2]))
    return [
        f"{prefix}{number:0{digits}d}{suffix}"
        for (prefix, digits, suffix), found in sorted(groups.items())
        for number in range(min(found), max(found))
        if number not in found
    ]


def write_sizes(summary: dict[str, Any]) -> list[Path]:
    """Writes `sizes.json` (shard name -> samples) into every local folder that holds shards of the summary."""
    folders: dict[Path, dict[str, int]] = {}
    for shard, counts in summary["by_shard"].items():
        if not is_remote(shard) and not shard.startswith("pipe:"):
            folders.setdefault(Path(shard).parent, {})[Path(shard).name] = counts["samples"]
    written = []
    for folder, sizes in sorted(folders.items()):
        path = folder / SIZES
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        if not isinstance(known, dict):
            raise UserError(f"{path} is not a table of sizes; move it away")
        # Verifying a part of a folder keeps the sizes of the other shards that still exist.
        kept = {name: size for name, size in known.items() if (folder / name).exists()}
        write_json(path, {**kept, **sizes})
        written.append(path)
    return written
