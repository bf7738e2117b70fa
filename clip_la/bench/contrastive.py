"""Times the contrastive loss by blocks against the plain one, which forms the matrix of logits."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from clip_la_kernels import contrastive_loss
from torch import Tensor
from torch.nn import functional as F

from clip_la.bench.kernels import BOTH, EAGER, FORWARD, peak_mib, quantiles
from clip_la.bench.providers import note, version
from clip_la.errors import UserError

# (rows of this process, columns of all processes, width of the features).
SHAPES = ((4096, 4096, 512), (4096, 32768, 512), (32768, 32768, 512))
# Relative error of bfloat16 features against float32 ones.
GATE = 2e-2
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    """The loss as CLIP code bases write it."""
    own = torch.arange(rows.shape[0], device=rows.device)
    return F.cross_entropy((scale * rows @ columns.T).float(), own)


def losses() -> dict[str, Loss]:
    """Name -> loss of (rows, columns, scale)."""
    return {
        "clip_la": contrastive_loss,
        "cross_entropy": plain,
        "torch.compile": torch.compile(plain, fullgraph=True, dynamic=False),
    }


def features(rows: int, columns: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows, unit columns of which the first are near the rows, and the scale: leaves of autograd."""
    x = F.normalize(torch.randn(rows, width, device="cuda"), dim=1)
    y = torch.randn(columns, width, device="cuda") * width**-0.5
    y[:rows] += 0.3 * x
    scale = torch.tensor(50.0, device="cuda", requires_grad=True)
    return x.to(dtype).requires_grad_(), F.normalize(y, dim=1).to(dtype).requires_grad_(), scale


def check(dtype: torch.dtype) -> None:
    """Raises UserError unless loss and gradients are those of the plain loss in float32."""
    leaves = features(1000, 5000, 512, dtype)
    exact = [t.detach().float().requires_grad_() for t in leaves]
    mine, theirs = contrastive_loss(*leaves), plain(*exact)
    pairs = zip((mine, *torch.autograd.grad(mine, leaves)), (theirs, *torch.autograd.grad(theirs, exact)), strict=True)
    for one, other in pairs:
        error = float((one.detach().float() - other.detach()).norm() / other.detach().norm())
        if not error < GATE:
            raise UserError(f"bench kernels: the contrastive loss is wrong: relative error {error:.3g}")


@dataclass
class Row:
    """One line of results/contrastive.csv; times are of calls launched from Python."""

    device: str
    torch: str
    triton: str
    provider: str
    mode: str
    dtype: str
    rows: int
    columns: int
    width: int
    median_ms: float
    p20_ms: float
    p80_ms: float
    peak_mib: float


def measure(dtype: torch.dtype) -> Iterator[Row]:
    """Every loss at every shape, forward and both; yields a row a time."""
    about = torch.cuda.get_device_name(), torch.__version__, version("triton")
    for shape in SHAPES:
        leaves = features(*shape, dtype)
        for name, loss in losses().items():
            torch.compiler.reset()
            for mode, run in ((FORWARD, _forward), (BOTH, _both)):
                try:
                    run(loss, leaves)
                    call = functools.partial(run, loss, leaves)
                    times, kind = quantiles(call, EAGER), str(dtype).removeprefix("torch.")
                    yield Row(*about, name, mode, kind, *shape, *times, peak_mib(call))
                except torch.OutOfMemoryError:
                    note(f"{name} at {shape}: not enough memory")


def _forward(loss: Loss, leaves: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        return loss(*leaves)


def _both(loss: Loss, leaves: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(*leaves), leaves)
