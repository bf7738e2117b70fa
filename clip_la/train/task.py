"""ContrastiveTask: the model, its loss and its optimiser as one LightningModule."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from clip_la.errors import UserError
from clip_la.losses import chance_loss, contrastive_loss, sigmoid_loss
from clip_la.train.beginning import begin
from clip_la.train.compiled import Unit
from clip_la.train.features import BatchEncoder
from clip_la.train.optim import Schedule, adamw, check_adamw, clip_gradients, whole_batches

# SigLIP's starting points (arXiv 2303.15343, Sec. 3.2): scale and bias of the logits.
SIGMOID_INIT_SCALE = 10.0
SIGMOID_INIT_BIAS = -10.0


class ContrastiveTask(pl.LightningModule):
    """Trains the two towers of a preset against each other.

    Args:
        name: preset, one of `clip-la models`.
        attention: kind of both towers, or a pattern over the layers such as linear*11+softmax.
        image_attention: kind or pattern of the image tower, if not `attention`.
        text_attention: kind or pattern of the text tower, if not `attention`.
        image_size: side of the square images in pixels, if not the preset's.
        context_length: most tokens of a caption, if not the preset's.
        init_from: checkpoint whose weights a new run begins with instead of fresh ones; the options above must say the
            same architecture, and `name` what the checkpoint calls its model.
        loss: contrastive (CLIP) or sigmoid (SigLIP).
        repeated_captions_are_negatives: whether equal captions in a batch push each other's images away.
        lr: peak learning rate.
        weight_decay: of AdamW; gains, biases and scales are spared.
        beta1: of AdamW.
        beta2: of AdamW.
        eps: of AdamW.
        schedule: cosine, constant, or cooldown (constant, then down to zero over the last cooldown_samples).
        warmup_samples: samples over which the learning rate rises to its peak.
        cooldown_samples: samples over which it falls at the end of schedule cooldown.
        max_grad_norm: gradients longer than this are scaled down to it; null leaves them.
        max_logit_scale: upper bound of the learnt factor on the cosines.
        compile: compile both towers with torch.compile, and pad captions to a few lengths.
        compile_unit: what one graph holds: a block, which all blocks of a tower share, or a whole tower, which takes
            minutes to compile and runs a little faster.
        cuda_graphs: compile, and record each tower's passes as CUDA graphs, whose kernels the processor need not ask
            for one by one. Null: whenever towers are compiled on a GPU, unless activations are recomputed.
        text_groups: sort the captions of a batch by length and work them out in so many groups, each padded only to
            its own longest; the same features for less work where lengths differ.
        micro_batches: parts that a process's batch is worked out in, one after another, each twice: memory holds the
            activations of one part, for a third more compute; loss and gradient are those of the whole batch.
        grad_checkpointing: recompute activations in the backward pass: less memory, a third more compute.
        narrow_residual: add up the blocks' results in bfloat16 under mixed precision, as open_clip does: less memory
            and time, in exchange for the low bits of small additions.
        batch_size: pairs in the batch of all processes together.
        budget_samples: samples the run will see; rounded up to whole batches.
        seed: of the initial weights.

    Attributes:
        lineage: trainings whose weights the run began with, as in Beginning; empty for fresh ones.

    Raises UserError for values that do not fit, unknown models and unknown attention kinds.
    """

    def __init__(
        self,
        name: str,
        *,
        attention: str = "softmax",
        image_attention: str | None = None,
        text_attention: str | None = None,
        image_size: int | None = None,
        context_length: int | None = None,
        init_from: str | None = None,
        loss: Literal["contrastive", "sigmoid"] = "contrastive",
        repeated_captions_are_negatives: bool = False,
        lr: float = 5e-4,
        weight_decay: float = 0.2,
        beta1: float = 0.9,
        beta2: float = 0.98,
        eps: float = 1e-6,
        schedule: Literal["cosine", "constant", "cooldown"] = "cosine",
        warmup_samples: int = 0,
        cooldown_samples: int = 0,
        max_grad_norm: float | None = 1.0,
        max_logit_scale: float = 100.0,
        compile: bool = False,
        compile_unit: Unit = "block",
        cuda_graphs: bool | None = None,
        text_groups: int = 1,
        micro_batches: int = 1,
        grad_checkpointing: bool = False,
        narrow_residual: bool = False,
        batch_size: int,
        budget_samples: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_sizes(batch_size, budget_samples, max_logit_scale, text_groups=text_groups, micro_batches=micro_batches)
        self.batch_size = batch_size
        self.budget_samples = whole_batches(budget_samples, batch_size)
        self.schedule = Schedule(
            name=schedule,
            peak_lr=lr,
            budget_samples=self.budget_samples,
            warmup_samples=warmup_samples,
            cooldown_samples=cooldown_samples,
        )
        beginning = begin(init_from, name, seed, attention, image_attention, text_attention, image_size, context_length)
        self.model, self.lineage = beginning.model, beginning.lineage
        self._set_up_loss(loss, beginning.logit_bias)
        self.model.set_grad_checkpointing(grad_checkpointing)
        self.model.set_narrow_residual(narrow_residual)
        self._encoder = BatchEncoder(
            self.model, compile, compile_unit, cuda_graphs, text_groups, micro_batches, grad_checkpointing
        )
        self._repeated_captions_are_negatives = repeated_captions_are_negatives
        check_adamw((beta1, beta2), eps, weight_decay, max_grad_norm)
        self._adamw: dict[str, Any] = {"betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay}
        self._max_grad_norm = max_grad_norm
        self._max_log_scale = math.log(max_logit_scale)
        self.grad_norm = torch.zeros(())

    def _set_up_loss(self, loss: str, trained_bias: Tensor | None) -> None:
        self.logit_bias = nn.Parameter(torch.tensor(SIGMOID_INIT_BIAS)) if loss == "sigmoid" else None
        if self.logit_bias is not None and trained_bias is not None:
            self.logit_bias.data.copy_(trained_bias)
        elif loss == "sigmoid":
            # Scale and bias belong together: those of a model trained by another loss start anew as well.
            nn.init.constant_(self.model.logit_scale, math.log(SIGMOID_INIT_SCALE))

    @property
    def loss_name(self) -> str:
        """contrastive or sigmoid."""
        return "contrastive" if self.logit_bias is None else "sigmoid"

    @property
    def samples_seen(self) -> int:
        """Pairs that have gone into the weights, over all processes."""
        return self.trainer.global_step * self.batch_size

    @property
    def chance_loss(self) -> float | None:
        """The loss of a model that knows nothing, where the loss has such a value."""
        return chance_loss(self.batch_size) if self.logit_bias is None else None

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        image_features, text_features = self._encoder.images(batch["image"]), self._encoder.texts(batch)
        scale = self.model.logit_scale.exp()
        caption_ids = None if self._repeated_captions_are_negatives else batch["caption_id"]
        if self.logit_bias is None:
            return contrastive_loss(image_features, text_features, scale, caption_ids)
        return sigmoid_loss(image_features, text_features, scale, self.logit_bias, caption_ids)

    def parts_of_loss(self) -> dict[str, float]:
        """Further columns of metrics.csv: what the last step's loss was made of, by name; nothing here."""
        return {}

    def new_shapes(self, batch: Mapping[str, Any]) -> list[int]:
        """Lengths of captions in this batch that the step will be compiled for."""
        return self._encoder.new_shapes(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        undecayed = {f"model.{name}" for name in self.model.no_weight_decay()} | {"logit_bias"}
        return adamw(
            self.named_parameters(),
            undecayed=undecayed,
            lr=self.schedule.peak_lr,
            **self._adamw,
        )

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        self.grad_norm = clip_gradients(self._trained, self._max_grad_norm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """One step at the learning rate of the batch's middle sample, then the bound on the logit scale."""
        for group in optimizer.param_groups:
            group["lr"] = self.schedule.lr(self.samples_seen + self.batch_size / 2)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        with torch.no_grad():
            self.model.logit_scale.clamp_(0.0, self._max_log_scale)

    def on_train_start(self) -> None:
        """A run that goes on takes AdamW's moments from its checkpoint, but its settings from its options."""
        # Listed once: walking through all modules takes the host a millisecond a step.
        self._trained = list(self.parameters())
        restored, wanted = self.trainer.optimizers[0], self.configure_optimizers()
        for group, own in zip(restored.param_groups, wanted.param_groups, strict=True):
            group.update({name: value for name, value in own.items() if name != "params"})

    def check_accelerator(self, accelerator: str) -> None:
        """Raises UserError where the task wants a GPU and the run has none."""
        if self._encoder.needs_gpu and accelerator != "gpu":
            raise UserError("model.cuda_graphs needs a GPU, and this run is on the CPU; leave it out")

    def on_fit_start(self) -> None:
        """Refuses what would change the loss without a word."""
        if self.trainer.accumulate_grad_batches != 1:
            raise UserError(
                "gradient accumulation changes the loss (fewer negatives); use micro_batches, which does not"
            )


def _check_sizes(batch_size: int, budget_samples: int, max_logit_scale: float, **parts: int) -> None:
    if batch_size < 2:
        raise UserError(f"batch_size must be at least 2 (one pair has no negatives), not {batch_size}")
    if budget_samples < 1:
        raise UserError(f"budget_samples must be at least 1, not {budget_samples}")
    if not 1 <= max_logit_scale < math.inf:
        raise UserError(f"max_logit_scale must be at least 1 and finite, not {max_logit_scale}")
    for name, number in parts.items():
        if not 1 <= number <= batch_size:
            raise UserError(f"{name} must be from 1 to batch_size ({batch_size}), not {number}")
