"""What a model is, as a hash of all that can move a digit of its features: what is kept is found again by it alone."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_la.zeroshot.labels.classes import content_hash

HASH_DIGITS = 16
COMPILED = "_orig_mod."
# Of what our models are made; their versions, where they matter, are in result lines.
OUR_PACKAGES = ("clip_la", "torch", "timm")
# Attributes of modules that say how they are used, not what they compute.
USAGE = ("training", "grad_checkpointing")
ORIGINS = ("_name_or_path", "name_or_path", "transformers_version")
# Texts on which tokenizers differ: case, spaces, HTML, mis-decoded text, other scripts, signs, more words than fit.
PROBES = (
    "",
    "a photo of a Tench, Tinca tinca.",
    "  Two\tspaces &amp;amp; <b>HTML</b>  don't ",
    "caf\u00e9 \u5317\u4eac \u0440\u0443\u0441 \U0001f382!",
    "!$% 2024 a_b-c",
    "stra\u00c3\u0178e",
    "word " * 300,
)


def model_hash(module: nn.Module, settings: Mapping[str, Any], without: str | None = None) -> str:
    """The first 16 hex digits of a BLAKE2b over `settings` and names, shapes, dtypes and bytes of the weights.

    Args:
        settings: whatever else the features depend on, as JSON has it.
        without: weights whose names begin so are left out.
    """
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(_tensors(module).items()):
        if without is None or not name.startswith(without):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            values: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            digest.update(values)
    return digest.hexdigest()[:HASH_DIGITS]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Weights and all buffers: a mask that is not saved with the weights is computed with all the same."""
    tensors = {**module.state_dict(), **dict(module.named_buffers())}
    return {name.removeprefix(COMPILED): tensor for name, tensor in tensors.items()}


def structure(module: nn.Module, without: str | None = None) -> list[str]:
    """What a module consists of besides weights: its parts' classes and plain attributes (heads, activation, pooling).

    For a model that has no specification of ours: what a configuration has changed shows in one of these.
    """
    lines = []
    for name, part in module.named_modules():
        name = name.removeprefix(COMPILED)
        if without is None or not f"{name}.".startswith(without):
            lines.append(
                f"{name} {type(part).__qualname__} {json.dumps(dict(_plain_attributes(part)), sort_keys=True)}"
            )
    return lines


def _plain_attributes(part: nn.Module) -> Iterator[tuple[str, str]]:
    for name, value in vars(part).items():
        if not name.startswith("_") and name not in USAGE and (text := _plain(value)) is not None:
            yield name, text


def _plain(value: Any) -> str | None:
    """A value as a text that is the same in every process, or None for what has no such text."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return repr(value)
    if isinstance(value, tuple | list):
        inner = [_plain(each) for each in value]
        return None if None in inner else f"[{', '.join(map(str, inner))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{key}: {_plain(each)}' for key, each in value.items()))}}}"
    if callable(to_dict := getattr(value, "to_dict", None)) and not isinstance(value, type):
        # The configuration of a Hugging Face model; the rest of its attributes say where it comes from.
        return _plain({key: str(each) for key, each in to_dict().items() if key not in ORIGINS})
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return None


def sources_from_outside(module: nn.Module) -> dict[str, str]:
    """Class -> hash of its source, for parts that a plugin brings: these change without a new version of clip_la."""
    kinds = {type(part) for part in module.modules()}
    foreign = {kind for kind in kinds if kind.__module__.partition(".")[0] not in OUR_PACKAGES}
    return {kind.__qualname__: content_hash(_source_of(kind)) for kind in sorted(foreign, key=lambda k: k.__qualname__)}


def _source_of(kind: type) -> str:
    """The whole file of a class, for it may use what stands beside it; its name where there is no file to read."""
    try:
        return Path(inspect.getfile(kind)).read_text(encoding="utf-8")
    except (TypeError, OSError, UnicodeDecodeError):
        return kind.__qualname__


def tokenizer_id(tokenizer: Any) -> str:
    """Class and table of a tokenizer of open_clip as one text: other merges, another id."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is not None:
        table = backend.to_str()
    else:
        table = sorted((getattr(inner, "encoder", None) or getattr(inner, "get_vocab", dict)()).items())
    return f"{type(tokenizer).__qualname__}/{content_hash(table)}"
