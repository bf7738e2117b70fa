"""Packs image-text pairs into webdataset shards: in parallel, the same bytes every time, resuming after a stop.

The plan, written first as `pack.json`, holds hashes of all that the shards depend on: the content of the input, the
columns, the settings, this code's format. What was packed from anything else is never taken for the same.

Output shard `n` holds the input's samples `n * per_shard` to `(n + 1) * per_shard`, less those that cannot be used; its
counts lie beside it as `00000_stats.json`, the name and form that img2dataset gives them. `sizes.json`, written last,
is what the stream reads.
"""

import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from clip_la.atomic import remove_unfinished
from clip_la.data.images.decode import decode_image, reasons
from clip_la.data.shards import problems
from clip_la.data.shards.crew import Lost, Skips, run_jobs
from clip_la.data.shards.formats import FORMATS, JSON_PART, KEY, SUFFIXES, TEXT_PART
from clip_la.data.shards.problems import BadSample
from clip_la.data.shards.reader import ShardWriter
from clip_la.data.shards.watch import TimeLimit, noted
from clip_la.data.text.captions import clean
from clip_la.data.tools.json_files import write_json
from clip_la.data.tools.pack_sources import PackSource, Raw
from clip_la.errors import UserError
from clip_la.fingerprint import combined

# Raised when the same input gives other shards.
FORMAT = 2
# What a difference in a field of the plan means to a person.
MEANINGS = {"format": "another version of clip-la", "input": "content or columns of the input"}
COUNTS = {"count", "successes", "failures", "examples"}
DEFAULT_PER_SHARD = 10_000
SHARD_DIGITS, INDEX_DIGITS = 5, 4


class Span(NamedTuple):
    """Samples `start` to `stop` of one piece of the source."""

    piece: int
    start: int
    stop: int


class ShardJob(NamedTuple):
    """One output shard: its number and the spans of input it is made from."""

    number: int
    spans: tuple[Span, ...]


def cut(sizes: list[int], per_shard: int) -> list[ShardJob]:
    """Output shards of `per_shard` input samples each (the last one fewer) over pieces of the given sizes."""
    jobs: list[ShardJob] = []
    spans: list[Span] = []
    room = per_shard
    for piece, size in enumerate(sizes):
        start = 0
        while start < size:
            stop = min(size, start + room)
            spans.append(Span(piece, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                jobs.append(ShardJob(len(jobs), tuple(spans)))
                spans, room = [], per_shard
    if spans:
        jobs.append(ShardJob(len(jobs), tuple(spans)))
    return jobs


def pack(
    source: PackSource,
    out: Path,
    *,
    per_shard: int = DEFAULT_PER_SHARD,
    workers: int = 1,
    check_pixels: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Packs a source into shards in `out`; shards that an earlier, stopped call has written are kept.

    Args:
        per_shard: input samples a shard, at most 10,000.
        workers: processes.
        check_pixels: decode each image and leave out those that cannot be.

    Returns:
        Counts: `{"shards", "samples", "packed", "skipped": {reason: count}, "examples": {reason: first place}, "out"}`.

    Raises:
        UserError: `out` holds something else, or nothing at all could be packed.
    """
    if not 1 <= per_shard <= 10**INDEX_DIGITS:
        raise UserError(f"--per-shard {per_shard} is out of range: 1 to {10**INDEX_DIGITS}")
    packing = Packing(source, out, per_shard, check_pixels)
    plan = packing.plan()
    jobs = cut(source.sizes(), per_shard)
    packing.claim(plan)
    stats = {job.number: known for job in jobs if (known := packing.counts_of(job)) is not None}
    lost: list[Lost] = []
    todo = [job for job in jobs if job.number not in stats]
    total = sum(span.stop - span.start for job in jobs for span in job.spans)
    done = sum(known["count"] for known in stats.values())
    with tqdm(desc="packing", total=total, initial=done, unit="pair", disable=quiet or None) as bar:
        for result in run_jobs(packing.write, todo, workers):
            if isinstance(result, Lost):
                lost.append(result)
                continue
            stats[result[0]] = result[1]
            bar.update(result[1]["count"])
    if lost:
        raise UserError(
            f"{len(lost)} of {len(jobs)} shards could not be written, the first at {lost[0].at}: {lost[0].reason}; "
            "the others are whole, the same command tries these again"
        )
    # Hashed again: a file that changed under our hands would be in some shards as it was and in others as it is.
    if todo and packing.plan() != plan:
        raise UserError(f"the input changed while it was packed to {out}; remove that folder and pack again")
    return packing.finish(jobs, stats)


@dataclass(frozen=True)
class Packing:
    """One source on its way into one folder; pickles, to write shards in any process."""

    source: PackSource
    out: Path
    per_shard: int
    check_pixels: bool

    def plan(self) -> dict[str, Any]:
        """All that the shards depend on."""
        return {
            "format": FORMAT,
            "kind": self.source.kind,
            "per_shard": self.per_shard,
            "check_pixels": self.check_pixels,
            "input": combined(self.source.names()),
        }

    def claim(self, plan: dict[str, Any]) -> None:
        """Makes the folder ours for this plan, or finds that it already is; raises UserError where it is another's."""
        out, marker = self.out, self.out / "pack.json"
        if out.is_file():
            raise UserError(f"{out} is a file; name a folder for the shards")
        remove_unfinished(out, "*" if marker.exists() else marker.name)
        if marker.exists():
            found = _read_object(marker)
            if found != plan:
                different = ", ".join(MEANINGS.get(key, key) for key in sorted(plan) if found.get(key) != plan[key])
                raise UserError(
                    f"{out} was packed from other input or settings ({different}); name a new folder, or remove this "
                    "one"
                )
        elif out.exists() and any(out.iterdir()):
            raise UserError(f"{out} holds other files; name a new or empty folder for the shards")
        else:
            write_json(marker, plan)

    def paths(self, number: int) -> tuple[Path, Path]:
        """The files of an output shard: its samples, its counts."""
        stem = f"{number:0{SHARD_DIGITS}d}"
        return self.out / f"{stem}.tar", self.out / f"{stem}_stats.json"

    def counts_of(self, job: ShardJob) -> dict[str, Any] | None:
        """The counts of a shard that is already there; they are written after it, so it is whole."""
        shard, stats = self.paths(job.number)
        found = _read_object(stats)
        if not COUNTS.issubset(found):
            return None
        return found if shard.exists() or not found["successes"] else None

    def write(self, job: ShardJob, skips: Skips) -> tuple[int, dict[str, Any]]:
        """Writes one shard and its counts, and returns number and counts; a shard without any sample is not written."""
        shard, stats_path = self.paths(job.number)
        skipped: Counter[str] = Counter()
        examples: dict[str, str] = {}
        writer: ShardWriter | None = None
        count = 0
        with ExitStack() as stack:
            for span in job.spans:
                for raw in noted(self.source.read(*span), str(shard)):
                    try:
                        if count in skips:
                            raise BadSample(skips[count])
                        with TimeLimit(str(shard), raw.origin, count):
                            parts = self._parts(raw)
                        writer = writer or stack.enter_context(ShardWriter(shard))
                        writer.write({KEY: f"{shard.stem}{count:0{INDEX_DIGITS}d}", **parts})
                    except BadSample as bad:
                        skipped[bad.reason] += 1
                        examples.setdefault(bad.reason, raw.place or raw.origin)
                    count += 1
        successes = writer.num_samples if writer else 0
        stats: dict[str, Any] = {"count": count, "successes": successes, "failures": dict(sorted(skipped.items()))}
        stats["examples"] = dict(sorted(examples.items()))
        # Behind the shard itself: counts that are there say that the shard is whole.
        write_json(stats_path, stats)
        return job.number, stats

    def _parts(self, raw: Raw) -> dict[str, Any]:
        """The parts of a sample: the image's own bytes under the suffix of what they are, caption, JSON."""
        if raw.problem:
            raise BadSample(raw.problem)
        caption = clean(raw.caption or "")
        if not caption:
            raise BadSample(problems.EMPTY_CAPTION)
        suffix = image_suffix(raw.image)
        if self.check_pixels:
            decode_image(raw.image)
        meta = {**raw.meta, "caption": caption, "origin": raw.origin}
        return {suffix: raw.image, TEXT_PART: caption, JSON_PART: meta}

    def finish(self, jobs: list[ShardJob], stats: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """Writes `sizes.json` and sums up the counts of all shards; raises UserError where nothing was packed."""
        skipped: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for _, known in sorted(stats.items()):
            skipped.update(known["failures"])
            examples = known.get("examples", {}) | examples
        packed = sum(known["successes"] for known in stats.values())
        if not packed:
            reasons = [f"{count} {reason} (first: {examples.get(reason)})" for reason, count in skipped.most_common()]
            text = "; ".join([", ".join(reasons) or "the input is empty", *filter(None, [self.source.note])])
            raise UserError(f"nothing could be packed: {text}")
        sizes = {self.paths(job.number)[0].name: stats[job.number]["successes"] for job in jobs}
        write_json(self.out / "sizes.json", {name: size for name, size in sizes.items() if size})
        return {
            "shards": sum(1 for known in stats.values() if known["successes"]),
            "samples": sum(known["count"] for known in stats.values()),
            "packed": packed,
            "skipped": dict(sorted(skipped.items())),
            "examples": dict(sorted(examples.items())),
            "out": str(self.out),
        }


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def image_suffix(data: bytes) -> str:
    """The suffix that says what the bytes are, whatever the file was called.

    Raises:
        BadSample: not an image.
    """
    if not data:
        raise BadSample(problems.IMAGE_EMPTY)
    with reasons(), Image.open(BytesIO(data), formats=FORMATS) as image:
        # MPO: a JPEG with further images behind it, as some phones write them.
        return SUFFIXES["JPEG" if image.format == "MPO" else str(image.format)][0]
