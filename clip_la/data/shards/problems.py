"""What can be wrong with a sample or a shard: the reasons under which skipped samples are counted."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from clip_la.errors import printable

# Every reason there is. Counts, tests and tables use these words; nothing else is ever counted.
NO_IMAGE = "no image"
NO_CAPTION = "no caption"
EMPTY_CAPTION = "empty caption"
CAPTION_NOT_TEXT = "caption not text"
JSON_DAMAGED = "json damaged"
NOT_AN_IMAGE = "not an image"
IMAGE_EMPTY = "image empty"
IMAGE_DAMAGED = "image damaged"
PIXELS_NOT_SUPPORTED = "pixels not 8 or 16 bit"
IMAGE_TOO_LARGE = "image too large"
IMAGE_TOO_SMALL = "image too small"
IMAGE_TOO_LONG = "image too long and thin"
PART_TOO_LARGE = "part too large"
NAME_WITHOUT_PARTS = "member name is not KEY.PART"
NOT_A_FILE = "member is not a file"
MERGED = "dot in key: taken for parts of another sample"
PART_REPEATED = "part twice under one key: read as two samples"
ROW_CELLS = "row with more or fewer cells than the header"
ROW_QUOTES = "row with quotes that do not pair"
ROW_NOT_OBJECT = "row is not a JSON object"
ROWS_DAMAGED = "row group damaged"
SEVERAL_IMAGES = "several images in one row"
SHARD_EMPTY = "shard empty"
SHARD_NOT_TAR = "shard is not a tar"
SHARD_DAMAGED = "shard damaged"
SHARD_TRUNCATED = "shard truncated"
SHARD_WITHOUT_END = "shard without end mark"
SHARD_GOES_ON = "shard goes on after its end mark: not read"
SHARD_BOMB = "shard unpacks to too much"
TOOK_TOO_LONG = "took too long"
WORKER_DIED = "worker died"
# What is reported without any sample being lost.
NOTICES = frozenset({PART_REPEATED, SHARD_GOES_ON})

logger = logging.getLogger(__name__)


class BadSample(Exception):
    """A sample that cannot be used; `reason` is one of the constants of this module."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Problem:
    """One thing skipped: why, in which shard and, where it is known, at which key."""

    reason: str
    shard: str
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.shard}: {self.reason}" + (f" ({printable(self.key)})" if self.key else "")


OnProblem = Callable[[Problem], None]


def log_problem(problem: Problem) -> None:
    """What readers do with a problem when they are given nothing better: one warning in the log."""
    logger.warning("skipped: %s", problem)
