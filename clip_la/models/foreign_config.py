"""Another project's configuration file of a model, checked before anything is built from it."""

import math
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from clip_la.errors import UserError, shown, unknown

# open_clip builds whatever a file says, and dies of a wrong value deep inside or goes on with another model.

# Whole numbers of a tower that are counts or sizes, and those that may be anything from 0.
_FROM_ZERO = ("pad_id", "eos_id")
_MOST = 1 << 24
_MOST_LAYERS = 1 << 10
# What names may say; open_clip only asserts it.
CHOICES = {
    "pos_embed_type": ("learnable", "sin_cos_2d"),
    "pool_type": ("tok", "avg", "none", "argmax", "eos", "first", "last"),
}
INTERPOLATIONS = ("bicubic", "bilinear", "random")
RESIZE_MODES = ("shortest", "longest", "squash")
_LIGHTEST = 255


def check_model_config(config: Any, towers: Mapping[str, type], source: str) -> dict[str, Any]:
    """A `model_cfg` whose values have the types and ranges that their names ask for.

    Args:
        config: what the file holds.
        towers: the dataclass of each tower's part, by key ("vision_cfg", "text_cfg").
        source: what errors call the file.

    Raises UserError naming `source` and the key.
    """
    if not isinstance(config, dict):
        raise UserError(f"{source}: model_cfg is {shown(config)}, not a dictionary")
    _check_count(config.get("embed_dim"), "embed_dim", source)
    for key in ("quick_gelu", "custom_text"):
        if type(config.get(key, False)) is not bool:
            raise UserError(f"{source}: {key} is {shown(config[key])}, neither true nor false")
    for key, kind in towers.items():
        part = config.get(key)
        if not isinstance(part, dict):
            raise UserError(f"{source}: {key} is {shown(part)}, not a dictionary")
        hints = get_type_hints(kind)
        for name, value in part.items():
            place = f"{source}: {key}"
            if name not in hints:
                raise unknown(f"key in {place}", str(name), hints)
            # Nothing, as ResNets have for a patch size, is for open_clip to judge.
            if value is not None and not _fits(value, hints[name]):
                wanted = getattr(hints[name], "__name__", None) or str(hints[name]).replace("typing.", "")
                raise UserError(f"{place}: {name} is {shown(value)}, not {wanted}")
            if name in CHOICES and value not in CHOICES[name]:
                raise unknown(f"{name} in {place}", value, CHOICES[name])
            for number in value if isinstance(value, list) else (value,):
                if type(number) is int and name not in _FROM_ZERO:
                    _check_count(number, name, place)
    return config


def check_pixels(settings: Mapping[str, Any], source: str) -> None:
    """Raises UserError, naming `source` and the key, for pixel statistics or a way to resize that cannot be."""
    for key in ("mean", "std"):
        values: Any = settings.get(key)
        is_triple = isinstance(values, list | tuple) and len(values) == 3
        if not is_triple or not all(type(v) in (int, float) and 0 <= v <= 1 for v in values):
            raise UserError(f"{source}: {key} is {shown(values)}, not three numbers from 0 to 1")
    if min(settings["std"]) <= 0:
        raise UserError(f"{source}: std is {shown(settings['std'])}; write deviations above zero")
    for key, known in (("interpolation", INTERPOLATIONS), ("resize_mode", RESIZE_MODES)):
        if settings.get(key) not in known:
            raise unknown(f"{key} in {source}", str(settings.get(key)), known)
    if settings.get("mode", "RGB") != "RGB":
        raise UserError(f"{source}: mode is {shown(settings['mode'])}; models here see images in RGB")
    if type(fill := settings.get("fill_color", 0)) is not int or not 0 <= fill <= _LIGHTEST:
        raise UserError(f"{source}: fill_color is {shown(fill)}, not a whole number from 0 to {_LIGHTEST}")
    size = settings.get("size")
    for side in size if isinstance(size, list | tuple) and len(size) == 2 else (size,):
        _check_count(side, "size", source)


def _check_count(value: Any, name: str, source: str) -> None:
    most = _MOST_LAYERS if name == "layers" else _MOST
    if type(value) is not int or not 1 <= value <= most:
        raise UserError(f"{source}: {name} is {shown(value)}, not a whole number from 1 to {most}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON has the type of an annotation: a number, text, a truth value, a tuple, a dictionary."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if origin is tuple:
        kinds = get_args(hint)
        is_tuple = isinstance(value, list | tuple) and len(value) == len(kinds)
        return is_tuple and all(map(_fits, value, kinds))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint
