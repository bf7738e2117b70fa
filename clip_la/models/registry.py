"""The register of models: `@register_model` on a function whose name is the model's, as in timm.

No torch until a model is made.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from clip_la import plugins
from clip_la.errors import UserError, unknown
from clip_la.models.spec import ModelSpec

if TYPE_CHECKING:
    from clip_la.models.clip import CLIP

_PRESETS: dict[str, Callable[[], ModelSpec]] = {}


def register_model(preset: Callable[[], ModelSpec]) -> Callable[[], ModelSpec]:
    """Registers a function that returns the ModelSpec of its own name; raises UserError for a name taken."""
    name = preset.__name__
    if name in _built_in():
        raise UserError(f"a model called {name} is registered already")
    _PRESETS[name] = preset
    return preset


def _built_in() -> dict[str, Callable[[], ModelSpec]]:
    # Presets register themselves on import; importing them here keeps the register free of an import circle.
    importlib.import_module("clip_la.models.presets")
    return _PRESETS


def list_models() -> list[str]:
    """The names of all presets, those of plugins included, sorted. Raises UserError for a plugin that fails."""
    plugins.load_plugins()
    return sorted(_built_in())


def model_spec(
    name: str,
    *,
    attention: str = "softmax",
    image_attention: str | None = None,
    text_attention: str | None = None,
    image_size: int | None = None,
    patch_size: int | None = None,
    context_length: int | None = None,
) -> ModelSpec:
    """The specification of a preset with some parts chosen.

    Args:
        name: one of list_models().
        attention: kind or pattern for both towers (see attention/pattern.py).
        image_attention: overrides `attention` in the image tower.
        text_attention: overrides `attention` in the text tower.
        image_size: side of the square image in pixels, if not the preset's.
        patch_size: side of a patch in pixels, if not the preset's; the name stays the preset's: vit_ti16 with patches
            of 8 at 64 pixels has 65 tokens.
        context_length: most tokens of a caption, if not the preset's.

    Raises UserError for an unknown name, a pattern that does not fit, or sizes that do not fit together.
    """
    plugins.load_plugins()
    presets = _built_in()
    if name not in presets:
        raise unknown("model", name, presets)
    # An option that is None is the preset's; its checks run once, on the outcome, so that sizes may change together.
    preset = presets[name]()
    return preset.replace(
        image_attention=attention if image_attention is None else image_attention,
        text_attention=attention if text_attention is None else text_attention,
        image_size=preset.image_size if image_size is None else image_size,
        patch_size=preset.patch_size if patch_size is None else patch_size,
        context_length=preset.context_length if context_length is None else context_length,
    )


def create_model(
    name: str,
    *,
    attention: str = "softmax",
    image_attention: str | None = None,
    text_attention: str | None = None,
    image_size: int | None = None,
    patch_size: int | None = None,
    context_length: int | None = None,
    seed: int | None = None,
) -> "CLIP":
    """A new model of a preset, with fresh weights; arguments and errors as in model_spec.

    `seed` makes the weights reproducible without touching PyTorch's global generator; models of one preset and seed
    start from the same weights whatever their attention. None draws from the global generator.
    """
    from clip_la.models.clip import model_from_spec

    spec = model_spec(
        name,
        attention=attention,
        image_attention=image_attention,
        text_attention=text_attention,
        image_size=image_size,
        patch_size=patch_size,
        context_length=context_length,
    )
    return model_from_spec(spec, seed=seed)
