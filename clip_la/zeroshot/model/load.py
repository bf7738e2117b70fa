"""From what a user names to models under evaluation: a run, a checkpoint, or an open_clip model with its weights."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from clip_la.errors import UserError, unknown
from clip_la.models.checkpoint import load_checkpoint
from clip_la.models.clip import CLIP
from clip_la.models.interop import load_open_clip, spec_from_open_clip_config
from clip_la.models.open_clip_module import CONFIG_NAME, HUB_SCHEMES, LOCAL
from clip_la.models.registry import list_models
from clip_la.models.resize import at_image_size, describe_resize
from clip_la.runs import TRAINED, RunFolder, samples_of
from clip_la.zeroshot.model.eval_model import EvalModel, of_model
from clip_la.zeroshot.model.open_clip import of_open_clip, with_own_transform
from clip_la.zeroshot.options import OPEN_CLIP, OWN

WHICH = ("last", "all")
TRANSFORMS = (OWN, OPEN_CLIP)


def expand_models(texts: Iterable[str], which: str = "last") -> list[str]:
    """Each run replaced by its last checkpoint, or by all of them, fewest samples first; everything else as it is.

    Raises:
        UserError: a folder that holds no checkpoint or several runs; an unknown `which`.
    """
    if which not in WHICH:
        raise unknown("choice of checkpoints", which, WHICH)
    models: list[str] = []
    for text in texts:
        if not (run := Path(text)).is_dir():
            models.append(text)
            continue
        # A run's own checkpoints, whatever lies below it, such as a conversion of it; else those of the only run there.
        own = RunFolder(run).saved_checkpoints().values()
        found = {path: samples for path in own or run.glob("**/*.ckpt") if (samples := samples_of(path)) is not None}
        folders = sorted({str(path.parent) for path in found})
        if len(folders) > 1:
            raise UserError(f"{run} holds {len(folders)} runs; name one of them: {', '.join(folders)}")
        if not found:
            hint = f"; for open_clip's model in it give {LOCAL}{run}" if (run / CONFIG_NAME).is_file() else ""
            raise UserError(f"{run} is no run: no checkpoints/samples=NUMBER.ckpt in it{hint}")
        paths = sorted(found, key=lambda path: found[path])
        models += [str(path) for path in (paths if which == "all" else paths[-1:])]
    return models


def load_eval_model(
    text: str,
    device: torch.device | str = "cpu",
    *,
    compiled: bool = False,
    transform: str = OWN,
    weights: str = TRAINED,
    image_size: int | None = None,
) -> EvalModel:
    """A model ready to evaluate: a checkpoint of ours, `NAME:FILE` or `NAME:TAG` of open_clip, `hf-hub:ORG/NAME`.

    Args:
        compiled: whether torch compiles the towers: minutes at the start, quicker afterwards; digits may move a little.
        transform: one of TRANSFORMS.
        weights: one of WEIGHTS: "ema" takes the averaged weights of a checkpoint of ours.
        image_size: side of the images in pixels, if not what the model was trained at: its position embeddings are
            interpolated.

    Raises:
        UserError: nothing of that name, or what is there is damaged or does not fit.
    """
    if transform not in TRANSFORMS:
        raise unknown("transform", transform, TRANSFORMS)
    eval_model = _load(text, image_size, weights)
    eval_model = eval_model if transform == OWN else with_own_transform(eval_model)
    # Nothing is trained here: no dropout, no gradients.
    eval_model.module.eval().requires_grad_(False).to(device)
    if compiled:
        eval_model.compile()
        return replace(eval_model, compiled=True)
    return eval_model


def _load(text: str, image_size: int | None, weights: str) -> EvalModel:
    if Path(text).suffix == ".safetensors" and Path(text).is_file():
        raise UserError(f"{text} says not which architecture its weights are of; give NAME:FILE, as in ViT-B-16:{text}")
    # A file before a name: "ViT-B-16:x.pt" is no file, and "run.ckpt" no name.
    if Path(text).is_file():
        model, meta = load_checkpoint(text, weights)
        try:
            return _at_size(of_model(model, checkpoint=text, weights=weights, **meta), image_size)
        except UserError as error:  # a tokenizer that there is not
            raise UserError(f"{text}: {error}") from None
    if weights != TRAINED:
        raise UserError(f"weights {weights} are for checkpoints of ours; {text} has one set of weights")
    name, _, source = text.partition(":")
    is_hub = text.startswith(HUB_SCHEMES)
    if not is_hub and not source:
        import open_clip

        if text in open_clip.list_models() or text in list_models():
            example = f"{text}:FILE or {text}:TAG (as laion400m_e32)"
            raise UserError(f"{text} is an architecture; name its weights: {example}")
        if "/" in text or Path(text).suffix in (".pt", ".ckpt", ".safetensors", ".bin"):
            raise UserError(f"no run or checkpoint at {text}")
        raise unknown("model", text, open_clip.list_models())
    if not is_hub and _is_ours(name, source):
        return _at_size(of_model(load_open_clip(text), checkpoint=text), image_size)
    if image_size is not None:
        raise UserError(f"{text} is evaluated by open_clip's own module, at its own size; leave out --image-size")
    return of_open_clip(text, "") if is_hub else of_open_clip(name, source)


def _at_size(eval_model: EvalModel, image_size: int | None) -> EvalModel:
    """The model at another size, where that is another. What it cost is still what training it at its own size cost."""
    model = eval_model.module
    assert isinstance(model, CLIP)
    trained = model.spec.image_size
    if image_size is None or image_size == trained:
        return eval_model
    resized = at_image_size(model, image_size)
    origin = {**eval_model.origin, "eval_image_size": image_size}
    note = f"{eval_model.label}: {describe_resize(resized, trained)}"
    return replace(of_model(resized), origin=origin, notes=(note,))


def _is_ours(name: str, weights: str) -> bool:
    """Whether our towers and transform do what open_clip's do for this name; they are quicker on short texts."""
    import open_clip

    pixels = open_clip.get_pretrained_cfg(name, weights) or {}
    if pixels.get("interpolation", "bicubic") != "bicubic" or pixels.get("resize_mode", "shortest") != "shortest":
        return False
    if name not in open_clip.list_models():
        return True  # a preset of ours, or an unknown name, for which load_open_clip has the error
    try:
        spec_from_open_clip_config(name, open_clip.get_model_config(name) or {})
    except UserError:
        return False
    return True


def choose_device(text: str | None, local_rank: int = 0) -> torch.device:
    """The device that `--device` names; by default this process's accelerator, else the CPU.

    Raises:
        UserError: no device of that name here.
    """
    if text is None:
        text = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device '{text}' here: {str(error).splitlines()[0]}") from None
    return device
