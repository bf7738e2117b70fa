"""A trained model's weights in a model of another attention plan."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clip_la.atomic import atomic_write
from clip_la.errors import UserError
from clip_la.models.checkpoint import BLOCK, FORMAT, STATE_DICT
from clip_la.models.clip import CLIP, model_from_spec
from clip_la.models.interop import load_open_clip
from clip_la.models.spec import ModelSpec
from clip_la.train.beginning import LINEAGE, LOGIT_BIAS, Beginning, origin_of, read_beginning
from clip_la.zeroshot.model.load import expand_models

COPY = "copy"
# As the names of weights begin in a checkpoint of training, which holds the model and the numbers of its loss.
_MODEL = "model."


def load_teacher(text: str) -> Beginning:
    """A run (its last checkpoint), a checkpoint of ours, or NAME:FILE, NAME:TAG, hf-hub:ORG/NAME of open_clip.

    Raises UserError where there is no such thing, it is damaged, or it is an architecture that our models lack.
    """
    path = expand_models([text])[0]
    if Path(path).is_file():
        return read_beginning(path)
    if ":" not in path:
        raise UserError(f"no run or checkpoint at {path}; a model of open_clip is NAME:FILE or NAME:TAG")
    model = load_open_clip(path)
    return Beginning(model, None, None, [{"checkpoint": path, **origin_of(model.spec, {})}])


def converted_spec(
    teacher: ModelSpec, attention: str | None, image_attention: str | None, text_attention: str | None
) -> ModelSpec:
    """The teacher's architecture with another attention; a tower that none of the plans is for keeps its own.

    Raises UserError if no plan is given, or one cannot be read or is for another number of layers.
    """
    image, text = image_attention or attention, text_attention or attention
    if image is None and text is None:
        raise UserError(
            "say what to convert to: attention, image_attention or text_attention; `clip-la models --kinds`"
        )
    return teacher.replace(
        image_attention=image or teacher.image_attention, text_attention=text or teacher.text_attention
    )


@dataclass(frozen=True)
class Copy:
    """A model with another's weights.

    Attributes:
        model: the new one.
        fresh: its parameters without a counterpart of the same name and shape, which have their initial values.
        left_out: parameters of the other model that it does not have.
    """

    model: CLIP
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]

    def lines(self) -> list[str]:
        """What was not copied, one line each for a reader; layers of a tower share a line."""
        num_copied = len(self.model.state_dict()) - len(self.fresh)
        lines = [f"copied {num_copied} parameters of {num_copied + len(self.fresh)}"]
        for what, names in (("at initial values", self.fresh), ("of the teacher, left out", self.left_out)):
            layers = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
            lines += [f"{what}: {name}" + (f" ({count} layers)" if count > 1 else "") for name, count in layers.items()]
        return lines


def copy_weights(teacher: CLIP, spec: ModelSpec, seed: int) -> Copy:
    """A model of `spec` with the teacher's weights wherever name and shape agree; the rest is drawn from `seed`."""
    model = model_from_spec(spec, seed)
    own, theirs = model.state_dict(), teacher.state_dict()
    shared = [name for name in own if name in theirs and own[name].shape == theirs[name].shape]
    # own's tensors are the model's: copying into them fills it.
    with torch.no_grad():
        for name in shared:
            own[name].copy_(theirs[name])
    # A name that is there in another shape counts as fresh, and is not reported twice.
    fresh = tuple(name for name in own if name not in shared)
    return Copy(model, fresh, tuple(name for name in theirs if name not in shared and name not in fresh))


def write_copy(path: Path, copy: Copy, teacher: Beginning, seed: int) -> None:
    """A checkpoint of a copy after no training at all; it knows its teacher, and the other number of the loss."""
    weights = {_MODEL + name: tensor for name, tensor in copy.model.state_dict().items()}
    # The sigmoid loss trains a bias beside the model; a tune of the same loss goes on from it.
    if teacher.logit_bias is not None:
        weights[LOGIT_BIAS] = teacher.logit_bias
    block: dict[str, Any] = {"format": FORMAT, "spec": copy.model.spec.to_dict(), "loss": COPY, "samples_seen": 0}
    block |= {"seed": seed, LINEAGE: teacher.lineage}
    with atomic_write(path) as stream:
        torch.save({STATE_DICT: weights, BLOCK: block}, stream)
