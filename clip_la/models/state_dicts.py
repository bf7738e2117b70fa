"""The weights in a checkpoint, whoever wrote it: where they lie, what they are called, whether they are numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clip_la.errors import UserError

# What DistributedDataParallel, torch.compile, FSDP and its activation checkpointing put into names, at any place.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# What tasks, trainers and savers put in front of names.
OWNERS = {"model", "clip", "state_dict"}
# The keys under which trainers keep weights, one inside another at times.
NESTS = ("state_dict", "model_state_dict", "model", "module", "clip")
NESTED_AT_MOST = 8
# A mask of -inf that old versions of open_clip saved, and what OpenAI's files say of themselves.
NO_WEIGHTS = {"attn_mask", "input_resolution", "context_length", "vocab_size"}


def find_weights(checkpoint: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, bare or under `NESTS`; raises UserError, naming `source`, where none are.

    Also for tensors that are not plain ones.
    """
    for _ in range(NESTED_AT_MOST):
        inner = next((checkpoint[key] for key in NESTS if isinstance(checkpoint.get(key), Mapping)), None)
        if inner is None:
            break
        checkpoint = inner
    named = {name: value for name, value in checkpoint.items() if name not in NO_WEIGHTS}
    wrong = next(
        (name for name, value in named.items() if not (isinstance(name, str) and isinstance(value, Tensor))), None
    )
    if wrong is not None or not named:
        what = "it is empty" if wrong is None else f"'{wrong}' is of type {type(named[wrong]).__name__}"
        raise UserError(f"{source} holds no state dict of tensors: {what}")
    for name, tensor in named.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UserError(f"{source}: {name} is sparse, quantized or without data; save plain tensors")
    return named


def plain_names(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights under the names that the bare model gives them: without `WRAPPERS` and `OWNERS`, in whatever order.

    Raises UserError, naming `source`, for two weights of one name.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        short = plain_name(name)
        if short in plain:
            raise UserError(f"{source} holds two weights {short}, one of them as {name}: which model is meant?")
        if short.rpartition(".")[2] != "attn_mask":
            plain[short] = tensor
    return plain


def plain_name(name: str) -> str:
    """`"_orig_mod.module.model.visual._orig_mod.proj"` -> `"visual.proj"`."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    # Owners stand in front alone: a layer further in may be called "model" by rights.
    while len(parts) > 1 and parts[0] in OWNERS:
        parts = parts[1:]
    return ".".join(parts)


def as_numbers(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights in float32; raises UserError, naming `source`, for what is not floating-point or not finite."""
    converted = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise UserError(
                f"{source}: {name} holds {tensor.dtype}, {tensor.layout}; weights are floating-point numbers"
            )
        converted[name] = tensor.to(torch.float32)
        check_finite(name, converted[name], source)
    return converted


def check_finite(name: str, tensor: Tensor, source: str) -> None:
    """Raises UserError, naming `source`, where a weight holds NaN or infinity."""
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise UserError(f"{source}: {name} holds NaN or infinity; the training that wrote it has diverged")
