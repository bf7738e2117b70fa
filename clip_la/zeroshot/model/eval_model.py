"""The model under evaluation behind one small face: ours, or any model of open_clip through open_clip's own module."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn

from clip_la.data.images.decode import as_rgb, decode_as_stored, decode_image, reasons
from clip_la.data.images.transforms import check_shape, eval_transform, normalize_pixels
from clip_la.data.text.tokenizer import get_tokenizer
from clip_la.errors import UserError, unknown
from clip_la.models.clip import CLIP
from clip_la.models.flops import flops
from clip_la.models.spec import ModelSpec
from clip_la.zeroshot.model.identity import PROBES, model_hash, sources_from_outside, structure, tokenizer_id

Tokenize = Callable[[Sequence[str]], Int64[Tensor, "batch context_length"]]
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
# How a picture file becomes a model's input: RGB by the rule of data/decode.py first, or as Pillow opens it and all of
# the rest by open_clip's transform, which shows what lies under transparency and leaves EXIF and wide integers alone.
OWN, OPEN_CLIP = "clip_la", "open_clip"
TRANSFORMS = (OWN, OPEN_CLIP)


@dataclass(frozen=True)
class UInt8Preprocess:
    """Picture or bytes -> UInt8[3, size, size], to be normalised on the model's device; pickles for workers."""

    image_size: int

    def __call__(self, image: Image.Image | bytes) -> Tensor:
        return _eval_transform(self.image_size)(image)


@dataclass(frozen=True)
class OpenClipPreprocess:
    """Picture or bytes -> Float[3, height, width], by open_clip's own evaluation transform of the model.

    Attributes:
        settings: open_clip's PreprocessCfg.
        as_stored: whether the transform gets the picture in its own mode, as in open_clip, or RGB by our rule.
    """

    settings: tuple[tuple[str, Any], ...]
    as_stored: bool = False

    def __call__(self, image: Image.Image | bytes) -> Tensor:
        transform = _open_clip_transform(self.settings)
        if isinstance(image, bytes):
            image = decode_as_stored(image) if self.as_stored else decode_image(image)
        elif not self.as_stored:
            image = as_rgb(image)
        settings = dict(self.settings)
        if settings.get("resize_mode", "shortest") == "shortest":
            size = settings["size"]
            check_shape(image, max(size) if isinstance(size, tuple) else size)
        with reasons():
            return transform(image)


_eval_transform = functools.cache(eval_transform)


@functools.cache
def _open_clip_transform(settings: tuple[tuple[str, Any], ...]) -> Callable[[Image.Image], Tensor]:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**dict(settings)), is_train=False)


@dataclass(frozen=True)
class EvalModel:
    """A two-tower model with all it takes to show it pictures and texts.

    Attributes:
        module: has `encode_image` and `encode_text`, both with `normalize=`.
        preprocess: picture or bytes to a tensor: uint8 pixels where `pixel_stats` are given, else ready for the module.
        pixel_stats: (mean, std) in RGB on the 0..1 scale, or None.
        context_length: the longest text, in tokens; `trims_text` says whether shorter ones may come unpadded.
        image_prefix: how the names of the image tower's weights begin (the text classifier does not depend on them).
        architecture: what the towers compute with their weights, as JSON has it.
        text_architecture: the text tower's part of it.
        compiled: whether torch has compiled the towers, which may move a digit.
        origin: the fields of a result line that tell where the model comes from.
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
        image.compile()  # type: ignore[union-attr]
        if isinstance(text := getattr(self.module, "text", None), nn.Module):
            text.compile(dynamic=True)

    def encode_images(self, images: Tensor, precision: str) -> Float[Tensor, "batch embed_dim"]:
        """Float32 features of length one of a batch from `preprocess`, on the model's device."""
        images = images.to(self.device, non_blocking=True)
        if self.pixel_stats is not None:
            images = normalize_pixels(images, *self.pixel_stats)
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
        """Hash of everything that features depend on: towers, their weights, tokenizer, preparation of pictures."""
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
    """The precision in which a kind of device ("cpu", "cuda") evaluates unless told otherwise."""
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


def of_model(model: CLIP, *, checkpoint: str | None = None, **meta: Any) -> EvalModel:
    """One of our models; `meta` as in our checkpoints (samples_seen, run_id, seed, ...)."""
    spec = model.spec
    numbers = {name: value for name, value in spec.to_dict().items() if name != "name"}
    if outside := sources_from_outside(model):
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
    )


def of_open_clip(name: str, weights: str) -> EvalModel:
    """Any open_clip model through open_clip's own module; `weights` is a file or one of its pretrained tags."""
    import open_clip

    from clip_la.models.open_clip_module import create_open_clip

    is_hub = ":" in name
    if not is_hub and name not in open_clip.list_models():
        raise unknown("open_clip model", name, open_clip.list_models())
    tags = [] if is_hub else open_clip.list_pretrained_tags_by_model(name)
    if not is_hub and weights not in tags and not Path(weights).is_file():
        known = f"one of {', '.join(tags)}" if tags else "a file: open_clip has no weights for it"
        raise UserError(f"no weights '{weights}' for {name}: expected a file or {known}")
    return wrap_open_clip(create_open_clip(name, weights), name, weights)


def wrap_open_clip(module: nn.Module, name: str, weights: str) -> EvalModel:
    """An open_clip module that is already loaded."""
    import open_clip

    settings = dict(module.visual.preprocess_cfg)  # type: ignore[union-attr,arg-type]
    tokenizer = open_clip.get_tokenizer(name)
    empty = (
        "run_id",
        "parent_run_id",
        "seed",
        "samples_seen",
        "budget_samples",
        "schedule",
        "batch_size",
        "train_data",
        "flops_per_sample",
    )
    origin: dict[str, Any] = dict.fromkeys(empty)
    # Every open_clip tower attends by softmax; its FLOPs are not counted by our arithmetic.
    origin |= dict.fromkeys(("attention", "image_attention", "text_attention"), "softmax")
    origin["model"] = name
    origin["parameters"] = sum(p.numel() for p in module.parameters())
    origin["checkpoint"] = f"{name}:{weights}" if weights else name
    origin["transform"] = OWN
    return EvalModel(
        module=module.eval(),
        preprocess=OpenClipPreprocess(tuple(sorted((key, _frozen(value)) for key, value in settings.items()))),
        pixel_stats=None,
        tokenize=lambda texts: tokenizer(list(texts)),
        tokenizer_name=tokenizer_id(tokenizer),
        context_length=int(module.context_length),  # type: ignore[arg-type]
        trims_text=False,
        image_prefix="visual.",
        architecture=structure(module),
        text_architecture=structure(module, without="visual."),
        origin=origin,
    )


def with_transform(eval_model: EvalModel, transform: str) -> EvalModel:
    """The same model shown pictures by one of `TRANSFORMS`; raises UserError for another name."""
    if transform not in TRANSFORMS:
        raise unknown("transform", transform, TRANSFORMS)
    if transform == OWN:
        return eval_model
    if isinstance(eval_model.preprocess, OpenClipPreprocess):
        settings = eval_model.preprocess.settings
    else:
        spec = eval_model.module.spec
        assert isinstance(spec, ModelSpec)
        settings = (("mean", spec.pixel_mean), ("size", spec.image_size), ("std", spec.pixel_std))
    preprocess = OpenClipPreprocess(settings, as_stored=True)
    origin = {**eval_model.origin, "transform": transform}
    return replace(eval_model, preprocess=preprocess, pixel_stats=None, origin=origin)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
