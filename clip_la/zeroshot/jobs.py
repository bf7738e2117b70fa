"""The kinds of evaluation behind one face: each knows the id of its result beforehand, and how to make it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from clip_la.zeroshot import results
from clip_la.zeroshot.cache import ClassifierCache
from clip_la.zeroshot.evaluate import Evaluation, evaluation_id, run_evaluation
from clip_la.zeroshot.probe import evaluate_probe, probe_id
from clip_la.zeroshot.prompts import PromptSet
from clip_la.zeroshot.records import TestSet
from clip_la.zeroshot.retrieval import evaluate_retrieval, retrieval_id
from clip_la.zeroshot.subject import Subject

TASKS = (results.CLASSIFICATION, results.RETRIEVAL, results.LINEAR_PROBE, results.KNN)


@dataclass(frozen=True)
class How:
    """With what means evaluations run; the first two can move their digits."""

    precision: str = "float32"
    batch_size: int = 128
    num_workers: int = 0
    cache: ClassifierCache | None = None


class Job(ABC):
    """One evaluation to be done for any model."""

    test_set: TestSet
    has_predictions = False

    @abstractmethod
    def identify(self, subject: Subject, how: How) -> str:
        """The evaluation id that the result will have."""

    @abstractmethod
    def run(self, subject: Subject, how: How, state: Path) -> Evaluation:
        """Evaluates, by all ranks together; unfinished work is kept in `state` where the kind can go on from it."""


@dataclass(frozen=True)
class Classification(Job):
    """Zero-shot classification."""

    test_set: TestSet
    prompts: PromptSet
    has_predictions = True

    def identify(self, subject: Subject, how: How) -> str:
        return evaluation_id(subject, self.test_set, self.prompts, how.precision, how.batch_size)

    def run(self, subject: Subject, how: How, state: Path) -> Evaluation:
        return run_evaluation(
            subject,
            self.test_set,
            self.prompts,
            precision=how.precision,
            batch_size=how.batch_size,
            num_workers=how.num_workers,
            cache=how.cache,
            state=state,
        )


@dataclass(frozen=True)
class Retrieval(Job):
    """Pictures by caption and captions by picture."""

    test_set: TestSet

    def identify(self, subject: Subject, how: How) -> str:
        return retrieval_id(subject, self.test_set, how.precision, how.batch_size)

    def run(self, subject: Subject, how: How, state: Path) -> Evaluation:
        line = evaluate_retrieval(
            subject,
            self.test_set,
            precision=how.precision,
            batch_size=how.batch_size,
            num_workers=how.num_workers,
        )
        return Evaluation(line)


@dataclass(frozen=True)
class Probe(Job):
    """A linear probe or k-NN on frozen features."""

    test_set: TestSet
    train_set: TestSet
    task: str
    shots: int | None

    def identify(self, subject: Subject, how: How) -> str:
        return probe_id(subject, self.train_set, self.test_set, self.task, self.shots, how.precision, how.batch_size)

    def run(self, subject: Subject, how: How, state: Path) -> Evaluation:
        line = evaluate_probe(
            subject,
            self.train_set,
            self.test_set,
            task=self.task,
            shots=self.shots,
            precision=how.precision,
            batch_size=how.batch_size,
            num_workers=how.num_workers,
        )
        return Evaluation(line)
