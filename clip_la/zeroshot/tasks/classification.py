"""Zero-shot classification from end to end: model, data, classes and prompts in, one result line out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clip_la import distributed as ranks
from clip_la import results
from clip_la.data.corpora.imagenet_names import is_wordnet_id
from clip_la.errors import UserError
from clip_la.models.clip import CLIP
from clip_la.zeroshot import metrics
from clip_la.zeroshot.datasets.find import open_dataset
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.labels import prompts, wordnet
from clip_la.zeroshot.labels.classes import CATALOG, ClassSet, class_set, content_hash
from clip_la.zeroshot.labels.prompts import PromptSet
from clip_la.zeroshot.model.classifier import build_classifier
from clip_la.zeroshot.model.classifier_cache import ClassifierCache
from clip_la.zeroshot.model.eval_model import EvalModel, of_model
from clip_la.zeroshot.runner import predictions
from clip_la.zeroshot.runner.classify import TOP, classify
from clip_la.zeroshot.runner.partial_results import PartialResults
from clip_la.zeroshot.runner.predictions import Predictions

DEFAULT_BATCH_SIZE = 128
PREDICTIONS_FOLDER = "predictions"


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: its result line, and what was said of each picture."""

    line: dict[str, Any]
    found: Predictions | None = None

    @property
    def predictions(self) -> Predictions:
        """What was said of each picture; raises UserError for a task that says nothing (retrieval, probes)."""
        if self.found is None:
            raise UserError(f"a result of {self.line['task']} has no predicted classes")
        return self.found


def choose_prompts(text: str | None, test_set: EvalDataset) -> PromptSet:
    """The prompts that `text` names; by default the data's own, else OpenAI's 80 for ImageNet, else the plain one."""
    if text is not None:
        return prompts.prompt_set(text)
    if test_set.templates:
        return PromptSet(f"{test_set.name}'s own", test_set.templates)
    return prompts.built_in("openai80" if test_set.classes.name in CATALOG else "plain")


def evaluation_id(
    eval_model: EvalModel, test_set: EvalDataset, templates: PromptSet, precision: str, batch_size: int
) -> str:
    """A hash of all that the digits of an evaluation depend on, so that a finished one is known again."""
    parts = (eval_model.hash, test_set.fingerprint, test_set.classes.hash, templates.hash, precision, batch_size)
    return content_hash([results.CLASSIFICATION, results.FORMAT, *parts, eval_model.device.type])


def classification_metrics(found: Predictions, num_classes: int) -> dict[str, dict[str, float]]:
    """top1, top5 (with five classes and more) and mean_per_class_recall, each with its 95 % interval."""
    first = predictions.hits(found)
    values = {"top1": metrics.share(first)}
    if num_classes >= TOP:
        values["top5"] = metrics.share(predictions.hits(found, TOP))
    values["mean_per_class_recall"] = metrics.mean_per_class_recall(found.labels, first, num_classes)
    return {name: estimate.to_dict() for name, estimate in values.items()}


def hierarchy_metrics(found: Predictions, classes: ClassSet) -> dict[str, dict[str, float]]:
    """How wrong the wrong ones are, for classes with WordNet ids where WordNet is installed; else nothing.

    `wordnet_similarity` is the mean Wu-Palmer similarity of predicted class and own class, `top1_or_hypernym` the share
    of pictures whose predicted class is their own or stands above it ("dog" for a husky).
    """
    if not all(is_wordnet_id(key) for key in classes.ids):
        return {}
    hierarchy = wordnet.hierarchy_of(classes.ids)
    if hierarchy is None:
        return {}
    similar, above = wordnet.scores(hierarchy, classes.ids, found.labels, found.top[:, 0])
    hit = predictions.hits(found)
    values = {
        "wordnet_similarity": metrics.mean(np.where(hit, 1.0, similar)),
        "top1_or_hypernym": metrics.share(hit | above),
    }
    return {name: estimate.to_dict() for name, estimate in values.items()}


def labels_of(eval_model: EvalModel, test_set: EvalDataset, templates: PromptSet) -> dict[str, Any]:
    """The fields of a result line that name model, data and prompts; they move no digit."""
    return {
        **eval_model.origin,
        "task": results.CLASSIFICATION,
        **test_set.labels,
        "names": test_set.classes.label,
        "templates": templates.name,
    }


def result_line(
    eval_model: EvalModel,
    test_set: EvalDataset,
    templates: PromptSet,
    found: Predictions,
    precision: str,
    evaluation: str,
) -> dict[str, Any]:
    """The result as one JSON-able object; every figure with its origin."""
    classes = test_set.classes
    return {
        **labels_of(eval_model, test_set, templates),
        "data_hash": test_set.fingerprint,
        "num_samples": len(found),
        "num_classes": len(classes),
        "metrics": classification_metrics(found, len(classes)) | hierarchy_metrics(found, classes),
        "names_hash": classes.hash,
        "templates_hash": templates.hash,
        "classes_with_pictures": len(np.unique(found.labels)),
        "classes_sharing_a_name": len(classes.sharing_a_name()),
        "skipped": found.reasons(),
        "skipped_examples": predictions.first_keys(found.skipped),
        **test_set.said,
        "evaluation": evaluation,
        **results.provenance(eval_model.device, precision),
    }


def run_evaluation(
    eval_model: EvalModel,
    test_set: EvalDataset,
    templates: PromptSet,
    *,
    precision: str = "float32",
    batch_size: int = DEFAULT_BATCH_SIZE,
    num_workers: int = 0,
    cache: ClassifierCache | None = None,
    state: Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Evaluates one model on one test set, by all ranks together; every rank returns the same.

    Args:
        state: a folder where the predictions are kept and from which a killed evaluation goes on; None keeps nothing.

    Raises:
        UserError: what the test set or the prompts raise; no picture could be read.
    """
    evaluation = evaluation_id(eval_model, test_set, templates, precision, batch_size)
    parts = None if state is None else PartialResults(state / f"{evaluation}.parts", predictions.load)
    classifier = build_classifier(
        eval_model,
        test_set.classes,
        templates,
        precision=precision,
        num_workers=num_workers,
        cache=cache,
        progress=progress,
    )
    found = classify(
        eval_model,
        classifier,
        test_set,
        precision=precision,
        batch_size=batch_size,
        num_workers=num_workers,
        parts=parts,
        progress=progress,
    )
    if not len(found):
        reasons = predictions.said(found.skipped) or "it is empty"
        raise UserError(f"{test_set.name} has no picture that can be evaluated ({reasons})")
    line = result_line(eval_model, test_set, templates, found, precision, evaluation)
    if state is not None and parts is not None and ranks.rank() == 0:
        found.save(state / f"{evaluation}.npz")
        parts.clear()
    return Evaluation(line, found)


def evaluate_zeroshot(
    model: CLIP | EvalModel,
    data: str | EvalDataset,
    *,
    classes: str | ClassSet | None = None,
    templates: str | PromptSet | None = None,
    name: str | None = None,
    precision: str = "float32",
    batch_size: int = DEFAULT_BATCH_SIZE,
    num_workers: int = 0,
    cache: ClassifierCache | None = None,
    state: Path | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Zero-shot classification in one call; the model stays on its device and keeps its mode.

    Args:
        model: one of ours, or an EvalModel of `load.load_eval_model`.
        data, classes, templates, name: what the `eval` command takes, or the objects themselves.
        meta: origin of a model given as such: samples_seen, run_id, seed, schedule, ...

    Raises:
        UserError: wrong input, in one line.
    """
    eval_model = model if isinstance(model, EvalModel) else of_model(model, **dict(meta or {}))
    chosen = class_set(classes) if isinstance(classes, str) else classes
    test_set = data if isinstance(data, EvalDataset) else open_dataset(data, classes=chosen, name=name)
    prompt_set = templates if isinstance(templates, PromptSet) else choose_prompts(templates, test_set)
    was_training = eval_model.module.training
    eval_model.module.eval()
    try:
        return run_evaluation(
            eval_model,
            test_set,
            prompt_set,
            precision=precision,
            batch_size=batch_size,
            num_workers=num_workers,
            cache=cache,
            state=state,
            progress=progress,
        )
    finally:
        eval_model.module.train(was_training)
