"""Zero-shot classification: images against a text classifier, streamed, never more than a batch of scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip_la import distributed as ranks
from clip_la import results
from clip_la.data.corpora.imagenet_names import is_wordnet_id
from clip_la.models.clip import CLIP
from clip_la.zeroshot.datasets.find import open_dataset
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.labels import prompts, wordnet
from clip_la.zeroshot.labels.classes import CATALOG, ClassSet, class_set
from clip_la.zeroshot.labels.prompts import PromptSet
from clip_la.zeroshot.model.classifier import ClassifierCache, build_classifier
from clip_la.zeroshot.model.eval_model import EvalModel, of_model
from clip_la.zeroshot.runner.batches import ImageBatch
from clip_la.zeroshot.runner.loop import EvalSettings, run_images
from clip_la.zeroshot.runner.rows import PartialResults, Predictions
from clip_la.zeroshot.tasks import metrics
from clip_la.zeroshot.tasks.task import Evaluation, Task


@dataclass(frozen=True)
class Classification(Task):
    """Zero-shot classification of a test set with some prompts."""

    test_set: EvalDataset
    prompts: PromptSet
    has_predictions = True
    kind = results.CLASSIFICATION

    def depends_on(self, eval_model: EvalModel) -> tuple[tuple[Any, ...], dict[str, Any]]:
        classes = self.test_set.classes
        content = (eval_model.hash, self.test_set.fingerprint, classes.hash, self.prompts.hash)
        return content, {"names": classes.label, "templates": self.prompts.name}

    def run(self, eval_model: EvalModel, settings: EvalSettings) -> Evaluation:
        """Evaluates, and writes the predictions to STATE/EVALUATION.npz where there is a state folder."""
        classes, state = self.test_set.classes, settings.state
        classifier = build_classifier(
            eval_model,
            classes,
            self.prompts,
            precision=settings.precision,
            num_workers=settings.most_workers,
            cache=settings.cache,
            progress=settings.progress,
        )
        evaluation, _ = self.identify(eval_model, settings)
        kept = PartialResults(state, f"{evaluation}.parts", Predictions)
        rows = classify(eval_model, classifier, self.test_set, settings, kept)
        values = metrics.classification(rows.ranks, rows.labels, len(classes)) | hierarchy_metrics(rows, classes)
        line = self.result_line(
            eval_model,
            settings,
            rows,
            values,
            num_classes=len(classes),
            names_hash=classes.hash,
            templates_hash=self.prompts.hash,
            classes_with_pictures=len(np.unique(rows.labels)),
            classes_sharing_a_name=len(classes.sharing_a_name()),
        )
        path = None if state is None else state / f"{evaluation}.npz"
        if path is not None and ranks.rank() == 0:
            rows.save(path)
            kept.clear()
        return Evaluation(line, self.test_set, rows, path)


def classify(
    eval_model: EvalModel,
    classifier: Float[Tensor, "classes embed_dim"],
    test_set: EvalDataset,
    settings: EvalSettings,
    kept: PartialResults[Predictions] | None = None,
) -> Predictions:
    """Every image once, by all ranks together; every rank returns all rows. All ranks must call it.

    Args:
        classifier: unit vectors on the model's device, from `build_classifier`.
        kept: where finished units are saved from time to time, so that a killed evaluation resumes there.

    Raises:
        UserError: what the test set raises, on whichever rank; no image could be read.
    """
    k = min(metrics.TOP, len(classifier))

    def score(batch: ImageBatch) -> Predictions:
        unit, labels = batch.unit_rows(), batch.padded_labels()
        top, scores, truth = torch.zeros(0, k), torch.zeros(0, k), torch.zeros(0)
        if batch.images is not None:
            # All rows, empty ones included: neither shapes nor places may depend on what could be read.
            similarity = (eval_model.encode_images(batch.images, settings.precision) @ classifier.T)[batch.rows]
            keys = metrics.ordered_keys(similarity)
            scores, top = metrics.top_classes(keys, similarity, k)
            truth = metrics.truth_ranks(keys, labels.to(keys.device))
        return Predictions(
            **unit,
            keys=np.array(batch.keys, dtype=np.str_),
            labels=np.array([own[0] for own in batch.labels], dtype=np.int32),
            ranks=truth.cpu().numpy().astype(np.int32),
            top=top.cpu().numpy().astype(np.int32),
            scores=scores.cpu().numpy().astype(np.float32),
        )

    return run_images(eval_model, test_set, score, kept or PartialResults(None, "", Predictions), settings)


def hierarchy_metrics(rows: Predictions, classes: ClassSet) -> dict[str, metrics.Estimate]:
    """How wrong the wrong ones are, for classes with WordNet ids where WordNet is installed; else nothing.

    `wordnet_similarity` is the mean Wu-Palmer similarity of predicted class and own class, `top1_or_hypernym` the share
    of images whose predicted class is their own or stands above it ("dog" for a husky).
    """
    hierarchy = wordnet.hierarchy_of(classes.ids) if all(map(is_wordnet_id, classes.ids)) else None
    if hierarchy is None:
        return {}
    similar, above = wordnet.scores(hierarchy, classes.ids, rows.labels, rows.top[:, 0])
    hit = rows.hits()
    return {
        "wordnet_similarity": metrics.mean(np.where(hit, 1.0, similar)),
        "top1_or_hypernym": metrics.share(hit | above),
    }


def choose_prompts(text: str | None, test_set: EvalDataset) -> PromptSet:
    """The prompts that `text` names; by default the data's own, else OpenAI's 80 for ImageNet, else the plain one."""
    if text is not None:
        return prompts.prompt_set(text)
    if test_set.templates:
        return PromptSet(f"{test_set.name}'s own", test_set.templates)
    return prompts.built_in("openai80" if test_set.classes.name in CATALOG else "plain")


def evaluate_zeroshot(
    model: CLIP | EvalModel,
    data: str | EvalDataset,
    *,
    classes: str | ClassSet | None = None,
    templates: str | PromptSet | None = None,
    name: str | None = None,
    precision: str = "float32",
    batch_size: int = EvalSettings.batch_size,
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
        precision, batch_size, num_workers, cache, state, progress: as in `EvalSettings`.
        meta: origin of a model given as such: samples_seen, run_id, seed, schedule, ...

    Raises:
        UserError: wrong input, in one line.
    """
    eval_model = model if isinstance(model, EvalModel) else of_model(model, **dict(meta or {}))
    chosen = class_set(classes) if isinstance(classes, str) else classes
    test_set = data if isinstance(data, EvalDataset) else open_dataset(data, classes=chosen, name=name)
    task = Classification(
        test_set, templates if isinstance(templates, PromptSet) else choose_prompts(templates, test_set)
    )
    was_training = eval_model.module.training
    eval_model.module.eval()
    try:
        return task.run(eval_model, EvalSettings(precision, batch_size, num_workers, cache, state, progress))
    finally:
        eval_model.module.train(was_training)
