"""Forward FLOPs and parameters of a model, by arithmetic. Plain Python, no torch.

A multiply-add counts 2. Counted: projections, MLPs, attention, patch embedding and output projections, as fvcore and
the open_clip profile do; left out: norms, activations, biases, softmax, lookups (below 1 % together). Causal
attention counts in full, and so does the last block, as published, though its MLP runs for the pooled token alone. Hook
counters are no help here: they miss fused attention and give every kind the same cost.
"""

from collections.abc import Iterator, Sequence

from clip_la.models.attention.kinds import attention_kind
from clip_la.models.attention.layout import Layout
from clip_la.models.attention.pattern import AttentionChoice
from clip_la.models.spec import MLP_RATIO, ModelSpec

IMAGE_CHANNELS = 3
FLOPS_PER_MAC = 2
# Backward computes a gradient for the input and one for the weights of each product: twice the forward.
TRAINING_FACTOR = 3


def num_image_patches(spec: ModelSpec, patch_dropout: float = 0.0) -> int:
    """Patches of an image that the blocks see; at least one, whatever share of them is dropped, as in open_clip."""
    patches = spec.num_image_tokens - 1
    # Float products of whole numbers may lie a little below them.
    return max(1, int(patches * (1 - patch_dropout) + 1e-6))


def flops(spec: ModelSpec, patch_dropout: float = 0.0) -> dict[str, int]:
    """Forward FLOPs of one pair, captions at full context length: {"image", "text", "total"}.

    A block costs 2 N d (3 d + d) for qkv and output, 2 N d (2 r d) for the MLP, and its attention, with N tokens, width
    d and MLP ratio r; a tower its projection to the shared space besides, 2 d embed_dim for one token. With
    `patch_dropout`, the share of patches that training leaves out: all are embedded, and the blocks see the others.
    """
    cost = {}
    for tower, choices, layout, width, heads in _towers(spec):
        if tower == "image" and patch_dropout:
            # In no grid any more: what would read one has no patch dropout.
            kept = num_image_patches(spec, patch_dropout)
            layout = Layout(layout.prefix + kept, (1, kept), layout.prefix)
        blocks = len(choices) * 2 * layout.max_tokens * width * (4 * width + 2 * MLP_RATIO * width)
        attention = sum(attention_kind(c.kind).flops(layout, width, width // heads, c.options) for c in choices)
        cost[tower] = blocks + attention + 2 * width * spec.embed_dim
    # A convolution whose stride is its kernel: a product of each patch with the weights.
    cost["image"] += 2 * num_image_patches(spec) * IMAGE_CHANNELS * spec.patch_size**2 * spec.image_width
    return cost | {"total": cost["image"] + cost["text"]}


def _towers(spec: ModelSpec) -> Iterator[tuple[str, Sequence[AttentionChoice], Layout, int, int]]:
    """(name, attention of each layer, layout of the tokens, width, heads) of both towers."""
    yield "image", spec.image_choices, spec.image_layout, spec.image_width, spec.image_heads
    yield "text", spec.text_choices, spec.text_layout, spec.text_width, spec.text_heads


def gmacs(num_flops: float) -> float:
    """FLOPs as giga multiply-adds, the unit of the open_clip profile's older tables."""
    return num_flops / FLOPS_PER_MAC / 1e9


def training_flops(spec: ModelSpec, patch_dropout: float = 0.0) -> int:
    """Forward and backward FLOPs of one pair: three times the forward; `patch_dropout` as in `flops`."""
    return TRAINING_FACTOR * flops(spec, patch_dropout)["total"]


def num_parameters(spec: ModelSpec) -> dict[str, int]:
    """Trainable numbers: {"image", "text", "total"}; the total has the logit scale too."""
    d, w = spec.image_width, spec.text_width
    # A norm has a gain and a bias a feature: before and after the blocks of the image tower, after those of the text.
    patches = IMAGE_CHANNELS * spec.patch_size**2 * d
    count = {
        "image": patches + d + spec.num_image_tokens * d + 2 * 2 * d + d * spec.embed_dim,
        "text": spec.vocab_size * w + spec.context_length * w + 2 * w + w * spec.embed_dim,
    }
    for tower, choices, layout, width, heads in _towers(spec):
        qkv_and_output = 4 * width * width + 4 * width
        mlp = 2 * MLP_RATIO * width * width + (MLP_RATIO + 1) * width
        two_norms = 2 * 2 * width
        extras = sum(attention_kind(c.kind).parameters(layout, width, width // heads, c.options) for c in choices)
        count[tower] += len(choices) * (qkv_and_output + mlp + two_norms) + extras
    return count | {"total": count["image"] + count["text"] + 1}
