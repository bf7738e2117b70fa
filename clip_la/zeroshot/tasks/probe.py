"""What frozen image features are worth without any text: k nearest neighbours, a linear probe, few shots a class."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clip_la import distributed as ranks
from clip_la import results
from clip_la.errors import UserError
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.model.eval_model import EvalModel
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.tasks import metrics
from clip_la.zeroshot.tasks.task import Evaluation, Task, encode_images

# Wu et al. 2018 (arXiv 1805.01978, section 3.4): votes weighted by exp(similarity / temperature).
NUM_NEIGHBOURS = 20
KNN_TEMPERATURE = 0.07
# Regularisation is chosen on a held-out fifth of the training images, over these powers of ten.
RIDGE_POWERS = range(-6, 5)
HELD_OUT_SHARE = 5
QUERIES_PER_CHUNK = 256
SPLIT_SEED = 0

# Queries (n, dim) -> the scores of each class (n, classes).
Scores = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Probe(Task):
    """A linear probe or k-NN on frozen features.

    Attributes:
        train_set: labelled images of the same classes in the same order.
        task: results.LINEAR_PROBE or results.KNN.
        shots: training images a class; None takes all.
    """

    test_set: EvalDataset
    train_set: EvalDataset
    task: str
    shots: int | None = None
    shares_features = True

    @property
    def kind(self) -> str:
        return self.task

    @property
    def test_sets(self) -> dict[str, EvalDataset]:
        return {"test_set": self.test_set, "train_set": self.train_set}

    def depends_on(self, eval_model: EvalModel) -> tuple[tuple[Any, ...], dict[str, Any]]:
        train, test = self.train_set, self.test_set
        content = (self.shots, eval_model.hash, train.fingerprint, test.fingerprint, test.classes.hash)
        return content, {"train_dataset": train.name, "train_path": train.data, "names": test.classes.label}

    def run(self, eval_model: EvalModel, settings: EvalSettings) -> Evaluation:
        """Evaluates; raises UserError also where the two sets have different classes."""
        classes = self.test_set.classes
        if self.train_set.classes.ids != classes.ids:
            both = f"{self.train_set.name} and {self.test_set.name}"
            raise UserError(f"{both} have different classes; name them the same: --classes")
        train, test = (encode_images(eval_model, each, settings) for each in (self.train_set, self.test_set))
        train_labels, labels = (torch.tensor([own[0] for own in each.labels]) for each in (train, test))
        chosen = torch.arange(len(train)) if self.shots is None else few_shots(train_labels, self.shots)

        def work() -> tuple[np.ndarray, dict[str, float]]:
            # Small next to the towers, and exact: every rank could do it, one does.
            if ranks.rank():
                return np.zeros(0, dtype=np.int64), {}
            features, known = torch.from_numpy(train.values)[chosen], train_labels[chosen]
            settled: dict[str, float] = {}
            if self.task == results.KNN:
                scores_of: Scores = partial(knn_scores, train=features, train_labels=known, num_classes=len(classes))
            else:
                settled["penalty"] = Ridge.choose_penalty(features, known, len(classes))
                scores_of = partial(Ridge(features, known, len(classes)).scores, penalty=settled["penalty"])
            return rank_true_classes(scores_of, torch.from_numpy(test.values), labels), settled

        ranked, settled = ranks.all_gather(work)[0]
        line = self.result_line(
            eval_model,
            settings,
            test,
            metrics.classification(ranked, labels.numpy(), len(classes)),
            train_hash=self.train_set.fingerprint,
            num_classes=len(classes),
            classes_with_pictures=len(labels.unique()),
            names_hash=classes.hash,
            num_train=len(chosen),
            shots=self.shots,
            **settled,
        )
        return Evaluation(line, self.test_set)


def few_shots(labels: Int64[Tensor, " images"], shots: int, seed: int = SPLIT_SEED) -> Int64[Tensor, " chosen"]:
    """Positions of `shots` images a class (all of a class that has fewer), drawn by `seed`, in ascending order."""
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
    """The votes for each class of the k most similar training images (unit features), of equal ones the earlier."""
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
        # Centred, so that the intercept is not shrunk.
        x, y = x - self.centre, y - self.mean
        self.num_train = len(x)
        self.eigenvalues, self.vectors = torch.linalg.eigh(x.T @ x)
        self.projected = self.vectors.T @ (x.T @ y)

    def scores(self, queries: Float[Tensor, "queries dim"], penalty: float) -> Float[Tensor, "queries classes"]:
        """Regression values of each class; `penalty` is per training image."""
        shrunk = self.projected / (self.eigenvalues.clamp(min=0) + penalty * self.num_train)[:, None]
        weights = self.vectors @ shrunk
        return ((queries.double() - self.centre) @ weights + self.mean).float()

    @classmethod
    def choose_penalty(
        cls, features: Float[Tensor, "train dim"], labels: Int64[Tensor, " train"], num_classes: int
    ) -> float:
        """The penalty with the best top-1 on a held-out fifth; of equal ones the largest. Of too few images: 1e-2."""
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
        held, rest = order[: len(order) // HELD_OUT_SHARE], order[len(order) // HELD_OUT_SHARE :]
        if not len(held):
            return 1e-2
        model = cls(features[rest], labels[rest], num_classes)
        # A larger penalty of equal worth is the simpler model.
        right = {p: int((model.scores(features[held], 10.0**p).argmax(1) == labels[held]).sum()) for p in RIDGE_POWERS}
        return 10.0 ** max(right, key=lambda power: (right[power], power))


def rank_true_classes(
    scores_of: Scores, queries: Float[Tensor, "queries dim"], labels: Int64[Tensor, " queries"]
) -> Int64[np.ndarray, " queries"]:
    """The rank of each query's class, in chunks of queries."""
    ranked = []
    for start in range(0, len(queries), QUERIES_PER_CHUNK):
        rows = slice(start, start + QUERIES_PER_CHUNK)
        ranked.append(metrics.truth_ranks(metrics.ordered_keys(scores_of(queries[rows])), labels[rows][:, None]))
    return torch.cat(ranked).numpy()
