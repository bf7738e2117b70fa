import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from clip_la.zeroshot.tasks import metrics


def scores_with_ties(rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (rows, classes), generator=generator).float() / 4


def reference_order(row: list[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


def test_top_classes_break_ties_by_index():
    scores = scores_with_ties(13, 17)
    values, classes = metrics.top_classes(metrics.ordered_keys(scores), scores, 5)
    for row, found, best in zip(scores.tolist(), classes.tolist(), values.tolist(), strict=True):
        expected = reference_order(row)[:5]
        assert found == expected
        assert best == [row[i] for i in expected]


def test_truth_ranks_with_several_labels_and_ties():
    scores = scores_with_ties(19, 11, seed=1)
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(-1, 11, (19, 3), generator=generator)
    labels[:, 0] = labels[:, 0].clamp(min=0)
    ranks = metrics.truth_ranks(metrics.ordered_keys(scores), labels)
    for row, own, rank in zip(scores.tolist(), labels.tolist(), ranks.tolist(), strict=True):
        assert rank == min(reference_order(row).index(label) for label in own if label >= 0)


def test_rows_without_labels_are_never_hits():
    scores = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    ranks = metrics.truth_ranks(metrics.ordered_keys(scores), torch.full((3, 2), -1))
    assert ranks.tolist() == [7, 7, 7]


def test_keys_order_negative_zero_and_extremes():
    values = torch.tensor([[-0.0, 0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0, -1.0]])
    order = metrics.ordered_keys(values).argsort(dim=1, descending=True)
    assert order.tolist() == [[4, 6, 2, 0, 1, 3, 7, 5]]


@pytest.mark.parametrize("bad", [torch.tensor([[1.0, float("nan")]]), torch.tensor([[float("inf"), 0.0]])])
def test_keys_refuse_scores_that_are_not_finite(bad: torch.Tensor):
    with pytest.raises(ValueError, match="finite"):
        metrics.ordered_keys(bad)


def test_keys_refuse_other_dtypes():
    with pytest.raises(ValueError, match="float32"):
        metrics.ordered_keys(torch.zeros(2, 2, dtype=torch.bfloat16))


def test_shares_agree_with_scikit_learn():
    generator = np.random.default_rng(5)
    scores = generator.normal(size=(301, 13)).astype(np.float32)
    labels = generator.integers(0, 13, 301)
    keys = metrics.ordered_keys(torch.from_numpy(scores))
    ranks = metrics.truth_ranks(keys, torch.from_numpy(labels)[:, None]).numpy()
    for k in (1, 5):
        assert metrics.share(ranks < k).value == pytest.approx(top_k_accuracy_score(labels, scores, k=k), abs=1e-12)
    recall = metrics.mean_per_class_recall(labels, ranks == 0, 13)
    assert recall.value == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)), abs=1e-12)


def test_mean_per_class_recall_leaves_out_classes_without_pictures():
    labels = np.array([0, 0, 0, 4, 4, 6])
    correct = np.array([True, True, False, False, True, True])
    assert metrics.mean_per_class_recall(labels, correct, 9).value == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_interval_of_a_share_is_that_of_resampling():
    generator = np.random.default_rng(1)
    correct = generator.random(240) < 0.37
    resampled = [generator.choice(correct, 240).mean() for _ in range(4000)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    found = metrics.share(correct)
    assert found.low == pytest.approx(low, abs=0.008)
    assert found.high == pytest.approx(high, abs=0.008)


def test_interval_of_the_recall_is_that_of_weighted_resampling():
    generator = np.random.default_rng(2)
    labels = np.repeat(np.arange(9), [1, 2, 4, 8, 16, 32, 32, 64, 64])
    correct = generator.random(len(labels)) < labels / 9
    weights = 1 / np.bincount(labels)[labels]
    draws = generator.integers(0, len(labels), (4000, len(labels)))
    resampled = (weights * correct)[draws].sum(1) / weights[draws].sum(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    found = metrics.mean_per_class_recall(labels, correct, 9)
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_balanced_classes_give_recall_the_interval_of_top1():
    generator = np.random.default_rng(3)
    labels = np.arange(120)
    correct = generator.random(120) < 0.2
    share, recall = metrics.share(correct), metrics.mean_per_class_recall(labels, correct, 120)
    assert (recall.value, recall.low, recall.high) == pytest.approx((share.value, share.low, share.high), abs=0.01)


def test_no_pictures_give_nan_not_an_error():
    assert np.isnan(metrics.share(np.zeros(0, dtype=bool)).value)
    assert np.isnan(metrics.mean_per_class_recall(np.zeros(0, dtype=int), np.zeros(0, dtype=bool), 3).value)


def test_mean_matches_resampling():
    generator = np.random.default_rng(4)
    values = generator.choice([0.0, 0.3, 0.9, 1.0], 150)
    resampled = [generator.choice(values, 150).mean() for _ in range(4000)]
    found = metrics.mean(values)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])), abs=0.015)


def test_comparison_is_mcnemars():
    generator = np.random.default_rng(6)
    a = generator.random(157) < 0.5
    b = a ^ (generator.random(157) < 0.2)
    found = metrics.compare(a, b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    assert (found.only_a, found.only_b, found.num_samples) == (only_a, only_b, 157)
    assert found.difference.value == pytest.approx(b.mean() - a.mean())
    assert found.difference.low < found.difference.value < found.difference.high
    # The exact test by its definition: twice the smaller tail of a fair coin.
    tail = stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))


def test_comparison_of_equal_models():
    hits = np.array([True, False, True])
    found = metrics.compare(hits, hits)
    assert (found.difference.value, found.difference.low, found.difference.high, found.p_value) == (0, 0, 0, 1)


def test_comparison_refuses_unequal_lengths():
    with pytest.raises(ValueError, match="paired"):
        metrics.compare(np.array([True]), np.array([True, False]))


def test_most_confused_lists_the_worst_first():
    labels = np.array([0, 0, 0, 0, 2, 2, 2, 3, 3])
    predicted = np.array([1, 1, 3, 0, 2, 2, 2, 0, 1])
    assert metrics.most_confused(labels, predicted, 5, 2) == [
        (3, 0.0, [(0, 1), (1, 1)]),
        (0, 0.25, [(1, 2), (3, 1)]),
    ]
    assert len(metrics.most_confused(labels, predicted, 5, 9)) == 3
