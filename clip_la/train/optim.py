"""The learning rate as a function of the samples seen, and the bound on gradients.

Without torch until gradients are bounded: a schedule that does not fit is refused before torch is imported.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from clip_la.errors import UserError, unknown
from clip_la.train.options import ModelOptions, ScheduleName

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULES = get_args(ScheduleName)


def whole_batches(num_samples: int, batch_size: int) -> int:
    """The number of samples rounded up to whole batches: what a run really sees, hence what budgets are counted in."""
    return -(-num_samples // batch_size) * batch_size


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate at a number of samples seen. All lengths in samples; raises UserError where they do not fit.

    - `cosine`: linear warm-up, then half a cosine down to zero at the budget;
    - `constant`: linear warm-up, then the peak rate for ever; branches can be cooled down from any of its checkpoints;
    - `cooldown`: as `constant`, but falls as 1 - sqrt to zero over the last `cooldown_samples` of the budget
      (Hagele et al. 2024, arXiv 2405.18392). Before that it equals `constant`, so a branch loses nothing.
    """

    name: str
    peak_lr: float
    budget_samples: int
    warmup_samples: int = 0
    cooldown_samples: int = 0

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise unknown("schedule", self.name, SCHEDULES)
        if not 0 < self.peak_lr < math.inf:
            raise UserError(f"lr must be positive and finite, not {self.peak_lr}")
        if (self.name == "cooldown") != (self.cooldown_samples > 0):
            raise UserError(
                f"schedule '{self.name}' with cooldown_samples {self.cooldown_samples}: "
                "schedule 'cooldown' needs cooldown_samples above 0, the others have none"
            )
        if self.warmup_samples < 0 or self.warmup_samples + self.cooldown_samples > self.budget_samples:
            raise UserError(
                f"warmup_samples {self.warmup_samples:,} and cooldown_samples {self.cooldown_samples:,} "
                f"do not fit into budget_samples {self.budget_samples:,}"
            )

    @property
    def cooldown_start(self) -> int:
        """Samples seen when the rate begins to fall: the latest checkpoint that a cooled-down branch can start from."""
        return self.budget_samples - self.cooldown_samples

    def lr(self, samples: float) -> float:
        """The learning rate after `samples` samples; a training step takes the rate at the middle of its batch."""
        if samples < self.warmup_samples:
            return self.peak_lr * samples / self.warmup_samples
        # Behind the budget a rate stays where it ended: a run of whole batches may end a little later.
        if self.name == "cosine":
            done = (samples - self.warmup_samples) / max(self.budget_samples - self.warmup_samples, 1)
            return self.peak_lr * (1 + math.cos(math.pi * min(done, 1.0))) / 2
        if self.name == "cooldown" and samples > self.cooldown_start:
            done = (samples - self.cooldown_start) / self.cooldown_samples
            return self.peak_lr * (1 - math.sqrt(min(done, 1.0)))
        return self.peak_lr


def schedule_of(options: ModelOptions, *, batch_size: int, budget_samples: int) -> Schedule:
    """The schedule of a run, over whole batches.

    Args:
        options: name of the schedule, peak rate, lengths in samples, parts of a batch.
        batch_size: pairs in the batch of all processes together.
        budget_samples: samples that the run is to see.

    Raises UserError for a batch, its parts, a budget or a schedule that cannot be.
    """
    if batch_size < 2:
        raise UserError(f"batch_size must be at least 2 (one pair has no negatives), not {batch_size}")
    if budget_samples < 1:
        raise UserError(f"budget_samples must be at least 1, not {budget_samples}")
    for name in ("text_groups", "micro_batches"):
        if not 1 <= getattr(options, name) <= batch_size:
            raise UserError(f"{name} must be from 1 to batch_size ({batch_size}), not {getattr(options, name)}")
    return Schedule(
        name=options.schedule,
        peak_lr=options.lr,
        budget_samples=whole_batches(budget_samples, batch_size),
        warmup_samples=options.warmup_samples,
        cooldown_samples=options.cooldown_samples,
    )


def clip_gradients(parameters: "Iterable[Tensor]", max_norm: float | None) -> "Tensor":
    """Scales all gradients down to the common norm `max_norm` (None: leaves them) and returns the norm they had."""
    import torch

    trained = [p for p in parameters if p.grad is not None]
    # Clipped by PyTorch's two halves, so that the norm is known also where nothing is clipped.
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None], foreach=True)
    # On the CPU reading the norm is free, and the pass over all gradients that a factor of one costs is not.
    if max_norm is not None and (norm.is_cuda or norm > max_norm):
        torch.nn.utils.clip_grads_with_norm_(trained, max_norm, norm, foreach=True)
    return norm
