"""Learning rates against values worked out by hand, gradient clipping against PyTorch's."""

import math

import pytest
import torch

from clip_la.errors import UserError
from clip_la.train.optim import Schedule, clip_gradients, whole_batches


def schedule(name, **lengths):
    return Schedule(name=name, peak_lr=0.5, budget_samples=1000, **lengths)


def test_whole_batches_rounds_up():
    assert [whole_batches(n, 128) for n in (1, 127, 128, 129, 256)] == [128, 128, 128, 256, 256]


@pytest.mark.parametrize("name", ["cosine", "constant"])
def test_warm_up_is_linear(name):
    rates = [schedule(name, warmup_samples=200).lr(n) for n in (0, 50, 100, 200)]
    assert rates == pytest.approx([0.0, 0.125, 0.25, 0.5])


def test_cosine_falls_to_zero_at_the_budget():
    rates = [schedule("cosine", warmup_samples=200).lr(n) for n in (200, 400, 600, 800, 1000)]
    assert rates == pytest.approx([0.5, 0.25 * (1 + math.sqrt(0.5)), 0.25, 0.25 * (1 - math.sqrt(0.5)), 0.0])


def test_cooldown_is_constant_first_and_then_one_minus_square_root():
    cooled = schedule("cooldown", warmup_samples=200, cooldown_samples=400)
    assert cooled.cooldown_start == 600
    assert [cooled.lr(n) for n in (600, 700, 964, 1000)] == pytest.approx(
        [0.5, 0.25, 0.5 * (1 - math.sqrt(0.91)), 0.0], abs=1e-12
    )
    constant = schedule("constant", warmup_samples=200)
    assert [cooled.lr(n) for n in range(0, 601, 50)] == [constant.lr(n) for n in range(0, 601, 50)]


@pytest.mark.parametrize(
    ("name", "lengths", "says"),
    [
        ("cosin", {}, "did you mean cosine"),
        ("cosine", {"warmup_samples": 1001}, "do not fit into budget_samples 1,000"),
        ("cooldown", {"warmup_samples": 700, "cooldown_samples": 400}, "do not fit into budget_samples 1,000"),
        ("cooldown", {}, "needs cooldown_samples"),
        ("cosine", {"cooldown_samples": 10}, "needs cooldown_samples"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(name, lengths, says):
    with pytest.raises(UserError, match=says):
        schedule(name, **lengths)


def test_a_rate_that_is_not_positive_is_refused():
    with pytest.raises(UserError, match="lr must be positive"):
        Schedule(name="cosine", peak_lr=0.0, budget_samples=10)


@pytest.mark.parametrize("max_norm", [0.5, 1e6, None])
def test_gradient_clipping_equals_pytorchs(max_norm):
    ours = [
        torch.nn.Parameter(torch.randn(5, 3)),
        torch.nn.Parameter(torch.randn(7)),
        torch.nn.Parameter(torch.ones(2)),
    ]
    for p in ours[:2]:
        p.grad = torch.randn_like(p)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours[:2]]
    for p, q in zip(theirs, ours, strict=False):
        p.grad = q.grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(theirs, math.inf if max_norm is None else max_norm)
    torch.testing.assert_close(clip_gradients(ours, max_norm), norm)
    for p, q in zip(theirs, ours, strict=False):
        torch.testing.assert_close(q.grad, p.grad)
