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
from clip_la.train.graphed import GraphedTower, Part
from clip_la.train.lengths import pad_captions, padded_length
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
    """A frozen model beside a task: neither trained nor in its checkpoints.

    Args:
        model: on any device; frozen here.
        options: how its features are computed; the towers are compiled in place.
    """

    def __init__(self, model: CLIP, options: StepOptions) -> None:
        self.model = model.eval().requires_grad_(False)
        self.encoder = BatchEncoder(model, options)


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
        self._teacher = Teacher(teacher, self._teachers_options())
        self._changed = changed_layers(teacher.spec, self.model.spec)
        self._last_parts: dict[str, Tensor] = {}
        # AdamW takes what requires a gradient; with the rest frozen, autograd does not go through it either.
        trained = set(self._to_train())
        for parameter in self.parameters():
            parameter.requires_grad_(parameter in trained)

    def _to_train(self) -> Iterator[nn.Parameter]:
        raise NotImplementedError

    def _teachers_options(self) -> StepOptions:
        """As the student's: what is compiled or recorded for it is for its teacher too."""
        return StepOptions(compile=self.options.compile, cuda_graphs=self.options.cuda_graphs)

    def release(self) -> None:
        """As ContrastiveTask.release, of the teacher too."""
        super().release()
        self._teacher.encoder.release()

    @property
    def chance_loss(self) -> float | None:
        """None: how far from the teacher a model without knowledge is depends on both."""
        return None

    def on_fit_start(self) -> None:
        """As ContrastiveTask.on_fit_start; the teacher comes along to the device."""
        super().on_fit_start()
        self._teacher.model.to(self.device)

    def on_fit_end(self) -> None:
        """The teacher leaves the device, as the student does: the stage after this one may need the room."""
        self._teacher.model.cpu()

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

    Where other tasks record (`options.compile` true, unless `cuda_graphs` says otherwise), a GPU records both passes of
    a tower as CUDA graphs, kernel by kernel as they are: hundreds of small layers are otherwise asked for one by one,
    and the host is what a step waits for. Compiled blocks could not be listened to.
    """

    def __init__(
        self, options: ModelOptions, teacher: CLIP, *, batch_size: int, budget_samples: int, seed: int = 0
    ) -> None:
        super().__init__(options, teacher, batch_size=batch_size, budget_samples=budget_samples, seed=seed)
        layers = {tower: nn.ModuleList(self._layers(self.model, tower)) for tower in self._changed}
        # In a dict, hence no modules of the task: their weights are the model's.
        graphs = options.compile is True if options.cuda_graphs is None else options.cuda_graphs
        self._graphed = {tower: GraphedTower(module) for tower, module in layers.items()} if graphs else {}

    @property
    def loss_name(self) -> str:
        """layers."""
        return LAYERS

    def _teachers_options(self) -> StepOptions:
        return StepOptions(compile=False)

    def release(self) -> None:
        """As Matching.release, of the recorded layers too."""
        super().release()
        for graphed in self._graphed.values():
            graphed.release()

    def _to_train(self) -> Iterator[nn.Parameter]:
        for tower in self._changed:
            for layer in self._layers(self.model, tower):
                yield from layer.parameters()

    def _layers(self, model: CLIP, tower: str) -> list[nn.Module]:
        """The attention layers of a tower that are changed in the student, first to last."""
        blocks: Any = model.image.trunk.blocks if tower == "image" else model.text.blocks
        return [blocks[depth].attn for depth in self._changed[tower]]

    def _records(self, tower: str, batch: Mapping[str, Any]) -> bool:
        return tower in self._graphed and batch["tokens"].device.type == GraphedTower.device_type

    def new_shapes(self, batch: Mapping[str, Any]) -> list[int]:
        """As ContrastiveTask.new_shapes, where captions are recorded: nothing is compiled here."""
        return super().new_shapes(batch) if self._records("text", batch) else []

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        parts: dict[str, Tensor] = {}
        for tower, depths in self._changed.items():
            given = batch["image"] if tower == "image" else batch["tokens"]
            if self._records(tower, batch):
                if tower == "text":
                    # Few lengths, hence few recordings; `unexplained` counts no token behind a caption's end.
                    given = pad_captions(given, padded_length(given.shape[1], self.model.spec.context_length))
                errors = self._graphed[tower](Part((), partial(self._errors, tower), (given,)))
            else:
                errors = self._errors(tower, given)
            # A layer's column in metrics.csv: image_0, ..., text_11.
            parts |= {f"{tower}_{depth}": error for depth, error in zip(depths, errors.unbind(), strict=True)}
        return self._mean(parts)

    def _errors(self, tower: str, given: Tensor) -> Float[Tensor, " layers"]:
        """What each changed layer of a tower leaves unexplained, for a batch's images or tokens."""
        with self._listening(tower) as seen, torch.no_grad():
            encoder = self._teacher.encoder
            _ = encoder.images(given) if tower == "image" else encoder.texts({"tokens": given})
        place = torch.arange(seen[0].x.shape[1], device=given.device)
        if tower == "text":
            # The end of text has the largest id.
            pooled = given.argmax(1, keepdim=True)
            read = place <= pooled
        else:
            pooled = place.new_zeros(len(given), 1)
            read = torch.ones(len(given), len(place), dtype=torch.bool, device=given.device)
        last = getattr(self.model.spec, f"{tower}_layers") - 1
        errors = []
        # Each layer alone, on the teacher's input: errors of the layers before it do not reach it.
        for depth, layer, one in zip(self._changed[tower], self._layers(self.model, tower), seen, strict=True):
            out = layer(one.x, is_causal=one.is_causal)
            errors.append(unexplained(out, one.out, place == pooled if depth == last else read))
        return torch.stack(errors)

    @contextmanager
    def _listening(self, tower: str) -> Iterator[list[_Seen]]:
        """Collects what passes through the teacher's layers inside the block, first to last."""
        seen: list[_Seen] = []

        def note(layer: nn.Module, args: tuple[Tensor], options: dict[str, Any], out: Tensor) -> None:
            seen.append(_Seen(args[0], out, options.get("is_causal", False)))

        layers = self._layers(self._teacher.model, tower)
        hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()


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
            # No weight of the teacher's asks for a gradient. Under no_grad a tower would not be recorded.
            target = self._features(self._teacher.encoder, tower, batch)
            # Both of length one: half the squared distance is one minus the cosine, without its rounding at one.
            difference = self._features(self._encoder, tower, batch) - target
            parts[tower] = difference.square().sum(-1).mean() / 2
        return self._mean(parts)

    @staticmethod
    def _features(encoder: BatchEncoder, tower: str, batch: Mapping[str, Any]) -> Float[Tensor, "batch dim"]:
        return encoder.images(batch["image"]) if tower == "image" else encoder.texts(batch)
