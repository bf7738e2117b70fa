"""What a YAML suite or the command line asks for, as jobs."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from clip_la import results
from clip_la.errors import UserError, shown, unknown
from clip_la.zeroshot.datasets import shards as shard_sets
from clip_la.zeroshot.datasets.find import default_name, open_dataset
from clip_la.zeroshot.datasets.label_values import SKIP, UNKNOWN_CLASSES
from clip_la.zeroshot.labels.classes import class_set
from clip_la.zeroshot.labels.text_files import read_text
from clip_la.zeroshot.tasks.classification import choose_prompts
from clip_la.zeroshot.tasks.task import TASKS, Classification, Probe, Retrieval, Task

KEYS = ("models", "datasets")


@dataclass(frozen=True)
class SuiteEntry:
    """One evaluation of a suite. `train` and `shots` belong to probes, `classes`, `templates`, `labels` to classes."""

    data: str
    classes: str | None = None
    templates: str | None = None
    name: str | None = None
    labels: str = "own"
    task: str = results.CLASSIFICATION
    train: str | None = None
    shots: int | None = None
    unknown_classes: str = SKIP

    def __post_init__(self) -> None:
        self._check_types()
        if self.task not in TASKS:
            raise unknown("task", self.task, TASKS)
        is_probe = self.task in (results.LINEAR_PROBE, results.KNN)
        if is_probe and not self.train:
            raise UserError(f"task {self.task} needs pictures to learn from: train")
        if not is_probe and (self.train or self.shots is not None):
            raise UserError(f"train and shots are for {results.LINEAR_PROBE} and {results.KNN}, not for {self.task}")
        if self.templates and self.task != results.CLASSIFICATION:
            raise UserError(f"templates are for {results.CLASSIFICATION}, not for {self.task}")
        if self.task == results.RETRIEVAL and (self.classes or self.labels != "own"):
            raise UserError(f"task {self.task} has captions, not classes")
        if self.shots is not None and self.shots < 1:
            raise UserError(f"shots is {self.shots}; a class needs at least one picture to learn from")
        if self.unknown_classes not in UNKNOWN_CLASSES:
            raise unknown("choice of unknown_classes", self.unknown_classes, UNKNOWN_CLASSES)

    def _check_types(self) -> None:
        """YAML has numbers, dates and lists where a person may mean a text: `name: 2024`."""
        for field in fields(self):
            value = getattr(self, field.name)
            expected = int if field.name == "shots" else str
            if type(value) is not expected and (value is not None or field.default is not None):
                what = "a whole number" if expected is int else "text; put it in quotes"
                raise UserError(f"{field.name} is {shown(value)}, not {what}")


def prepare(entry: SuiteEntry) -> Task:
    """Opens what an entry names; raises UserError where it is not there."""
    if entry.task == results.RETRIEVAL:
        return Retrieval(shard_sets.open_caption_shards(entry.data, entry.name or default_name(entry.data)))
    classes = class_set(entry.classes) if entry.classes else None
    test_set = open_dataset(
        entry.data, classes=classes, name=entry.name, labels=entry.labels, unknown_classes=entry.unknown_classes
    )
    if entry.train is None:
        return Classification(test_set, choose_prompts(entry.templates, test_set))
    # The test set's classes hold for both, so that equal numbers mean equal classes.
    train_set = open_dataset(
        entry.train, classes=test_set.classes, unknown_classes=entry.unknown_classes, training=True
    )
    return Probe(test_set, train_set, entry.task, entry.shots)


def read_suite(path: str | Path, **given: Any) -> tuple[list[str], list[SuiteEntry]]:
    """(models, entries) of a YAML file; what is `given` and not None wins over the file, and fills in what it lacks.

    Raises:
        UserError: no such file, no YAML, an unknown key, an entry without data.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no suite at {path}; see configs/eval")
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("datasets"), list):
        raise UserError(f"{path}: expected 'datasets:' with a list of entries (data, classes, templates, name, ...)")
    for key in content:
        if key not in KEYS:
            raise unknown(f"key in {path}", str(key), KEYS)
    models = content.get("models") or []
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise UserError(f"{path}: models is {shown(models)}, not a list of names")
    return models, [_entry(raw, path, given) for raw in content["datasets"]]


def _entry(raw: Any, path: Path, given: dict[str, Any]) -> SuiteEntry:
    known = [field.name for field in fields(SuiteEntry)]
    if not isinstance(raw, dict):
        raise UserError(f"{path}: '{raw}' is no entry; write 'data: PATH' and what else it needs")
    for key in raw:
        if key not in known:
            raise unknown(f"key in {path}", str(key), known)
    values = {**raw, **{key: value for key, value in given.items() if value is not None}}
    if not values.get("data"):
        raise UserError(f"{path}: the entry {values.get('name') or raw} says not where its data is; give --data PATH")
    try:
        return SuiteEntry(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
