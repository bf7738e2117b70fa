"""A call of linear attention: autograd, autocast, the compiler, the operators behind it, and what it refuses."""

import sys
from pathlib import Path

import pytest
import torch
from clip_la_kernels import linear_attention, linear_attention_split, use_backend
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("triton", reason="Triton is not installed")
from checks import DEVICE, GPU, case, kernels, ours, reference, relative


def test_nothing_is_kept_for_a_backward_pass_that_will_not_come(monkeypatch):
    from clip_la_kernels.ops.linear_attention import launch

    asked = []
    forward = launch.forward
    monkeypatch.setattr(launch, "forward", lambda *args: asked.append(args[-1]) or forward(*args))
    leaf = case(1, 20, 2, 16)[0].requires_grad_()
    with kernels():
        linear_attention(leaf)
        linear_attention(leaf.detach())
        with torch.no_grad():
            linear_attention(leaf)
    assert asked == [True, False, False]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_second_derivatives_are_refused(backend):
    qkv, grad = case(1, 5, 1, 16)
    qkv.requires_grad_()
    with kernels(), use_backend(backend):
        out = linear_attention(qkv)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(out, qkv, grad, create_graph=True)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_autocast_casts_at_the_boundary(backend):
    qkv, grad = case(2, 20, 2, 16)
    dtype = torch.bfloat16
    with kernels(), use_backend(backend), torch.autocast(DEVICE, dtype):
        out, dqkv = ours(lambda x: linear_attention(x, denominator="sum"), qkv, grad.to(dtype))
    assert out.dtype == dtype
    assert dqkv.dtype == torch.float32
    expected, dexpected = reference(qkv, grad, denominator="sum")
    assert relative(out, expected) < 3e-2
    assert relative(dqkv, dexpected) < 3e-2


@pytest.mark.parametrize("causal", [False, True])
def test_compiles_without_a_break(causal):
    qkv, grad = case(2, 40, 2, 16)
    with kernels():
        eager = ours(lambda x: linear_attention(x * 1.5, denominator="sum", causal=causal), qkv, grad)
        traced = torch.compile(
            lambda x: linear_attention(x * 1.5, denominator="sum", causal=causal),
            fullgraph=True,
            backend="inductor" if GPU else "aot_eager",
        )
        compiled = ours(traced, qkv, grad)
    for a, b in zip(eager, compiled, strict=True):
        assert relative(b, a) < 1e-5


def test_dispatch_modes_see_the_operators():
    """A call that nothing watches passes the dispatcher by; one under a mode must not."""

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.name())
            return function(*args, **(kwargs or {}))

    seen = []
    qkv, grad = case(2, 40, 2, 16)
    with kernels(), Watching():
        ours(lambda x: linear_attention(x), qkv, grad)
    names = [f"clip_la_kernels::linear_attention{suffix}" for suffix in ("", "_backward")]
    assert [name for name in seen if name.startswith("clip_la")] == names


def test_traces_with_jit():
    """Sizes are tensors there, which a launch has no use for."""
    qkv, _ = case(2, 40, 2, 16)
    with kernels():
        traced = torch.jit.trace(lambda x: linear_attention(x, denominator="sum"), qkv)
        assert torch.equal(traced(qkv), linear_attention(qkv, denominator="sum"))


def test_operators_pass_the_library_checks():
    from clip_la_kernels.ops.linear_attention.library import KernelAttention  # noqa: F401

    q, k, v = (t.clone() for t in case(1, 20, 2, 16)[0].unbind(2))
    with kernels():
        for causal in (False, True):
            torch.library.opcheck(
                torch.ops.clip_la_kernels.linear_attention.default,
                (q, k, v, None, None, None, 1.0, 1.0, 0, 2, causal, 1e-3, True),
                test_utils=("test_schema", "test_faketensor"),
            )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_map": "cosine"}, "feature_map must be one of l2"),
        ({"denominator": "max"}, "denominator must be one of none"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"key_padding_mask": torch.ones(2, 3)}, "key_padding_mask must be bool"),
        ({"cu_seqlens": torch.tensor([0, 9])}, "with B = 1"),
    ],
)
def test_bad_options(change, message):
    with pytest.raises(ValueError, match=message):
        linear_attention(torch.randn(2, 9, 3, 2, 16), **change)


def test_bad_tensors():
    with pytest.raises(ValueError, match=r"qkv must be \(B, N, 3, H, D\)"):
        linear_attention(torch.randn(2, 9, 2, 2, 16))
    with pytest.raises(ValueError, match="wants float64"):
        linear_attention(torch.ones(2, 9, 3, 2, 16, dtype=torch.int32))
    with pytest.raises(ValueError, match="share one shape"):
        linear_attention_split(torch.randn(2, 9, 2, 16), torch.randn(2, 9, 2, 16), torch.randn(2, 8, 2, 16))
    with pytest.raises(ValueError, match="cu_seqlens must rise"):
        linear_attention(torch.randn(1, 9, 3, 2, 16), cu_seqlens=torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="backend must be one of"), use_backend("cuda"):
        pass
