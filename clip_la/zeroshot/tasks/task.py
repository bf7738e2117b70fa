"""The kinds of evaluation behind one face: each knows the id of its result beforehand, and how to make it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from clip_la import results
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.labels.prompts import PromptSet
from clip_la.zeroshot.model.classifier_cache import ClassifierCache
from clip_la.zeroshot.model.eval_model import EvalModel
from clip_la.zeroshot.runner.features import features_id, forget
from clip_la.zeroshot.tasks import classification as evaluate
from clip_la.zeroshot.tasks import probe, retrieval
from clip_la.zeroshot.tasks.classification import DEFAULT_BATCH_SIZE, Evaluation, evaluation_id, run_evaluation
from clip_la.zeroshot.tasks.probe import evaluate_probe, probe_id
from clip_la.zeroshot.tasks.retrieval import evaluate_retrieval, retrieval_id

TASKS = (results.CLASSIFICATION, results.RETRIEVAL, results.LINEAR_PROBE, results.KNN)


@dataclass(frozen=True)
class EvalOptions:
    """With what means evaluations run; the first two can move their digits."""

    precision: str = "float32"
    batch_size: int = DEFAULT_BATCH_SIZE
    num_workers: int = 0
    cache: ClassifierCache | None = None
    progress: bool = True

    @property
    def for_images(self) -> dict[str, Any]:
        """What the functions take that show pictures to a model."""
        names = ("precision", "batch_size", "num_workers", "progress")
        return {name: getattr(self, name) for name in names}


class Task(ABC):
    """One evaluation to be done for any model."""

    test_set: EvalDataset
    has_predictions = False

    @property
    def test_sets(self) -> dict[str, EvalDataset]:
        """The test sets that it reads, by the names of their fields."""
        return {"test_set": self.test_set}

    def as_found(self) -> Self:
        """The same job with the content of its data as it is found now, equal on every rank. All ranks must call it."""
        found = self._look()
        sets = {name: own.as_found(found[name]) for name, own in self.test_sets.items()}
        return replace(self, **sets)  # type: ignore[type-var]

    @property
    def content(self) -> dict[str, str]:
        """The fingerprints of its test sets."""
        return {name: own.fingerprint for name, own in self.test_sets.items()}

    def has_changed(self) -> bool:
        """Whether its data are no longer what they were found to be. All ranks must call it."""
        return self._look() != self.content

    def _look(self) -> dict[str, str]:
        return {name: own.content() for name, own in self.test_sets.items()}

    @abstractmethod
    def labels(self, eval_model: EvalModel) -> dict[str, Any]:
        """What the result's line says of model and data by name."""

    @abstractmethod
    def identify(self, eval_model: EvalModel, how: EvalOptions) -> str:
        """The evaluation id that the result will have."""

    @abstractmethod
    def run(self, eval_model: EvalModel, how: EvalOptions, state: Path) -> Evaluation:
        """Evaluates, by all ranks together; finished units are kept in `state`, for a killed evaluation to go on."""

    def featured(self) -> tuple[EvalDataset, ...]:
        """The test sets of which features are kept in `state` even when this job is done: others may want them."""
        return ()

    def forget(self, eval_model: EvalModel, how: EvalOptions, state: Path) -> None:
        """Removes these features."""
        for test_set in self.featured():
            forget(state, features_id(eval_model, test_set, how.precision, how.batch_size))


@dataclass(frozen=True)
class Classification(Task):
    """Zero-shot classification."""

    test_set: EvalDataset
    prompts: PromptSet
    has_predictions = True

    def labels(self, eval_model: EvalModel) -> dict[str, Any]:
        return evaluate.labels_of(eval_model, self.test_set, self.prompts)

    def identify(self, eval_model: EvalModel, how: EvalOptions) -> str:
        return evaluation_id(eval_model, self.test_set, self.prompts, how.precision, how.batch_size)

    def run(self, eval_model: EvalModel, how: EvalOptions, state: Path) -> Evaluation:
        return run_evaluation(eval_model, self.test_set, self.prompts, cache=how.cache, state=state, **how.for_images)


@dataclass(frozen=True)
class Retrieval(Task):
    """Pictures by caption and captions by picture."""

    test_set: EvalDataset

    def labels(self, eval_model: EvalModel) -> dict[str, Any]:
        return retrieval.labels_of(eval_model, self.test_set)

    def identify(self, eval_model: EvalModel, how: EvalOptions) -> str:
        return retrieval_id(eval_model, self.test_set, how.precision, how.batch_size)

    def run(self, eval_model: EvalModel, how: EvalOptions, state: Path) -> Evaluation:
        return Evaluation(evaluate_retrieval(eval_model, self.test_set, state=state, **how.for_images))

    def featured(self) -> tuple[EvalDataset, ...]:
        return (self.test_set,)


@dataclass(frozen=True)
class Probe(Task):
    """A linear probe or k-NN on frozen features."""

    test_set: EvalDataset
    train_set: EvalDataset
    task: str
    shots: int | None

    @property
    def test_sets(self) -> dict[str, EvalDataset]:
        return {"test_set": self.test_set, "train_set": self.train_set}

    def labels(self, eval_model: EvalModel) -> dict[str, Any]:
        return probe.labels_of(eval_model, self.train_set, self.test_set, self.task)

    def identify(self, eval_model: EvalModel, how: EvalOptions) -> str:
        return probe_id(eval_model, self.train_set, self.test_set, self.task, self.shots, how.precision, how.batch_size)

    def run(self, eval_model: EvalModel, how: EvalOptions, state: Path) -> Evaluation:
        sets = (self.train_set, self.test_set)
        return Evaluation(
            evaluate_probe(eval_model, *sets, task=self.task, shots=self.shots, state=state, **how.for_images)
        )

    def featured(self) -> tuple[EvalDataset, ...]:
        return (self.train_set, self.test_set)
