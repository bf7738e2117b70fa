"""What frozen image features are worth without any text: k nearest neighbours, a linear probe, few shots a class."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clip_la import distributed as ranks
from clip_la import results
from clip_la.errors import UserError
from clip_la.zeroshot import metrics
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.labels.classes import content_hash
from clip_la.zeroshot.model.eval_model import EvalModel
from clip_la.zeroshot.runner.classify import TOP
from clip_la.zeroshot.runner.features import Features, encode_images

# Wu et al. 2018 (arXiv 1805.01978, section 3.4): votes weighted by exp(similarity / temperature).
NUM_NEIGHBOURS = 20
KNN_TEMPERATURE = 0.07
# Regularisation is chosen on a held-out fifth of the training pictures, over these powers of ten.
RIDGE_POWERS = range(-6, 5)
HELD_OUT_SHARE = 5
QUERIES_PER_CHUNK = 256
SPLIT_SEED = 0

# Queries (n, dim) -> the scores of each class (n, classes).
Scores = Callable[[Tensor], Tensor]


def few_shots(labels: Int64[Tensor, " images"], shots: int, seed: int = SPLIT_SEED) -> Int64[Tensor, " chosen"]:
    """Positions of `shots` pictures a class (all of a class that has fewer), drawn by `seed`, in ascending order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    taken: dict[int, int] = {}
    chosen = []
    for position in order.tolist():
        own = int(labels[position])
        if taken.get(own, 0) < shots:
            taken[own] = taken.get(own, 0) + 1
            chosen.append(position)
    return torch.tensor(sorted(chosen))


def knn_scores(
    queries: Float[Tensor, "queries dim"],
    train: Float[Tensor, "train dim"],
    train_labels: Int64[Tensor, " train"],
    num_classes: int,
    k: int = NUM_NEIGHBOURS,
) -> Float[Tensor, "queries classes"]:
    """The votes for each class of the k most similar training pictures (unit features), of equal ones the earlier."""
    products = queries @ train.T
    similarity, nearest = metrics.top_classes(metrics.ordered_keys(products), products, min(k, len(train)))
    votes = torch.zeros(len(queries), num_classes, device=queries.device)
    return votes.scatter_add_(1, train_labels[nearest], (similarity / KNN_TEMPERATURE).exp())


class Ridge:
    """Least squares on one-hot labels with an L2 penalty, in closed form, float64: one decomposition, any penalty."""

    def __init__(self, features: Float[Tensor, "train dim"], labels: Int64[Tensor, " train"], num_classes: int) -> None:
        x = features.double()
        y = torch.nn.functional.one_hot(labels, num_classes).double()
        self.centre, self.mean = x.mean(0), y.mean(0)
        x, y = x - self.centre, y - self.mean
        self.num_train = len(x)
        self.eigenvalues, self.vectors = torch.linalg.eigh(x.T @ x)
        self.projected = self.vectors.T @ (x.T @ y)

    def scores(self, queries: Float[Tensor, "queries dim"], penalty: float) -> Float[Tensor, "queries classes"]:
        """Regression values of each class; `penalty` is per training picture."""
        shrunk = self.projected / (self.eigenvalues.clamp(min=0) + penalty * self.num_train)[:, None]
        weights = self.vectors @ shrunk
        return ((queries.double() - self.centre) @ weights + self.mean).float()


def choose_penalty(features: Float[Tensor, "train dim"], labels: Int64[Tensor, " train"], num_classes: int) -> float:
    """The penalty with the best top-1 on a held-out fifth; of equal ones the largest. Without enough pictures: 1e-2."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held, rest = order[: len(order) // HELD_OUT_SHARE], order[len(order) // HELD_OUT_SHARE :]
    if not len(held):
        return 1e-2
    model = Ridge(features[rest], labels[rest], num_classes)
    right = {p: int((model.scores(features[held], 10.0**p).argmax(1) == labels[held]).sum()) for p in RIDGE_POWERS}
    return 10.0 ** max(right, key=lambda power: (right[power], power))


def _labels(found: Features) -> Int64[Tensor, " images"]:
    return torch.tensor([own[0] for own in found.labels])


def rank_true_classes(
    scores_of: Scores, queries: Float[Tensor, "queries dim"], labels: Int64[Tensor, " queries"]
) -> Int64[np.ndarray, " queries"]:
    """The rank of each query's class, in chunks of queries."""
    found = []
    for start in range(0, len(queries), QUERIES_PER_CHUNK):
        rows = slice(start, start + QUERIES_PER_CHUNK)
        found.append(metrics.truth_ranks(metrics.ordered_keys(scores_of(queries[rows])), labels[rows][:, None]))
    return torch.cat(found).numpy()


def evaluate_probe(
    eval_model: EvalModel,
    train_set: EvalDataset,
    test_set: EvalDataset,
    *,
    task: str,
    shots: int | None = None,
    precision: str = "float32",
    batch_size: int = 128,
    num_workers: int = 0,
    state: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """The result line of a linear probe or of k-NN; by all ranks together.

    Args:
        train_set: labelled pictures of the same classes in the same order.
        task: results.LINEAR_PROBE or results.KNN.
        shots: training pictures a class; None takes all.
        state: where features are kept until `features.forget`, for a killed evaluation and for other probes; or None.

    Raises:
        UserError: the two sets have different classes.
    """
    if train_set.classes.ids != test_set.classes.ids:
        raise UserError(f"{train_set.name} and {test_set.name} have different classes; name them the same: --classes")
    settings: dict[str, Any] = {"precision": precision, "batch_size": batch_size, "num_workers": num_workers}
    settings |= {"state": state, "progress": progress}
    train, test = (encode_images(eval_model, each, **settings) for each in (train_set, test_set))
    chosen = torch.arange(len(train.images)) if shots is None else few_shots(_labels(train), shots)

    def work() -> tuple[np.ndarray, dict[str, float]]:
        # Small next to the towers, and exact: every rank could do it, one does.
        if ranks.rank():
            return np.zeros(0, dtype=np.int64), {}
        scores_of, chosen_values = _learn(task, train.images[chosen], _labels(train)[chosen], len(test_set.classes))
        return rank_true_classes(scores_of, test.images, _labels(test)), chosen_values

    found, chosen_values = ranks.all_gather(work)[0]
    return _result_line(
        eval_model,
        train_set,
        test_set,
        test,
        found,
        task=task,
        learning={"num_train": len(chosen), "shots": shots, **chosen_values},
        precision=precision,
        evaluation=probe_id(eval_model, train_set, test_set, task, shots, precision, batch_size),
    )


def _learn(
    task: str, features: Float[Tensor, "train dim"], labels: Int64[Tensor, " train"], num_classes: int
) -> tuple[Scores, dict[str, float]]:
    """What scores the classes, and the values that were chosen for it."""
    if task == results.KNN:
        return lambda queries: knn_scores(queries, features, labels, num_classes), {}
    penalty = choose_penalty(features, labels, num_classes)
    model = Ridge(features, labels, num_classes)
    return lambda queries: model.scores(queries, penalty), {"penalty": penalty}


def _result_line(
    eval_model: EvalModel,
    train_set: EvalDataset,
    test_set: EvalDataset,
    test: Features,
    found: np.ndarray,
    *,
    task: str,
    learning: dict[str, Any],
    precision: str,
    evaluation: str,
) -> dict[str, Any]:
    labels, num_classes = _labels(test), len(test_set.classes)
    return {
        **labels_of(eval_model, train_set, test_set, task),
        "data_hash": test_set.fingerprint,
        "train_hash": train_set.fingerprint,
        "num_samples": len(found),
        "num_classes": num_classes,
        "classes_with_pictures": len(labels.unique()),
        "names_hash": test_set.classes.hash,
        **learning,
        "metrics": _metrics(found, labels.numpy(), num_classes),
        "skipped": test.skipped,
        "skipped_examples": test.examples,
        **replace(test_set, notes=test_set.notes + train_set.notes).said,
        "evaluation": evaluation,
        **results.provenance(eval_model.device, precision),
    }


def _metrics(found: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, dict[str, float]]:
    values = {"top1": metrics.share(found == 0)}
    if num_classes >= TOP:
        values["top5"] = metrics.share(found < TOP)
    values["mean_per_class_recall"] = metrics.mean_per_class_recall(labels, found == 0, num_classes)
    return {name: estimate.to_dict() for name, estimate in values.items()}


def probe_id(
    eval_model: EvalModel,
    train_set: EvalDataset,
    test_set: EvalDataset,
    task: str,
    shots: int | None,
    precision: str,
    batch_size: int,
) -> str:
    """A hash of all that the digits of a probe depend on."""
    parts: Sequence[Any] = (eval_model.hash, train_set.fingerprint, test_set.fingerprint, test_set.classes.hash)
    return content_hash([task, results.FORMAT, shots, *parts, precision, batch_size, eval_model.device.type])


def labels_of(eval_model: EvalModel, train_set: EvalDataset, test_set: EvalDataset, task: str) -> dict[str, Any]:
    """The fields of a result line that name model, data and classes."""
    return {
        **eval_model.origin,
        "task": task,
        **test_set.labels,
        "train_dataset": train_set.name,
        "train_path": train_set.data,
        "names": test_set.classes.label,
    }
