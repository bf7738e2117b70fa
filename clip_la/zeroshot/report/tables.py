"""What to look at beyond the averages: a table of the classes, what the worst are mistaken for, two models compared."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from clip_la.atomic import atomic_write
from clip_la.errors import UserError
from clip_la.zeroshot.runner.rows import pair
from clip_la.zeroshot.tasks import metrics
from clip_la.zeroshot.tasks.task import Evaluation

COLUMNS = ("id", "name", "pictures", "recall", "mistaken_for")
MISTAKES_SHOWN = 5
# Results that differ in one of these are of different images or questions.
PAIRED_BY = ("dataset", "data_hash", "names_hash", "templates_hash")
LANGUAGE = "en"


def write_class_table(evaluation: Evaluation) -> Path:
    """Writes a CSV beside the predictions: a row a class with images, the worst first, and for what it was taken.

    Raises:
        UserError: a task without predictions.
    """
    predictions, classes = evaluation.predictions, evaluation.test_set.classes
    hits = predictions.hits()
    first = predictions.top[:, 0].copy()
    # Where another accepted class was meant (ReaL), the image is no mistake.
    first[hits] = predictions.labels[hits]
    images = np.bincount(predictions.labels, minlength=len(classes))
    table = []
    for index, recall, wrong in metrics.most_confused(predictions.labels, first, len(classes), len(classes)):
        mistakes = "; ".join(f"{classes.names[other][0]} ({times})" for other, times in wrong[:MISTAKES_SHOWN])
        values = (classes.ids[index], classes.names[index][0], int(images[index]), round(recall, 6), mistakes)
        table.append(dict(zip(COLUMNS, values, strict=True)))
    assert evaluation.path is not None, "predictions that are not kept"
    path = evaluation.path.with_suffix(".classes.csv")
    with atomic_write(path, "w") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return path


def compare(a: Evaluation, b: Evaluation) -> dict[str, Any]:
    """Two models on the same images: top-1 of b minus that of a, with interval, and McNemar's exact p-value.

    Raises:
        UserError: other data sets, class sets or prompts; or no predictions to pair.
    """
    for name in PAIRED_BY:
        if a.line.get(name) != b.line.get(name):
            raise UserError(f"results differ in {name} ({a.line.get(name)}, {b.line.get(name)}): they cannot be paired")
    rows_a, rows_b = pair(a.predictions, b.predictions)
    paired = metrics.compare(a.predictions.hits()[rows_a], b.predictions.hits()[rows_b])
    return {
        "comparison": "top1",
        "dataset": a.line["dataset"],
        "a": a.line["checkpoint"] or a.line["model"],
        "b": b.line["checkpoint"] or b.line["model"],
        "difference": asdict(paired.difference),
        "only_a": paired.only_a,
        "only_b": paired.only_b,
        "num_samples": paired.num_samples,
        "mcnemar_p": paired.p_value,
    }


def compare_all(done: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Each model against the first one, on each data set that both were evaluated on.

    Raises:
        UserError: no two evaluations that can be paired.
    """
    first: dict[tuple[Any, ...], Evaluation] = {}
    comparisons = []
    for evaluation in done:
        if evaluation.rows is not None:
            base = first.setdefault(tuple(evaluation.line.get(name) for name in PAIRED_BY), evaluation)
            if base is not evaluation:
                comparisons.append(compare(base, evaluation))
    if not comparisons:
        raise UserError("nothing to compare: name two models or more, or --checkpoints all")
    return comparisons


def describe_comparison(comparison: Mapping[str, Any]) -> str:
    """A comparison in one line for a person."""
    difference = comparison["difference"]
    return (
        f"{comparison['b']} against {comparison['a']} on {comparison['dataset']}: top-1 "
        f"{100 * difference['value']:+.2f} points [{100 * difference['low']:+.2f}, {100 * difference['high']:+.2f}], "
        f"right alone {comparison['only_b']} and {comparison['only_a']}, p = {comparison['mcnemar_p']:.3g} (McNemar)"
    )


# Our names of metrics -> CLIP_benchmark's; the others are the same.
CLIP_BENCHMARK_NAMES = {"top1": "acc1", "top5": "acc5"}


def write_clip_benchmark(line: Mapping[str, Any], folder: Path) -> Path:
    """Writes a result as CLIP_benchmark does, for `clip_benchmark build`; one file a result, with its id in the name.

    Without it, results that differ only in what CLIP_benchmark's name leaves out (prompts, shots) would be one file.
    """
    model, _, pretrained = str(line["checkpoint"] or line["model"]).partition(":")
    content = {
        "dataset": line["dataset"],
        "model": line["model"],
        "pretrained": pretrained or model,
        "task": line["task"],
        "metrics": {CLIP_BENCHMARK_NAMES.get(name, name): own["value"] for name, own in line["metrics"].items()},
        "language": LANGUAGE,
    }
    parts = (content["dataset"], content["pretrained"], content["model"], LANGUAGE, content["task"], line["evaluation"])
    path = folder / f"{'_'.join(str(part).replace('/', '-') for part in parts)}.json"
    with atomic_write(path, "w") as stream:
        json.dump(content, stream)
    return path
