"""Every option of `clip-la convert`, written once, as those of `clip-la train` are. Without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clip_la.data.options import StreamOptions
from clip_la.errors import UserError
from clip_la.train.options import Compile, HardwareOptions, check_seed

StageName = Literal["layers", "features", "tune"]
STAGES: tuple[StageName, ...] = ("layers", "features", "tune")
LAYERS, FEATURES, TUNE = STAGES
# The most samples in a step of a stage that matches, unless it has a number of its own.
MATCHING_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How one stage trains."""

    samples: int | None = None
    """to see, counting repetitions; null: 2, 8 and 2 % of the teacher's own for layers, features and tune"""
    lr: float
    """peak learning rate of a cosine with a short warm-up"""
    weight_decay: float = 0.0
    """of AdamW; a teacher keeps weights in bounds better"""
    batch_size: int | None = None
    """samples in a step; null: data.batch_size, of layers and features at most 64: matching needs no negatives, and
    small batches learn more from as many samples"""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(HardwareOptions):
    """options of the conversion"""

    out: str
    """the folder; each stage is a run in it, beside `copied`, the model before any training"""
    attention: str | None = None
    """kind of both towers, or a plan of their layers; softmax for the control"""
    image_attention: str | None = None
    """of the image tower, if not `attention`; the teacher's if neither is given"""
    text_attention: str | None = None
    """of the text tower, if not `attention`; the teacher's if neither is given"""
    stages: Sequence[StageName] = (LAYERS, FEATURES)
    """which to do, of layers (attention outputs), features, tune (contrastive), always in this order"""
    layers: Stage = Stage(lr=3e-3)
    """stage layers: every changed attention layer learns the teacher's output from the teacher's input to it"""
    features: Stage = Stage(lr=5e-4)
    """stage features: the changed towers learn the teacher's features"""
    # Of an annealed model: a fifth of its peak rate undoes more than so few steps teach (results/LOG.md).
    tune: Stage = Stage(lr=1e-5, weight_decay=0.2)
    """stage tune, if asked for: the trainer as ever, `clip-la train --model.init_from CHECKPOINT`"""
    compile: Compile = "auto"
    """as model.compile of `clip-la train`, with CUDA graphs on a GPU; layers alone records graphs and compiles nothing;
    auto does neither in the features of a control, which would differ from the teacher's by their roundings; a stage
    writes what was chosen into its config.yaml, and keeps it"""
    seed: int = 0
    """of what is not copied, and of the order of the data, which is another in each stage"""
    log_every_samples: int | None = None
    """samples a row of metrics.csv; null: twenty rows a stage"""
    save_every_samples: int | None = None
    """distance of checkpoints for resuming, of which only the newest is kept; null: ten a stage"""
    zeroshot_suite: str | None = None
    """YAML file as for `clip-la eval --config`, evaluated on at the end of each stage"""
    data: StreamOptions
    """options of the data; the tokenizer is the model's, whatever they say"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        if self.strategy == "fsdp":
            raise UserError("strategy 'fsdp': a conversion keeps its models whole in each process; leave it out")
        if not self.stages or len(set(self.stages)) != len(self.stages):
            raise UserError(f"stages {list(self.stages)}: name each that is wanted once, of {', '.join(STAGES)}")
