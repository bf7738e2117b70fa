"""A trained model at another image size: what is interpolated, and what is said of the rest."""

from timm.layers import resample_abs_pos_embed

from clip_la.models.attention.kinds import attention_kind
from clip_la.models.checkpoint import load_weights
from clip_la.models.clip import CLIP, empty_model

POSITIONS = "image.trunk.pos_embed"


def at_image_size(model: CLIP, image_size: int) -> CLIP:
    """A copy for square images of `image_size` pixels, in the same dtype and on the same device.

    Position embeddings are interpolated over the grid (bicubic, antialiased, the class token's kept), as timm does; all
    other weights are shared with `model`. Layers whose result grows with the number of tokens (`length_dependent`) see
    another scale than they were trained for: train them on. Raises UserError for a size that is no multiple of the
    patch, and for attention of a plugin whose own weights belong to one grid.
    """
    spec = model.spec.replace(image_size=image_size)
    grids = [list(s.image_layout.grid or ()) for s in (spec, model.spec)]
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    weights[POSITIONS] = resample_abs_pos_embed(weights[POSITIONS], new_size=grids[0], old_size=grids[1])
    resized = empty_model(spec)
    load_weights(resized, weights, f"{spec.name} at {model.spec.image_size} pixels")
    return resized.train(model.training)


def length_dependent(model: CLIP) -> list[int]:
    """The image tower's layers whose result grows with the number of tokens: no denominator, and no norm of heads."""
    choices = enumerate(model.spec.image_choices)
    return [depth for depth, choice in choices if attention_kind(choice.kind).grows_with_tokens(choice.options)]


def describe_resize(model: CLIP, trained_size: int) -> str:
    """One line for a person: from which size to which, and which layers of `model` feel the number of tokens.

    Args:
        model: what at_image_size returned.
        trained_size: the side of the images that its weights were trained on, in pixels.
    """
    spec = model.spec
    before = spec.replace(image_size=trained_size)
    text = (
        f"positions interpolated from {trained_size} to {spec.image_size} pixels"
        f" ({before.num_image_tokens} to {spec.num_image_tokens} tokens)"
    )
    layers = length_dependent(model)
    if not layers:
        return text
    which = "all image layers" if len(layers) == spec.image_layers else f"image layers {', '.join(map(str, layers))}"
    ratio = spec.num_image_tokens / before.num_image_tokens
    return (
        f"{text}; {which} sum over the tokens without a denominator, so what they add is up to {ratio:.2g} times what"
        " it was in training: train on at this size, or take a kind that does not depend on it (norm=rms, linear_mean)"
    )
