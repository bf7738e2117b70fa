"""Pictures against a text classifier: streamed, shared over ranks, resumable, never more than a batch of scores."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip_la import distributed as ranks
from clip_la.zeroshot import metrics
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.model.eval_model import EvalModel, matmul_precision
from clip_la.zeroshot.runner.batches import ImageBatch, image_batches
from clip_la.zeroshot.runner.partial_results import PartialResults, collect, earlier
from clip_la.zeroshot.runner.predictions import Predictions, merge
from clip_la.zeroshot.runner.progress import progress_bar

TOP = 5


@torch.inference_mode()
def score_batch(
    eval_model: EvalModel, classifier: Float[Tensor, "classes embed_dim"], batch: ImageBatch, precision: str
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
        similarity = (eval_model.encode_images(batch.images, precision) @ classifier.T)[batch.rows]
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
    eval_model: EvalModel,
    classifier: Float[Tensor, "classes embed_dim"],
    test_set: EvalDataset,
    *,
    precision: str,
    batch_size: int,
    num_workers: int,
    parts: PartialResults[Predictions] | None = None,
    progress: bool = True,
) -> Predictions:
    """Every picture once, by all ranks together; every rank returns all rows. All ranks must call it.

    Args:
        parts: where finished units are saved from time to time, so that a killed evaluation resumes there.

    Raises:
        UserError: what the test set raises, on whichever rank.
    """
    before, done, _ = earlier(parts)

    def work() -> list[Predictions]:
        batches = image_batches(
            test_set.sources,
            eval_model.preprocess,
            batch_size=batch_size,
            num_workers=num_workers,
            done=done,
            pin_memory=eval_model.device.type == "cuda",
        )
        with matmul_precision(precision), progress_bar(test_set, sum(map(len, before)), progress) as bar:

            def scored() -> Iterator[Predictions]:
                for batch in batches:
                    yield score_batch(eval_model, classifier, batch, precision)
                    bar.update(len(batch.keys) * ranks.world_size())

            return [*before, *collect(scored(), merge, parts)]

    gathered = ranks.all_gather(lambda: [merge(own)] if (own := work()) else [])
    return merge([part for own in gathered for part in own])
