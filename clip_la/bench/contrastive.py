"""Times the losses over all pairs by blocks against the plain ones, which form the matrix of logits.

A case is one rank's step: its own images and texts, and the texts (for the plain contrastive loss the images too) of
all ranks. What ranks send each other is not in it. On a CPU as well, at sizes that fit it.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from clip_la_kernels import contrastive_logsumexp, sigmoid_loss
from torch import Tensor
from torch.nn import functional as F

from clip_la.bench.kernels import BOTH, FORWARD
from clip_la.bench.providers import version
from clip_la.bench.table import note
from clip_la.bench.timing import peak_mib, quantiles
from clip_la.errors import UserError

# (pairs of this rank, pairs of all ranks, width of the features).
SHAPES = ((4096, 4096, 512), (4096, 32768, 512), (32768, 32768, 512))
CPU_SHAPES = ((2048, 2048, 256),)
# Relative error of value and gradients, by the dtype of the features: bfloat16 rounds them, float32 products may go by
# TensorFloat-32.
GATE = 2e-2
SAMPLES = 5
# Of (images, texts, all images, all texts, scale, bias); the own pairs come first among all.
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass
class LossRow:
    """One line of results/contrastive.csv; times are of calls launched from Python, peak_mib is None on a CPU."""

    device: str
    torch: str
    triton: str
    loss: str
    provider: str
    mode: str
    dtype: str
    rows: int
    columns: int
    width: int
    median_ms: float
    p20_ms: float
    p80_ms: float
    peak_mib: float | None


def losses() -> dict[tuple[str, str], Loss]:
    """(loss, provider) -> the loss. Ours, the plain one as CLIP code bases write it, and that one compiled."""

    def ours(images: Tensor, texts: Tensor, all_images: Tensor, all_texts: Tensor, scale: Tensor, _: Tensor) -> Tensor:
        rows, columns, own = contrastive_logsumexp(images, all_texts, scale)
        return ((rows + columns[: len(images)]) / 2 - own).mean()

    def ours_sigmoid(images: Tensor, _: Tensor, __: Tensor, all_texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return sigmoid_loss(images, all_texts, scale, bias)

    def plain(images: Tensor, texts: Tensor, all_images: Tensor, all_texts: Tensor, scale: Tensor, _: Tensor) -> Tensor:
        own = torch.arange(len(images), device=images.device)
        by_image = (scale * images @ all_texts.T).float()
        by_text = by_image.T if all_images is images else (scale * texts @ all_images.T).float()
        return (F.cross_entropy(by_image, own) + F.cross_entropy(by_text, own)) / 2

    def plain_sigmoid(images: Tensor, _: Tensor, __: Tensor, all_texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        logits = (scale * images @ all_texts.T + bias).float()
        own = torch.eye(*logits.shape, device=logits.device, dtype=logits.dtype)
        return -F.logsigmoid((2 * own - 1) * logits).sum() / len(images)

    found: dict[tuple[str, str], Loss] = {}
    for name, mine, theirs in (("contrastive", ours, plain), ("sigmoid", ours_sigmoid, plain_sigmoid)):
        found[name, "clip_la"], found[name, "matrix"] = mine, theirs
        found[name, "torch.compile"] = torch.compile(theirs, fullgraph=True, dynamic=False)
    return found


def inputs(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """What a loss takes: unit features, texts near their images, and the scalars. Leaves of autograd; with as many
    pairs of this rank as of all, those are the same tensors."""
    count, total, width = shape
    x = F.normalize(torch.randn(total, width, device=device), dim=1)
    y = F.normalize(torch.randn(total, width, device=device) * width**-0.5 + 0.3 * x, dim=1)
    images, texts = (t.to(dtype).requires_grad_() for t in (x, y))
    scalars = [torch.tensor(value, device=device, requires_grad=True) for value in (50.0, -10.0)]
    if count == total:
        return images, texts, images, texts, *scalars
    own = (t.detach()[:count].clone().requires_grad_() for t in (images, texts))
    return *own, images, texts, *scalars


def check(dtype: torch.dtype, device: torch.device) -> None:
    """Raises UserError unless our losses and gradients on one rank are those of the plain ones in float32."""
    note(f"checking the losses in {str(dtype).removeprefix('torch.')} against the plain ones")
    leaves = inputs((1000, 1000, 256), dtype, device)
    exact_leaves = [t.detach().float().requires_grad_() for t in leaves]
    exact_leaves[2:4] = exact_leaves[:2]
    known = losses()
    for loss in ("contrastive", "sigmoid"):
        results = []
        for provider, given in (("clip_la", leaves), ("matrix", exact_leaves)):
            value = known[loss, provider](*given)
            wanted = (*given[:2], given[4])
            results.append((value, *torch.autograd.grad(value, wanted)))
        for one, other in zip(*results, strict=True):
            error = float((one.detach().float() - other.detach()).norm() / other.detach().norm())
            if not error < GATE:
                raise UserError(f"bench kernels: the {loss} loss is wrong: relative error {error:.3g}")


def measure(
    dtypes: Sequence[torch.dtype], device: torch.device, shapes: Sequence[tuple[int, int, int]]
) -> Iterator[LossRow]:
    """Every loss at every shape and dtype, forward and both; yields a row a time, none where memory is too small."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    for shape in shapes:
        for dtype in dtypes:
            leaves = inputs(shape, dtype, device)
            trained = list(dict.fromkeys(leaves))
            torch.compiler.reset()
            for (loss, provider), function in losses().items():
                if provider == "torch.compile" and device.type == "cpu":
                    continue  # a minute's work for the compiler, and no aim of ours

                def forward(function: Loss = function, leaves: tuple[Tensor, ...] = leaves) -> Tensor:
                    with torch.no_grad():
                        return function(*leaves)

                def both(
                    function: Loss = function, leaves: tuple[Tensor, ...] = leaves, trained: list[Tensor] = trained
                ) -> tuple[Tensor, ...]:
                    return torch.autograd.grad(function(*leaves), trained, allow_unused=True)

                about = (name, torch.__version__, version("triton"), loss, provider)
                for mode, call in ((FORWARD, forward), (BOTH, both)):
                    try:
                        times = quantiles(call, device=device, samples=SAMPLES)
                        memory = peak_mib(call) if device.type == "cuda" else None
                        yield LossRow(*about, mode, str(dtype).removeprefix("torch."), *shape, *times, memory)
                    except torch.OutOfMemoryError:
                        note(f"{loss}, {provider} at {shape}: not enough memory")
                        gc.collect()
