"""What an evaluation can be asked for, written once: the options of `clip-la eval`, of Python and of YAML suites.

Torch-free. The docstring below an option is its help.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from clip_la import results
from clip_la.errors import UserError, shown, unknown
from clip_la.options import check_types, option
from clip_la.runs import TRAINED, WEIGHTS

# What becomes of an image whose class the class set lacks.
SKIP, ERROR = "skip", "error"
UNKNOWN_CLASSES = (SKIP, ERROR)
# How an image file becomes a model's input: RGB by our rule first, or as Pillow opens it and all of the rest by
# open_clip's transform, which shows what lies under transparency and leaves EXIF and wide integers alone.
OWN, OPEN_CLIP = "clip_la", "open_clip"
SUITE_KEYS = ("models", "datasets")


@dataclass(frozen=True)
class SuiteEntry:
    """One evaluation of a suite. Raises UserError for values that do not go together."""

    data: str = option(metavar="PATH")
    """Class folders, webdataset shards or Parquet files."""
    classes: str | None = option(None, metavar="SET")
    """imagenet1k, imagenet1k/raw, imagenet21k/lemmas, ... or a file."""
    templates: str | None = option(None, metavar="SET")
    """openai80, simple7, plain, name, definition, a file, or 'a {c}.'"""
    name: str | None = option(None, metavar="NAME")
    """The data set's name in results (default: its folder's)."""
    labels: str = "own"
    """own, or real: ReaL labels for ImageNet-1K."""
    task: str = results.CLASSIFICATION
    """zeroshot_classification, zeroshot_retrieval, linear_probe or knn."""
    train: str | None = option(None, metavar="PATH")
    """Labelled images for linear_probe and knn."""
    shots: int | None = None
    """Images a class to learn from (default: all)."""
    unknown_classes: str = option(SKIP, metavar="skip|error")
    """Images whose class the set lacks: skip and count them, or stop."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.task not in results.TASKS:
            raise unknown("task", self.task, results.TASKS)
        is_probe = self.task in (results.LINEAR_PROBE, results.KNN)
        if is_probe and not self.train:
            raise UserError(f"task {self.task} needs images to learn from: train")
        if not is_probe and (self.train or self.shots is not None):
            raise UserError(f"train and shots are for {results.LINEAR_PROBE} and {results.KNN}, not for {self.task}")
        if self.templates and self.task != results.CLASSIFICATION:
            raise UserError(f"templates are for {results.CLASSIFICATION}, not for {self.task}")
        if self.task == results.RETRIEVAL and (self.classes or self.labels != "own"):
            raise UserError(f"task {self.task} has captions, not classes")
        if self.shots is not None and self.shots < 1:
            raise UserError(f"shots is {self.shots}; a class needs at least one image to learn from")
        if self.unknown_classes not in UNKNOWN_CLASSES:
            raise unknown("choice of unknown_classes", self.unknown_classes, UNKNOWN_CLASSES)


ENTRY_NAMES = tuple(each.name for each in fields(SuiteEntry))


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What to evaluate, by what means, and what to write; what to evaluate on is a `SuiteEntry` or a suite of them."""

    models: tuple[str, ...] = option((), metavar="MODEL", positional=True)
    """One model or several."""
    config: str | None = option(None, metavar="FILE")
    """A YAML suite of data sets (see configs/eval)."""
    checkpoints: str = "last"
    """Of a run: last or all."""
    weights: str = option(TRAINED, metavar="trained|ema")
    """Of a checkpoint: as trained, or their average, which a run with --model.ema_samples saves."""
    out: str | None = option(None, metavar="FILE")
    """Where results are appended (default: RUN/results.jsonl, else here)."""
    again: bool = False
    """Evaluate even what the result file already has."""
    device: str | None = None
    """cuda, cuda:1, cpu (default: an accelerator if there is one)."""
    precision: str | None = None
    """float32 (default on a CPU) or bf16 (default on an accelerator)."""
    transform: str = option(OWN, metavar="NAME")
    """clip_la (upright, transparency on white) or open_clip (its own, on the image as stored)."""
    image_size: int | None = option(None, least=1, metavar="PIXELS")
    """Size of images other than training's: position embeddings are interpolated."""
    batch_size: int = option(128, least=1)
    """Images at a time."""
    workers: int | None = option(None, least=0)
    """Worker processes (default: one a core and 4 MiB of the test set, at most 16)."""
    sample_seconds: float | None = option(None, metavar="S")
    """An image that takes longer to decode is skipped and counted (default 60)."""
    cache: str | None = option(None, metavar="DIR")
    """Where text classifiers are kept, or none (default: ~/.cache/clip_la)."""
    contact_sheet: str | None = option(None, metavar="PATH")
    """Write PATH.png and PATH.html: images with predicted names."""
    compare: bool = False
    """Compare each model with the first, image by image."""
    per_class: bool = False
    """Write a table of the classes beside the predictions."""
    clip_benchmark: str | None = option(None, metavar="DIR")
    """Also write each result as CLIP_benchmark's JSON file."""
    compile: bool = False
    """Compile the towers (for large data sets)."""
    json: bool = False
    """Print the result lines as JSON on stdout."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.weights not in WEIGHTS:
            raise unknown("choice of weights", self.weights, WEIGHTS)

    def models_and_entries(self, entry: Mapping[str, Any]) -> tuple[list[str], list[SuiteEntry]]:
        """The models as they are named, and what to evaluate them on.

        Args:
            entry: what is given of a SuiteEntry; with a suite it fills in and overrules each of its entries.

        Raises:
            UserError: nothing to evaluate on, or what is there is wrong.
        """
        entry = {name: value for name, value in entry.items() if value is not None}
        if self.config:
            models, entries = read_suite(self.config, **entry)
            return list(self.models) or models, entries
        if not entry.get("data"):
            raise UserError("nothing to evaluate on: give --data PATH or --config FILE (see configs/eval)")
        return list(self.models), [SuiteEntry(**entry)]


def read_suite(path: str | Path, **given: Any) -> tuple[list[str], list[SuiteEntry]]:
    """(models, entries) of a YAML file; what is `given` wins over the file, and fills in what it lacks.

    Raises:
        UserError: no such file, no YAML, an unknown key, an entry without data.
    """
    from clip_la.yaml_text import load_yaml
    from clip_la.zeroshot.labels.text_files import read_text

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no suite at {path}; see configs/eval")
    text = read_text(path)
    try:
        content = load_yaml(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("datasets"), list):
        raise UserError(f"{path}: expected 'datasets:' with a list of entries (data, classes, templates, name, ...)")
    for key in content:
        if key not in SUITE_KEYS:
            raise unknown(f"key in {path}", str(key), SUITE_KEYS)
    models = content.get("models") or []
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise UserError(f"{path}: models is {shown(models)}, not a list of names")
    entries = []
    for raw in content["datasets"]:
        if not isinstance(raw, dict):
            raise UserError(f"{path}: '{raw}' is no entry; write 'data: PATH' and what else it needs")
        for key in raw:
            if key not in ENTRY_NAMES:
                raise unknown(f"key in {path}", str(key), ENTRY_NAMES)
        values = {**raw, **given}
        if not values.get("data"):
            name = values.get("name") or raw
            raise UserError(f"{path}: the entry {name} says not where its data is; give --data PATH")
        try:
            entries.append(SuiteEntry(**values))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return models, entries
