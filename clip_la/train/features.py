"""From a batch to the features of both towers: whole or in parts, compiled or not, each caption as long as needed."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clip_la.data.images.transforms import channel_constants, scale_pixels
from clip_la.models.clip import CLIP
from clip_la.train.compiled import compile_model
from clip_la.train.lengths import Encode, encode_by_length, groups_by_length, pad_captions, padded_length
from clip_la.train.options import StepOptions


class BatchEncoder:
    """Features of training batches.

    Args:
        model: in whose place compiled towers are put.
        options: how a step is computed.
    """

    def __init__(self, model: CLIP, options: StepOptions) -> None:
        self._model, self._options = model, options
        self._is_compiled = options.compile or options.cuda_graphs
        self._shapes_met: set[tuple[int, int]] = set()
        self._scale_pixels = scale_pixels
        if self._is_compiled:
            compile_model(model, options.compile_unit, cuda_graphs=options.cuda_graphs)
            self._scale_pixels = torch.compile(scale_pixels, dynamic=False)

    def begin_step(self) -> None:
        """To be called before each step: memory of CUDA graphs' last step is free from here on."""
        if self._options.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def images(self, images: UInt8[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """Unit features of images."""
        encode = self._in_part(self._encode_pixels)
        if self._options.micro_batches == 1:
            return encode(images)
        return torch.cat([encode(part) for part in images.tensor_split(self._options.micro_batches)])

    def texts(self, batch: Mapping[str, Any]) -> Float[Tensor, "batch dim"]:
        """Unit features of a batch's captions."""
        tokens, groups = batch["tokens"], self._text_shapes(batch)
        encode = self._in_part(self._model.encode_text)
        if len(groups) > 1:
            return encode_by_length(encode, tokens, batch["by_length"], groups)
        return encode(pad_captions(tokens, groups[0][1]))

    def new_shapes(self, batch: Mapping[str, Any]) -> list[int]:
        """Lengths of captions in this batch that the compiled step has not met yet, and will be compiled for."""
        if not self._is_compiled:
            return []
        new = {(rows.stop - rows.start, length) for rows, length in self._text_shapes(batch)} - self._shapes_met
        self._shapes_met |= new
        return sorted({length for _, length in new})

    def _encode_pixels(self, images: Tensor) -> Tensor:
        spec, kind = self._model.spec, images.device.type
        # Autocast would round to this dtype at the first product.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        constants = channel_constants(tuple(spec.pixel_mean), tuple(spec.pixel_std), images.device)
        return self._model.encode_image(self._scale_pixels(images, *constants, dtype))

    def _in_part(self, encode: Encode) -> Encode:
        """`encode` as it is for whole batches; for parts, one that leaves nothing behind but what it was called with.

        The backward pass comes to part after part and works each out again: the two passes of GradCache (arXiv
        2101.06983), by autograd's own means.
        """
        if self._options.micro_batches == 1:
            return encode
        return lambda part: checkpoint(encode, part, use_reentrant=False, preserve_rng_state=False)

    def _text_shapes(self, batch: Mapping[str, Any]) -> list[tuple[slice, int]]:
        """Rows, sorted by length if in several groups, that the text tower sees together, and their length there."""
        context, num_groups = (
            self._model.spec.context_length,
            max(self._options.text_groups, self._options.micro_batches),
        )
        if num_groups > 1:
            return groups_by_length(batch["sorted_lengths"], num_groups, context)
        batch_size, longest = batch["tokens"].shape
        return [(slice(0, batch_size), padded_length(longest, context) if self._is_compiled else longest)]
