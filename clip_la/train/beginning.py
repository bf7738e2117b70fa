"""Runs that begin with weights that were trained before, instead of fresh ones."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from clip_la.errors import UserError
from clip_la.models.checkpoint import STATE_DICT, model_of, read_torch_file
from clip_la.models.clip import CLIP
from clip_la.models.registry import create_model
from clip_la.models.resize import at_image_size, describe_resize
from clip_la.models.spec import ModelSpec
from clip_la.train.hardware import is_first_process
from clip_la.train.options import StartOptions

LOGIT_BIAS = "logit_bias"
LINEAGE = "lineage"


@dataclass(frozen=True)
class Beginning:
    """Weights to begin with, float32 on the CPU.

    Attributes:
        model: the two towers.
        logit_bias: the other number that the sigmoid loss trains; None where the weights had another loss.
        loss: what they were trained by, None if unknown.
        lineage: where they come from, the first training first: of each its checkpoint, run_id, model, attention, loss
            and samples_seen; and image_size (pixels) where that was another than this run's.
    """

    model: CLIP
    logit_bias: Tensor | None
    loss: str | None
    lineage: list[dict[str, Any]]


def read_beginning(path: str | Path) -> Beginning:
    """The weights of a checkpoint of ours; raises UserError where it is missing, damaged or foreign."""
    checkpoint = read_torch_file(path)
    model, meta = model_of(checkpoint, path)
    # Lightning's state dict is the task's, and has the bias beside the model; a model alone has none.
    bias = checkpoint[STATE_DICT].get(LOGIT_BIAS)
    line = {"checkpoint": str(path), **origin_of(model.spec, meta)}
    return Beginning(model, bias, meta.get("loss"), [*(meta.get(LINEAGE) or []), line])


def origin_of(spec: ModelSpec, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry of a lineage says besides the file."""
    known = {name: meta.get(name) for name in ("run_id", "loss", "samples_seen")}
    return {"model": spec.name, "attention": spec.attention, **known}


def begin(options: StartOptions, seed: int) -> Beginning:
    """The weights of `options.init_from`, whose architecture must be what the other options say.

    The image size alone may differ: the position embeddings are interpolated then, and stderr says so. Fresh weights of
    that architecture from `seed` without `init_from`. Raises UserError naming the file and what differs.
    """
    name, init_from, attention = options.name, options.init_from, options.attention
    choices: dict[str, Any] = {
        "image_attention": attention if options.image_attention is None else options.image_attention,
        "text_attention": attention if options.text_attention is None else options.text_attention,
        "image_size": options.image_size,
        "patch_size": options.patch_size,
        "context_length": options.context_length,
    }
    if init_from is None:
        return Beginning(create_model(name, **choices, seed=seed), None, None, [])
    beginning = read_beginning(init_from)
    spec = beginning.model.spec
    if spec.name != name:
        raise UserError(f"{init_from} is a {spec.name}, not a {name}: no run of this model can begin with it")
    for key, wanted in choices.items():
        # Left out: whatever the checkpoint has.
        if wanted is None or key == "image_size":
            continue
        # Plans may be spelt in many ways; a specification knows one.
        if getattr(spec.replace(**{key: wanted}), key) != getattr(spec, key):
            hint = "; `clip-la convert` changes the attention" if key.endswith("attention") else ""
            raise UserError(f"{init_from} has {key} {getattr(spec, key)}, not {wanted}{hint}")
    if options.image_size is None or options.image_size == spec.image_size:
        return beginning
    model = at_image_size(beginning.model, options.image_size)
    if is_first_process():
        print(f"{init_from}: {describe_resize(model, spec.image_size)}", file=sys.stderr)
    *before, last = beginning.lineage
    return replace(beginning, model=model, lineage=[*before, {**last, "image_size": spec.image_size}])
