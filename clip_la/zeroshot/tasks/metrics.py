"""Figures of merit of zero-shot evaluation: functions of tensors and arrays, nothing else.

Ties are broken by one rule everywhere: of equal scores the class (image, caption) with the lower index comes first.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

NUM_RESAMPLES = 1000
LEVEL = 0.95
BOOTSTRAP_SEED = 0
LOWER_HALF = 0xFFFFFFFF
# The k of top-k accuracy.
TOP = 5


@dataclass(frozen=True)
class Estimate:
    """A share or mean with the interval in which it lies with 95 % confidence."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, resampled: np.ndarray, value: float) -> "Estimate":
        """`value` with the percentile interval of what resamples gave."""
        low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(value), float(low), float(high))


def ordered_keys(scores: Float[Tensor, "batch classes"]) -> Int64[Tensor, "batch classes"]:
    """Integers that order like (score, lower index first) and never tie.

    Args:
        scores: finite float32.

    Raises:
        ValueError: other dtypes; scores that are not finite.
    """
    if scores.dtype != torch.float32:
        raise ValueError(f"scores are {scores.dtype}, not float32")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores are not finite: the model gives NaN or infinity")
    # A float's bits order like the float itself once those of negative ones are turned round; adding 0 makes -0 be 0.
    bits = (scores + 0.0).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    num_classes = scores.shape[1]
    position = torch.arange(num_classes - 1, -1, -1, device=scores.device)
    return (bits.long() << 32) + position


def top_classes(
    keys: Int64[Tensor, "batch classes"], scores: Float[Tensor, "batch classes"], k: int
) -> tuple[Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
    """The k best scores and their classes, best first, by `ordered_keys`."""
    best = keys.topk(k, dim=1, sorted=True).values
    classes = keys.shape[1] - 1 - (best & LOWER_HALF)
    return scores.gather(1, classes), classes


def truth_ranks(keys: Int64[Tensor, "batch classes"], labels: Int64[Tensor, "batch labels"]) -> Int64[Tensor, " batch"]:
    """How many classes come before the best-placed true class of each row: 0 is a hit, below 5 a top-5 hit.

    Args:
        keys: from `ordered_keys`.
        labels: the true classes of each row, padded with -1. Rows without any label get the number of classes.
    """
    # A padded place must not be the best of a row.
    own = keys.gather(1, labels.clamp(min=0)).masked_fill(labels < 0, torch.iinfo(torch.int64).min)
    return (keys > own.max(dim=1, keepdim=True).values).sum(dim=1)


def share(correct: Bool[np.ndarray, " samples"], seed: int = BOOTSTRAP_SEED) -> Estimate:
    """The share of True with its bootstrap interval; NaN for no samples.

    Resampling n binary outcomes with replacement is drawing from Binomial(n, share), so that is what is drawn: the
    percentile bootstrap of Efron and Tibshirani (1993), chapter 13, without its loop.
    """
    n = len(correct)
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    value = float(np.count_nonzero(correct)) / n
    return Estimate.of(np.random.default_rng(seed).binomial(n, value, NUM_RESAMPLES) / n, value)


def mean(values: Float[np.ndarray, " samples"], seed: int = BOOTSTRAP_SEED) -> Estimate:
    """The mean with its percentile bootstrap interval; NaN for no samples."""
    n = len(values)
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    # Drawing n of n values with replacement is a multinomial draw over the distinct ones, in one call.
    distinct, counts = np.unique(values, return_counts=True)
    generator = np.random.default_rng(seed)
    resampled = [generator.multinomial(n, counts / n) @ distinct / n for _ in range(NUM_RESAMPLES)]
    return Estimate.of(np.array(resampled), float(values.mean()))


def mean_per_class_recall(
    labels: Int[np.ndarray, " samples"],
    correct: Bool[np.ndarray, " samples"],
    num_classes: int,
    seed: int = BOOTSTRAP_SEED,
) -> Estimate:
    """The mean of the classes' shares of hits, over the classes that have images (balanced accuracy).

    It is the accuracy with each image weighted by one over the images of its class; the bootstrap draws images
    with their weights. Where all classes have equally many its interval is that of top-1. (Recalls recomputed from each
    resample would be far too sure of themselves where classes have few images.)
    """
    n = len(labels)
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    images = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels[correct], minlength=num_classes)
    present = images > 0
    value = float((hits[present] / images[present]).mean())
    # Images of equally large classes are alike but for hit or miss: few kinds to draw from.
    sizes = np.unique(images[present])
    num_hits = np.array([hits[images == size].sum() for size in sizes])
    num_images = np.array([images[images == size].sum() for size in sizes])
    cells = np.concatenate([num_hits, num_images - num_hits]) / n
    drawn = np.random.default_rng(seed).multinomial(n, cells, NUM_RESAMPLES)
    drawn_hits, drawn_misses = np.split(drawn, 2, axis=1)
    return Estimate.of((drawn_hits / sizes).sum(1) / ((drawn_hits + drawn_misses) / sizes).sum(1), value)


def classification(
    ranks: Int[np.ndarray, " samples"], labels: Int[np.ndarray, " samples"], num_classes: int
) -> dict[str, Estimate]:
    """top1, top5 (with five classes and more) and mean_per_class_recall, each with its 95 % interval.

    Args:
        ranks: how many classes came before the best-placed accepted class of each image.
        labels: each image's own class.
    """
    values = {"top1": share(ranks == 0)}
    if num_classes >= TOP:
        values["top5"] = share(ranks < TOP)
    values["mean_per_class_recall"] = mean_per_class_recall(labels, ranks == 0, num_classes)
    return values


def most_confused(
    labels: Int[np.ndarray, " samples"], predicted: Int[np.ndarray, " samples"], num_classes: int, num_worst: int
) -> list[tuple[int, float, list[tuple[int, int]]]]:
    """The classes with the lowest recall: (class, recall, [(wrong class, times), ...] the commonest first).

    Of equally bad classes those with more images come first, then those with the lower index.
    """
    images = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels[labels == predicted], minlength=num_classes)
    recall = np.divide(hits, images, out=np.full(num_classes, np.inf), where=images > 0)
    order = np.lexsort((np.arange(num_classes), -images, recall))[:num_worst]
    worst = []
    for index in order[images[order] > 0].tolist():
        wrong = predicted[(labels == index) & (predicted != index)]
        classes, times = np.unique(wrong, return_counts=True)
        ranking = sorted(zip(classes.tolist(), times.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
        worst.append((index, float(recall[index]), ranking))
    return worst


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same images: the difference of their shares of hits, b minus a, and McNemar's exact test."""

    difference: Estimate
    only_a: int
    only_b: int
    num_samples: int
    p_value: float


def compare(
    correct_a: Bool[np.ndarray, " samples"], correct_b: Bool[np.ndarray, " samples"], seed: int = BOOTSTRAP_SEED
) -> PairedTest:
    """Paired comparison of two models' hits on the same images in the same order.

    The interval is the percentile bootstrap over images; the p-value is the exact two-sided test of McNemar (1947):
    of the images on which the models disagree, half should favour either.

    Raises:
        ValueError: different lengths, or none.
    """
    if len(correct_a) != len(correct_b) or len(correct_a) == 0:
        raise ValueError(f"{len(correct_a)} and {len(correct_b)} images cannot be paired")
    from scipy.stats import binomtest

    n = len(correct_a)
    only_a = int(np.count_nonzero(correct_a & ~correct_b))
    only_b = int(np.count_nonzero(correct_b & ~correct_a))
    drawn = np.random.default_rng(seed).multinomial(
        n, [only_a / n, only_b / n, (n - only_a - only_b) / n], NUM_RESAMPLES
    )
    difference = Estimate.of((drawn[:, 1] - drawn[:, 0]) / n, (only_b - only_a) / n)
    disagreements = only_a + only_b
    p_value = float(binomtest(only_a, disagreements).pvalue) if disagreements else 1.0
    return PairedTest(difference, only_a, only_b, n, p_value)


def median(values: Float[np.ndarray, " samples"] | Int[np.ndarray, " samples"], seed: int = BOOTSTRAP_SEED) -> Estimate:
    """The median with its percentile bootstrap interval.

    A resample's median is the value at a random place of the sorted sample: the middle one of n uniform draws, whose
    place is Beta distributed (David and Nagaraja 2003, section 2.1), so that is what is drawn.
    """
    ordered = np.sort(values)
    n = len(ordered)
    places = np.random.default_rng(seed).beta((n + 1) / 2, (n + 1) / 2, NUM_RESAMPLES)
    return Estimate.of(ordered[np.minimum((places * n).astype(int), n - 1)], float(np.median(ordered)))
