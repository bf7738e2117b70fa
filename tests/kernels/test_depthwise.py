"""The depthwise kernels against the definition in float64: a loop over taps, tokens as they lie."""

import pytest
import torch
from clip_la_kernels import use_backend
from clip_la_kernels.ops.depthwise.depthwise import depthwise_convolution

from tests.kernels.checks import DEVICE, TOLERANCE, poisoned

# (prefix, grid or None, rows and columns of the kernel, channels): an odd grid, one smaller than the kernel, a whole
# tile and one token more, two prefix tokens, captions.
CASES = [
    (1, (3, 5), (5, 5), 40),
    (1, (2, 2), (5, 5), 64),
    (0, (8, 8), (3, 3), 96),
    (2, (13, 5), (3, 5), 7),
    (0, None, (1, 5), 70),
    (0, None, (1, 3), 64),
    (0, None, (1, 1), 8),
]


def by_definition(v, weight, grid, prefix):
    """sum over taps of w_tap v_{t + tap}, in float64."""
    v, weight = v.double(), weight.double()
    rows, columns = grid or (1, v.shape[1] - prefix)
    top, left = (0, weight.shape[3] - 1) if grid is None else (weight.shape[2] // 2, weight.shape[3] // 2)
    out = torch.zeros_like(v)
    for row in range(rows):
        for column in range(columns):
            for i in range(weight.shape[2]):
                for j in range(weight.shape[3]):
                    r, c = row + i - top, column + j - left
                    if 0 <= r < rows and 0 <= c < columns:
                        term = weight[:, 0, i, j] * v[:, prefix + r * columns + c]
                        out[:, prefix + row * columns + column] += term
    return out


@pytest.mark.parametrize(("prefix", "grid", "kernel", "channels"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_values_and_gradients(prefix, grid, kernel, channels, dtype, backend):
    batch, tokens = 3, prefix + (grid[0] * grid[1] if grid else 19)
    # As v lies in the packed projection.
    packed = torch.randn(batch, tokens, 3, channels, device=DEVICE, dtype=dtype)
    weight = torch.randn(channels, 1, *kernel, device=DEVICE)
    grad = torch.randn(batch, tokens, channels, device=DEVICE, dtype=dtype)
    v, wide = packed[:, :, 2].requires_grad_(), packed[:, :, 2].detach().double().requires_grad_()
    own, other = weight.clone().requires_grad_(), weight.double().requires_grad_()
    with use_backend(backend), poisoned():
        got = depthwise_convolution(v, own, grid=grid, prefix=prefix)
        found = torch.autograd.grad(got, (v, own), grad)
    wanted = by_definition(wide, other, grid, prefix)
    right = torch.autograd.grad(wanted, (wide, other), grad.double())
    assert got.dtype == dtype
    assert found[1].dtype == own.dtype
    for mine, his in zip((got, *found), (wanted, *right), strict=True):
        assert mine.shape == his.shape
        assert (mine.double() - his).norm() <= TOLERANCE[dtype] * his.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_autocast_decides_the_dtype(dtype, backend):
    v, weight = torch.randn(2, 10, 8, device=DEVICE, dtype=dtype), torch.randn(8, 1, 3, 3, device=DEVICE)
    with use_backend(backend), torch.autocast(DEVICE, torch.bfloat16):
        out = depthwise_convolution(v, weight, grid=(3, 3), prefix=1)
    assert out.dtype == torch.bfloat16
    wanted = by_definition(v, weight, (3, 3), 1)
    assert (out.double() - wanted).norm() <= TOLERANCE[torch.bfloat16] * wanted.norm()


def test_a_second_derivative_is_refused():
    v = torch.randn(1, 4, 8, device=DEVICE, requires_grad=True)
    with use_backend("triton"):
        out = depthwise_convolution(v, torch.randn(8, 1, 1, 3, device=DEVICE), grid=None)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.sum(), v, create_graph=True)


def test_no_tokens_are_no_work():
    with use_backend("triton"):
        assert depthwise_convolution(torch.zeros(0, 5, 8), torch.zeros(8, 1, 3, 3), grid=(2, 2), prefix=1).shape == (
            0,
            5,
            8,
        )
