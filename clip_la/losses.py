"""Losses over pairs: functions of tensors, the same on one process and on many.

On many processes each rank holds the rows of its own pairs and meets the gathered columns of all of them; the gradient
flows back through the gathering. The mean of the ranks' losses is then the loss of the joint batch, and the average of
their gradients (what DDP forms) is its gradient. There is nothing to choose, so nothing to get wrong.

Captions that occur twice in a batch are not negatives of each other: with `caption_ids` such a column is left out of
the row, except the row's own pair. Leaving out is preferred to counting it as a further positive, since then the loss
still has its minimum at zero, needs no weighting between pairs and is the plain loss wherever no caption repeats.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from clip_la_kernels import contrastive_loss as tiled_contrastive_loss
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

# From so many logits of one rank on, no matrix of them is formed. The plain loss holds about six float32 numbers for
# each (both directions: logits, masked logits, their logarithmic softmax), here 1.6 GB.
TILED_FROM_LOGITS = 1 << 26


def chance_loss(batch_size: int) -> float:
    """The contrastive loss of a model that knows nothing: ln(global batch)."""
    return math.log(batch_size)


def contrastive_loss(
    image_features: Float[Tensor, "batch dim"],
    text_features: Float[Tensor, "batch dim"],
    logit_scale: Float[Tensor, ""],
    caption_ids: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of each image among all texts and each text among all images (CLIP, arXiv 2103.00020, Fig. 3).

    Args:
        image_features: unit rows of this rank's images; every rank holds equally many.
        text_features: unit rows of this rank's captions, in the same order.
        logit_scale: the factor on the cosines, 1 / temperature.
        caption_ids: equal numbers mark equal captions (int64); they are not negatives of each other. None: all are.

    Returns:
        The mean over this rank's rows, in float32 (float64 for float64 features); ln(global batch) by chance.
    """
    images, texts = _at_least_float32(image_features), _at_least_float32(text_features)
    all_images, all_texts = _gather_both(images, texts)
    own = _own_columns(images)
    if len(images) * len(all_texts) >= TILED_FROM_LOGITS:
        return _tiled(images, texts, all_images, all_texts, logit_scale, caption_ids)
    # Autocast would form the logits in bfloat16: at a scale of 100 that is wrong by up to 0.4.
    with torch.autocast(images.device.type, enabled=False):
        by_image = logit_scale * images @ all_texts.T
        by_text = by_image.T if len(all_images) == len(images) else logit_scale * texts @ all_images.T
        if caption_ids is not None:
            repeated = _repeated(caption_ids, own)
            by_image, by_text = (logits.masked_fill(repeated, -torch.inf) for logits in (by_image, by_text))
        return (F.cross_entropy(by_image, own) + F.cross_entropy(by_text, own)) / 2


def _tiled(
    images: Tensor, texts: Tensor, all_images: Tensor, all_texts: Tensor, scale: Tensor, ids: Tensor | None
) -> Tensor:
    """`contrastive_loss` a block of rows at a time."""
    first = _first_column(images)
    all_ids = None if ids is None else _gathered_ids(ids)
    directions = ((images, all_texts), (texts, all_images))
    losses = [
        tiled_contrastive_loss(rows, columns, scale, offset=first, row_ids=ids, column_ids=all_ids)
        for rows, columns in directions
    ]
    return (losses[0] + losses[1]) / 2


def sigmoid_loss(
    image_features: Float[Tensor, "batch dim"],
    text_features: Float[Tensor, "batch dim"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    caption_ids: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Every pair of an image and a text judged on its own: match or not (SigLIP, arXiv 2303.15343, Eq. 1).

    Args:
        image_features, text_features, logit_scale, caption_ids: as for `contrastive_loss`; a repeated caption's
            combinations are neither matches nor mismatches.
        logit_bias: added to every logit; starts near -ln(batch), as nearly all combinations are mismatches.

    Returns:
        The sum over this rank's images and all texts, divided by this rank's pairs, in float32 (float64 for float64).
    """
    images, all_texts = _at_least_float32(image_features), _gather(_at_least_float32(text_features))
    own = _own_columns(images)
    with torch.autocast(images.device.type, enabled=False):
        logits = logit_scale * images @ all_texts.T + logit_bias
        sign = torch.full_like(logits, -1.0).scatter_(1, own[:, None], 1.0)
        losses = -F.logsigmoid(sign * logits)
        if caption_ids is not None:
            losses = losses.masked_fill(_repeated(caption_ids, own), 0.0)
        return losses.sum() / len(images)


def _at_least_float32(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather(local: Float[Tensor, "batch dim"]) -> Float[Tensor, "world_batch dim"]:
    """All ranks' rows in the order of the ranks; each receives its own gradient, summed over all losses."""
    return local if _world_size() == 1 else _Gather.apply(local)


def _gather_both(
    images: Float[Tensor, "batch dim"], texts: Float[Tensor, "batch dim"]
) -> tuple[Float[Tensor, "world_batch dim"], Float[Tensor, "world_batch dim"]]:
    """`_gather` of two at once: what a gathering of features takes is the waiting for the other ranks."""
    if _world_size() == 1:
        return images, texts
    all_images, all_texts = _gather(torch.cat([images, texts], dim=1)).tensor_split((images.shape[1],), dim=1)
    return all_images, all_texts


class _Gather(torch.autograd.Function):
    """all_gather whose gradient is reduce_scatter. PyTorch's own is deprecated and its successor private."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        local = local.contiguous()
        parts = [torch.empty_like(local) for _ in range(_world_size())]
        dist.all_gather(parts, local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        parts = [part.contiguous() for part in gradient.chunk(_world_size())]
        local = torch.empty_like(parts[0])
        dist.reduce_scatter(local, parts)
        return local


def _own_columns(local: Float[Tensor, "batch dim"]) -> Int[Tensor, " batch"]:
    """The columns of this rank's own pairs among the gathered ones."""
    first = _first_column(local)
    return torch.arange(first, first + len(local), device=local.device)


def _first_column(local: Float[Tensor, "batch dim"]) -> int:
    return len(local) * (dist.get_rank() if _world_size() > 1 else 0)


def _repeated(caption_ids: Int[Tensor, " batch"], own: Int[Tensor, " batch"]) -> Bool[Tensor, "batch world_batch"]:
    """True where a column bears the row's caption and is not the row's own pair."""
    return (caption_ids[:, None] == _gathered_ids(caption_ids)[None, :]).scatter_(1, own[:, None], False)


def _gathered_ids(caption_ids: Int[Tensor, " batch"]) -> Int[Tensor, " world_batch"]:
    if _world_size() == 1:
        return caption_ids
    parts = [torch.empty_like(caption_ids) for _ in range(_world_size())]
    dist.all_gather(parts, caption_ids)
    return torch.cat(parts)
