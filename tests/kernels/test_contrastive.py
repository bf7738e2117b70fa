"""The tiled contrastive loss against the plain one: value and gradients, with duplicates, at blocks that do not
divide the rows."""

import pytest
import torch
from clip_la_kernels import contrastive_loss
from clip_la_kernels.reference import contrastive_reference


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


def test_no_tensor_of_rows_by_columns_exists():
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
    with pytest.raises(ValueError, match="offset 1"):
        contrastive_loss(x, x, torch.tensor(1.0), offset=1)
    with pytest.raises(ValueError, match="both row_ids and column_ids"):
        contrastive_loss(x, x, torch.tensor(1.0), row_ids=torch.arange(4))
