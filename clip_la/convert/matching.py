"""Training a student to do what its teacher does: layer by layer (LayerMatching), then features (FeatureMatching).

Both are tasks as the trainer knows them: its loop, exact resuming, metrics and checkpoints serve them too. The layers'
loss is that of LoLCATs (arXiv 2410.10254) and ViT-AdaLA (arXiv 2603.16063), attention outputs on the teacher's own
inputs; the copied weights around them do not move.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from clip_la.convert.options import FEATURES, LAYERS
from clip_la.models.clip import CLIP
from clip_la.models.spec import ModelSpec
from clip_la.train.features import BatchEncoder
from clip_la.train.options import ModelOptions, StepOptions
from clip_la.train.task import ContrastiveTask

TOWERS = ("image", "text")


def changed_layers(teacher: ModelSpec, student: ModelSpec) -> dict[str, list[int]]:
    """Tower -> its layers whose attention differs; all layers of both where none does, as in a control."""
    changed = {}
    for tower in TOWERS:
        pairs = zip(getattr(teacher, f"{tower}_choices"), getattr(student, f"{tower}_choices"), strict=True)
        changed[tower] = [depth for depth, (theirs, ours) in enumerate(pairs) if theirs != ours]
    if not any(changed.values()):
        return {tower: list(range(getattr(student, f"{tower}_layers"))) for tower in TOWERS}
    return {tower: depths for tower, depths in changed.items() if depths}


def unexplained(
    out: Float[Tensor, "batch tokens dim"],
    target: Float[Tensor, "batch tokens dim"],
    read: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, ""]:
    """Mean squared error over the variance of the target, both over the tokens that are `read`: 0 equal, 1 constant."""
    out, target, weight = out.float(), target.float(), read.unsqueeze(-1).float()
    # In float32: autocast would sum the squares of many tokens in bfloat16.
    mean = (target * weight).sum((0, 1)) / weight.sum()
    # Of the batch, not a constant: layers of different widths of output weigh the same in the mean over layers.
    variance = ((target - mean).square() * weight).sum()
    return ((out - target).square() * weight).sum() / variance.clamp_min(torch.finfo(torch.float32).tiny)


class Teacher:
    """A frozen model beside a task: neither trained nor in its checkpoints."""

    def __init__(self, model: CLIP) -> None:
        self.model = model.eval().requires_grad_(False)
        self.encoder = BatchEncoder(model, StepOptions())


class Matching(ContrastiveTask):
    """What both kinds of matching share: a teacher on the same device, only some parameters trained, no chance loss.

    Args:
        options: as for ContrastiveTask; `init_from` is a checkpoint of the student, and `loss` is the teacher's, whose
            numbers are carried along.
        teacher: of the student's widths.
        batch_size, budget_samples, seed: as for ContrastiveTask.
    """

    def __init__(
        self, options: ModelOptions, teacher: CLIP, *, batch_size: int, budget_samples: int, seed: int = 0
    ) -> None:
        super().__init__(options, batch_size=batch_size, budget_samples=budget_samples, seed=seed)
        # In an object that is no module: Lightning would save, move and train what is one.
        self._teacher = Teacher(teacher)
        self._changed = changed_layers(teacher.spec, self.model.spec)
        self._last_parts: dict[str, Tensor] = {}
        # AdamW takes what requires a gradient; with the rest frozen, autograd does not go through it either.
        trained = set(self._to_train())
        for parameter in self.parameters():
            parameter.requires_grad_(parameter in trained)

    def _to_train(self) -> Iterator[nn.Parameter]:
        raise NotImplementedError

    @property
    def chance_loss(self) -> float | None:
        """None: how far from the teacher a model without knowledge is depends on both."""
        return None

    def on_fit_start(self) -> None:
        """As ContrastiveTask.on_fit_start; the teacher comes along to the device."""
        super().on_fit_start()
        self._teacher.model.to(self.device)

    def parts_of_loss(self) -> dict[str, float]:
        """The last step's loss by layer, or by tower."""
        values = torch.stack(list(self._last_parts.values())).tolist()
        return dict(zip(self._last_parts, values, strict=True))

    def _mean(self, parts: dict[str, Tensor]) -> Tensor:
        self._last_parts = {name: part.detach() for name, part in parts.items()}
        return torch.stack(list(parts.values())).mean()


@dataclass
class _Seen:
    """What one attention layer of the teacher was given, and what it made of it."""

    x: Tensor
    out: Tensor
    is_causal: bool


class LayerMatching(Matching):
    """Each changed attention layer of the student learns the teacher's output from the teacher's input to it.

    The loss is the mean over layers of `unexplained`. It counts the tokens that something reads: captions up to their
    end, and of a tower's last layer the pooled token alone. Only the changed attention layers train.
    """

    @property
    def loss_name(self) -> str:
        """layers."""
        return LAYERS

    def _to_train(self) -> Iterator[nn.Parameter]:
        for layer in self._layers(self.model).values():
            yield from layer.parameters()

    def _layers(self, model: CLIP) -> dict[str, nn.Module]:
        """The changed attention layers, by the name of their column: `image_0`, ..., `text_11`."""
        blocks: dict[str, Any] = {"image": model.image.trunk.blocks, "text": model.text.blocks}
        return {
            f"{tower}_{depth}": blocks[tower][depth].attn for tower, depths in self._changed.items() for depth in depths
        }

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        with self._listening() as seen, torch.no_grad():
            if "image" in self._changed:
                self._teacher.encoder.images(batch["image"])
            if "text" in self._changed:
                self._teacher.encoder.texts(batch)
        # Each layer alone, on the teacher's input: errors of the layers before it do not reach it.
        parts = {}
        for name, layer in self._layers(self.model).items():
            one = seen[name]
            out = layer(one.x, is_causal=one.is_causal)
            parts[name] = unexplained(out, one.out, self._read(name, one, batch["tokens"]))
        return self._mean(parts)

    @contextmanager
    def _listening(self) -> Iterator[dict[str, _Seen]]:
        """Collects what passes through the teacher's layers inside the block."""
        seen: dict[str, _Seen] = {}

        def note(name: str, layer: nn.Module, args: tuple[Tensor], options: dict[str, Any], out: Tensor) -> None:
            seen[name] = _Seen(args[0], out, options.get("is_causal", False))

        layers = self._layers(self._teacher.model)
        hooks = [a.register_forward_hook(partial(note, name), with_kwargs=True) for name, a in layers.items()]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def _read(self, name: str, one: _Seen, tokens: Tensor) -> Bool[Tensor, "batch tokens"]:
        """The tokens of a layer's output that the tower uses."""
        tower, depth = name.split("_")
        place = torch.arange(one.x.shape[1], device=one.x.device)
        is_last = int(depth) == getattr(self.model.spec, f"{tower}_layers") - 1
        # The end of text has the largest id; the image tower pools its first token.
        pooled = tokens.argmax(1, keepdim=True) if tower == "text" else place.new_zeros(len(one.x), 1)
        if is_last:
            return place == pooled
        return place <= pooled if tower == "text" else torch.ones_like(one.x[..., 0], dtype=torch.bool)


class FeatureMatching(Matching):
    """The student's features of images and captions approach the teacher's: all weights of the changed towers train.

    The loss is 1 minus the cosine, as half the squared distance of unit features, which is exactly 0 for equal ones;
    the mean over the changed towers.
    """

    @property
    def loss_name(self) -> str:
        """features."""
        return FEATURES

    def _to_train(self) -> Iterator[nn.Parameter]:
        for tower in self._changed:
            yield from getattr(self.model, tower).parameters()

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        parts = {}
        for tower in self._changed:
            with torch.no_grad():
                target = self._features(self._teacher.encoder, tower, batch)
            # Both of length one: half the squared distance is one minus the cosine, without its rounding at one.
            difference = self._features(self._encoder, tower, batch) - target
            parts[tower] = difference.square().sum(-1).mean() / 2
        return self._mean(parts)

    @staticmethod
    def _features(encoder: BatchEncoder, tower: str, batch: Mapping[str, Any]) -> Float[Tensor, "batch dim"]:
        return encoder.images(batch["image"]) if tower == "image" else encoder.texts(batch)
