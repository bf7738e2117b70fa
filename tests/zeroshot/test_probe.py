from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.neighbors import NearestNeighbors

from clip_la import results
from clip_la.errors import UserError
from clip_la.models.clip import CLIP
from clip_la.zeroshot.datasets.find import open_dataset
from clip_la.zeroshot.model.eval_model import of_model
from clip_la.zeroshot.options import SuiteEntry
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.tasks import probe

SETTINGS = EvalSettings(batch_size=4, progress=False)


def data(rows: int, seed: int, classes: int = 5, dim: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    features = centres[labels] + 1.5 * torch.randn(rows, dim, generator=generator)
    return torch.nn.functional.normalize(features, dim=1), labels


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_ridge_is_scikit_learns(penalty: float):
    train, labels = data(83, 0)
    queries, _ = data(17, 1)
    one_hot = np.eye(5)[labels.numpy()]
    reference = SklearnRidge(alpha=penalty * len(train)).fit(train.double().numpy(), one_hot)
    found = probe.Ridge(train, labels, 5).scores(queries, penalty)
    np.testing.assert_allclose(found, reference.predict(queries.double().numpy()), atol=1e-6)


def test_knn_votes():
    train, labels = data(61, 2)
    queries, _ = data(9, 3)
    near = NearestNeighbors(n_neighbors=7, metric="cosine").fit(train.numpy())
    distances, neighbours = near.kneighbors(queries.numpy())
    expected = np.zeros((9, 5))
    for row, (own, places) in enumerate(zip(distances, neighbours, strict=True)):
        for distance, place in zip(own, places, strict=True):
            expected[row, labels[place]] += np.exp((1 - distance) / probe.KNN_TEMPERATURE)
    found = probe.knn_scores(queries, train, labels, 5, k=7)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_few_shots_draw_equally_and_repeatably():
    labels = torch.tensor([0, 1, 1, 2, 0, 0, 2, 1, 1, 3])
    chosen = probe.few_shots(labels, 2, seed=1)
    assert labels[chosen].sort().values.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert chosen.tolist() == sorted(chosen.tolist())
    assert chosen.tolist() == probe.few_shots(labels, 2, seed=1).tolist()
    assert any(probe.few_shots(labels, 2, seed=s).tolist() != chosen.tolist() for s in range(2, 9))


def test_chosen_penalty_is_the_best_on_held_out_pictures():
    train, labels = data(200, 4)
    chosen = probe.Ridge.choose_penalty(train, labels, 5)
    queries, truth = data(1000, 5)
    model = probe.Ridge(train, labels, 5)
    right = {p: (model.scores(queries, 10.0**p).argmax(1) == truth).float().mean() for p in probe.RIDGE_POWERS}
    assert (model.scores(queries, chosen).argmax(1) == truth).float().mean() > max(right.values()) - 0.05


@pytest.mark.parametrize("task", [results.KNN, results.LINEAR_PROBE])
def test_learning_and_testing_on_the_same_pictures(tiny_model: CLIP, image_folder: Path, task: str, monkeypatch):
    monkeypatch.setattr(probe, "NUM_NEIGHBOURS", 1)
    test_set = open_dataset(str(image_folder))
    line = probe.Probe(test_set, test_set, task).run(of_model(tiny_model), SETTINGS).line
    assert (line["task"], line["num_samples"], line["num_train"]) == (task, 23, 23)
    if task == results.LINEAR_PROBE:
        assert line["penalty"] > 0
        assert line["metrics"]["top1"]["value"] > 0.2


def test_nearest_neighbour_of_a_training_picture_is_itself():
    train, labels = data(40, 6)
    found = probe.rank_true_classes(lambda x: probe.knn_scores(x, train, labels, 5, k=1), train, labels)
    assert (found == 0).all()


def test_shots_limit_the_training_pictures(tiny_model: CLIP, image_folder: Path):
    test_set = open_dataset(str(image_folder))
    line = probe.Probe(test_set, test_set, results.KNN, shots=2).run(of_model(tiny_model), SETTINGS).line
    # Seven classes, one of which has a single picture.
    assert line["num_train"] == 13
    assert line["shots"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "knn"}, "needs images to learn from"),
        ({"task": "knnn"}, "did you mean knn"),
        ({"train": "y"}, "not for zeroshot_classification"),
        ({"task": "knn", "train": "y", "shots": 0}, "at least one image"),
        ({"task": "linear_probe", "train": "y", "templates": "plain"}, "templates are for"),
        ({"task": "zeroshot_retrieval", "classes": "imagenet1k"}, "captions, not classes"),
    ],
)
def test_contradicting_entries(arguments: dict, message: str):
    with pytest.raises(UserError, match=message):
        SuiteEntry(data="x", **arguments)
