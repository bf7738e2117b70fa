"""Two-tower models whose attention is a pluggable part. Names load on first use: plain arithmetic needs no torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_la.models.attention.kinds import AttentionKind, list_attention, register_attention
    from clip_la.models.checkpoint import load_checkpoint, save_checkpoint
    from clip_la.models.clip import CLIP, model_from_spec
    from clip_la.models.registry import create_model, list_models, model_spec, register_model
    from clip_la.models.spec import ModelSpec

_HOME = {
    "AttentionKind": "attention.kinds",
    "CLIP": "clip",
    "ModelSpec": "spec",
    "create_model": "registry",
    "list_attention": "attention.kinds",
    "list_models": "registry",
    "load_checkpoint": "checkpoint",
    "model_from_spec": "clip",
    "model_spec": "registry",
    "register_attention": "attention.kinds",
    "register_model": "registry",
    "save_checkpoint": "checkpoint",
}

__all__ = [
    "CLIP",
    "AttentionKind",
    "ModelSpec",
    "create_model",
    "list_attention",
    "list_models",
    "load_checkpoint",
    "model_from_spec",
    "model_spec",
    "register_attention",
    "register_model",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
