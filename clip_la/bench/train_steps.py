"""What `bench train` times: our training task and open_clip's model, a step of each, and the batches for both."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo.config
from torch import Tensor, nn

from clip_la.data.text.tokenizer import order_of
from clip_la.distributed import rank, world_size
from clip_la.models.registry import model_spec
from clip_la.models.spec import MLP_RATIO, ModelSpec
from clip_la.train.optim import clip_gradients
from clip_la.train.options import Checkpointing, ModelOptions, Reduction
from clip_la.train.task import ContrastiveTask

PEER = "open_clip"
# Token lengths of web captions, roughly: half of them at most 15, in a batch of 256 one or the other reaches 77.
LAION_MEDIAN, LAION_SPREAD, SHORTEST = 15, 0.55, 3
END_OF_TEXT = 49407


@dataclass(frozen=True)
class StepCase:
    """What is timed: a provider (ours by its mode, or the peer), a model, and how its batches look."""

    provider: str
    model: str
    attention: str
    image_size: int
    text: str
    batch_size: int
    text_groups: int
    micro_batches: int
    checkpointing: Checkpointing
    narrow_residual: bool = False
    patch_dropout: float = 0.0
    reduction: Reduction = "float32"

    @property
    def spec(self) -> ModelSpec:
        """The architecture; raises UserError for an unknown model or attention."""
        return model_spec(self.model, attention=self.attention, image_size=self.image_size)

    def __str__(self) -> str:
        gpus = f" x {world_size()}" if world_size() > 1 else ""
        what = f"{self.model} {self.image_size} px, text {self.text}, b{self.batch_size}{gpus}"
        what += f", patch dropout {self.patch_dropout:g}" if self.patch_dropout else ""
        if self.provider == PEER:
            return f"{what}: {PEER}"
        parts = f", {self.micro_batches} parts" if self.micro_batches > 1 else ""
        parts += f", gradients sent in {self.reduction}" if world_size() > 1 else ""
        return f"{what}: {self.attention}, {self.provider}, groups {self.text_groups}{parts}"


def caption_lengths(text: str, count: int, context_length: int, seed: int) -> Tensor:
    """Tokens of `count` captions: "full" (all as long as can be), "laion", or all of one length given as a number."""
    if text == "full":
        return torch.full((count,), context_length)
    if text != "laion":
        return torch.full((count,), min(int(text), context_length))
    normal = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return (math.log(LAION_MEDIAN) + LAION_SPREAD * normal).exp().round().long().clamp(SHORTEST, context_length)


def make_batch(spec: ModelSpec, case: StepCase, seed: int, device: torch.device) -> dict[str, Any]:
    """A batch as a run's loader makes it, of noise."""
    generator = torch.Generator().manual_seed(seed)
    lengths = caption_lengths(case.text, case.batch_size, spec.context_length, seed)
    tokens = torch.randint(1, END_OF_TEXT, (case.batch_size, int(lengths.max())), generator=generator)
    places = torch.arange(tokens.shape[1])
    tokens = torch.where(places == lengths[:, None] - 1, END_OF_TEXT, tokens)
    tokens = tokens.masked_fill_(places >= lengths[:, None], 0)
    size = (case.batch_size, 3, spec.image_size, spec.image_size)
    batch = {
        "image": torch.randint(0, 256, size, dtype=torch.uint8, generator=generator),
        "tokens": tokens,
        "caption_id": torch.arange(case.batch_size) + seed * case.batch_size,
        **order_of(tokens),
    }
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


class OurStep(nn.Module):
    """The training task, to be called with a batch; DDP wants a module."""

    def __init__(self, case: StepCase) -> None:
        super().__init__()
        options = ModelOptions(
            name=case.model,
            attention=case.attention,
            image_size=case.image_size,
            compile=case.provider != "eager",
            compile_unit="tower" if case.provider.startswith("tower") else "block",
            cuda_graphs=case.provider.endswith("graphs"),
            text_groups=case.text_groups,
            micro_batches=case.micro_batches,
            grad_checkpointing=case.checkpointing,
            narrow_residual=case.narrow_residual,
            patch_dropout=case.patch_dropout,
        )
        num_pairs = case.batch_size * world_size()
        self.task = ContrastiveTask(options, batch_size=num_pairs, budget_samples=num_pairs)
        self.logit_scale = self.task.model.logit_scale

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """The loss."""
        return self.task.training_step(batch, 0)

    def optimizer(self) -> torch.optim.Optimizer:
        """As in a run."""
        return self.task.configure_optimizers()


class PeerStep(nn.Module):
    """open_clip's model of the same architecture and its loss, as its training script runs them."""

    def __init__(self, case: StepCase) -> None:
        super().__init__()
        import open_clip

        self.model = peer_model(case.spec, case.patch_dropout)
        self.logit_scale = self.model.logit_scale
        # All or nothing there.
        self.model.set_grad_checkpointing(bool(case.checkpointing))
        self._loss = open_clip.ClipLoss(
            local_loss=True, gather_with_grad=True, cache_labels=True, rank=rank(), world_size=world_size()
        )
        # The compiler's own setting, which ours changes.
        torch._dynamo.config.optimize_ddp = True
        self.model.compile()

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """The loss; the batch's images are normalised, as open_clip's loader gives them."""
        return self._loss(*self.model(batch["pixels"], batch["tokens"]))

    def optimizer(self) -> torch.optim.Optimizer:
        """open_clip's groups and settings."""
        named = list(self.named_parameters())
        spared = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
        seen = {id(p) for p in spared}
        groups = [
            {"params": spared, "weight_decay": 0.0},
            {"params": [p for _, p in named if id(p) not in seen], "weight_decay": 0.2},
        ]
        return torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)


def peer_model(spec: ModelSpec, patch_dropout: float = 0.0) -> Any:
    """open_clip's CLIP with the sizes of a spec; it has softmax attention whatever the spec's is."""
    from open_clip.model import CLIP

    return CLIP(
        spec.embed_dim,
        vision_cfg={
            "layers": spec.image_layers,
            "width": spec.image_width,
            "head_width": spec.image_width // spec.image_heads,
            "mlp_ratio": MLP_RATIO,
            "patch_size": spec.patch_size,
            "image_size": spec.image_size,
            "patch_dropout": patch_dropout,
        },
        text_cfg={
            "context_length": spec.context_length,
            "vocab_size": spec.vocab_size,
            "width": spec.text_width,
            "heads": spec.text_heads,
            "layers": spec.text_layers,
        },
        quick_gelu=spec.activation == "quick_gelu",
    )


def peer_batch(batch: dict[str, Any], context_length: int) -> dict[str, Any]:
    """The batch as open_clip's loader gives it: float pixels, captions padded to the context."""
    missing = context_length - batch["tokens"].shape[1]
    return {
        "pixels": batch["image"].float().div_(127.5).sub_(1),
        "tokens": nn.functional.pad(batch["tokens"], (0, missing)),
    }


def train_step(
    model: Callable[[dict[str, Any]], Tensor],
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Any],
    dtype: torch.dtype,
    logit_scale: Tensor,
) -> Tensor:
    """One step; the loss, on the device."""
    kind = logit_scale.device.type
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(kind, dtype) if dtype != torch.float32 else contextlib.nullcontext():
        loss = model(batch)
    loss.backward()
    clip_gradients((p for group in optimizer.param_groups for p in group["params"]), 1.0)
    optimizer.step()
    with torch.no_grad():
        logit_scale.clamp_(0.0, math.log(100.0))
    return loss.detach()
