"""Losses over pairs: functions of tensors, the same on one process and on many.

On many processes each rank holds the rows of its own pairs and meets the gathered columns of all of them; the gradient
flows back through the gathering. The mean of the ranks' losses is then the loss of the joint batch, and the average of
their gradients (what DDP forms) is its gradient. There is nothing to choose, so nothing to get wrong.

Captions that occur twice in a batch are not negatives of each other: with `caption_ids` such a column is left out of
the row, except the row's own pair. Leaving out is preferred to counting it as a further positive, since then the loss
still has its minimum at zero, needs no weighting between pairs and is the plain loss wherever no caption repeats.

Large batches never form the matrix of logits. Each rank goes through the products of its images and all texts, a block
at a time, once on the way forward: they hold all that the contrastive loss of both directions needs, since a text's sum
over all images is that over the ranks' sums.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from clip_la_kernels import contrastive_logsumexp
from clip_la_kernels import sigmoid_loss as tiled_sigmoid_loss
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

# From so many logits of one rank on, no matrix of them is formed. The plain losses hold about six float32 numbers for
# each (contrastive: logits, masked logits and their logarithmic softmax in both directions), here 1.6 GB.
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
    count, ranks, first = _place(images)
    all_ids = None if caption_ids is None else _Gather.rows(caption_ids)
    if count * count * ranks >= TILED_FROM_LOGITS:
        image_lse, text_lse, own = contrastive_logsumexp(
            images, _Gather.rows(texts), logit_scale, offset=first, row_ids=caption_ids, column_ids=all_ids
        )
        # Here a text has met this rank's images alone.
        text_lse = _Gather.rows(text_lse[None]).logsumexp(0)[first : first + count]
        return ((image_lse + text_lse) / 2 - own).mean()
    all_images, all_texts = images, texts
    if ranks > 1:
        # Both at once: what gathering features takes is the waiting for the other ranks.
        both = _Gather.rows(torch.cat([images, texts], dim=1))
        all_images, all_texts = both.tensor_split((images.shape[1],), dim=1)
    # Autocast would form the logits in bfloat16: at a scale of 100 that is wrong by up to 0.4.
    with torch.autocast(images.device.type, enabled=False):
        by_image = logit_scale * images @ all_texts.T
        by_text = by_image.T if ranks == 1 else logit_scale * texts @ all_images.T
        own_columns = torch.arange(first, first + count, device=images.device)
        if caption_ids is not None and all_ids is not None:
            repeated = (caption_ids[:, None] == all_ids).scatter_(1, own_columns[:, None], False)
            by_image, by_text = (logits.masked_fill(repeated, -torch.inf) for logits in (by_image, by_text))
        return (F.cross_entropy(by_image, own_columns) + F.cross_entropy(by_text, own_columns)) / 2


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
    images, all_texts = _at_least_float32(image_features), _Gather.rows(_at_least_float32(text_features))
    count, ranks, first = _place(images)
    all_ids = None if caption_ids is None else _Gather.rows(caption_ids)
    if count * count * ranks >= TILED_FROM_LOGITS:
        return tiled_sigmoid_loss(
            images, all_texts, logit_scale, logit_bias, offset=first, row_ids=caption_ids, column_ids=all_ids
        )
    own_columns = torch.arange(first, first + count, device=images.device)
    with torch.autocast(images.device.type, enabled=False):
        logits = logit_scale * images @ all_texts.T + logit_bias
        sign = torch.full_like(logits, -1.0).scatter_(1, own_columns[:, None], 1.0)
        losses = -F.logsigmoid(sign * logits)
        if caption_ids is not None and all_ids is not None:
            repeated = (caption_ids[:, None] == all_ids).scatter_(1, own_columns[:, None], False)
            losses = losses.masked_fill(repeated, 0.0)
        return losses.sum() / count


def _at_least_float32(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _place(local: Float[Tensor, "batch dim"]) -> tuple[int, int, int]:
    """(pairs of a rank, number of ranks, the column of this rank's first pair among the gathered ones)."""
    if not (dist.is_available() and dist.is_initialized()):
        return len(local), 1, 0
    return len(local), dist.get_world_size(), len(local) * dist.get_rank()


class _Gather(torch.autograd.Function):
    """all_gather whose gradient is reduce_scatter. PyTorch's own is deprecated and its successor private."""

    @classmethod
    def rows(cls, local: Tensor) -> Tensor:
        """All ranks' rows in the order of the ranks; each receives its own gradient, summed over all losses."""
        return local if _place(local)[1] == 1 else cls.apply(local)

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        local = local.contiguous()
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        parts = [part.contiguous() for part in gradient.chunk(dist.get_world_size())]
        local = torch.empty_like(parts[0])
        dist.reduce_scatter(local, parts)
        return local
