"""A depthwise convolution of tokens: a grid behind a prefix, or a causal sequence. Kernels on a GPU, else PyTorch."""

import torch.nn.functional as F
from torch import Tensor

from clip_la_kernels.ops.linear_attention.attention import cast_for_autocast
from clip_la_kernels.runtime.autograd import wants_gradient
from clip_la_kernels.runtime.dispatch import runs_kernels

# Columns of a kernel at most: the gradient of the weights holds a sum a column.
WIDEST_KERNEL = 5


def depthwise_convolution(v: Tensor, weight: Tensor, *, grid: tuple[int, int] | None, prefix: int = 0) -> Tensor:
    """Each channel of the tokens convolved with its own KR x KC kernel, zero outside; no bias.

    Args:
        v: (B, N, C).
        weight: (C, 1, KR, KC); KR and KC odd on a grid, KR 1 in a sequence.
        grid: rows and columns of the tokens behind the prefix; None: a sequence, in which each token sees itself and
            the KC - 1 before it.
        prefix: tokens before the grid, which take no part and get zeros.

    Returns:
        (B, N, C) in v's dtype, under autocast in that of autocast; `weight` may be in float32 beside it. Kernels sum
        in float32, whatever the dtype of v, and repeat to the bit.
    """
    (v,) = cast_for_autocast((v,), v.device.type)
    if v.numel() and v.stride(-1) == 1 and weight.shape[3] <= WIDEST_KERNEL and runs_kernels(v):
        from clip_la_kernels.ops.depthwise.launch import Grid
        from clip_la_kernels.ops.depthwise.library import KernelDepthwise

        rows, columns = grid or (1, v.shape[1] - prefix)
        place = Grid(prefix, rows, columns, grid is None)
        return KernelDepthwise.apply(v, weight, place, wants_gradient(v, weight))
    # Through the flat view the gradient comes back with the weight's own strides: of tokens channels last, conv2d gives
    # it others, and DDP, which keeps gradients as views of its buckets, warns of each weight whose strides differ.
    channels, weight = v.shape[2], weight.to(v.dtype).flatten(1).view(weight.shape)
    if grid is None:
        # A left pad alone: no token may see what follows it.
        row = F.pad(v[:, prefix:], (0, 0, weight.shape[3] - 1, 0)).unsqueeze(1).permute(0, 3, 1, 2)
        out = F.conv2d(row, weight, groups=channels)
    else:
        # A view of tokens by rows is what channels_last means: nothing is transposed.
        plane = v[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)
        out = F.conv2d(plane, weight, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=channels)
    tokens = out.permute(0, 2, 3, 1).flatten(1, 2)
    return F.pad(tokens, (0, 0, prefix, 0)) if prefix else tokens
