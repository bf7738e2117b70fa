"""The tiled contrastive loss against the plain one: value and gradients, with duplicates, at blocks that do not
divide the rows."""

import importlib.util

import pytest
import torch
from clip_la_kernels import contrastive_loss, use_backend
from clip_la_kernels.ops.linear_attention.reference import contrastive_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16) if torch.cuda.is_available() else (torch.float32,)


@pytest.mark.parametrize("block", [None, 1, 3, 100])
@pytest.mark.parametrize("duplicates", [False, True])
def test_equals_the_plain_loss(block, duplicates):
    rows = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    columns = torch.randn(13, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 4, (13,))
    row_ids, column_ids = (ids[4:11], ids) if duplicates else (None, None)
    ours = contrastive_loss(rows, columns, scale, offset=4, row_ids=row_ids, column_ids=column_ids, block_rows=block)
    plain = contrastive_reference(rows, columns, scale, 4, row_ids, column_ids)
    torch.testing.assert_close(ours, plain)
    leaves = (rows, columns, scale)
    for mine, theirs in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(plain, leaves), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("duplicates", [False, True])
def test_the_kernel_equals_the_plain_loss(duplicates, dtype):
    """Rows longer than a program's block of columns, logits of some size, one row of zeros."""
    count, total, first = 5, 4100, 3
    rows, columns = (torch.nn.functional.normalize(torch.randn(n, 16), dim=1) for n in (count, total))
    rows[2] = 0
    columns[first : first + count] += 0.3 * rows
    rows, columns = (t.to(DEVICE, dtype).requires_grad_() for t in (rows, columns))
    scale = torch.tensor(45.0, device=DEVICE, requires_grad=True)
    ids = torch.randint(0, 40, (total,), device=DEVICE)
    row_ids, column_ids = (ids[first : first + count], ids) if duplicates else (None, None)
    with use_backend("triton"):
        ours = contrastive_loss(
            rows, columns, scale, offset=first, row_ids=row_ids, column_ids=column_ids, block_rows=2
        )
        mine = torch.autograd.grad(ours, (rows, columns, scale), torch.tensor(2.0, device=DEVICE))
        with torch.no_grad():
            alone = contrastive_loss(rows, columns, scale, offset=first, row_ids=row_ids, column_ids=column_ids)
    exact = [t.detach().double().requires_grad_() for t in (rows, columns, scale)]
    plain = contrastive_reference(*exact, first, row_ids, column_ids)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours.double(), plain, rtol=tolerance, atol=0)
    torch.testing.assert_close(alone, ours)
    for one, other in zip(mine, torch.autograd.grad(2 * plain, exact), strict=True):
        assert float((one.double() - other).norm()) <= tolerance * float(other.norm())


def test_no_tensor_of_rows_by_columns_exists(monkeypatch):
    monkeypatch.setattr("clip_la_kernels.ops.contrastive.contrastive.LOGITS_AT_ONCE", 1)
    count, width = 600, 8
    rows, columns = (torch.randn(count, width, requires_grad=True) for _ in range(2))
    largest = 0
    original = torch.Tensor.__matmul__

    def spy(x, y):
        nonlocal largest
        out = original(x, y)
        largest = max(largest, out.numel())
        return out

    torch.Tensor.__matmul__ = spy
    try:
        contrastive_loss(rows, columns, torch.tensor(1.0)).backward()
    finally:
        torch.Tensor.__matmul__ = original
    assert 0 < largest <= 2 * count * width


def test_bad_inputs():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="do not fit"):
        contrastive_loss(x, torch.randn(4, 2), torch.tensor(1.0))
    with pytest.raises(ValueError, match="loss of no rows"):
        contrastive_loss(x[:0], x, torch.tensor(1.0))
    with pytest.raises(ValueError, match="scale must be a scalar"):
        contrastive_loss(x, x, torch.ones(1))
    with pytest.raises(ValueError, match="offset 1"):
        contrastive_loss(x, x, torch.tensor(1.0), offset=1)
    with pytest.raises(ValueError, match="both row_ids and column_ids"):
        contrastive_loss(x, x, torch.tensor(1.0), row_ids=torch.arange(4))
