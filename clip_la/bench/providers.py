"""Who is timed by `clip-la bench kernels`: our kernels, PyTorch's fused softmax, the compiled formula, and
linear-attention libraries.

Inputs are made outside the timing. Ours and softmax start from the packed projection, as a tower has it;
`clip_la_split` and the libraries get contiguous q, k, v, with
the feature map applied beforehand for those that have none.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from clip_la_kernels import fastmax, linear_attention, linear_attention_split, softmax_attention
from clip_la_kernels.ops.linear_attention.reference import fastmax_reference, linear_attention_reference
from clip_la_kernels.ops.softmax_attention.reference import softmax_attention_reference
from clip_la_kernels.ops.softmax_attention.softmax_attention import MOST_TOKENS
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class Shape:
    """One point of the table: (B, N, H, D) and whether attention is causal."""

    batch: int
    tokens: int
    heads: int
    width: int = 64
    causal: bool = False


@dataclass
class Case:
    """One provider at one shape: leaves, the incoming gradient, and the call."""

    inputs: tuple[Tensor, ...]
    grad: Tensor
    call: Callable[..., Tensor]

    def forward(self) -> Tensor:
        return self.call(*self.inputs)

    def forward_only(self) -> Tensor:
        with torch.no_grad():
            return self.call(*self.inputs)

    def both(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.call(*self.inputs), self.inputs, self.grad)


@dataclass(frozen=True)
class Provider:
    """Who is timed, and how its call is made.

    `serves`: does it take this shape; `build`: the call for a shape; `packed`: does it start from (B, N, 3, H, D), else
    from q, k, v; `gate`: and a gate of their shape; `features`: are q and k mapped to positive ones beforehand; `own`:
    is it ours, checked before it is timed; `graphs`: can CUDA graphs replay it; `reference` with `options`: what it
    must compute, linear attention by default.
    """

    name: str
    op: str
    denominator: str
    serves: Callable[[Shape], bool]
    build: Callable[[Shape], Callable[..., Tensor]]
    packed: bool = True
    gate: bool = False
    features: bool = False
    own: bool = False
    graphs: bool = True
    reference: Callable[..., Tensor] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def prepare(self, shape: Shape, dtype: torch.dtype) -> Case:
        """Random inputs of the shape, leaves of autograd."""
        size = (shape.batch, shape.tokens, shape.heads, shape.width)
        grad = torch.randn(size, device="cuda", dtype=dtype)
        if self.packed:
            inputs = [torch.randn(*size[:2], 3, *size[2:], device="cuda", dtype=dtype)]
        else:
            inputs = [torch.randn(size, device="cuda", dtype=dtype) for _ in range(3)]
        if self.features:
            inputs[:2] = [(F.elu(t.float()) + 1).to(dtype) for t in inputs[:2]]
        if self.gate:
            inputs.append(F.logsigmoid(torch.randn(size, device="cuda")).to(dtype))
        return Case(tuple(t.requires_grad_() for t in inputs), grad, self.build(shape))

    def expected(self, case: Case, shape: Shape) -> tuple[Tensor, ...]:
        """Output and gradients of the reference in float32."""
        exact = [t.detach().float().requires_grad_() for t in case.inputs]
        q, k, v = exact[0].unbind(2) if self.packed else exact
        if self.reference is not None:
            out = self.reference(q, k, v, causal=shape.causal, **self.options)
        else:
            options = {"denominator": self.denominator, **self.options}
            out = linear_attention_reference(q, k, v, causal=shape.causal, **options)
        return out.detach(), *torch.autograd.grad(out, exact, case.grad.float())


def version(package: str) -> str:
    """Installed version of a package, or "none"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


# As softmax's sqrt(D), so that the polynomial's argument is of order one.
TEMPERATURE = 8.0
# The longest sequences that fastmax is timed at, and its reference fits memory for.
FASTMAX_TOKENS = 4200
# Softmax is quadratic: at the longest sequences it would take minutes and tell nothing new.
SOFTMAX_PAIRS = 4 * 12 * 16385**2
COMPILED_TOKENS = 20_000


def ours() -> list[Provider]:
    """Our kernels: with and without denominator, on the packed projection and on separate tensors; computing what the
    libraries' plain linear attention computes, sum (q.k) v without norms or constant; fastmax of degree 2, arXiv
    2402.07901, quadratic like softmax; softmax attention where kernels of ours serve it."""
    found: list[Provider] = []
    for denominator in ("none", "sum"):

        def packed(shape: Shape, denominator: str = denominator) -> Callable[..., Tensor]:
            return lambda qkv: linear_attention(qkv, denominator=denominator, causal=shape.causal)

        def split(shape: Shape, denominator: str = denominator) -> Callable[..., Tensor]:
            return lambda q, k, v: linear_attention_split(q, k, v, denominator=denominator, causal=shape.causal)

        found += [
            Provider("clip_la", "linear", denominator, lambda shape: True, packed, own=True),
            Provider("clip_la_split", "linear", denominator, lambda shape: True, split, packed=False, own=True),
        ]
    bare: dict[str, Any] = {"a": 0.0, "feature_map": "identity"}
    quadratic = {"p": 2, "temperature": TEMPERATURE}

    def plain(shape: Shape) -> Callable[..., Tensor]:
        return lambda q, k, v: linear_attention_split(q, k, v, causal=shape.causal, **bare)

    def fastmax2(shape: Shape) -> Callable[..., Tensor]:
        return lambda qkv: fastmax(qkv, temperature=TEMPERATURE, causal=shape.causal)

    def softmax(shape: Shape) -> Callable[..., Tensor]:
        return lambda qkv: softmax_attention(qkv, causal=shape.causal)

    return [
        *found,
        Provider(
            "clip_la_plain", "linear", "none", lambda s: True, plain, packed=False, features=True, own=True,
            options=bare,
        ),
        Provider(
            "clip_la_fastmax2", "fastmax2", "sum", lambda s: s.tokens <= FASTMAX_TOKENS, fastmax2, own=True,
            reference=fastmax_reference, options=quadratic,
        ),
        Provider(
            "clip_la_softmax", "softmax", "sum", lambda s: s.tokens <= MOST_TOKENS.get(s.width, 0), softmax, own=True,
            reference=softmax_attention_reference,
        ),
    ]  # fmt: skip


def pytorch() -> list[Provider]:
    """scaled_dot_product_attention as timm calls it (unbind the packed projection, swap tokens and heads, swap back) by
    the backend that PyTorch picks and by two given ones; torch.compile of the formula without denominator."""
    found: list[Provider] = []
    backends = {"default": None, "flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for name, backend in backends.items():

        def softmax(shape: Shape, backend: SDPBackend | None = backend) -> Callable[..., Tensor]:
            def call(qkv: Tensor) -> Tensor:
                q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
                with nullcontext() if backend is None else sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(q, k, v, is_causal=shape.causal).transpose(1, 2)

            return call

        found.append(
            Provider(
                f"sdpa {name}",
                "softmax",
                "sum",
                lambda s: s.batch * s.heads * s.tokens**2 <= SOFTMAX_PAIRS,
                softmax,
            )
        )

    def formula(qkv: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        q, k = F.normalize(q, dim=-1).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype)
        return (v.sum(2, keepdim=True) + q @ (k.transpose(-1, -2) @ v)).transpose(1, 2)

    def compiled(shape: Shape) -> Callable[..., Tensor]:
        # A fresh compiler a shape: it gives up after a few recompilations of one function.
        torch.compiler.reset()
        return torch.compile(formula, fullgraph=True, dynamic=False)

    def fits(shape: Shape) -> bool:
        return not shape.causal and shape.tokens <= COMPILED_TOKENS

    return [*found, Provider("torch.compile", "linear", "none", fits, compiled)]


def libraries() -> list[Provider]:
    """flash-linear-attention's causal kernels and flash-bidirectional-linear-attention's, where they import."""
    found: list[Provider] = []
    if importlib.util.find_spec("fla") is not None:
        from fla.ops.gla import chunk_gla
        from fla.ops.linear_attn import chunk_linear_attn, fused_chunk_linear_attn

        def plain(function: Any) -> Callable[[Shape], Callable[..., Tensor]]:
            return lambda shape: lambda q, k, v: function(q, k, v, normalize=False)[0]

        def long(shape: Shape) -> bool:
            return shape.causal and shape.tokens > 128

        found += [
            Provider(
                "fla.fused_chunk_linear_attn",
                "linear",
                "none",
                lambda shape: shape.tokens <= 20_000,
                plain(fused_chunk_linear_attn),
                packed=False,
                features=True,
            ),
            Provider(
                "fla.chunk_linear_attn", "linear", "none", long, plain(chunk_linear_attn), packed=False, features=True
            ),
            Provider(
                "fla.chunk_gla",
                "gated linear",
                "none",
                long,
                lambda shape: lambda q, k, v, g: chunk_gla(q, k, v, g)[0],
                packed=False,
                gate=True,
            ),
        ]
    if importlib.util.find_spec("flash_bla") is not None:
        from flash_bla.ops.linear_attn.fused import linear_attention as bidirectional

        def build(shape: Shape) -> Callable[..., Tensor]:
            return lambda q, k, v: bidirectional(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

        found.append(
            Provider(
                "flash_bla.linear_attention",
                "linear",
                "sum",
                lambda s: not s.causal,
                build,
                packed=False,
                features=True,
            )
        )
    return found


def everyone() -> list[Provider]:
    """All that can be timed here, ours first."""
    return [*ours(), *pytorch(), *libraries()]
