"""The progress bar of an evaluation."""

from typing import Any

from tqdm import tqdm

from clip_la import distributed as ranks
from clip_la.zeroshot.datasets.records import EvalDataset


def progress_bar(test_set: EvalDataset, num_done: int, shown: bool) -> Any:
    """A bar over the pictures of a test set, on the first rank's terminal; it leaves no trace when it is over."""
    hidden = not shown or ranks.rank() != 0
    return tqdm(
        total=test_set.num_records,
        initial=num_done,
        desc=test_set.name,
        unit="img",
        disable=hidden or None,
        leave=False,
    )
