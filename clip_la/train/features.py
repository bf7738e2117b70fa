"""From a batch to the features of both towers: whole or in parts, compiled or not, each caption as long as needed."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from clip_la.data.images.transforms import channel_constants, scale_pixels
from clip_la.models.clip import CLIP
from clip_la.train.compiled import compile_model
from clip_la.train.graphed import GraphedTower, Part, recomputed
from clip_la.train.lengths import encode_by_length, groups_by_length, pad_captions, padded_length
from clip_la.train.options import StepOptions


class BatchEncoder:
    """Features of training batches.

    Args:
        model: in whose place compiled towers are put.
        options: how a step is computed. What is compiled depends on the hardware, of which an encoder knows nothing:
            `auto` compiles nothing here, and a run decides before (`decided`).
    """

    def __init__(self, model: CLIP, options: StepOptions) -> None:
        self._model, self._options = model, options
        self._is_compiled = options.compile is True or bool(options.cuda_graphs)
        wanted = not options.grad_checkpointing if options.cuda_graphs is None else options.cuda_graphs
        graphs = self._is_compiled and wanted
        self._graphed = {"image": GraphedTower(model.image), "text": GraphedTower(model.text)} if graphs else {}
        self._shapes_met: set[tuple[int, int]] = set()
        self._scale_pixels = scale_pixels
        if self._is_compiled:
            compile_model(model, options.compile_unit)
            self._scale_pixels = torch.compile(scale_pixels, dynamic=False)

    def recorded_weights(self) -> dict[str, nn.Parameter]:
        """Weights whose gradients come from recordings alone, by their names in the model."""
        towers = self._graphed.items()
        return {f"{tower}.{name}": p for tower, graphed in towers for name, p in graphed.trained_weights().items()}

    def average_gradients(self, dtype: torch.dtype | None) -> None:
        """Recorded weights get the mean of their gradients over the processes; see GraphedTower.average_gradients."""
        for graphed in self._graphed.values():
            # A frozen tower has none.
            if graphed.trained_weights():
                graphed.average_gradients(dtype)

    def leave_out_graphs(self) -> None:
        """Compiles alone, for weights that do not stay where they are."""
        self._graphed.clear()

    def release(self) -> None:
        """Gives back the memory of the CUDA graphs."""
        for graphed in self._graphed.values():
            graphed.release()

    def images(
        self, images: UInt8[Tensor, "batch 3 size size"], kept: Int64[Tensor, "batch kept"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Unit features of images, of the patches `kept` alone where they are given (see ImageTower.forward)."""
        given = [images] if kept is None else [images, kept]
        parts = zip(*(each.tensor_split(self._options.micro_batches) for each in given), strict=True)
        return self._run("image", [Part((), self._encode_pixels, part) for part in parts])

    def texts(self, batch: Mapping[str, Any]) -> Float[Tensor, "batch dim"]:
        """Unit features of a batch's captions."""
        tokens, groups = batch["tokens"], self._text_shapes(batch)
        if len(groups) == 1:
            return self._run("text", [Part((), self._model.encode_text, (pad_captions(tokens, groups[0][1]),))])
        if self._options.micro_batches == 1:
            key = tuple((rows.start, rows.stop, length) for rows, length in groups)
            encode = partial(encode_by_length, self._model.encode_text, groups)
            return self._run("text", [Part(key, encode, (pad_captions(tokens, groups[-1][1]), batch["by_length"]))])
        ordered = tokens[batch["by_length"]]
        shapes = [pad_captions(ordered[rows], length).contiguous() for rows, length in groups]
        features = self._run("text", [Part((), self._model.encode_text, (part,)) for part in shapes])
        return torch.empty_like(features).index_copy(0, batch["by_length"], features)

    def _run(self, tower: str, parts: list[Part]) -> Tensor:
        """Features of a tower: at once, or of each part by itself and computed again in the backward pass."""
        graphed = self._graphed.get(tower)
        if graphed and parts[0].inputs[0].device.type != graphed.device_type:
            graphed = None
        if self._options.micro_batches == 1:
            return graphed(parts[0]) if graphed else parts[0].encode(*parts[0].inputs)
        return graphed.in_parts(parts) if graphed else torch.cat([recomputed(part) for part in parts])

    def new_shapes(self, batch: Mapping[str, Any]) -> list[int]:
        """Lengths of captions in this batch that the compiled step has not met yet, and will be compiled for."""
        if not self._is_compiled:
            return []
        new = {(rows.stop - rows.start, length) for rows, length in self._text_shapes(batch)} - self._shapes_met
        self._shapes_met |= new
        return sorted({length for _, length in new})

    def _encode_pixels(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        spec, kind = self._model.spec, images.device.type
        # Autocast would round to this dtype at the first product.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        constants = channel_constants(tuple(spec.pixel_mean), tuple(spec.pixel_std), images.device)
        return self._model.encode_image(self._scale_pixels(images, *constants, dtype), kept=kept)

    def _text_shapes(self, batch: Mapping[str, Any]) -> list[tuple[slice, int]]:
        """Rows, sorted by length if in several groups, that the text tower sees together, and their length there."""
        context = self._model.spec.context_length
        num_groups = max(self._options.text_groups, self._options.micro_batches)
        if num_groups > 1:
            return groups_by_length(batch["sorted_lengths"], num_groups, context)
        batch_size, longest = batch["tokens"].shape
        return [(slice(0, batch_size), padded_length(longest, context) if self._is_compiled else longest)]
