"""The presets: functions of numbers, one a model, registered under their own names."""

from clip_la.models.registry import register_model
from clip_la.models.spec import ModelSpec


@register_model
def vit_b16() -> ModelSpec:
    """open_clip's ViT-B-16."""
    return ModelSpec(
        name="vit_b16",
        embed_dim=512,
        image_size=224,
        patch_size=16,
        image_width=768,
        image_layers=12,
        image_heads=12,
        text_width=512,
        text_layers=12,
        text_heads=8,
    )


@register_model
def vit_l16() -> ModelSpec:
    """open_clip's ViT-L-16."""
    return ModelSpec(
        name="vit_l16",
        embed_dim=768,
        image_size=224,
        patch_size=16,
        image_width=1024,
        image_layers=24,
        image_heads=16,
        text_width=768,
        text_layers=12,
        text_heads=12,
    )


def _twelve_layers(name: str, heads: int) -> ModelSpec:
    """Both towers of one shape: 12 layers, heads of 64 features."""
    width = 64 * heads
    return ModelSpec(
        name=name,
        embed_dim=width,
        image_size=224,
        patch_size=16,
        image_width=width,
        image_layers=12,
        image_heads=heads,
        text_width=width,
        text_layers=12,
        text_heads=heads,
    )


@register_model
def vit_s16() -> ModelSpec:
    """open_clip's ViT-S-16: 384 wide."""
    return _twelve_layers("vit_s16", heads=6)


@register_model
def vit_ti16() -> ModelSpec:
    """DeiT-Ti's image tower (arXiv 2012.12877, Table 1) with a text tower of the same shape: 192 wide."""
    return _twelve_layers("vit_ti16", heads=3)


# For scaling studies, between and around them. Each step doubles the width, at 3.3 to 3.7 times the FLOPs at 257 tokens
# (128 pixels in patches of 8). The four span a factor of 44 there; budgets that span a factor of 10 make that two and a
# half decades of training compute. Their names hold no patch size: `patch_size` is an option.


@register_model
def vit_w64() -> ModelSpec:
    """64 wide, one head."""
    return _twelve_layers("vit_w64", heads=1)


@register_model
def vit_w128() -> ModelSpec:
    """128 wide."""
    return _twelve_layers("vit_w128", heads=2)


@register_model
def vit_w256() -> ModelSpec:
    """256 wide."""
    return _twelve_layers("vit_w256", heads=4)


@register_model
def vit_w512() -> ModelSpec:
    """512 wide, as ViT-M's."""
    return _twelve_layers("vit_w512", heads=8)


# Small ones for a laptop: 32 pixels in patches of 8, so 17 tokens, and short captions.


@register_model
def vit_pico() -> ModelSpec:
    """48 wide, one layer a tower: trains in tens of seconds on two CPU cores."""
    return ModelSpec(
        name="vit_pico",
        embed_dim=48,
        image_size=32,
        patch_size=8,
        image_width=48,
        image_layers=1,
        image_heads=3,
        text_width=48,
        text_layers=1,
        text_heads=3,
        context_length=32,
    )


@register_model
def vit_nano() -> ModelSpec:
    """64 wide, two layers a tower: trains in about a minute on two CPU cores."""
    return ModelSpec(
        name="vit_nano",
        embed_dim=64,
        image_size=32,
        patch_size=8,
        image_width=64,
        image_layers=2,
        image_heads=4,
        text_width=64,
        text_layers=2,
        text_heads=4,
        context_length=32,
    )


@register_model
def vit_micro() -> ModelSpec:
    """96 wide, three image and two text layers: trains in about two minutes on two CPU cores."""
    return ModelSpec(
        name="vit_micro",
        embed_dim=96,
        image_size=32,
        patch_size=8,
        image_width=96,
        image_layers=3,
        image_heads=6,
        text_width=96,
        text_layers=2,
        text_heads=6,
        context_length=32,
    )
