"""ContrastiveTask: the model, its loss and its optimiser as one LightningModule."""

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from clip_la.distributed import world_size
from clip_la.errors import UserError
from clip_la.losses import chance_loss, contrastive_loss, sigmoid_loss
from clip_la.models.flops import num_image_patches
from clip_la.runs import EMA
from clip_la.train.averaging import WeightAverage
from clip_la.train.beginning import begin
from clip_la.train.features import BatchEncoder
from clip_la.train.float8 import check_float8, use_float8
from clip_la.train.optim import clip_gradients, schedule_of
from clip_la.train.optimizers import make_optimizer
from clip_la.train.options import ModelOptions
from clip_la.train.patches import check_patch_dropout, draw_kept
from clip_la.train.sharded import ShardedStrategy, whole
from clip_la.train.tower_reduction import begin_as_the_first, ignore_in_ddp

# SigLIP's starting points (arXiv 2303.15343, Sec. 3.2): scale and bias of the logits.
SIGMOID_INIT_SCALE = 10.0
SIGMOID_INIT_BIAS = -10.0


class ContrastiveTask(pl.LightningModule):
    """Trains the two towers of a preset against each other.

    Args:
        options: architecture, loss, optimiser and form of the step, as under `model.` on the command line.
        batch_size: pairs in the batch of all processes together.
        budget_samples: samples the run will see; rounded up to whole batches.
        seed: of the initial weights.

    Attributes:
        average: of the weights, if there is one.
        first_sample: position in the run of this process's first sample in the running step.
        lineage: trainings whose weights the run began with, as in Beginning; empty for fresh ones.

    Raises UserError for values that do not fit, unknown models and unknown attention kinds.
    """

    def __init__(self, options: ModelOptions, *, batch_size: int, budget_samples: int, seed: int = 0) -> None:
        super().__init__()
        self.schedule = schedule_of(options, batch_size=batch_size, budget_samples=budget_samples)
        self.options, self.seed = options, seed
        self.batch_size = batch_size
        self.budget_samples = self.schedule.budget_samples
        beginning = begin(options, seed)
        self.model, self.lineage = beginning.model, beginning.lineage
        self._set_up_loss(options.loss, beginning.logit_bias)
        if options.patch_dropout:
            check_patch_dropout(self.model)
        self.first_sample = 0
        self.model.set_grad_checkpointing(options.grad_checkpointing)
        self.model.set_narrow_residual(options.narrow_residual)
        if options.freeze:
            getattr(self.model, options.freeze).requires_grad_(False)
        self.average = WeightAverage(options.ema_samples, batch_size) if options.ema_samples else None
        if options.float8:
            use_float8(self.model)
        # Last: it compiles the towers in place, as they are then.
        self._encoder = BatchEncoder(self.model, options)
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
        # The images last: their backward pass comes first then, and their gradients travel during that of the texts.
        text_features = self._encoder.texts(batch)
        image_features = self._encoder.images(batch["image"], self._kept_patches(batch["image"]))
        scale = self.model.logit_scale.exp()
        caption_ids = None if self.options.repeated_captions_are_negatives else batch["caption_id"]
        if self.logit_bias is None:
            return contrastive_loss(image_features, text_features, scale, caption_ids)
        return sigmoid_loss(image_features, text_features, scale, self.logit_bias, caption_ids)

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Notes where in the run the step is: a process has its rows of the batch, which follow those before it."""
        self.first_sample = self.samples_seen + self.global_rank * len(batch["image"])

    def _kept_patches(self, images: Tensor) -> Tensor | None:
        """Int64[batch, kept], what patch dropout leaves of each image; None without it."""
        if not self.options.patch_dropout:
            return None
        num_patches, num_kept = (num_image_patches(self.model.spec, p) for p in (0.0, self.options.patch_dropout))
        return draw_kept(self.seed, self.first_sample, len(images), num_patches, num_kept, images.device)

    def parts_of_loss(self) -> dict[str, float]:
        """Further columns of metrics.csv: what the last step's loss was made of, by name; nothing here."""
        return {}

    def new_shapes(self, batch: Mapping[str, Any]) -> list[int]:
        """Lengths of captions in this batch that the step will be compiled for."""
        return self._encoder.new_shapes(batch)

    def configure_model(self) -> None:
        """Divides the weights among the processes, where the run's strategy does so; before the optimiser is made."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.shard(self, self.model)

    def average_towers(self, wrapped: nn.Module, dtype: torch.dtype | None) -> None:
        """Has recorded towers average their gradients over the processes, and DDP ignore their weights.

        All processes call this, just before DDP: with the weights on their device, and loaded if they are to be. It
        changes nothing where there is one process or no tower is recorded.

        Args:
            wrapped: what DDP is about to wrap: the task, or a module around it.
            dtype: what gradients are sent in; None: as they are.

        Raises UserError where not all processes record the same weights.
        """
        if world_size() == 1:
            return
        weights = self._encoder.recorded_weights()
        # DDP takes no module of which it has nothing to average: it keeps the towers where no scale trains beside them.
        # Such are the tasks that match a teacher, one of which has gradients that come from no recording.
        if not {p for p in self.parameters() if p.requires_grad} - set(weights.values()):
            weights = {}
        begin_as_the_first(weights)
        if weights:
            ignore_in_ddp(wrapped, weights.values())
            self._encoder.average_gradients(dtype)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # The bias of the sigmoid loss is a scalar of the loss, like the logit scale.
        undecayed = {f"model.{name}" for name in self.model.no_weight_decay()} | {"logit_bias"}
        return make_optimizer(self.named_parameters(), self.options, undecayed=undecayed)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        self.grad_norm = whole(clip_gradients(self._trained, self.options.max_grad_norm))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """One step at the learning rate of the batch's middle sample, then the bound on the logit scale."""
        for group in optimizer.param_groups:
            group["lr"] = self.schedule.lr(self.samples_seen + self.batch_size / 2) * group["lr_scale"]
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # As CLIP does: a scale without bound makes training unstable (arXiv 2103.00020, Sec. 2.5).
        with torch.no_grad():
            self.model.logit_scale.clamp_(0.0, math.log(self.options.max_logit_scale))
        if self.average is not None:
            self.average.update()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.average is not None:
            checkpoint[EMA] = self.average.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Where the checkpoint has no average, it begins with the next step."""
        if self.average is not None and EMA in checkpoint:
            self.average.load_state_dict(checkpoint[EMA])

    def on_train_start(self) -> None:
        """A run that goes on takes its optimiser's moments from its checkpoint, but its settings from its options."""
        if self.average is not None:
            self.average.start(self.named_parameters())
        # Listed once: walking through all modules takes the host a millisecond a step.
        self._trained = list(self.parameters())
        restored, wanted = self.trainer.optimizers[0], self.configure_optimizers()
        for group, own in zip(restored.param_groups, wanted.param_groups, strict=True):
            group.update({name: value for name, value in own.items() if name != "params"})

    def release(self) -> None:
        """Gives back what a step keeps on the device besides weights; the next step makes it anew."""
        self._encoder.release()

    def check_hardware(self, accelerator: str, strategy: object) -> None:
        """Raises UserError where the task wants a GPU and the run has none, or one that cannot do what it wants; and
        for what divided weights cannot do."""
        if self.options.cuda_graphs and accelerator != "gpu":
            raise UserError("model.cuda_graphs needs a GPU, and this run is on the CPU; leave it out")
        if self.options.float8:
            check_float8(accelerator)
        if not isinstance(strategy, ShardedStrategy):
            return
        # Graphs read weights where they were, and divided ones come and go.
        self._encoder.leave_out_graphs()
        untried = {
            "model.cuda_graphs": self.options.cuda_graphs,
            "model.ema_samples": self.options.ema_samples,
            "model.optimizer muon": self.options.optimizer == "muon",
            "model.float8": self.options.float8,
        }
        for name, wanted in untried.items():
            if wanted:
                raise UserError(f"strategy fsdp and {name} exclude each other: leave one out")

    def on_fit_start(self) -> None:
        """Refuses what would change the loss without a word."""
        if self.trainer.accumulate_grad_batches != 1:
            raise UserError(
                "gradient accumulation changes the loss (fewer negatives); use micro_batches, which does not"
            )
