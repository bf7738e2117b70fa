"""What `import clip_la` offers beyond single functions of its parts: the verbs of the command line, from Python.

`evaluate_zeroshot` and `fit_scaling_law` take the options of their commands by name, from the commands' own parsers: no
second list of options or defaults. clip_la.train is in clip_la/train/cli.py.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_la.errors import UserError, unknown

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from PIL import Image
    from torch import Tensor, nn

    from clip_la.scaling.analysis import Analysis
    from clip_la.scaling.form_analysis import FormAnalysis
    from clip_la.scaling.points import Point, Selection

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Preprocess:
    """One image as a model wants it; pickles, for the workers of a DataLoader."""

    transform: "Callable[[Image.Image | bytes], Tensor]"
    pixel_stats: tuple[tuple[float, ...], tuple[float, ...]] | None

    def __call__(self, image: "Image.Image | bytes") -> "Float[Tensor, '3 height width']":
        """Float32[3, height, width], normalised, of a PIL image of any mode, or a file's bytes.

        Raises clip_la.data.shards.problems.BadSample for an image that does not decode or is too long and thin.
        """
        from clip_la.data.images.transforms import normalize_pixels

        pixels = self.transform(image)
        return pixels if self.pixel_stats is None else normalize_pixels(pixels, *self.pixel_stats)


def load_model(
    name: PathLike,
    *,
    device: str = "cpu",
    transform: str = "clip_la",
    weights: str = "trained",
    image_size: int | None = None,
) -> "tuple[nn.Module, Preprocess, Callable[[str | Sequence[str]], Int64[Tensor, 'batch context_length']]]":
    """A trained model with what it takes to encode images and texts, as users of open_clip expect.

    ```python
    model, preprocess, tokenizer = clip_la.load_model("runs/linear")
    images, texts = preprocess(Image.open("cat.jpg"))[None], tokenizer(["a cat", "a dog"])
    image_features = model.encode_image(images, normalize=True)
    text_features = model.encode_text(texts, normalize=True)
    shares = (model.logit_scale.exp() * image_features @ text_features.T).softmax(dim=-1)
    ```

    Args:
        name: a run's folder (its last checkpoint), a checkpoint, or a model of open_clip with its weights, as
            "ViT-B-16:FILE", "ViT-B-16:TAG" or "hf-hub:ORG/NAME".
        device: where the model goes ("cpu", "cuda", "cuda:1").
        transform: how images are prepared: clip_la (upright, transparency on white) or open_clip (its own).
        weights: of a checkpoint: trained, or ema: their average, which a run with `model.ema_samples` saves.
        image_size: side of the images in pixels, if not what the model was trained at: its position embeddings are
            interpolated.

    Returns:
        model: a module in evaluation mode, float32, without gradients: `encode_image(images, normalize=True)` and
            `encode_text(tokens, normalize=True)` -> Float[batch, embed_dim], of length one, and `logit_scale`, a
            logarithm. An architecture that clip_la lacks is open_clip's own module, with the same three.
        preprocess: PIL image -> Float32[3, height, width], normalised; also takes a file's bytes.
        tokenizer: string or strings -> Int64[batch, context_length], padded with 0.

    Raises UserError for what is not there, is damaged, or does not fit.
    """
    from clip_la.zeroshot.model.load import choose_device, expand_models, load_eval_model

    loaded = load_eval_model(
        expand_models([os.fspath(name)])[0],
        choose_device(device),
        transform=transform,
        weights=weights,
        image_size=image_size,
    )

    def tokenizer(texts: str | Sequence[str]) -> "Int64[Tensor, 'batch context_length']":
        return loaded.tokenize([texts] if isinstance(texts, str) else list(texts))

    return loaded.module, Preprocess(loaded.preprocess, loaded.pixel_stats), tokenizer


def evaluate_zeroshot(models: PathLike | Iterable[PathLike], **options: Any) -> list[dict[str, Any]]:
    """Zero-shot evaluation: `clip-la eval` from Python, with its very options and defaults (`clip-la eval --help`).

    ```python
    (line,) = clip_la.evaluate_zeroshot("runs/linear", data="imagenet/val", classes="imagenet1k", templates="openai80")
    line["metrics"]["top1"]["value"]
    ```

    Args:
        models: one model or several: a run's folder, a checkpoint, or an open_clip model as NAME:FILE.
        options: by the names of the command's, "-" written "_": `data` or `config` at least, `classes`, `templates`,
            `task`, `out`, `batch_size`, `workers`, `device`, ...

    Returns the result lines, model by model, as they are appended to the result file (`out`; RUN/results.jsonl for a
    run; else results.jsonl here); what that file has already is not made again, unless `again=True`. Progress is on
    stderr. Raises UserError for wrong input.
    """
    from clip_la.commands.eval import evaluate

    names = [models] if isinstance(models, str | os.PathLike) else models
    # With `json` the command's report goes to stderr.
    given = {**options, "models": tuple(os.fspath(name) for name in names), "json": True}
    done, _ = evaluate(given, "evaluate_zeroshot")
    return [evaluation.line for evaluation in done]


def fit_scaling_law(
    source: "PathLike | Selection | Sequence[PathLike] | Sequence[Point]", **options: Any
) -> "Analysis | FormAnalysis":
    """Fits scaling laws of error in compute: `clip-la scaling fit` from Python, with its options and defaults.

    ```python
    analysis = clip_la.fit_scaling_law("runs", by="attention")
    {fit.name: fit.law.alpha for fit in analysis.fits}
    ```

    Args:
        source: result files or folders of runs; or points (clip_la.scaling.points.Point: `compute` in forward FLOPs a
            pair x samples seen, `error` in (0, 1), ...) of one data set and metric.
        options: by the names of the command's (`clip-la scaling fit --help`): `law`, `metric`, `target` and `where` (a
            text or a list), `axis`, `frontier`, `by`, `interval`, `resamples`, `seed`, ...

    Returns scaling.analysis.Analysis for the power law, scaling.form_analysis.FormAnalysis for others; report.to_text
    and form_analysis.form_text say them in words. Raises UserError for wrong input or too few points.
    """
    from clip_la.commands.scaling import analyse, make_parser

    selection = _of_points(source)
    for name in ("target", "where"):
        if isinstance(options.get(name), str):
            options[name] = [options[name]]
    chosen = sorted({"format", "where", "metric", "target", "axis"} & options.keys())
    if selection and chosen:
        raise UserError(f"fit_scaling_law: {', '.join(chosen)} choose among results; points are chosen already")
    given = _options(make_parser("fit"), ["FILE"], options, "fit_scaling_law")
    if not selection:
        files: Any = [source] if isinstance(source, str | os.PathLike) else source
        given.files = [Path(file) for file in files]
        if not given.files:
            raise UserError("fit_scaling_law: no files and no points")
    return analyse(given, selection)


def _of_points(source: Any) -> "Selection | None":
    """What points make a selection, or None for files."""
    from clip_la.scaling.points import Point, Selection

    if isinstance(source, Selection):
        return source
    points = [] if isinstance(source, str | os.PathLike) else list(source)
    if not points or not isinstance(points[0], Point):
        return None
    return Selection(tuple(points), (), target="points", metric="error", compute_unit="FLOPs")


def _options(parser: argparse.ArgumentParser, needed: list[str], given: dict[str, Any], who: str) -> argparse.Namespace:
    """The parser's defaults with what is given; `needed` stands for arguments that it cannot do without."""
    options = parser.parse_args(needed)
    for name, value in given.items():
        if name not in vars(options):
            raise unknown(f"option of {who}", name, vars(options))
        setattr(options, name, os.fspath(value) if isinstance(value, os.PathLike) else value)
    return options
