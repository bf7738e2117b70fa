"""The speed of every attention kind beside softmax's: one block, and the whole image tower, by number of tokens.

A case is an image tower. Its first block is timed on noise of the tower's width, then the tower on noise for pixels:
forward without gradients, and the training step's part, forward and backward, the gradients of all weights included.
Batches hold about the same number of tokens whatever the length, so that a GPU is full at each.
"""

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from clip_la.bench.table import note
from clip_la.bench.timing import peak_mib, quantiles
from clip_la.errors import UserError
from clip_la.models.clip import model_from_spec
from clip_la.models.registry import model_spec
from clip_la.models.spec import ModelSpec
from clip_la.train.compiled import configure_compiler
from clip_la.train.hardware import fast_matmul

BASELINE = "softmax"
BLOCK, TOWER = "block", "tower"
SAMPLES = 5


@dataclass(frozen=True)
class AttentionRow:
    """One line of the table.

    Times are milliseconds of a batch; ratios are softmax's time over this one's at the same length, above 1 for what is
    faster; peak_mib is the memory of a training step beside weights and inputs, on a GPU. What did not fit into memory
    is None.
    """

    device: str
    torch: str
    model: str
    attention: str
    what: str
    tokens: int
    image_size: int
    batch_size: int
    compiled: bool
    dtype: str
    forward_ms: float | None = None
    training_ms: float | None = None
    forward_ratio: float | None = None
    training_ratio: float | None = None
    peak_mib: float | None = None


def specs_of(model: str, plans: Sequence[str], tokens: Sequence[int]) -> list[ModelSpec]:
    """The towers to time: at each length softmax, then the plans.

    Args:
        model: preset whose image tower it is.
        plans: attention kinds with their options, or plans of layers.
        tokens: lengths, the class token included: squares of whole numbers and one more.

    Raises UserError for an unknown preset or plan, or a length that no image has. A kind that a length does not fit is
    left out there, as stderr says.
    """
    patch, specs = model_spec(model).patch_size, []
    for plan in plans:
        # What is wrong with a plan itself is said at once.
        model_spec(model, image_attention=plan, text_attention=BASELINE)
    for length in tokens:
        side = math.isqrt(max(length - 1, 0))
        if side < 1 or side * side != length - 1:
            raise UserError(f"--tokens {length}: no square of patches and a class token; near it {side * side + 1}")
        for plan in dict.fromkeys([BASELINE, *plans]):
            try:
                spec = model_spec(model, image_attention=plan, text_attention=BASELINE, image_size=side * patch)
            except UserError as error:
                note(f"left out: {error}")
                continue
            # The text tower is built with the model but not timed.
            specs.append(spec.replace(text_layers=1))
    return specs


def measure(
    specs: Sequence[ModelSpec], device: torch.device, dtype: torch.dtype, *, batch_tokens: int, compiled: bool
) -> Iterator[AttentionRow]:
    """Times every tower, as `specs_of` orders them; yields the row of its block, then that of the whole.

    Args:
        dtype: of autocast; float32 for none, with TensorFloat-32 products where a GPU has them.
        batch_tokens: tokens in a batch, about.
        compiled: compile the blocks; all blocks of a tower share one graph.
    """
    baseline: dict[tuple[str, int], AttentionRow] = {}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    for spec in specs:
        tokens, batch = spec.num_image_tokens, max(1, batch_tokens // spec.num_image_tokens)
        about = (spec.image_size, batch, compiled, str(dtype).removeprefix("torch."))
        tower = model_from_spec(spec, seed=0).image.to(device)
        if compiled:
            note(f"compiling {spec.image_attention} at {tokens} tokens")
            # A fresh compiler a tower: it gives up after some recompilations of one function.
            torch.compiler.reset()
            configure_compiler("block")
            for block in tower.trunk.blocks:
                block.compile(dynamic=False)
        features = torch.randn(batch, tokens, spec.image_width, device=device, requires_grad=True)
        pixels = torch.randn(batch, 3, spec.image_size, spec.image_size, device=device)
        for what, module, x in ((BLOCK, tower.trunk.blocks[0], features), (TOWER, tower, pixels)):
            times = _times(module, x, dtype)
            row = AttentionRow(name, torch.__version__, spec.name, spec.image_attention, what, tokens, *about)
            row = replace(row, **times)  # type: ignore[arg-type]
            softmax = baseline.setdefault((what, tokens), row)
            ratios = {
                f"{each}_ratio": its / own
                for each in ("forward", "training")
                if (its := getattr(softmax, f"{each}_ms")) and (own := times.get(f"{each}_ms"))
            }
            yield replace(row, **ratios)
        del tower, module, features, pixels, x
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _times(module: nn.Module, x: Tensor, dtype: torch.dtype) -> dict[str, float]:
    """forward_ms, training_ms and on a GPU peak_mib of a module at an input, but for what does not fit into memory."""
    on_gpu = x.device.type == "cuda"
    leaves = [p for p in (*module.parameters(), x) if p.requires_grad]
    found: dict[str, float] = {}

    def forward() -> Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            output: Tensor = module(x)
        return output

    def forward_only() -> None:
        with torch.no_grad():
            forward()

    def training() -> Any:
        # Nothing is left in .grad, which would be added to the next time.
        return torch.autograd.grad(forward(), leaves, grad, allow_unused=True)

    try:
        with fast_matmul():
            found["forward_ms"] = quantiles(forward_only, device=x.device, samples=SAMPLES)[0]
            with torch.no_grad():
                grad = torch.randn_like(forward())
            found["training_ms"] = quantiles(training, device=x.device, samples=SAMPLES)[0]
            if on_gpu:
                found["peak_mib"] = peak_mib(training)
    except torch.OutOfMemoryError:
        note(f"out of memory at {tuple(x.shape)}")
    return found
