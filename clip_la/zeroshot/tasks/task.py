"""What every kind of evaluation has in common: it knows the id of its result beforehand, and how to make the line."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from clip_la import results
from clip_la.errors import UserError
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.labels.classes import content_hash
from clip_la.zeroshot.model.eval_model import EvalModel
from clip_la.zeroshot.runner.batches import ImageBatch
from clip_la.zeroshot.runner.loop import EvalSettings, run_images
from clip_la.zeroshot.runner.rows import ImageFeatures, PartialResults, Predictions, UnitRows
from clip_la.zeroshot.tasks import metrics

# Beside the predictions: features that several tasks on one model share, until all of them are done.
FEATURES_FOLDER = "features"


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: its result line, the test set, what was predicted for each image, and the file with it.

    A task that predicts no classes has no `rows`; without a state folder there is no file.
    """

    line: dict[str, Any]
    test_set: EvalDataset
    rows: Predictions | None = field(default=None, repr=False)
    path: Path | None = None

    @property
    def predictions(self) -> Predictions:
        """The predicted classes; raises UserError for a task that predicts none (retrieval, probes)."""
        if self.rows is None:
            raise UserError(f"a result of {self.line['task']} has no predicted classes")
        return self.rows


class Task(ABC):
    """One evaluation to be done for any model. A subclass is a frozen dataclass with what it depends on."""

    test_set: EvalDataset
    has_predictions = False
    shares_features = False

    @property
    @abstractmethod
    def kind(self) -> str:
        """The `task` of its result lines: one of `results.TASKS`."""

    @property
    def test_sets(self) -> dict[str, EvalDataset]:
        """The test sets that it reads, by the names of their fields."""
        return {"test_set": self.test_set}

    @property
    def content(self) -> dict[str, str]:
        """The fingerprints of its test sets."""
        return {name: own.fingerprint for name, own in self.test_sets.items()}

    def current(self) -> Self:
        """The same task with the content that its data have now, equal on every rank. All ranks must call it."""
        sets = {name: replace(own, found=own.content()) for name, own in self.test_sets.items()}
        return replace(self, **sets)  # type: ignore[type-var]

    def has_changed(self) -> bool:
        """Whether its data are no longer what `current` saw. All ranks must call it."""
        return {name: own.content() for name, own in self.test_sets.items()} != self.content

    @abstractmethod
    def depends_on(self, eval_model: EvalModel) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(What its digits depend on besides the settings, as JSON has it; what its labels have besides the usual)."""

    def identify(self, eval_model: EvalModel, settings: EvalSettings) -> tuple[str, dict[str, Any]]:
        """What is known of the result line before the evaluation.

        Returns:
            `evaluation`, a hash of all that its digits depend on; and the fields that name model and data, which move
            no digit.
        """
        content, names = self.depends_on(eval_model)
        means = (settings.precision, settings.batch_size, eval_model.device.type)
        labels = {"task": self.kind, "dataset": self.test_set.name, "data": self.test_set.data, **names}
        return content_hash([self.kind, results.FORMAT, *content, *means]), {**eval_model.origin, **labels}

    @abstractmethod
    def run(self, eval_model: EvalModel, settings: EvalSettings) -> Evaluation:
        """Evaluates, by all ranks together; every rank returns the same. What a kill leaves is resumed.

        Raises:
            UserError: what the data raise; no image could be read.
        """

    def result_line(
        self,
        eval_model: EvalModel,
        settings: EvalSettings,
        rows: UnitRows,
        values: Mapping[str, metrics.Estimate],
        **fields: Any,
    ) -> dict[str, Any]:
        """The result as one JSON object: names, content, sizes, metrics, what was skipped, by what it was computed."""
        evaluation, labels = self.identify(eval_model, settings)
        notes = [note for own in self.test_sets.values() for note in own.notes]
        return {
            **labels,
            **eval_model.sizes,
            "data_hash": self.test_set.fingerprint,
            "num_samples": len(rows),
            **fields,
            "metrics": {name: asdict(estimate) for name, estimate in values.items()},
            "skipped": rows.skip_counts(),
            "skipped_examples": rows.skip_examples(),
            **({"notes": notes} if notes else {}),
            "evaluation": evaluation,
            **results.provenance(eval_model.device, settings.precision),
        }

    def forget(self, eval_model: EvalModel, settings: EvalSettings) -> None:
        """Removes the features that it shares with other tasks from the state folder."""
        if self.shares_features and settings.state is not None:
            folder = settings.state / FEATURES_FOLDER
            for own in self.test_sets.values():
                for path in folder.glob(f"{features_id(eval_model, own, settings)}*.parts"):
                    shutil.rmtree(path, ignore_errors=True)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def features_id(eval_model: EvalModel, test_set: EvalDataset, settings: EvalSettings) -> str:
    """A hash of all that the features of a test set, and what is known of its images, depend on."""
    content = (eval_model.hash, test_set.fingerprint, test_set.classes.hash)
    means = (settings.precision, settings.batch_size, eval_model.device.type)
    return content_hash([FEATURES_FOLDER, results.FORMAT, *content, *means])


def encode_images(eval_model: EvalModel, test_set: EvalDataset, settings: EvalSettings) -> ImageFeatures:
    """Features of every image of a test set, by all ranks together; every rank returns all rows.

    Raises:
        UserError: what the test set raises; no image could be read.
    """

    def encode(batch: ImageBatch) -> ImageFeatures:
        values = torch.zeros(0, 0)
        if batch.images is not None:
            # All rows, empty ones included: neither shapes nor places may depend on what could be read.
            values = eval_model.encode_images(batch.images, settings.precision)[batch.rows].cpu()
        return ImageFeatures(
            **batch.unit_rows(),
            keys=tuple(batch.keys),
            labels=tuple(batch.labels),
            captions=tuple(batch.captions),
            values=values.numpy(),
        )

    name = f"{FEATURES_FOLDER}/{features_id(eval_model, test_set, settings)}.parts"
    kept = PartialResults(settings.state, name, ImageFeatures)
    return run_images(eval_model, test_set, encode, kept, settings)
