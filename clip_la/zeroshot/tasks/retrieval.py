"""Retrieval between pictures and captions, several captions a picture, scored in chunks: never all pairs at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from clip_la import distributed as ranks
from clip_la import results
from clip_la.zeroshot import metrics
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.labels.classes import content_hash
from clip_la.zeroshot.model.classifier import encode_tokens
from clip_la.zeroshot.model.eval_model import EvalModel, matmul_precision
from clip_la.zeroshot.runner.features import FeatureRows, encode_images, feature_parts, features_id, merge_rows
from clip_la.zeroshot.runner.partial_results import PartialResults, collect, earlier

RECALL_AT = (1, 5, 10)
# Texts tokenised and encoded together, and queries scored against everything at once.
TEXTS_PER_CHUNK = 8192
QUERIES_PER_CHUNK = 256
# Pairs in a batch of the contrastive loss. It grows with the logarithm of this number, so it is fixed and in the line.
PAIRS_PER_BATCH = 256


@dataclass(frozen=True)
class RetrievalPairs:
    """Features of all pictures and captions; `owners[t]` is the picture of caption t."""

    images: Float[Tensor, "images embed_dim"]
    texts: Float[Tensor, "texts embed_dim"]
    owners: Int64[Tensor, " texts"]
    skipped: dict[str, int]
    examples: dict[str, str]


class _Texts(torch.utils.data.Dataset):
    def __init__(self, eval_model: EvalModel, texts: Sequence[str], chunks: list[range]) -> None:
        self.tokenize, self.texts, self.chunks = eval_model.tokenize, texts, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        chunk = self.chunks[index]
        return chunk.start, self.tokenize([self.texts[i] for i in chunk])


@torch.inference_mode()
def encode_texts(
    eval_model: EvalModel,
    texts: Sequence[str],
    *,
    precision: str,
    num_workers: int = 0,
    parts: PartialResults[FeatureRows] | None = None,
) -> Float[Tensor, "texts embed_dim"]:
    """Unit features of texts in their order, by all ranks, on the CPU; finished chunks are kept in `parts`."""
    before, done, _ = earlier(parts)
    chunks = [range(start, min(start + TEXTS_PER_CHUNK, len(texts))) for start in range(0, len(texts), TEXTS_PER_CHUNK)]
    left = [chunk for chunk in chunks if (0, chunk.start) not in done]
    mine = left[ranks.rank() :: ranks.world_size()]
    workers = min(num_workers, len(mine)) if len(chunks) > 1 else 0
    chunked = _Texts(eval_model, texts, mine)
    loader = DataLoader(chunked, batch_size=None, num_workers=workers, generator=torch.Generator())

    def encoded() -> Iterator[FeatureRows]:
        for start, tokens in loader:
            values = encode_tokens(eval_model, tokens, precision).cpu().numpy()
            yield FeatureRows(values, np.array([(0, start)], dtype=np.int64))

    gathered = ranks.all_gather(lambda: [*before, *collect(encoded(), merge_rows, parts)])
    return torch.from_numpy(_in_order([part for own in gathered for part in own], len(texts)))


def _in_order(parts: Sequence[FeatureRows], num_texts: int) -> Float32[np.ndarray, "texts embed_dim"]:
    """The rows of all chunks, each put where it belongs."""
    ordered = np.empty((num_texts, parts[0].values.shape[1]), np.float32)
    for part in parts:
        row = 0
        for start in part.units[:, 1].tolist():
            size = min(TEXTS_PER_CHUNK, num_texts - start)
            ordered[start : start + size] = part.values[row : row + size]
            row += size
    return ordered


def encode_pairs(
    eval_model: EvalModel,
    test_set: EvalDataset,
    *,
    precision: str,
    batch_size: int,
    num_workers: int,
    state: Path | None = None,
    progress: bool = True,
) -> RetrievalPairs:
    """Features of a retrieval set; pictures without captions are skipped and counted. `state` as in `encode_images`."""
    found = encode_images(
        eval_model,
        test_set,
        precision=precision,
        batch_size=batch_size,
        num_workers=num_workers,
        state=state,
        progress=progress,
    )
    texts = [caption for own in found.captions for caption in own]
    owners = [number for number, own in enumerate(found.captions) for _ in own]
    # A picture that could be read one time and not another would change which caption is which.
    name = f"{features_id(eval_model, test_set, precision, batch_size)}-{content_hash([TEXTS_PER_CHUNK, texts])}"
    parts = feature_parts(state, name)
    features = encode_texts(eval_model, texts, precision=precision, num_workers=num_workers, parts=parts)
    return RetrievalPairs(found.images, features, torch.tensor(owners), found.skipped, found.examples)


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
        found = []
        for start in starts:
            rows = slice(start, start + QUERIES_PER_CHUNK)
            keys = metrics.ordered_keys(queries[rows] @ targets.T)
            found.append((start, metrics.truth_ranks(keys, matches[rows].to(keys.device)).cpu()))
        return found

    parts = sorted((part for own in ranks.all_gather(work) for part in own), key=lambda part: part[0])
    return torch.cat([ranked for _, ranked in parts]).numpy()


def captions_of(owners: Int64[Tensor, " texts"], num_images: int) -> Int64[Tensor, "images captions"]:
    """The captions of each picture as positions, padded with -1."""
    lists: list[list[int]] = [[] for _ in range(num_images)]
    for text, owner in enumerate(owners.tolist()):
        lists[owner].append(text)
    width = max(map(len, lists))
    return torch.tensor([own + [-1] * (width - len(own)) for own in lists])


def retrieval_metrics(
    pairs: RetrievalPairs, device: torch.device, precision: str = "float32"
) -> dict[str, dict[str, float]]:
    """Recall at 1, 5 and 10 with intervals, and the median rank (from 1), pictures by caption and captions by picture.

    A picture is found when any of its captions is, as CLIP-like papers count; names are CLIP_benchmark's.
    """
    images, texts = pairs.images.to(device), pairs.texts.to(device)
    with matmul_precision(precision):
        by_text = best_ranks(texts, images, pairs.owners[:, None])
        by_image = best_ranks(images, texts, captions_of(pairs.owners, len(images)))
    values: dict[str, dict[str, float]] = {}
    for name, found in (("image_retrieval", by_text), ("text_retrieval", by_image)):
        for k, estimate in metrics.recall_at(found, RECALL_AT).items():
            values[f"{name}_recall@{k}"] = estimate.to_dict()
        values[f"{name}_median_rank"] = metrics.median(found + 1).to_dict()
    return values


@torch.inference_mode()
def batch_losses(
    images: Float[Tensor, "pairs embed_dim"], texts: Float[Tensor, "pairs embed_dim"], logit_scale: float
) -> Float[np.ndarray, " batches"]:
    """CLIP's loss (arXiv 2103.00020, Fig. 3) of each batch of PAIRS_PER_BATCH pairs in their order, in float64.

    A last batch that is not full is left out, since the loss depends on the size; fewer pairs than that are one batch.
    Equal captions count as negatives of each other, as in open_clip. ln(batch size) is chance.
    """
    size = min(PAIRS_PER_BATCH, len(images))
    losses, own = [], torch.arange(size)
    for start in range(0, len(images) - size + 1, size):
        rows = slice(start, start + size)
        logits = logit_scale * images[rows].double() @ texts[rows].double().T
        losses.append(float((F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2))
    return np.array(losses)


def retrieval_id(eval_model: EvalModel, test_set: EvalDataset, precision: str, batch_size: int) -> str:
    """A hash of all that the digits of a retrieval result depend on."""
    parts = (eval_model.hash, test_set.fingerprint, precision, batch_size, eval_model.device.type)
    # The name of the newest metric stands for the form: results without it are made anew.
    return content_hash([results.RETRIEVAL, results.FORMAT, *parts, f"contrastive_loss/{PAIRS_PER_BATCH}"])


def labels_of(eval_model: EvalModel, test_set: EvalDataset) -> dict[str, Any]:
    """The fields of a result line that name model and data."""
    return {**eval_model.origin, "task": results.RETRIEVAL, **test_set.labels}


def evaluate_retrieval(
    eval_model: EvalModel,
    test_set: EvalDataset,
    *,
    precision: str = "float32",
    batch_size: int = 128,
    num_workers: int = 0,
    state: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """The result line of one model on one retrieval set; by all ranks together, every rank returns it."""
    pairs = encode_pairs(
        eval_model,
        test_set,
        precision=precision,
        batch_size=batch_size,
        num_workers=num_workers,
        state=state,
        progress=progress,
    )
    # Each picture with its first caption, as most training sets have one.
    first = torch.searchsorted(pairs.owners, torch.arange(len(pairs.images)))
    scale = float(eval_model.module.logit_scale.detach().double().exp())  # type: ignore[operator]
    losses = batch_losses(pairs.images, pairs.texts[first], scale)
    return {
        **labels_of(eval_model, test_set),
        "data_hash": test_set.fingerprint,
        "num_samples": len(pairs.images),
        "num_captions": len(pairs.texts),
        "contrastive_batch_size": min(PAIRS_PER_BATCH, len(pairs.images)),
        "contrastive_batches": len(losses),
        "metrics": {
            **retrieval_metrics(pairs, eval_model.device, precision),
            "contrastive_loss": metrics.mean(losses).to_dict(),
        },
        "skipped": pairs.skipped,
        "skipped_examples": pairs.examples,
        **test_set.said,
        "evaluation": retrieval_id(eval_model, test_set, precision, batch_size),
        **results.provenance(eval_model.device, precision),
    }
