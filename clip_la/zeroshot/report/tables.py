"""What to look at beyond the averages: a table of the classes, what the worst are mistaken for, two models compared."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_la.atomic import atomic_write
from clip_la.errors import UserError
from clip_la.zeroshot import metrics
from clip_la.zeroshot.labels.classes import ClassSet
from clip_la.zeroshot.runner import predictions
from clip_la.zeroshot.tasks.classification import Evaluation

COLUMNS = ("id", "name", "pictures", "recall", "mistaken_for")
MISTAKES_SHOWN = 5
# Results that differ in one of these are of different pictures or questions.
PAIRED_BY = ("dataset", "data_hash", "names_hash", "templates_hash")
LANGUAGE = "en"


def class_table(evaluation: Evaluation, classes: ClassSet) -> list[dict[str, Any]]:
    """One row a class with pictures, the worst first: recall, and for what it was taken how often."""
    found = evaluation.predictions
    first = found.top[:, 0].copy()
    # Where another accepted class was meant (ReaL), the picture is no mistake.
    first[found.ranks == 0] = found.labels[found.ranks == 0]
    pictures, _ = metrics.per_class_counts(found.labels, found.ranks == 0, len(classes))
    rows = []
    for index, recall, wrong in metrics.most_confused(found.labels, first, len(classes), len(classes)):
        mistakes = "; ".join(f"{classes.names[other][0]} ({times})" for other, times in wrong[:MISTAKES_SHOWN])
        values = (classes.ids[index], classes.names[index][0], int(pictures[index]), round(recall, 6), mistakes)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def write_class_table(evaluation: Evaluation, classes: ClassSet, path: Path) -> Path:
    """Writes `class_table` as CSV."""
    with atomic_write(path, "w") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(class_table(evaluation, classes))
    return path


def compare(a: Evaluation, b: Evaluation) -> dict[str, Any]:
    """Two models on the same pictures: top-1 of b minus that of a, with interval, and McNemar's exact p-value.

    Raises:
        UserError: other data sets, class sets or prompts; or no predictions to pair.
    """
    for name in PAIRED_BY:
        if a.line.get(name) != b.line.get(name):
            raise UserError(f"results differ in {name} ({a.line.get(name)}, {b.line.get(name)}): they cannot be paired")
    rows_a, rows_b = predictions.pair(a.predictions, b.predictions)
    found = metrics.compare(predictions.hits(a.predictions)[rows_a], predictions.hits(b.predictions)[rows_b])
    return {
        "comparison": "top1",
        "dataset": a.line["dataset"],
        "a": a.line["checkpoint"] or a.line["model"],
        "b": b.line["checkpoint"] or b.line["model"],
        "difference": found.difference.to_dict(),
        "only_a": found.only_a,
        "only_b": found.only_b,
        "num_samples": found.num_samples,
        "mcnemar_p": found.p_value,
    }


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


def clip_benchmark_form(line: Mapping[str, Any]) -> dict[str, Any]:
    """A result as CLIP_benchmark writes it; `clip_benchmark build` makes its table of such files."""
    model, _, pretrained = str(line["checkpoint"] or line["model"]).partition(":")
    named = {CLIP_BENCHMARK_NAMES.get(name, name): estimate["value"] for name, estimate in line["metrics"].items()}
    return {
        "dataset": line["dataset"],
        "model": line["model"],
        "pretrained": pretrained or model,
        "task": line["task"],
        "metrics": named,
        "language": LANGUAGE,
    }


def write_clip_benchmark(line: Mapping[str, Any], folder: Path) -> Path:
    """Writes one file a result, under a name like CLIP_benchmark's with the evaluation's id at the end.

    Without it, results that differ only in what CLIP_benchmark's name leaves out (prompts, shots) would be one file.
    """
    content = clip_benchmark_form(line)
    parts = (content["dataset"], content["pretrained"], content["model"], LANGUAGE, content["task"], line["evaluation"])
    path = folder / f"{'_'.join(str(part).replace('/', '-') for part in parts)}.json"
    with atomic_write(path, "w") as stream:
        json.dump(content, stream)
    return path
