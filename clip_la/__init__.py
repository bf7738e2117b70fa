"""clip_la: can linear attention replace softmax attention in CLIP-style models?

From Python, each name imported when it is first used (docs/python.md has examples):

    create_model, list_models          a new model of a preset; the presets
    load_checkpoint, load_model        a checkpoint and what it says of itself; model, preprocess, tokenizer
    ShardStream                        endless batches from shards, resumed to the sample
    train, evaluate_zeroshot           what `clip-la train` and `clip-la eval` do
    fit_scaling_law                    what `clip-la scaling fit` does
    linear_attention                   the operator, from clip_la_kernels
    register_attention, AttentionKind, Attention, register_model, ModelSpec
                                       kinds and models of one's own (docs/adding_a_kind.md)
"""

import importlib
from typing import TYPE_CHECKING, Any

from clip_la.moved import install as _install_moved

if TYPE_CHECKING:
    from clip_la_kernels import linear_attention

    from clip_la.api import evaluate_zeroshot, fit_scaling_law, load_model
    from clip_la.data.stream.stream import ShardStream
    from clip_la.models.attention.base import Attention
    from clip_la.models.attention.kinds import AttentionKind, register_attention
    from clip_la.models.checkpoint import load_checkpoint
    from clip_la.models.registry import create_model, list_models, register_model
    from clip_la.models.spec import ModelSpec
    from clip_la.train.cli import train

__version__ = "0.1.0"

_install_moved()

_HOME = {
    "Attention": "clip_la.models.attention.base",
    "AttentionKind": "clip_la.models.attention.kinds",
    "ModelSpec": "clip_la.models.spec",
    "ShardStream": "clip_la.data.stream.stream",
    "create_model": "clip_la.models.registry",
    "evaluate_zeroshot": "clip_la.api",
    "fit_scaling_law": "clip_la.api",
    "linear_attention": "clip_la_kernels",
    "list_models": "clip_la.models.registry",
    "load_checkpoint": "clip_la.models.checkpoint",
    "load_model": "clip_la.api",
    "register_attention": "clip_la.models.attention.kinds",
    "register_model": "clip_la.models.registry",
    "train": "clip_la.train",
}

__all__ = [
    "Attention",
    "AttentionKind",
    "ModelSpec",
    "ShardStream",
    "create_model",
    "evaluate_zeroshot",
    "fit_scaling_law",
    "linear_attention",
    "list_models",
    "load_checkpoint",
    "load_model",
    "register_attention",
    "register_model",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOME[name])
    # `train` is a package that can be called.
    return home if _HOME[name] == f"{__name__}.{name}" else getattr(home, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
