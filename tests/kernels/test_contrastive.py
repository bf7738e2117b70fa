"""The tiled losses over all pairs against the whole matrix of logits: values and gradients, with duplicates, at blocks
that do not divide the rows and tiles that do not divide the blocks."""

import importlib.util

import pytest
import torch
from clip_la_kernels import contrastive_logsumexp, contrastive_loss, sigmoid_loss, use_backend
from clip_la_kernels.ops.contrastive.reference import contrastive_reference, pairs_left_out, sigmoid_reference
from torch.utils.flop_counter import FlopCounterMode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16) if torch.cuda.is_available() else (torch.float32,)
LOSSES = {"contrastive": (contrastive_loss, contrastive_reference), "sigmoid": (sigmoid_loss, sigmoid_reference)}
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def leaves_of(loss, count=7, total=13, width=5, dtype=torch.float64, first=0):
    """Rows, columns of which some are near them, a scale, and for the sigmoid loss a bias."""
    rows, columns = (
        torch.nn.functional.normalize(torch.randn(n, width, dtype=torch.float64), dim=1) for n in (count, total)
    )
    rows[2] = 0
    columns[first : first + count] += 0.3 * rows
    scalars = [torch.tensor(30.0), torch.tensor(-4.0)][: 2 if loss == "sigmoid" else 1]
    small = [t.to(DEVICE, dtype) for t in (rows, columns)]
    work = torch.float64 if dtype == torch.float64 else torch.float32
    return [t.requires_grad_() for t in (*small, *(s.to(DEVICE, work) for s in scalars))]


def logsumexp_reference(rows, columns, scale, offset, row_ids, column_ids):
    logits = scale * rows @ columns.T
    own = logits[torch.arange(len(rows)), torch.arange(len(rows)) + offset]
    if row_ids is not None:
        logits = logits.masked_fill(pairs_left_out(rows, offset, row_ids, column_ids), -torch.inf)
    return logits.logsumexp(1), logits.logsumexp(0), own


@pytest.mark.parametrize("block", [None, 1, 3, 100])
@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_plain_loss(loss, duplicates, block):
    leaves = leaves_of(loss, first=4)
    ids = torch.randint(0, 4, (13,), device=DEVICE)
    row_ids, column_ids = (ids[4:11], ids) if duplicates else (None, None)
    tiled, plain = LOSSES[loss]
    ours = tiled(*leaves, offset=4, row_ids=row_ids, column_ids=column_ids, block_rows=block)
    theirs = plain(*leaves, 4, row_ids, column_ids)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("duplicates", [False, True])
def test_logsumexps_carry_any_gradient(backend, duplicates):
    """Each result weighed at random; with ids, the last column counts in no row: -inf, and no gradient."""
    leaves = leaves_of("contrastive", count=7, total=13, dtype=torch.float32, first=3)
    ids = torch.randint(0, 4, (13,), device=DEVICE)
    row_ids, column_ids = None, None
    if duplicates:
        row_ids, column_ids = torch.full((7,), 5, device=DEVICE), ids
        column_ids[-1] = 5
    with use_backend(backend):
        ours = contrastive_logsumexp(*leaves, offset=3, row_ids=row_ids, column_ids=column_ids, block_rows=3)
        weights = [torch.randn_like(t) * t.isfinite() for t in ours]
        mine = torch.autograd.grad(ours, leaves, weights)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    theirs = logsumexp_reference(*exact, 3, row_ids, column_ids)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=2e-5)
    assert torch.isneginf(ours[1][-1]) == duplicates
    total = sum((w.double() * t)[t.isfinite()].sum() for w, t in zip(weights, theirs, strict=True))
    for one, other in zip(mine, torch.autograd.grad(total, exact), strict=True):
        assert float((one.double() - other).norm()) <= 1e-5 * float(other.norm())


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_kernel_equals_the_plain_loss(loss, duplicates, dtype):
    """More rows and columns than a tile has, logits of some size, one row of zeros."""
    count, total, first = 70, 300, 3
    leaves = leaves_of(loss, count, total, 16, dtype, first)
    ids = torch.randint(0, 40, (total,), device=DEVICE)
    row_ids, column_ids = (ids[first : first + count], ids) if duplicates else (None, None)
    tiled, plain = LOSSES[loss]
    with use_backend("triton"):
        ours = tiled(*leaves, offset=first, row_ids=row_ids, column_ids=column_ids, block_rows=50)
        mine = torch.autograd.grad(ours, leaves, torch.tensor(2.0, device=DEVICE))
        with torch.no_grad():
            alone = tiled(*leaves, offset=first, row_ids=row_ids, column_ids=column_ids)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    wanted = plain(*exact, first, row_ids, column_ids)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours.double(), wanted, rtol=tolerance, atol=0)
    torch.testing.assert_close(alone, ours)
    for one, other in zip(mine, torch.autograd.grad(2 * wanted, exact), strict=True):
        assert float((one.double() - other).norm()) <= tolerance * float(other.norm())


@needs_triton
def test_the_kernel_keeps_the_smallest_losses():
    """A model that knows its pairs: each, matched or not, loses 6e-6; 1 + exp(-12) rounds such by a hundredth."""
    rows, columns = torch.eye(4, 8, device=DEVICE), torch.zeros(400, 8, device=DEVICE)
    columns[:4] = rows
    scalars = torch.tensor(24.0, device=DEVICE), torch.tensor(-12.0, device=DEVICE)
    with use_backend("triton"):
        found = sigmoid_loss(rows, columns, *scalars)
    wanted = sigmoid_reference(*(t.double() for t in (rows, columns, *scalars)))
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize(("loss", "products"), [("contrastive", 4), ("sigmoid", 3)])
def test_each_product_is_formed_as_seldom_as_can_be(loss, products):
    leaves = leaves_of(loss, 16, 24, 8)
    with FlopCounterMode(display=False) as counter:
        LOSSES[loss][0](*leaves, block_rows=5).backward()
    assert counter.get_total_flops() == products * 2 * 16 * 24 * 8


@pytest.mark.parametrize("loss", LOSSES)
def test_no_tensor_of_rows_by_columns_exists(loss, monkeypatch):
    monkeypatch.setattr("clip_la_kernels.ops.contrastive.losses.LOGITS_AT_ONCE", 1)
    count, width = 600, 8
    leaves = leaves_of(loss, count, count, width, torch.float32)
    largest = 0

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            largest = max(largest, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Spy():
        LOSSES[loss][0](*leaves).backward()
    assert 0 < largest <= count * width


def test_bad_inputs():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="do not fit"):
        contrastive_loss(x, torch.randn(4, 2), torch.tensor(1.0))
    with pytest.raises(ValueError, match="loss of no rows"):
        contrastive_loss(x[:0], x, torch.tensor(1.0))
    with pytest.raises(ValueError, match="scale must be a scalar"):
        contrastive_loss(x, x, torch.ones(1))
    with pytest.raises(ValueError, match="bias must be a scalar"):
        sigmoid_loss(x, x, torch.tensor(1.0), torch.ones(1))
    with pytest.raises(ValueError, match="offset 1"):
        contrastive_loss(x, x, torch.tensor(1.0), offset=1)
    with pytest.raises(ValueError, match="both row_ids and column_ids"):
        contrastive_loss(x, x, torch.tensor(1.0), row_ids=torch.arange(4))
    with pytest.raises(ValueError, match="do not fit rows and columns"):
        sigmoid_loss(x, x, *torch.ones(2), row_ids=torch.arange(3), column_ids=torch.arange(4))
    with pytest.raises(ValueError, match="block_rows must be at least 1"):
        sigmoid_loss(x, x, *torch.ones(2), block_rows=0)
