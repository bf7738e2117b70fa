"""Linear attention at the memory limit: Triton kernels on a GPU, a fast PyTorch path elsewhere. README.md has the
derivations."""

from clip_la_kernels.attention import linear_attention, linear_attention_split
from clip_la_kernels.contrastive import contrastive_loss
from clip_la_kernels.dispatch import use_backend
from clip_la_kernels.fastmax import fastmax

__all__ = ["contrastive_loss", "fastmax", "linear_attention", "linear_attention_split", "use_backend"]
