"""Training steps timed: ours, by model, attention, resolution and caption lengths, beside open_clip's own step.

A step is what a run does between two batches: scaling pixels, both towers, the loss, backward, clipping, AdamW, the
bound on the logit scale. The batches lie on the device, so that nothing waits for data.
"""

import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from clip_la.bench.table import note
from clip_la.bench.train_steps import (
    PEER,
    OurStep,
    PeerStep,
    StepCase,
    make_batch,
    peer_batch,
    train_step,
)
from clip_la.distributed import rank, world_size
from clip_la.errors import UserError
from clip_la.models.flops import training_flops
from clip_la.models.registry import model_spec
from clip_la.train.hardware import ddp_settings, fast_matmul
from clip_la.train.options import Checkpointing, Reduction
from clip_la.train.peak import peak_flops

# Different batches, so that the lengths of captions vary from step to step as they do in a run.
NUM_BATCHES = 4
WARM_UP_ROUNDS = 2
GIB = 1 << 30


@dataclass(frozen=True)
class StepRow:
    """A case and what was measured. batch_size is each GPU's; pairs_per_s that of all GPUs together; a figure that does
    not exist, as the case took too much memory or the peak of the GPU is not known, is None."""

    provider: str
    model: str
    attention: str
    image_size: int
    text: str
    batch_size: int
    text_groups: int
    micro_batches: int
    checkpointing: Checkpointing
    narrow_residual: bool
    patch_dropout: float
    reduction: Reduction
    gpus: int
    pairs_per_s: float | None
    step_ms: float | None
    slowest_ms: float | None
    ratio_to_open_clip: float | None
    mfu: float | None
    peak_gib: float | None
    start_s: float | None
    loss: float | None
    device: str
    torch: str

    @property
    def case(self) -> StepCase:
        """What was timed."""
        return StepCase(**{field.name: getattr(self, field.name) for field in fields(StepCase)})


class Timing(NamedTuple):
    """Milliseconds a step of each round; seconds until every kind of batch had been met; bytes; the last loss."""

    step_ms: list[float]
    start_s: float
    peak_bytes: int
    loss: float


def measure_case(case: StepCase, device: torch.device, dtype: torch.dtype, steps: int, rounds: int) -> Timing:
    """Times one case from a new model on. Raises torch.OutOfMemoryError."""
    spec = case.spec
    batches = [make_batch(spec, case, NUM_BATCHES * rank() + i, device) for i in range(NUM_BATCHES)]
    if case.provider == PEER:
        batches = [peer_batch(batch, spec.context_length) for batch in batches]
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    model = (PeerStep(case) if case.provider == PEER else OurStep(case)).to(device)
    optimizer = model.optimizer()
    wrapped = model if world_size() == 1 else distributed(model, case)
    endless = itertools.cycle(batches)

    def step() -> Tensor:
        return train_step(wrapped, optimizer, next(endless), dtype, model.logit_scale)

    def many(count: int) -> tuple[float, Tensor]:
        begun = time.perf_counter()
        for _ in range(count):
            loss = step()
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun, loss

    # Of the peer the whole model is compiled, for a minute or more.
    note(f"{case}: {'starting' if case.provider == 'eager' else 'compiling'}")
    many(len(batches))
    start_s = time.perf_counter() - start
    many((WARM_UP_ROUNDS - 1) * len(batches))
    note(f"{case}: started after {start_s:.0f} s; timing {rounds} rounds of {steps} steps")
    measured = [many(steps) for _ in range(rounds)]
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else 0
    return Timing([1e3 * seconds / steps for seconds, _ in measured], start_s, peak, measured[-1][1].item())


def distributed(model: OurStep | PeerStep, case: StepCase) -> DistributedDataParallel:
    """The model under DDP: ours as in a run, the peer as its training script does it."""
    if isinstance(model, PeerStep):
        return DistributedDataParallel(model)
    model.task.average_towers(model, torch.bfloat16 if case.reduction == "bfloat16" else None)
    wrapped = DistributedDataParallel(model, **ddp_settings())
    if case.reduction == "bfloat16":
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def measure(
    cases: Iterable[StepCase], device: torch.device, dtype: torch.dtype, *, steps: int, rounds: int, cold: bool
) -> Iterator[StepRow]:
    """A row a case, each with its ratio to the peer's rate on the same model and batches if that came before.

    `cold`: compiles each case anew, without what is kept on the disk.
    """
    peers: dict[tuple[Any, ...], float] = {}
    for case in cases:
        torch.compiler.reset()
        with _cache(cold), fast_matmul():
            row = _row(case, device, dtype, steps, rounds)
        key = (case.model, case.image_size, case.text, case.batch_size, case.checkpointing, case.patch_dropout)
        if row.pairs_per_s is not None:
            if case.provider == PEER:
                peers[key] = row.pairs_per_s
            if key in peers:
                row = replace(row, ratio_to_open_clip=row.pairs_per_s / peers[key])
        yield row


def _row(case: StepCase, device: torch.device, dtype: torch.dtype, steps: int, rounds: int) -> StepRow:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    empty = dict.fromkeys(
        ("pairs_per_s", "step_ms", "slowest_ms", "ratio_to_open_clip", "mfu", "peak_gib", "start_s", "loss")
    )
    row = StepRow(**vars(case), gpus=world_size(), **empty, device=name, torch=torch.__version__)  # type: ignore[arg-type]
    try:
        timing = measure_case(case, device, dtype, steps, rounds)
    except torch.OutOfMemoryError:
        return row
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    median_ms = statistics.median(timing.step_ms)
    rate = 1e3 * case.batch_size * world_size() / median_ms
    peak = peak_flops(name, dtype)
    return replace(
        row,
        pairs_per_s=rate,
        step_ms=median_ms,
        slowest_ms=max(timing.step_ms),
        mfu=rate * training_flops(case.spec, case.patch_dropout) / (peak * world_size()) if peak else None,
        peak_gib=timing.peak_bytes / GIB if timing.peak_bytes else None,
        start_s=timing.start_s,
        loss=timing.loss,
    )


@contextlib.contextmanager
def _cache(cold: bool) -> Iterator[None]:
    """With `cold`, an empty folder for compiled code, for the block."""
    if not cold:
        yield
        return
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="clip_la_compiled_") as folder:
        os.environ.update(dict.fromkeys(names, folder))
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def cases_of(
    models: Sequence[str],
    attentions: Sequence[str],
    image_sizes: Sequence[int] | None,
    texts: Sequence[str],
    modes: Sequence[str],
    text_groups: Sequence[int],
    *,
    batch_size: int,
    micro_batches: int,
    checkpointing: Checkpointing,
    narrow_residual: bool = False,
    patch_dropout: float = 0.0,
    reduction: Reduction = "float32",
    with_peer: bool,
) -> list[StepCase]:
    """All combinations, at the models' own size without sizes; the peer, if wanted, before ours of the same batches."""
    cases = []
    sizes: Sequence[int | None] = image_sizes or (None,)
    for model, size, text in itertools.product(models, sizes, texts):
        spec = model_spec(model, image_size=size)
        # Cut to the model's context, captions would be of another length than their row says.
        if text.isdecimal() and int(text) > spec.context_length:
            raise UserError(
                f"bench train: --text {text}: captions of {model} have at most {spec.context_length} tokens"
            )
        side = spec.image_size
        base = StepCase(PEER, model, "softmax", side, text, batch_size, 1, 1, checkpointing, False, patch_dropout)
        cases += [base] if with_peer else []
        cases += [
            replace(
                base,
                provider=mode,
                attention=attention,
                text_groups=groups,
                micro_batches=micro_batches,
                narrow_residual=narrow_residual,
                reduction=reduction,
            )
            for attention, mode, groups in itertools.product(attentions, modes, text_groups)
        ]
    return cases
