"""Pictures against a text classifier: streamed, shared over ranks, resumable, never more than a batch of scores."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from clip_la.zeroshot import metrics, ranks
from clip_la.zeroshot.images import ImageBatch, Unit, image_batches
from clip_la.zeroshot.parts import Parts
from clip_la.zeroshot.predictions import Predictions, merge
from clip_la.zeroshot.records import TestSet
from clip_la.zeroshot.subject import Subject, matmul_precision

TOP = 5
SECONDS_BETWEEN_SAVES = 20.0


@torch.inference_mode()
def score_batch(
    subject: Subject, classifier: Float[Tensor, "classes embed_dim"], batch: ImageBatch, precision: str
) -> Predictions:
    """The rows of one unit."""
    unit = np.array([batch.unit], dtype=np.int64)
    skipped = tuple((batch.unit[0], *entry) for entry in batch.skipped)
    k = min(TOP, len(classifier))
    n = len(batch.keys)
    if batch.images is None:
        top, scores, truth = torch.zeros(0, k), torch.zeros(0, k), torch.zeros(0)
    else:
        # All rows, empty ones included: neither shapes nor places may depend on what could be read.
        similarity = (subject.encode_images(batch.images, precision) @ classifier.T)[batch.rows]
        keys = metrics.ordered_keys(similarity)
        scores, top = metrics.top_classes(keys, similarity, k)
        truth = metrics.truth_ranks(keys, batch.padded_labels().to(keys.device))
    return Predictions(
        sources=np.full(n, batch.unit[0], dtype=np.int32),
        positions=np.array(batch.positions, dtype=np.int64),
        keys=np.array(batch.keys, dtype=np.str_),
        labels=np.array([own[0] for own in batch.labels], dtype=np.int32),
        ranks=truth.cpu().numpy().astype(np.int32),
        top=top.cpu().numpy().astype(np.int32),
        scores=scores.cpu().numpy().astype(np.float32),
        units=unit,
        skipped=skipped,
    )


def classify(
    subject: Subject,
    classifier: Float[Tensor, "classes embed_dim"],
    test_set: TestSet,
    *,
    precision: str,
    batch_size: int,
    num_workers: int,
    parts: Parts | None = None,
    progress: bool = True,
) -> Predictions:
    """Every picture once, by all ranks together; every rank returns all rows. All ranks must call it.

    Args:
        parts: where finished units are kept from time to time, so that a killed evaluation goes on from there.

    Raises:
        UserError: what the test set raises, on whichever rank.
    """
    earlier = ranks.exchange(lambda: parts.load() if parts and ranks.rank() == 0 else [])[0]
    done: frozenset[Unit] = frozenset((int(s), int(n)) for part in earlier for s, n in part.units)

    def work() -> list[Predictions]:
        mine = [] if ranks.rank() else list(earlier)
        batches = image_batches(
            test_set.sources,
            subject.preprocess,
            batch_size=batch_size,
            num_workers=num_workers,
            done=done,
            pin_memory=subject.device.type == "cuda",
        )
        with matmul_precision(precision), _bar(test_set, earlier, progress) as bar:
            fresh: list[Predictions] = []
            saved_at = time.monotonic()
            for batch in batches:
                fresh.append(score_batch(subject, classifier, batch, precision))
                bar.update(len(batch.keys) * ranks.world_size())
                if parts and time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES:
                    parts.save(merge(fresh))
                    mine, fresh, saved_at = [*mine, *fresh], [], time.monotonic()
        return [*mine, *fresh]

    gathered = ranks.exchange(lambda: [merge(own)] if (own := work()) else [])
    return merge([part for own in gathered for part in own])


def _bar(test_set: TestSet, earlier: list[Predictions], progress: bool) -> Any:
    hidden = not progress or ranks.rank() != 0
    start = sum(map(len, earlier))
    total = test_set.num_records
    return tqdm(total=total, initial=start, desc=test_set.name, unit="img", disable=hidden, leave=False)


def parts_folder(base: Path, evaluation: str) -> Path:
    """Where the parts of an unfinished evaluation lie."""
    return base / f"{evaluation}.parts"
