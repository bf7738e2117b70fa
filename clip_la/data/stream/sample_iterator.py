"""Usable samples of one source, one after another; the others are skipped and counted, and too many stop the run."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from types import MappingProxyType
from typing import IO, Any

from clip_la.data.shards.formats import IMAGE_PARTS, KEY, URL, parts_of
from clip_la.data.shards.problems import NOTICES, BadSample, Problem
from clip_la.data.shards.reader import read_samples
from clip_la.data.shards.sources import shard_name
from clip_la.data.shards.watch import TimeLimit
from clip_la.data.stream.blocks import BlockIterator
from clip_la.errors import UserError, printable

# Samples tried before a source reports that none, or too few, of them can be used.
MIN_TRIES_NONE_USABLE = 100
MIN_TRIES_BAD_SHARE = 1000
LOOKED_AT = 100


class SampleIterator:
    """The usable samples of a source from a place on, decoded.

    Args:
        blocks: where in the source the stream stands.
        decode: makes a decoded sample of a raw one and the uniform numbers of its position; raises BadSample.
        lost: list to which skipped samples are appended.
        bad_share_limit: share of samples tried that may be unusable.
        explain: the message for a source that has nothing usable, from the reasons counted so far.
    """

    def __init__(
        self,
        blocks: BlockIterator,
        decode: Callable[[Any, Sequence[float]], Any],
        lost: list[Problem],
        bad_share_limit: float,
        explain: Callable[[Counter[str]], str],
    ) -> None:
        self._items = blocks.items()
        self._blocks = blocks
        self._decode = decode
        self._lost = lost
        self._bad_share_limit = bad_share_limit
        self._explain = explain
        self._tried = 0
        self._bad: Counter[str] = Counter()

    def next_sample(self, uniforms: Sequence[float]) -> Any:
        """What `decode` makes of the next usable sample.

        Raises:
            UserError: nothing in the first shard is usable, or too large a share is not.
        """
        for item, lost in self._items:
            if lost:
                self._lost += lost
                self._bad.update(problem.reason for problem in lost if problem.reason not in NOTICES)
            if item is None:
                self._check_any_usable()
                continue
            self._tried += 1
            try:
                with TimeLimit(item[URL], item[KEY]) if isinstance(item, dict) else nullcontext():
                    return self._decode(item, uniforms)
            except BadSample as bad:
                self._lost.append(Problem(bad.reason, item[URL], item[KEY]))
                self._bad[bad.reason] += 1
            check_bad_share(self._bad, self._tried, self._bad_share_limit)
        raise AssertionError("blocks have no end")

    def _check_any_usable(self) -> None:
        # Only a whole pass, or many tries, say that nothing is usable: a single shard may well be spoilt.
        usable = self._tried - self._bad.total()
        if usable <= 0 and (self._tried >= MIN_TRIES_NONE_USABLE or self._blocks.has_passed):
            raise UserError(self._explain(self._bad))


def check_bad_share(bad: Counter[str], tried: int, limit: float) -> None:
    """Raises UserError when more than `limit` of at least a thousand samples were unusable."""
    if tried >= MIN_TRIES_BAD_SHARE and bad.total() > limit * tried:
        raise UserError(
            f"{bad.total()} of {tried} samples cannot be used ({counts(bad)}), more than bad_share_limit {limit:g}; "
            "mend the shards or raise the limit"
        )


def nothing_usable(
    urls: Sequence[str], caption_fields: Sequence[str], opener: Callable[[str], IO[bytes]], bad: Counter[str]
) -> str:
    """The message for a source without a usable sample: what was met, what is there, and what was looked for."""
    with_shards = f"{shard_name(urls[0])}" + (f" and {len(urls) - 1} more" if len(urls) > 1 else "")
    lost: list[Problem] = []
    samples = read_samples(urls[0], on_problem=lost.append, opener=opener)
    parts = sorted({part for sample in islice(samples, LOOKED_AT) for part in parts_of(sample)})
    examples = {problem.reason: problem.key for problem in reversed(lost) if problem.key}
    return (
        f"no usable sample in shards {with_shards}: {counts(bad, examples) or 'no samples at all'}; "
        f"parts found: {', '.join(parts) or 'none'}; "
        f"captions are looked for in {', '.join(caption_fields)}, images in {', '.join(IMAGE_PARTS)}"
    )


def counts(bad: Counter[str], examples: Mapping[str, str] = MappingProxyType({})) -> str:
    """`"no caption 12 (first: EXAMPLE), image damaged 3"`: most frequent first."""
    first = {reason: f" (first: {printable(example)})" for reason, example in examples.items()}
    return ", ".join(f"{reason} {count}{first.get(reason, '')}" for reason, count in bad.most_common())
