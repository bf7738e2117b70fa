"""Checkpoints that know what they are: weights and the architecture that made them, written whole or not at all."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_la.atomic import atomic_write
from clip_la.errors import UserError
from clip_la.models.clip import CLIP, empty_model
from clip_la.models.spec import ModelSpec

# The key of our block in a checkpoint, ours or Lightning's, and the version of its layout.
BLOCK = "clip_la"
FORMAT = 1
# Lightning's state_dict is that of the task, which holds the model under this name.
LIGHTNING_PREFIX = "model."
_NAMES_SHOWN = 3


def save_checkpoint(path: str | os.PathLike[str], model: CLIP, **meta: Any) -> None:
    """Writes weights, architecture and `meta` (plain numbers, strings, lists, dictionaries), atomically."""
    checkpoint = {"state_dict": model.state_dict(), BLOCK: {"format": FORMAT, "spec": model.spec.to_dict(), **meta}}
    with atomic_write(path) as stream:
        torch.save(checkpoint, stream)


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[CLIP, dict[str, Any]]:
    """Reads a checkpoint of save_checkpoint or of our training: (model on the CPU, meta).

    Raises UserError for a file that is missing, damaged, foreign, of a newer format, or whose weights do not fit its
    own architecture. Nothing but tensors and plain values is unpickled.
    """
    checkpoint = read_torch_file(path)
    block = checkpoint.get(BLOCK)
    if not isinstance(block, dict) or not isinstance(block.get("spec"), dict):
        raise UserError(
            f"{path} is no clip_la checkpoint; for another project's weights give NAME:FILE, as in ViT-B-16:{path}"
        )
    if block.get("format") != FORMAT:
        raise UserError(f"{path} has checkpoint format {block.get('format')}; this version reads format {FORMAT}")
    try:
        model = empty_model(ModelSpec.from_dict(block["spec"]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    load_weights(model, _model_weights(checkpoint.get("state_dict", {})), str(path))
    return model, {name: value for name, value in block.items() if name not in ("format", "spec")}


def read_torch_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dictionary in a file of torch.save, on the CPU; raises UserError if there is none or it is not plain data."""
    if not Path(path).is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        _check_sums(Path(path))
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (MemoryError, UserError):
        raise
    # Damage makes zipfile and the unpickler raise almost anything: UnicodeDecodeError, IndexError, struct.error, ...
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise UserError(f"{path} is damaged or no PyTorch checkpoint ({reason})") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def _check_sums(path: Path) -> None:
    """Raises UserError for a byte that changed: torch.load itself checks no checksums, it would be a wrong weight."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken:
        raise UserError(f"{path} is damaged ({broken} does not match its checksum)")


def _model_weights(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's part of a state dict: all of ours, the part under `model.` of Lightning's."""
    inside = {k.removeprefix(LIGHTNING_PREFIX): v for k, v in state_dict.items() if k.startswith(LIGHTNING_PREFIX)}
    return inside or state_dict


def load_weights(model: CLIP, state_dict: dict[str, Tensor], source: str) -> None:
    """Puts weights into a model, strictly; raises UserError naming `source` and the first misfits."""
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
    model.load_state_dict(state_dict, assign=True)
    model.requires_grad_(True)
