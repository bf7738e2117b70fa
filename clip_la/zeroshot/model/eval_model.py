"""The model under evaluation behind one small face, and the hash of all that can move a digit of its features.

What is kept on disk (text classifiers, predictions, features) is found again by this hash alone. open_clip's own
modules get the same face in open_clip.py.
"""

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn

from clip_la.data.images.transforms import eval_transform, normalize_pixels
from clip_la.data.text.tokenizer import get_tokenizer
from clip_la.errors import unknown
from clip_la.models.clip import CLIP
from clip_la.models.flops import flops
from clip_la.runs import TRAINED
from clip_la.zeroshot.labels.classes import content_hash
from clip_la.zeroshot.options import OWN

Tokenize = Callable[[Sequence[str]], Int64[Tensor, "batch context_length"]]
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
HASH_DIGITS = 16
COMPILED = "_orig_mod."
# Of what our models are made; their versions, where they matter, are in result lines.
OUR_PACKAGES = ("clip_la", "torch", "timm")
# Texts on which tokenizers differ: case, spaces, HTML, mis-decoded text, other scripts, signs, more words than fit.
PROBES = (
    "",
    "a photo of a Tench, Tinca tinca.",
    "  Two\tspaces &amp;amp; <b>HTML</b>  don't ",
    "caf\u00e9 \u5317\u4eac \u0440\u0443\u0441 \U0001f382!",
    "!$% 2024 a_b-c",
    "stra\u00c3\u0178e",
    "word " * 300,
)


@dataclass(frozen=True)
class UInt8Preprocess:
    """Image or bytes -> UInt8[3, size, size], to be normalised on the model's device; pickles for workers."""

    image_size: int

    def __call__(self, image: Image.Image | bytes) -> Tensor:
        return _eval_transform(self.image_size)(image)


_eval_transform = functools.cache(eval_transform)


@dataclass(frozen=True)
class EvalModel:
    """A two-tower model with all it takes to show it images and texts.

    Attributes:
        module: has `encode_image` and `encode_text`, both with `normalize=`.
        preprocess: image or bytes to a tensor: uint8 pixels where `pixel_stats` are given, else ready for the module.
        pixel_stats: (mean, std) in RGB on the 0..1 scale, or None.
        context_length: the longest text, in tokens; `trims_text` says whether shorter ones may come unpadded.
        image_prefix: how the names of the image tower's weights begin (the text classifier does not depend on them).
        architecture: what the towers compute with their weights, as JSON has it.
        text_architecture: the text tower's part of it.
        compiled: whether torch has compiled the towers, which may move a digit.
        origin: the fields of a result line that say where the model comes from.
        sizes: the fields that follow from its architecture: `tokens` of an image, class token included, and
            `image_size` in pixels; null where a tower has no tokens or its images are not square.
        notes: what a person should know before reading its results.
    """

    module: nn.Module
    preprocess: Callable[[Image.Image | bytes], Tensor]
    pixel_stats: tuple[tuple[float, ...], tuple[float, ...]] | None
    tokenize: Tokenize
    tokenizer_name: str
    context_length: int
    trims_text: bool
    image_prefix: str
    architecture: Any
    text_architecture: Any
    compiled: bool = False
    origin: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def label(self) -> str:
        """What a person calls it."""
        return str(self.origin.get("checkpoint") or self.origin.get("model"))

    def compile(self) -> None:
        """Compiles the image tower, whose batches have one shape, and the text tower where that is a module."""
        image = getattr(self.module, "visual", None) or self.module.image
        # In place: torch.compile would wrap the tower and rename its weights.
        image.compile()  # type: ignore[union-attr]
        if isinstance(text := getattr(self.module, "text", None), nn.Module):
            text.compile(dynamic=True)

    def encode_images(self, images: Tensor, precision: str) -> Float[Tensor, "batch embed_dim"]:
        """Float32 features of length one of a batch from `preprocess`, on the model's device."""
        # Normalised here and not by the workers: uint8 is a quarter of the bytes on its way.
        images = images.to(self.device, non_blocking=True)
        if self.pixel_stats is not None:
            images = normalize_pixels(images, *self.pixel_stats)
        # normalize=False: unit length in float32, whatever the towers run in.
        with autocast(self.device, precision):
            features = self.module.encode_image(images, normalize=False)  # type: ignore[operator]
        return nn.functional.normalize(features.float(), dim=-1)

    def encode_texts(self, tokens: Int64[Tensor, "batch tokens"], precision: str) -> Float[Tensor, "batch embed_dim"]:
        """Float32 features of length one of tokenised texts, on the model's device."""
        with autocast(self.device, precision):
            features = self.module.encode_text(tokens.to(self.device), normalize=False)  # type: ignore[operator]
        return nn.functional.normalize(features.float(), dim=-1)

    @functools.cached_property
    def text_hash(self) -> str:
        """Hash of everything the text classifier depends on but the prompts: text tower, its weights, tokenizer."""
        settings = {**self._text_settings(), "architecture": self.text_architecture}
        return model_hash(self.module, settings, without=self.image_prefix)

    @functools.cached_property
    def hash(self) -> str:
        """Hash of everything that features depend on: towers, their weights, tokenizer, preparation of images."""
        settings = {**self._text_settings(), "architecture": self.architecture}
        # The text of a dataclass has all its fields; that of any other object differs from process to process.
        settings |= {"preprocess": repr(self.preprocess), "pixel_stats": self.pixel_stats}
        return model_hash(self.module, settings)

    def _text_settings(self) -> dict[str, Any]:
        tokens = self.tokenize(PROBES).tolist()
        names = ("tokenizer_name", "context_length", "trims_text", "compiled")
        return {"tokens": tokens, **{name: getattr(self, name) for name in names}}


def autocast(device: torch.device, precision: str) -> Any:
    """The context in which a tower runs at `precision` ("float32" or "bf16")."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


def default_precision(device_type: str) -> str:
    """The precision in which a kind of device ("cpu", "cuda") evaluates by default."""
    return "float32" if device_type == "cpu" else "bf16"


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Products on an accelerator exact in float32, or with TF32 inputs where the towers run in bf16 anyway."""
    allow = precision != "float32"
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allow else "highest")
    torch.backends.cudnn.allow_tf32 = allow
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def model_hash(module: nn.Module, settings: Mapping[str, Any], without: str | None = None) -> str:
    """The first 16 hex digits of a BLAKE2b over `settings` and names, shapes, dtypes and bytes of the weights.

    Args:
        settings: whatever else the features depend on, as JSON has it.
        without: weights whose names begin so are left out.
    """
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode())
    # Buffers too: a mask that is not saved with the weights is computed with all the same.
    tensors = {**module.state_dict(), **dict(module.named_buffers())}
    for name, tensor in sorted((name.removeprefix(COMPILED), tensor) for name, tensor in tensors.items()):
        if without is None or not name.startswith(without):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            values: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            digest.update(values)
    return digest.hexdigest()[:HASH_DIGITS]


def of_model(model: CLIP, *, checkpoint: str | None = None, weights: str = TRAINED, **meta: Any) -> EvalModel:
    """One of our models; `meta` as in our checkpoints (samples_seen, run_id, seed, ...).

    Its result lines say which weights it has only where these are averaged ones, "ema": other lines hold null.
    """
    spec = model.spec
    numbers = {name: value for name, value in spec.to_dict().items() if name != "name"}
    # What a plugin brings changes without a new version of clip_la, so its source counts: the whole file of a class,
    # for it may use what stands beside it; its name where there is no file to read.
    outside: dict[str, str] = {}
    foreign = {type(part) for part in model.modules() if type(part).__module__.partition(".")[0] not in OUR_PACKAGES}
    for kind in sorted(foreign, key=lambda kind: kind.__qualname__):
        source = kind.__qualname__
        with suppress(TypeError, OSError, UnicodeDecodeError):
            source = Path(inspect.getfile(kind)).read_text(encoding="utf-8")
        outside[kind.__qualname__] = content_hash(source)
    if outside:
        numbers["sources"] = outside
    origin = {
        "run_id": meta.get("run_id"),
        # Branches of one constant-rate run share it: a bootstrap must resample them together.
        "parent_run_id": meta.get("parent_run_id"),
        "seed": meta.get("seed"),
        "model": spec.name,
        "attention": spec.attention,
        "image_attention": spec.image_attention,
        "text_attention": spec.text_attention,
        "image_size": spec.image_size,
        "tokens": spec.num_image_tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_sample": flops(spec)["total"],
        "samples_seen": meta.get("samples_seen"),
        "budget_samples": meta.get("budget_samples"),
        "schedule": meta.get("schedule"),
        "batch_size": meta.get("batch_size"),
        "train_data": meta.get("train_data"),
        "checkpoint": checkpoint,
        "weights": None if weights == TRAINED else weights,
        "transform": OWN,
    }
    if meta.get("lineage"):
        # Weights that were trained before, and on how many samples: those of this run are not all.
        origin["lineage"] = meta["lineage"]
    return EvalModel(
        module=model,
        preprocess=UInt8Preprocess(spec.image_size),
        pixel_stats=(tuple(spec.pixel_mean), tuple(spec.pixel_std)),
        tokenize=get_tokenizer(spec.tokenizer, spec.context_length),
        tokenizer_name=f"{spec.tokenizer}/{spec.context_length}",
        context_length=spec.context_length,
        trims_text=True,
        image_prefix="image.",
        architecture=numbers,
        text_architecture={k: v for k, v in numbers.items() if not k.startswith(("image_", "patch_", "pixel_"))},
        origin=origin,
        sizes={"tokens": spec.num_image_tokens, "image_size": spec.image_size},
    )
