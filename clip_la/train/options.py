"""Every option of `clip-la train`, written once: its name, type, default, help (the text below it) and check.

The classes are plain: no torch, so that `--help` answers at once. `clip_la.train.cli` makes the parser from
TrainOptions, and what each class configures takes the object itself: `ContrastiveTask(ModelOptions(name="vit_b16"),
...)`. To add an option, add a field with a text below it, and read it where it acts.
"""

import math
from dataclasses import dataclass
from typing import Literal

from clip_la.data.options import StreamOptions
from clip_la.errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]
Accelerator = Literal["auto", "gpu", "cpu"]
Reduction = Literal["float32", "bfloat16"]
Loss = Literal["contrastive", "sigmoid"]
ScheduleName = Literal["cosine", "constant", "cooldown"]
Unit = Literal["block", "tower"]
OptimizerName = Literal["adamw", "muon"]
Compile = bool | Literal["auto"]
Checkpointing = bool | Literal["selective"]
Tower = Literal["image", "text"]
Strategy = Literal["ddp", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The end of the chain of checks: each class below checks its own fields and hands on to the next.

    A dataclass, though it has no fields: jsonargparse makes groups of options only of classes that are dataclasses
    throughout.
    """

    def __post_init__(self) -> None:
        """Raises UserError for a value that cannot be."""


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that numpy's generator, which libraries still read, does not take."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be from 0 to {2**32 - 1}, not {seed}")


@dataclass(frozen=True, kw_only=True)
class StartOptions(Checked):
    """The architecture, and the weights a run begins with."""

    name: str
    """preset, one of `clip-la models`"""
    attention: str = "softmax"
    """kind of both towers, or a pattern over the layers such as linear*11+softmax"""
    image_attention: str | None = None
    """kind or pattern of the image tower, if not `attention`"""
    text_attention: str | None = None
    """kind or pattern of the text tower, if not `attention`"""
    image_size: int | None = None
    """side of the square images in pixels, if not the preset's"""
    patch_size: int | None = None
    """side of a patch in pixels, if not the preset's"""
    context_length: int | None = None
    """most tokens of a caption, if not the preset's"""
    init_from: str | None = None
    """checkpoint whose weights a new run begins with instead of fresh ones; the options above must say the same
    architecture, and `name` what the checkpoint calls its model; at another image_size the position embeddings are
    interpolated"""


@dataclass(frozen=True, kw_only=True)
class LossOptions(Checked):
    """What the features of a batch are computed from, and compared by."""

    loss: Loss = "contrastive"
    """contrastive (CLIP) or sigmoid (SigLIP)"""
    repeated_captions_are_negatives: bool = False
    """whether equal captions in a batch push each other's images away"""
    max_logit_scale: float = 100.0
    """upper bound of the learnt factor on the cosines"""
    patch_dropout: float = 0.0
    """share of an image's patches that a training step leaves out, drawn anew each time (FLIP); evaluation sees all"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.max_logit_scale < math.inf:
            raise UserError(f"max_logit_scale must be at least 1 and finite, not {self.max_logit_scale}")
        if not 0 <= self.patch_dropout < 1:
            raise UserError(f"patch_dropout must be from 0 (none) to below 1, not {self.patch_dropout}")


@dataclass(frozen=True, kw_only=True)
class OptimOptions(Checked):
    """What trains, by which optimiser, at what rate; whether a schedule fits a budget is checked by optim.Schedule."""

    optimizer: OptimizerName = "adamw"
    """adamw, or muon for the matrices inside the blocks and adamw for everything else"""
    lr: float = 5e-4
    """peak learning rate"""
    muon_lr: float | None = None
    """peak learning rate of what muon trains, whose steps are scaled to the size of AdamW's; null: lr"""
    layer_decay: float = 1.0
    """factor on the learning rate from each layer to the one before it, in both towers; the projections have all of it,
    the embeddings least"""
    freeze: Tower | None = None
    """tower that keeps the weights of init_from: image is locked-image tuning"""
    ema_samples: int | None = None
    """also average the weights, those of so many samples ago counting half; the average is saved and evaluated beside
    the weights themselves; null: no average"""
    weight_decay: float = 0.2
    """of either optimiser; gains, biases and scales are spared"""
    beta1: float = 0.9
    """of AdamW"""
    beta2: float = 0.98
    """of AdamW"""
    eps: float = 1e-6
    """of AdamW"""
    schedule: ScheduleName = "cosine"
    """cosine, constant, or cooldown (constant, then down to zero over the last cooldown_samples)"""
    warmup_samples: int = 0
    """samples over which the learning rate rises to its peak"""
    cooldown_samples: int = 0
    """samples over which it falls at the end of schedule cooldown"""
    max_grad_norm: float | None = 1.0
    """gradients longer than this are scaled down to it; null leaves them"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be from 0 to below 1, not {getattr(self, name)}")
        if not self.eps > 0:
            raise UserError(f"eps must be positive, not {self.eps}")
        if not self.weight_decay >= 0:
            raise UserError(f"weight_decay must not be negative, not {self.weight_decay}")
        if self.muon_lr is not None and self.optimizer != "muon":
            raise UserError(f"muon_lr is for optimizer muon, not for {self.optimizer}")
        if self.muon_lr is not None and not 0 < self.muon_lr < math.inf:
            raise UserError(f"muon_lr must be positive and finite, not {self.muon_lr}")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay must be above 0 and at most 1 (all layers alike), not {self.layer_decay}")
        if self.ema_samples is not None and self.ema_samples < 1:
            raise UserError(f"ema_samples must be at least 1, or null for no average, not {self.ema_samples}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise UserError(f"max_grad_norm must be positive, or null for no limit, not {self.max_grad_norm}")


@dataclass(frozen=True, kw_only=True)
class StepOptions(Checked):
    """How a step is computed: the same loss and gradients, for other times and memory."""

    compile: Compile = "auto"
    """compile both towers with torch.compile, and pad captions to a few lengths; auto: on a GPU with Triton, where a
    small model trains several times as fast for it; a run writes what was chosen into its config.yaml, and keeps it"""
    compile_unit: Unit = "block"
    """what one graph holds: a block, which all blocks of a tower share, or a whole tower, which takes minutes to
    compile and runs a little faster"""
    cuda_graphs: bool | None = None
    """compile, and record each tower's passes as CUDA graphs, whose kernels the processor need not launch one by one;
    null: whenever towers are compiled on a GPU, unless activations are recomputed or weights divided"""
    text_groups: int = 1
    """sort the captions of a batch by length and encode them in so many groups, each padded only to its own longest;
    the same features for less work where lengths differ"""
    micro_batches: int = 1
    """parts of a process's batch that are encoded one after another, each twice: memory holds the activations of one
    part, for a third more compute; loss and gradient are those of the whole batch"""
    grad_checkpointing: Checkpointing = False
    """recompute activations in the backward pass: true keeps the blocks' inputs alone, for a third more compute;
    selective keeps the results of products and attention too, and recomputes the cheap rest"""
    narrow_residual: bool = False
    """add up the blocks' results in bfloat16 under mixed precision, as open_clip does: less memory and time, for
    the low bits of small additions"""

    float8: bool = False
    """multiply in float8 inside the blocks, through torchao, on Ada, Hopper and later: for large models; rounds more
    than bfloat16 does"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cuda_graphs and self.grad_checkpointing is True:
            raise UserError(
                "cuda_graphs and grad_checkpointing true exclude each other: leave one out, or take selective"
            )


@dataclass(frozen=True, kw_only=True)
class ModelOptions(StepOptions, OptimOptions, LossOptions, StartOptions):
    """All options under `model.`: what ContrastiveTask is made from. Raises UserError for values that cannot be."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze and self.init_from is None:
            raise UserError(f"freeze {self.freeze}: that tower would keep random weights; give trained ones: init_from")


@dataclass(frozen=True, kw_only=True)
class FolderOptions(Checked):
    """A run's folder, where the run begins, and when it logs, saves and evaluates, in samples seen."""

    out: str
    """the run's folder; holds config.yaml, metrics.csv, tensorboard/ and checkpoints/"""
    resume: bool = False
    """go on from the newest whole checkpoint in `out`; without one, start from the beginning"""
    branch_from: str | None = None
    """checkpoint of a run of schedule constant to go on from, into this other folder: weights, optimiser and place in
    the data are taken over, so one constant run gives cooled-down models for many budgets"""
    checkpoint_samples: tuple[int, ...] = ()
    """numbers of samples seen whose checkpoints are kept, besides the last; rounded up to batches"""
    save_every_samples: int | None = None
    """distance of further checkpoints for resuming, of which only the newest is kept"""
    log_every_samples: int | None = None
    """samples a row of metrics.csv; null: 50 batches"""
    seed: int = 0
    """of the initial weights, the order of the data and its augmentation"""
    tensorboard: bool = True
    """also write event files, if TensorBoard is installed"""
    wandb: str | None = None
    """project of Weights & Biases that gets the figures as well (pip install 'clip_la[wandb]')"""
    zeroshot_suite: str | None = None
    """YAML file as for `clip-la eval --config`, evaluated on while training by all processes together, at the end of
    the budget and at `zeroshot_samples`; results are appended to RUN/results.jsonl"""
    zeroshot_samples: tuple[int, ...] = ()
    """numbers of samples seen to evaluate at; rounded up to batches"""
    validate_on: str | None = None
    """held-out shards, or a folder of them: contrastive loss (in batches of 256) and retrieval on all their pairs, at
    the end of the budget and every `validate_every_samples`, into RUN/results.jsonl; val_loss and val_recall (at 1,
    mean of both directions) are curves of TensorBoard and W&B"""
    validate_every_samples: int | None = None
    """distance of the validations; rounded up to batches"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        for name in ("save_every_samples", "log_every_samples", "validate_every_samples"):
            samples = getattr(self, name)
            if samples is not None and samples < 1:
                raise UserError(f"{name} must be at least 1, not {samples}")
        for name in ("checkpoint_samples", "zeroshot_samples"):
            wrong = [samples for samples in getattr(self, name) if samples < 1]
            if wrong:
                raise UserError(f"{name} must be at least 1, not {wrong[0]}")
        if self.zeroshot_samples and self.zeroshot_suite is None:
            raise UserError("zeroshot_samples says when to evaluate; say on what: zeroshot_suite (see configs/eval)")
        if self.validate_every_samples and self.validate_on is None:
            raise UserError("validate_every_samples says when to validate; say on what shards: validate_on")

    def check_within(self, budget_samples: int) -> None:
        """Raises UserError for a number of samples seen that a run of this budget does not reach."""
        if self.branch_from is not None:
            return  # its options are those of a longer run, but for the budget
        for name in ("checkpoint_samples", "zeroshot_samples"):
            beyond = [samples for samples in getattr(self, name) if samples > budget_samples]
            if beyond:
                raise UserError(f"{name} {beyond[0]:,} lies beyond the budget of {budget_samples:,} samples")


@dataclass(frozen=True, kw_only=True)
class HardwareOptions(Checked):
    """What a run is given to run on."""

    precision: Precision = "auto"
    """auto is bfloat16 where a GPU has it in hardware, else float32"""
    accelerator: Accelerator = "auto"
    """auto is a GPU where there is one"""
    devices: int | None = None
    """processes on this machine; null: as many as torchrun or SLURM started here, else 1"""
    strategy: Strategy = "ddp"
    """of several processes: ddp gives each the whole model; fsdp (FSDP2) divides weights, gradients and moments among
    them, for models that do not fit, and excludes CUDA graphs; checkpoints are the same"""
    reduction: Reduction = "float32"
    """what gradients are sent in when processes average them; bfloat16 halves what is sent"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.devices is not None and self.devices < 1:
            raise UserError(f"devices must be at least 1, not {self.devices}")


@dataclass(frozen=True, kw_only=True)
class RunOptions(HardwareOptions, FolderOptions):
    """Everything about a run but its model and its data."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """options of the run"""

    budget_samples: int
    """samples to see, counting repetitions"""
    model: ModelOptions
    """options of the model, its loss and its optimiser"""
    data: StreamOptions
    """options of the data"""
