"""Fastmax against the law, p = 1 and 2, bidirectional and causal, across the blocks of rows."""

import pytest
import torch
from clip_la_kernels import fastmax
from clip_la_kernels.reference import fastmax_reference


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("p", "tokens"), [(1, 9), (2, 9), (2, 530)])
def test_equals_the_reference(p, tokens, causal):
    qkv = torch.randn(1, tokens, 3, 2, 6, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(1, tokens, 2, 6, dtype=torch.float64)
    out = fastmax(qkv, p=p, temperature=6.5, causal=causal)
    expected = fastmax_reference(*qkv.unbind(2), p=p, temperature=6.5, causal=causal)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    ours, theirs = (torch.autograd.grad(o, qkv, grad)[0] for o in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_bad_options():
    qkv = torch.randn(1, 4, 3, 1, 4)
    with pytest.raises(ValueError, match="p = 3"):
        fastmax(qkv, p=3)
    with pytest.raises(ValueError, match="temperature must be positive"):
        fastmax(qkv, temperature=0.0)
    with pytest.raises(ValueError, match=r"qkv must be \(B, N, 3, H, D\)"):
        fastmax(qkv[:, :, 0])
