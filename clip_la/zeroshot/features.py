"""Features of all pictures of a test set, for what needs them all at once: retrieval, k-NN, linear probes."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from clip_la.errors import UserError
from clip_la.zeroshot import ranks
from clip_la.zeroshot.images import image_batches
from clip_la.zeroshot.records import TestSet
from clip_la.zeroshot.subject import Subject, matmul_precision


@dataclass(frozen=True)
class Features:
    """Unit features on the CPU, float32, one row a picture in the test set's order, with what is known of each."""

    images: Float[Tensor, "images embed_dim"]
    keys: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    captions: tuple[tuple[str, ...], ...]
    skipped: dict[str, int]


@torch.inference_mode()
def encode_images(
    subject: Subject,
    test_set: TestSet,
    *,
    precision: str,
    batch_size: int,
    num_workers: int = 0,
    progress: bool = True,
) -> Features:
    """Every picture once, by all ranks together; every rank returns all rows.

    Raises:
        UserError: what the test set raises; no picture could be read.
    """

    def work() -> tuple[list[Any], list[Tensor], set[Any]]:
        rows: list[Any] = []
        features: list[Tensor] = []
        skipped: set[Any] = set()
        hidden = not progress or ranks.rank() != 0
        bar = tqdm(total=test_set.num_records, desc=test_set.name, unit="img", disable=hidden, leave=False)
        batches = image_batches(
            test_set.sources,
            subject.preprocess,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=subject.device.type == "cuda",
        )
        with bar, matmul_precision(precision):
            for batch in batches:
                source = batch.unit[0]
                skipped |= {(source, *entry) for entry in batch.skipped}
                if batch.images is not None:
                    features.append(subject.encode_images(batch.images, precision)[batch.rows].cpu())
                    columns = zip(batch.positions, batch.keys, batch.labels, batch.captions, strict=True)
                    rows += [(source, *column) for column in columns]
                bar.update(len(batch.keys) * ranks.world_size())
        return rows, features, skipped

    gathered = ranks.exchange(work)
    rows = [row for own, _, _ in gathered for row in own]
    reasons = Counter(entry[-1] for entry in set().union(*(own for _, _, own in gathered)))
    if not rows:
        raise UserError(f"{test_set.name} has no picture that can be evaluated ({dict(reasons) or 'it is empty'})")
    order = sorted(range(len(rows)), key=lambda i: rows[i][:2])
    _, _, keys, labels, captions = zip(*(rows[i] for i in order), strict=True)
    images = torch.cat([part for _, parts, _ in gathered for part in parts])[order]
    return Features(images, keys, labels, captions, dict(sorted(reasons.items())))
