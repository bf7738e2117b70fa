"""CLIP: an image tower and a text tower into one space."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from clip_la.errors import UserError, one_line
from clip_la.models.attention.base import UNDECAYED
from clip_la.models.image_tower import ImageTower
from clip_la.models.initialise import Initialiser
from clip_la.models.spec import ModelSpec
from clip_la.models.text_tower import TextTower


class CLIP(nn.Module):
    """Two towers and a temperature (arXiv 2103.00020). Made by create_model or model_from_spec, which set the weights.

    The logit of image i and caption j is exp(logit_scale) f_i . g_j, of features of length one.

    Attributes:
        spec: the architecture.
        logit_scale: logarithm of the factor on cosine similarities.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.image = ImageTower(spec)
        self.text = TextTower(spec)
        self.logit_scale = nn.Parameter(torch.empty(()))

    def encode_image(
        self,
        images: Float[Tensor, "batch 3 height width"],
        normalize: bool = True,
        kept: Int[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch embed_dim"]:
        """Features of pixels normalised by spec.pixel_mean and spec.pixel_std, of length one if `normalize`.

        `kept`: the patches that are looked at, as in ImageTower.forward.
        """
        features = self.image(images) if kept is None else self.image(images, kept)
        return self._unit(features) if normalize else features

    def encode_text(
        self, tokens: Int[Tensor, "batch tokens"], normalize: bool = True
    ) -> Float[Tensor, "batch embed_dim"]:
        """Features of captions padded with 0, of length one if `normalize`; the padding may be trimmed.

        Raises ValueError for captions longer than spec.context_length.
        """
        features = self.text(tokens)
        return self._unit(features) if normalize else features

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], tokens: Int[Tensor, "batch tokens"]
    ) -> tuple[Float[Tensor, "batch embed_dim"], Float[Tensor, "batch embed_dim"], Float[Tensor, ""]]:
        """Image and text features of length one, and the factor on their products."""
        return self.encode_image(images), self.encode_text(tokens), self.logit_scale.exp()

    @staticmethod
    def _unit(features: Tensor) -> Tensor:
        """Rows of length one, in float32 at least: bf16 would leave ties between classes."""
        return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)

    def set_grad_checkpointing(self, enable: bool | Literal["selective"] = True) -> None:
        """Recomputes activations in the backward pass: all between blocks, for a third more compute, or "selective",
        which keeps the results of products and attention and recomputes the cheap rest (`kept_for_backward`)."""
        self.image.trunk.set_grad_checkpointing(enable is True)
        self.text.grad_checkpointing = enable is True
        for block in (*self.image.trunk.blocks, *self.text.blocks):
            block.selective = enable == "selective"

    def set_narrow_residual(self, enable: bool = True) -> None:
        """Under autocast, adds up the blocks' results in its type: less memory traffic, as in open_clip's training."""
        self.image.trunk.norm_pre.narrow_residual = self.text.narrow_residual = enable

    def no_weight_decay(self) -> set[str]:
        """What weight decay should spare, as in open_clip's training: gains, biases, class token, temperatures."""
        spared = {name for name, p in self.named_parameters() if p.ndim < 2 or name.endswith(UNDECAYED)}
        return spared | {"image.trunk.cls_token"}


def empty_model(spec: ModelSpec) -> CLIP:
    """A model without weights, on the meta device: as quick as it gets, for load_state_dict(..., assign=True)."""
    with torch.device("meta"):
        return CLIP(spec)


def model_from_spec(spec: ModelSpec, seed: int | None = None) -> CLIP:
    """A new model with the initial weights of initialise.py, on the CPU in float32; `seed` as in create_model."""
    try:
        model = empty_model(spec).to_empty(device="cpu")
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"model {spec.name!r} does not fit into memory at image_size {spec.image_size}, patch_size"
            f" {spec.patch_size} and context_length {spec.context_length}: {one_line(error)}"
        ) from error
    initialiser = Initialiser(None if seed is None else torch.Generator().manual_seed(seed))
    initialiser.image_tower(model.image)
    initialiser.text_tower(model.text)
    initialiser.attention_extras(model.image, model.text)
    initialiser.logit_scale(model.logit_scale)
    return model
