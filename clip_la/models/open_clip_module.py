"""open_clip's own modules with weights from anywhere, checked: configuration, names, numbers."""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_la.errors import UserError, shown
from clip_la.models.checkpoint import BLOCK, read_torch_file
from clip_la.models.foreign_config import check_model_config, check_pixels
from clip_la.models.state_dicts import check_finite, find_weights, plain_names

# How open_clip names what is not its own model: on the hub, or in a folder.
LOCAL = "local-dir:"
HUB_SCHEMES = ("hf-hub:", LOCAL)
CONFIG_NAME = "open_clip_config.json"
# Weights of big_vision, which open_clip reads in its own way.
_NUMPY = (".npz", ".npy")
_REASON_SIGNS = 200


def towers() -> dict[str, type]:
    """The dataclass of each tower's part of a configuration, by its key."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    return {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg}


def create_open_clip(name: str, weights: str) -> Any:
    """open_clip's own module with its weights, float32 on the CPU.

    Args:
        name: a model of open_clip, hf-hub:ORG/NAME or local-dir:FOLDER.
        weights: a file or one of open_clip's tags for the name; "" for what a hub or a folder holds.

    Raises UserError for a configuration or weights that cannot be, or that do not fit each other.
    """
    import open_clip

    source = f"{name}:{weights}" if weights else name
    _check_activation(name, weights)
    try:
        config = _local_config(name) if name.startswith(LOCAL) else open_clip.get_model_config(name)
        check_model_config(config, towers(), source)
        module = _create(name, weights)
    except UserError:
        raise
    except Exception as error:  # whatever open_clip, torch or the hub raise, the user named the weights
        reason = " ".join(str(error).split())[:_REASON_SIGNS] or type(error).__name__
        raise UserError(f"open_clip cannot load {source}: {reason}") from error
    for key, tensor in module.state_dict().items():
        check_finite(key, tensor, source)
    check_pixels(module.visual.preprocess_cfg, f"{source}, preprocess_cfg")
    return module


def _create(name: str, weights: str) -> Any:
    """The module; a file whose weights open_clip does not find or does not know by their names is laid out anew."""
    import open_clip

    # Without weights open_clip would go on with random ones.
    create = partial(open_clip.create_model, name, precision="fp32", require_pretrained=True)
    path = Path(weights)
    if not path.is_file() or path.suffix in _NUMPY:
        return create(pretrained=weights or None)
    try:
        return create(pretrained=weights)
    except Exception:
        plain = plain_names(read_state_dict(path), weights)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(plain, Path(folder) / "weights.pt")
        return create(pretrained=str(Path(folder) / "weights.pt"))


def _local_config(name: str) -> Any:
    """What a folder's open_clip_config.json says of the model; raises UserError where there is no such thing."""
    path = Path(name.removeprefix(LOCAL)) / CONFIG_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model_cfg"), dict):
        raise UserError(f"{path}: expected a dictionary with 'model_cfg' and 'preprocess_cfg'")
    if not isinstance(content.get("preprocess_cfg", {}), dict):
        raise UserError(f"{path}: preprocess_cfg is {shown(content['preprocess_cfg'])}, not a dictionary")
    return content["model_cfg"]


def _check_activation(name: str, tag: str) -> None:
    """Raises UserError for open_clip's weights under a name whose activation is not the one they were trained with."""
    import open_clip

    trained = open_clip.get_pretrained_cfg(name, tag)
    if not trained or bool(trained.get("quick_gelu")) == bool(open_clip.get_model_config(name).get("quick_gelu")):
        return
    suffix = "-quickgelu"
    kind, other = ("QuickGELU", name + suffix) if trained.get("quick_gelu") else ("GELU", name.removesuffix(suffix))
    raise UserError(f"the weights '{tag}' of {name} were trained with {kind}: write {other}:{tag}")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file, or in one of torch.save: bare or under a trainer's keys.

    Raises UserError for a file that is damaged, holds no weights, or is a checkpoint of ours, which needs no name.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return find_weights(load_file(path), str(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or no safetensors file ({error})") from None
    checkpoint = read_torch_file(path)
    if BLOCK in checkpoint:
        raise UserError(f"{path} is a checkpoint of clip_la and knows its architecture: give its path alone")
    return find_weights(checkpoint, str(path))
