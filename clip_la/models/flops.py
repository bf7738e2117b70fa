"""Forward FLOPs and parameters of a model, by arithmetic. Plain Python, no torch.

A multiply-add counts 2. Counted: projections, MLPs, attention, patch embedding and output projections, as fvcore and
the open_clip profile do; left out: norms, activations, biases, softmax, lookups (below 1 % together). Causal
attention counts in full, and so does the last block, as published, though its MLP runs for the pooled token alone. Hook
counters are no help here: they miss fused attention and give every kind the same cost.
"""

from collections.abc import Sequence

from clip_la.models.attention.kinds import attention_kind
from clip_la.models.attention.layout import Layout
from clip_la.models.attention.pattern import AttentionChoice
from clip_la.models.spec import MLP_RATIO, ModelSpec

IMAGE_CHANNELS = 3
FLOPS_PER_MAC = 2
# Backward computes a gradient for the input and one for the weights of each product: twice the forward.
TRAINING_FACTOR = 3


def _tower_flops(choices: Sequence[AttentionChoice], layout: Layout, width: int, num_heads: int) -> int:
    """Blocks of one tower: 2 N d (3d + d) for qkv and output, 2 N d (2 r d) for the MLP, and the attention."""
    projections = 2 * layout.max_tokens * width * (4 * width + 2 * MLP_RATIO * width)
    attention = sum(attention_kind(c.kind).flops(layout, width, width // num_heads, c.options) for c in choices)
    return len(choices) * projections + attention


def flops(spec: ModelSpec) -> dict[str, int]:
    """Forward FLOPs of one pair, captions at full context length: {"image", "text", "total"}."""
    num_patches = spec.num_image_tokens - 1
    patch_embedding = 2 * num_patches * IMAGE_CHANNELS * spec.patch_size**2 * spec.image_width
    image = patch_embedding + _tower_flops(spec.image_choices, spec.image_layout, spec.image_width, spec.image_heads)
    image += 2 * spec.image_width * spec.embed_dim
    text = _tower_flops(spec.text_choices, spec.text_layout, spec.text_width, spec.text_heads)
    text += 2 * spec.text_width * spec.embed_dim
    return {"image": image, "text": text, "total": image + text}


def gmacs(num_flops: float) -> float:
    """FLOPs as giga multiply-adds, the unit of the open_clip profile's older tables."""
    return num_flops / FLOPS_PER_MAC / 1e9


def training_flops(spec: ModelSpec) -> int:
    """Forward and backward FLOPs of one pair: three times the forward."""
    return TRAINING_FACTOR * flops(spec)["total"]


def _block_parameters(width: int) -> int:
    qkv_and_output = 4 * width * width + 4 * width
    mlp = 2 * MLP_RATIO * width * width + (MLP_RATIO + 1) * width
    return qkv_and_output + mlp + 2 * _norm_parameters(width)


def _extra_parameters(choices: Sequence[AttentionChoice], layout: Layout, width: int, num_heads: int) -> int:
    """What attention has beyond qkv and output."""
    return sum(attention_kind(c.kind).parameters(layout, width, width // num_heads, c.options) for c in choices)


def _norm_parameters(width: int) -> int:
    return 2 * width


def num_parameters(spec: ModelSpec) -> dict[str, int]:
    """Trainable numbers: {"image", "text", "total"}; the total has the logit scale too."""
    d = spec.image_width
    image = IMAGE_CHANNELS * spec.patch_size**2 * d + d + spec.num_image_tokens * d + 2 * _norm_parameters(d)
    image += spec.image_layers * _block_parameters(d) + d * spec.embed_dim
    image += _extra_parameters(spec.image_choices, spec.image_layout, d, spec.image_heads)
    w = spec.text_width
    text = spec.vocab_size * w + spec.context_length * w + _norm_parameters(w)
    text += spec.text_layers * _block_parameters(w) + w * spec.embed_dim
    text += _extra_parameters(spec.text_choices, spec.text_layout, w, spec.text_heads)
    return {"image": image, "text": text, "total": image + text + 1}
