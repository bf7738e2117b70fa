"""Retrieval between images and captions, several captions an image, scored in chunks: never all pairs at once.

Beside recall, which counts hits and so is noisy on a small test set, each result has the contrastive loss of held-out
pairs: a smooth function of the model, for scaling laws.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from clip_la import distributed as ranks
from clip_la import results
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.labels.classes import content_hash
from clip_la.zeroshot.model.classifier import encode_tokens
from clip_la.zeroshot.model.eval_model import EvalModel, matmul_precision
from clip_la.zeroshot.runner.loop import EvalSettings, run_units
from clip_la.zeroshot.runner.rows import Features, PartialResults, Unit
from clip_la.zeroshot.tasks import metrics
from clip_la.zeroshot.tasks.task import FEATURES_FOLDER, Evaluation, Task, encode_images, features_id

RECALL_AT = (1, 5, 10)
# Texts tokenised and encoded together, and queries scored against everything at once.
TEXTS_PER_CHUNK = 8192
QUERIES_PER_CHUNK = 256
# Pairs in a batch of the contrastive loss. It grows with the logarithm of this number, so it is fixed and in the line.
PAIRS_PER_BATCH = 256


@dataclass(frozen=True)
class Retrieval(Task):
    """Images by caption and captions by image."""

    test_set: EvalDataset
    kind = results.RETRIEVAL
    shares_features = True

    def depends_on(self, eval_model: EvalModel) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # The name of the newest metric stands for the form: results without it are made anew.
        return (eval_model.hash, self.test_set.fingerprint, f"contrastive_loss/{PAIRS_PER_BATCH}"), {}

    def run(self, eval_model: EvalModel, settings: EvalSettings) -> Evaluation:
        """Evaluates; images without captions are skipped and counted."""
        rows = encode_images(eval_model, self.test_set, settings)
        captions = [caption for own in rows.captions for caption in own]
        # An image that could be read one time and not another would change which caption is which.
        name = f"{features_id(eval_model, self.test_set, settings)}-{content_hash([TEXTS_PER_CHUNK, captions])}"
        kept = PartialResults(settings.state, f"{FEATURES_FOLDER}/{name}.parts", Features)
        texts = encode_texts(eval_model, captions, settings, kept)
        images = torch.from_numpy(rows.values)
        owners = torch.tensor([number for number, own in enumerate(rows.captions) for _ in own])
        # Each image with its first caption, as most training sets have one.
        first = torch.tensor([0, *(len(own) for own in rows.captions[:-1])]).cumsum(0)
        logit_scale = float(eval_model.module.logit_scale.detach().double().exp())  # type: ignore[operator]
        losses = pair_losses(images, texts[first], logit_scale)
        line = self.result_line(
            eval_model,
            settings,
            rows,
            {
                **retrieval_metrics(images, texts, owners, eval_model.device, settings.precision),
                "contrastive_loss": metrics.mean(losses),
            },
            num_captions=len(texts),
            contrastive_batch_size=min(PAIRS_PER_BATCH, len(images)),
            contrastive_pairs=len(losses),
            logit_scale=logit_scale,
        )
        return Evaluation(line, self.test_set)


class TextChunks(Dataset):
    """Item i is the i-th of the given ranges of texts, tokenised when asked for: worker processes share the work."""

    def __init__(self, eval_model: EvalModel, texts: Sequence[str], chunks: list[range]) -> None:
        self.tokenize, self.texts, self.chunks = eval_model.tokenize, texts, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        chunk = self.chunks[index]
        return chunk.start, self.tokenize([self.texts[i] for i in chunk])


def encode_texts(
    eval_model: EvalModel, texts: Sequence[str], settings: EvalSettings, kept: PartialResults[Features] | None = None
) -> Float[Tensor, "texts embed_dim"]:
    """Unit features of texts, at least one, in their order; by all ranks, on the CPU.

    Args:
        kept: where finished chunks are saved from time to time.
    """
    chunks = [range(start, min(start + TEXTS_PER_CHUNK, len(texts))) for start in range(0, len(texts), TEXTS_PER_CHUNK)]

    def units(done: frozenset[Unit]) -> Iterator[tuple[int, Tensor]]:
        left = [chunk for chunk in chunks if (0, chunk.start) not in done]
        mine = left[ranks.rank() :: ranks.world_size()]
        # One chunk is tokenised sooner than a process starts.
        workers = min(settings.most_workers, len(mine)) if len(chunks) > 1 else 0
        chunked = TextChunks(eval_model, texts, mine)
        # A generator of its own: a loader draws a number, and an evaluation must not move a training's random state.
        return iter(DataLoader(chunked, batch_size=None, num_workers=workers, generator=torch.Generator()))

    def encode(unit: tuple[int, Tensor]) -> Features:
        start, tokens = unit
        return Features(
            sources=np.zeros(len(tokens), dtype=np.int32),
            positions=np.arange(start, start + len(tokens)),
            units=np.array([(0, start)], dtype=np.int64),
            values=encode_tokens(eval_model, tokens, settings.precision).cpu().numpy(),
        )

    kept = kept or PartialResults(None, "", Features)
    rows = run_units(
        units,
        encode,
        kept,
        precision=settings.precision,
        name="captions",
        total=len(texts),
        progress=settings.progress,
    )
    assert rows is not None, "no texts"
    return torch.from_numpy(rows.values)


@torch.inference_mode()
def best_ranks(
    queries: Float[Tensor, "queries embed_dim"],
    targets: Float[Tensor, "targets embed_dim"],
    matches: Int64[Tensor, "queries matches"],
) -> Int64[np.ndarray, " queries"]:
    """For each query how many targets come before its best-placed match; by all ranks, in chunks of queries.

    Args:
        matches: the targets that count as right for each query, padded with -1.
    """
    starts = range(0, len(queries), QUERIES_PER_CHUNK)[ranks.rank() :: ranks.world_size()]

    def work() -> list[tuple[int, Tensor]]:
        ranked = []
        for start in starts:
            rows = slice(start, start + QUERIES_PER_CHUNK)
            keys = metrics.ordered_keys(queries[rows] @ targets.T)
            ranked.append((start, metrics.truth_ranks(keys, matches[rows].to(keys.device)).cpu()))
        return ranked

    # Ranks took turns; queries go back to their order.
    parts = sorted((part for own in ranks.all_gather(work) for part in own), key=lambda part: part[0])
    return torch.cat([ranked for _, ranked in parts]).numpy()


def retrieval_metrics(
    images: Float[Tensor, "images embed_dim"],
    texts: Float[Tensor, "texts embed_dim"],
    owners: Int64[Tensor, " texts"],
    device: torch.device,
    precision: str = "float32",
) -> dict[str, metrics.Estimate]:
    """Recall at 1, 5 and 10 and the median rank (from 1), images by caption and captions by image, with intervals.

    An image is found when any of its captions is, as CLIP-like papers count; names are CLIP_benchmark's.

    Args:
        images, texts: unit features, float32.
        owners: the image of each caption.
    """
    captions: list[list[int]] = [[] for _ in range(len(images))]
    for text, owner in enumerate(owners.tolist()):
        captions[owner].append(text)
    width = max(map(len, captions))
    padded = torch.tensor([own + [-1] * (width - len(own)) for own in captions])
    images, texts = images.to(device), texts.to(device)
    with matmul_precision(precision):
        by_text = best_ranks(texts, images, owners[:, None])
        by_image = best_ranks(images, texts, padded)
    values: dict[str, metrics.Estimate] = {}
    for name, ranked in (("image_retrieval", by_text), ("text_retrieval", by_image)):
        for k in RECALL_AT:
            values[f"{name}_recall@{k}"] = metrics.share(ranked < k)
        values[f"{name}_median_rank"] = metrics.median(ranked + 1)
    return values


@torch.inference_mode()
def pair_losses(
    images: Float[Tensor, "images embed_dim"], texts: Float[Tensor, "images embed_dim"], logit_scale: float
) -> Float[np.ndarray, " pairs"]:
    """CLIP's loss (arXiv 2103.00020, Fig. 3) of each pair within its batch of PAIRS_PER_BATCH, in float64.

    Batches are consecutive pairs in their order. A last batch that is not full is left out, since the loss depends on
    the size; fewer pairs than that are one batch. Equal captions count as negatives of each other, as in open_clip.

    Args:
        images, texts: unit features, row i of either from pair i.
        logit_scale: the factor on cosine similarities, 1 / temperature.

    Returns:
        The mean of both directions for each pair; their mean is the mean of the batches' losses. ln(batch) is chance.
    """
    size = min(PAIRS_PER_BATCH, len(images))
    starts = range(0, len(images) - size + 1, size)[ranks.rank() :: ranks.world_size()]
    own = torch.arange(size)

    def work() -> list[tuple[int, np.ndarray]]:
        losses = []
        for start in starts:
            rows = slice(start, start + size)
            # In float64 the order of sums, which differs from machine to machine, moves no digit that counts.
            logits = logit_scale * images[rows].double() @ texts[rows].double().T
            by_image, by_text = (F.cross_entropy(each, own, reduction="none") for each in (logits, logits.T))
            losses.append((start, ((by_image + by_text) / 2).numpy()))
        return losses

    parts = sorted((part for own in ranks.all_gather(work) for part in own), key=lambda part: part[0])
    return np.concatenate([losses for _, losses in parts])
