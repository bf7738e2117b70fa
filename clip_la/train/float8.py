"""The blocks' matrix products in float8, through torchao (`pip install clip_la[float8]`)."""

import torch
from torch import nn

from clip_la.errors import UserError
from clip_la.models.clip import CLIP

# The first GPUs that multiply float8 (Ada, Hopper), and what their products ask of the sides of a matrix.
CAPABILITY = (8, 9)
SIDE_MULTIPLE = 16


def use_float8(model: CLIP, *, emulate: bool = False) -> None:
    """Makes the linear layers inside both towers' blocks multiply in float8, forward and backward, in place.

    Inputs, weights and gradients are each scaled by their largest entry and rounded as they are needed. The weights
    stay the parameters that they are, under their names: optimiser and checkpoints know nothing of it. Layers whose
    sides are no multiples of 16 stay as they are, as do embeddings and projections into the common space.

    Args:
        model: before it is compiled.
        emulate: with the same rounding but ordinary products, for devices without float8.

    Raises UserError where torchao is not installed.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise UserError("model.float8 needs torchao: pip install 'clip_la[float8]'") from None

    def fits(layer: nn.Module, name: str) -> bool:
        return isinstance(layer, nn.Linear) and not (layer.in_features | layer.out_features) % SIDE_MULTIPLE

    # The weight's gradient is a sum over the tokens of a batch, whose number is padded to a multiple too.
    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)
    for blocks in (model.image.trunk.blocks, model.text.blocks):
        convert_to_float8_training(blocks, module_filter_fn=fits, config=config)


def check_float8(accelerator: str) -> None:
    """Raises UserError where the run's device, "gpu" or "cpu", cannot multiply float8."""
    if accelerator != "gpu" or torch.cuda.get_device_capability() < CAPABILITY:
        raise UserError("model.float8 needs a GPU of compute capability 8.9 or later (Ada, Hopper); leave it out")
