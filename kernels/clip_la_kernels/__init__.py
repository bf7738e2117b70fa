"""Linear attention at the memory limit: Triton kernels on a GPU, a fast PyTorch path elsewhere. README.md has the
derivations."""

from clip_la_kernels.ops.contrastive.losses import contrastive_logsumexp, contrastive_loss, sigmoid_loss
from clip_la_kernels.ops.depthwise.depthwise import depthwise_convolution
from clip_la_kernels.ops.fastmax.fastmax import fastmax
from clip_la_kernels.ops.linear_attention.attention import linear_attention, linear_attention_split
from clip_la_kernels.ops.softmax_attention.softmax_attention import softmax_attention
from clip_la_kernels.ops.weighted_linear.weighted_linear import serves_weighted, weighted_linear_attention
from clip_la_kernels.runtime.dispatch import use_backend

__all__ = [
    "contrastive_logsumexp",
    "contrastive_loss",
    "depthwise_convolution",
    "fastmax",
    "linear_attention",
    "linear_attention_split",
    "serves_weighted",
    "sigmoid_loss",
    "softmax_attention",
    "use_backend",
    "weighted_linear_attention",
]
