"""Checkpoints that know what they are: weights and the architecture that made them, written whole or not at all."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_la.atomic import atomic_write
from clip_la.errors import UserError, shown, unknown
from clip_la.models.clip import CLIP, empty_model
from clip_la.models.spec import ModelSpec
from clip_la.models.state_dicts import OWNERS, as_numbers, find_weights, plain_names
from clip_la.runs import EMA, TRAINED, WEIGHTS

# The key of our block in a checkpoint, ours or Lightning's, and the version of its layout.
BLOCK = "clip_la"
FORMAT = 1
STATE_DICT = "state_dict"
# What a checkpoint may say of its run, and of what type and least value it then is.
META: dict[str, tuple[type, int | None]] = {
    "run_id": (str, None),
    "parent_run_id": (str, None),
    "parent_samples": (int, 0),
    "seed": (int, None),
    "samples_seen": (int, 0),
    "budget_samples": (int, 0),
    "batch_size": (int, 1),
    "schedule": (str, None),
    "loss": (str, None),
    "train_data": (str, None),
    "versions": (dict, None),
}
_TYPES = {str: "text", int: "a whole number", dict: "a dictionary"}
_NAMES_SHOWN = 3


def save_checkpoint(path: str | os.PathLike[str], model: CLIP, **meta: Any) -> None:
    """Writes weights, architecture and `meta` (plain numbers, strings, lists, dictionaries), atomically."""
    checkpoint = {STATE_DICT: model.state_dict(), BLOCK: {"format": FORMAT, "spec": model.spec.to_dict(), **meta}}
    with atomic_write(path) as stream:
        torch.save(checkpoint, stream)


def load_checkpoint(path: str | os.PathLike[str], weights: str = TRAINED) -> tuple[CLIP, dict[str, Any]]:
    """Reads a checkpoint of save_checkpoint or of our training: (model on the CPU, meta).

    Args:
        path: the file.
        weights: one of WEIGHTS; "ema" needs a run with `model.ema_samples`.

    Raises UserError for a file that is missing, damaged, foreign, of a newer format, that says of itself what cannot
    be, or whose weights do not fit its own architecture or hold NaN. Nothing but tensors and plain values is unpickled.
    """
    return model_of(read_torch_file(path), path, weights)


def model_of(
    checkpoint: dict[str, Any], path: str | os.PathLike[str], weights: str = TRAINED
) -> tuple[CLIP, dict[str, Any]]:
    """As load_checkpoint, of what read_torch_file has read from `path`."""
    block, spec = read_block(checkpoint, path)
    if weights not in WEIGHTS:
        raise unknown("choice of weights", weights, WEIGHTS)
    saved = checkpoint.get(STATE_DICT)
    found = find_weights(saved if isinstance(saved, dict) else {}, str(path))
    if weights == EMA:
        average = checkpoint.get(EMA)
        if not isinstance(average, dict):
            raise UserError(f"{path} holds no averaged weights; a run with --model.ema_samples saves them")
        # What a run keeps frozen has no average: it is what it was.
        found = {**found, **find_weights(average, str(path))}
    # Ours holds the model alone; Lightning's is the task's, whose other parameters (a logit bias) belong to no owner.
    owned = {name: tensor for name, tensor in found.items() if OWNERS & set(name.split(".")[:-1])}
    model = empty_model(spec)
    load_weights(model, plain_names(owned or found, str(path)), str(path))
    return model, {name: value for name, value in block.items() if name not in ("format", "spec")}


def read_block(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> tuple[dict[str, Any], ModelSpec]:
    """What a checkpoint of ours says of its run, and the architecture; every value has the type that it should have.

    Raises UserError naming the file, and the key that is wrong.
    """
    block = checkpoint.get(BLOCK)
    if not isinstance(block, dict) or not isinstance(block.get("spec"), dict):
        raise UserError(
            f"{path} is no clip_la checkpoint; for another project's weights give NAME:FILE, as in ViT-B-16:{path}"
        )
    if block.get("format") != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {shown(block.get('format'))}; this version reads format {FORMAT}"
        )
    for name, (kind, least) in META.items():
        value = block.get(name)
        of_kind = type(value) is kind
        if value is not None and not (of_kind and (least is None or value >= least)):
            bound = "" if least is None else f" of at least {least}"
            raise UserError(f"{path}: {name} is {shown(value)}, not {_TYPES[kind]}{bound}")
    lineage = block.get("lineage")
    if lineage is not None and not (isinstance(lineage, list) and all(isinstance(line, dict) for line in lineage)):
        raise UserError(f"{path}: lineage is {shown(lineage)}, not a list of dictionaries")
    try:
        return block, ModelSpec.from_dict(block["spec"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_torch_file(path: str | os.PathLike[str], *, mmap: bool = True) -> dict[str, Any]:
    """The dictionary in a file of torch.save, on the CPU; raises UserError if there is none or it is not plain data.

    With `mmap` its tensors stay in the file until they are used, which must not change meanwhile.
    """
    if not Path(path).is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            # torch.load checks no checksums: a byte that changed would silently be a wrong weight.
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():
                    raise UserError(f"{path} is damaged ({broken} does not match its checksum)")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip)
    except (MemoryError, UserError):
        raise
    # Damage makes zipfile and the unpickler raise almost anything: UnicodeDecodeError, IndexError, struct.error, ...
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise UserError(f"{path} is damaged or no PyTorch checkpoint ({reason})") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def load_weights(model: CLIP, state_dict: dict[str, Tensor], source: str) -> None:
    """Puts weights into a model, strictly, as float32.

    Raises UserError naming `source` and the first misfits, or the first weight that holds anything but numbers.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    misfits = [f"{name} is missing" for name in expected if name not in found]
    misfits += [f"{name} is unknown" for name in found if name not in expected]
    misfits += [f"{n} is {found[n]}, not {expected[n]}" for n in expected if n in found and found[n] != expected[n]]
    if misfits:
        shown = misfits[:_NAMES_SHOWN]
        if len(misfits) > len(shown):
            shown.append(f"and {len(misfits) - len(shown)} more")
        raise UserError(f"{source} is of another architecture than {model.spec.name}: {'; '.join(shown)}")
    # Assigned, not copied: the model is on the meta device and has no memory of its own.
    model.load_state_dict(as_numbers(state_dict, source), assign=True)
    model.requires_grad_(True)
