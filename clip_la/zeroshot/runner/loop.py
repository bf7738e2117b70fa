"""The one loop of every task: read a unit, encode it, keep its rows; shared by all ranks, resumed after a kill.

A task gives a stream of units and what to compute from each; the loop skips the units that an earlier run finished,
saves new ones every SECONDS_BETWEEN_SAVES, and gives every rank all rows in the order of the data. Digits depend
neither on the number of ranks nor on where a run was cut.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from clip_la import distributed as ranks
from clip_la.errors import UserError
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.model.classifier import ClassifierCache
from clip_la.zeroshot.model.eval_model import EvalModel, matmul_precision
from clip_la.zeroshot.runner.batches import ImageBatch
from clip_la.zeroshot.runner.decoded import decoded_batches
from clip_la.zeroshot.runner.rows import PartialResults, Unit, UnitRows

SECONDS_BETWEEN_SAVES = 20.0
R = TypeVar("R", bound=UnitRows)
B = TypeVar("B")


@dataclass(frozen=True)
class EvalSettings:
    """By what means evaluations run. `precision` ("float32", "bf16") and `batch_size` can move their digits.

    Attributes:
        batch_size: images that go through the model together.
        num_workers: processes that read and decode; 0 is this one, None as many as cores and test set are worth.
        cache: where text classifiers are kept.
        state: the folder of predictions, and of partial results while an evaluation is unfinished; None keeps nothing.
        progress: whether the first rank shows bars on a terminal.
    """

    precision: str = "float32"
    batch_size: int = 128
    num_workers: int | None = 0
    cache: ClassifierCache | None = None
    state: Path | None = None
    progress: bool = True

    @property
    def most_workers(self) -> int:
        """How many processes may share work that is not a test set's."""
        return ranks.default_workers() if self.num_workers is None else self.num_workers


def run_units(
    units: Callable[[frozenset[Unit]], Iterable[B]],
    compute: Callable[[B], R],
    kept: PartialResults[R],
    *,
    precision: str,
    name: str,
    total: int | None,
    progress: bool,
) -> R | None:
    """The rows of every unit, on every rank; None where there are no units. All ranks must call it.

    Args:
        units: given the finished units, yields this rank's share of the others, in any order.
        compute: the rows of one unit; runs without gradients, with products at `precision`.
        kept: where rows are saved, and from where an earlier run is resumed.
        name, total: of the progress bar, which counts samples; progress: whether the first rank shows it.

    Raises UserError: what `units` or `compute` raises, on whichever rank.
    """
    # What was finished before, on rank 0 alone: it brings these rows to the gathering.
    rows: list[R] = []

    def resume() -> tuple[frozenset[Unit], bool]:
        if ranks.rank() == 0:
            rows.extend(kept.load())
        done = frozenset(unit for part in rows for unit in part.unit_set)
        return done, kept.is_complete(len(done))

    # Rank 0's answer holds for all: files may be there for one rank and not yet for another.
    done, is_complete = ranks.all_gather(resume)[0]

    def work() -> list[R]:
        fresh: list[R] = []
        saved_at = time.monotonic()

        def save() -> None:  # many units a file: one each would be thousands of files
            rows.append(type(fresh[0]).merge(fresh))
            kept.save(rows[-1])
            fresh.clear()

        # None hides it where stderr is no terminal.
        hidden = True if not progress or ranks.rank() else None
        bar = tqdm(total=total, initial=sum(map(len, rows)), desc=name, unit="sample", disable=hidden, leave=False)
        with matmul_precision(precision), bar:
            for unit in () if is_complete else units(done):
                with torch.inference_mode():
                    fresh.append(compute(unit))
                bar.update(len(fresh[-1]) * ranks.world_size())
                if time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES:
                    save()
                    saved_at = time.monotonic()
            if fresh:
                save()
        return rows

    gathered = [part for own in ranks.all_gather(work) for part in own]
    if not is_complete and ranks.rank() == 0:
        kept.finish(sum(len(part.unit_set) for part in gathered))
    return type(gathered[0]).merge(gathered) if gathered else None


def run_images(
    eval_model: EvalModel,
    test_set: EvalDataset,
    compute: Callable[[ImageBatch], R],
    kept: PartialResults[R],
    settings: EvalSettings,
) -> R:
    """`run_units` over the images of a test set: each image once, one row for each that can be read.

    Raises:
        UserError: what the test set raises; no image could be read.
    """

    def units(done: frozenset[Unit]) -> Iterable[ImageBatch]:
        return decoded_batches(
            test_set,
            eval_model.preprocess,
            batch_size=settings.batch_size,
            num_workers=settings.num_workers,
            done=done,
            pin_memory=eval_model.device.type == "cuda",
        )

    rows = run_units(
        units,
        compute,
        kept,
        precision=settings.precision,
        name=test_set.name,
        total=test_set.num_records,
        progress=settings.progress,
    )
    if rows is None or not len(rows):
        skipped = rows.skip_text() if rows is not None else ""
        raise UserError(f"{test_set.name} has no image that can be evaluated ({skipped or 'it is empty'})")
    return rows
