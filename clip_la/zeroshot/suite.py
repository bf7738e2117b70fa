"""Many models on many data sets: what is done is skipped, what was killed is resumed, results are appended at once."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clip_la import distributed as ranks
from clip_la import results
from clip_la.errors import UserError
from clip_la.runs import RESULTS, TRAINED, RunFolder
from clip_la.zeroshot.datasets.find import default_name, open_dataset
from clip_la.zeroshot.datasets.records import UNKNOWN, EvalDataset
from clip_la.zeroshot.datasets.shards import open_caption_shards
from clip_la.zeroshot.labels.classes import class_set
from clip_la.zeroshot.model.eval_model import EvalModel
from clip_la.zeroshot.model.load import load_eval_model
from clip_la.zeroshot.options import OWN, SuiteEntry, read_suite
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.runner.rows import Predictions
from clip_la.zeroshot.tasks.classification import Classification, choose_prompts
from clip_la.zeroshot.tasks.probe import Probe
from clip_la.zeroshot.tasks.retrieval import Retrieval
from clip_la.zeroshot.tasks.task import Evaluation, Task

__all__ = ["SuiteEntry", "describe", "evaluate_tasks", "percent", "prepare", "read_suite", "run_suite"]

Report = Callable[[str], None]
# Beside the result file: predictions, partial results and shared features.
PREDICTIONS_FOLDER = "predictions"
# How often data that change while they are evaluated are evaluated again.
TRIES = 3


def say(text: str) -> None:
    """Prints a line on stderr."""
    print(text, file=sys.stderr)


def prepare(entry: SuiteEntry) -> Task:
    """The task of an entry, its data opened; raises UserError where they are not there or do not fit."""
    if entry.task == results.RETRIEVAL:
        return Retrieval(open_caption_shards(entry.data, entry.name or default_name(entry.data)))
    classes = class_set(entry.classes) if entry.classes else None
    test_set = open_dataset(
        entry.data, classes=classes, name=entry.name, labels=entry.labels, unknown_classes=entry.unknown_classes
    )
    if entry.train is None:
        return Classification(test_set, choose_prompts(entry.templates, test_set))
    # The test set's classes hold for both, so that equal numbers mean equal classes.
    train_set = open_dataset(
        entry.train, classes=test_set.classes, unknown_classes=entry.unknown_classes, training=True
    )
    return Probe(test_set, train_set, entry.task, entry.shots)


def run_suite(
    models: Sequence[str],
    entries: Iterable[SuiteEntry],
    settings: EvalSettings,
    *,
    device: torch.device,
    out: Path | None = None,
    again: bool = False,
    compiled: bool = False,
    transform: str = OWN,
    weights: str = TRAINED,
    image_size: int | None = None,
    report: Report = say,
) -> Iterator[Evaluation]:
    """Evaluates every model on every entry, model by model; each result is written before it is yielded.

    Every rank must take all evaluations, and all work waits until somebody takes them.

    Args:
        settings: by what means; the state folder is chosen here, beside the result file.
        out: the result file; by default RUN/results.jsonl for a checkpoint of a run, else results.jsonl here.
        again: evaluate also what the result file already has.
        compiled, transform, weights, image_size: as for `load_eval_model`.
        report: takes lines for a person.

    Raises:
        UserError: wrong input; what was evaluated before it is kept.
    """
    tasks = [prepare(entry) for entry in entries]
    for test_set in {id(used): used for task in tasks for used in task.test_sets.values()}.values():
        describe(test_set, report)
    for model in models:
        eval_model = load_eval_model(
            model, device, compiled=compiled, transform=transform, weights=weights, image_size=image_size
        )
        for note in eval_model.notes:
            report(note)
        run = RunFolder.of_checkpoint(Path(model).resolve()) if Path(model).is_file() else None
        target = out or (Path(RESULTS) if run is None else run.results)
        yield from evaluate_tasks(eval_model, tasks, settings, target, again=again, report=report)


def evaluate_tasks(
    eval_model: EvalModel,
    tasks: Sequence[Task],
    settings: EvalSettings,
    target: Path,
    *,
    again: bool = False,
    report: Report = say,
) -> Iterator[Evaluation]:
    """One model on several tasks, by all ranks together; each result is in the file `target` when it is yielded.

    What `target` has already is not made again, unless `again`. Whoever calls it must take all of it: features that
    several tasks share are removed at the end.

    Raises:
        UserError: wrong input; data that changed each time while they were evaluated.
    """
    settings = replace(settings, state=target.parent / PREDICTIONS_FOLDER)
    # Also those whose data changed: their features are of no use to anybody now.
    tried: list[Task] = []
    for task in tasks:
        for _ in range(TRIES):
            tried.append(current := task.current())
            evaluation = _evaluate(eval_model, current, settings, target, again, report)
            if evaluation is not None:
                yield evaluation
                break
            report(f"{task.test_set.name} changed while it was evaluated; evaluating it as it is now")
        else:
            raise UserError(
                f"{task.test_set.name} changes while it is evaluated ({TRIES} times); wait until it is whole"
            )
    if ranks.rank() == 0:
        for task in tried:
            task.forget(eval_model, settings)


def _evaluate(
    eval_model: EvalModel, task: Task, settings: EvalSettings, target: Path, again: bool, report: Report
) -> Evaluation | None:
    """One evaluation, read from `target` or made; None if the data have changed meanwhile."""
    evaluation, labels = task.identify(eval_model, settings)
    assert settings.state is not None
    path = settings.state / f"{evaluation}.npz"

    def look() -> tuple[dict[str, Any], Predictions | None] | None:
        # Rank 0 alone looks, so that all ranks take the same way.
        line = None if again or ranks.rank() else results.find(target, evaluation, labels)
        if line is None or not task.has_predictions:
            return None if line is None else (line, None)
        try:
            return (line, Predictions.load(path)) if path.is_file() else None
        except UserError as error:
            say(f"{error}; evaluating again")
            return None

    if (earlier := ranks.all_gather(look)[0]) is not None:
        return Evaluation(_relabelled(earlier[0], labels, target, report), task.test_set, earlier[1], path)
    if any(content.startswith(UNKNOWN) for content in task.content.values()):
        report(f"{task.test_set.name}: its data may have changed unseen, so it is evaluated anew")
    made = task.run(eval_model, settings)
    # A result must be of the content that its id names, not of what came in between.
    if task.has_changed():
        return None
    if ranks.rank() == 0:
        results.append(target, made.line)
        report(f"{summary(made.line)}\n  wrote {target}{f' and {path}' if task.has_predictions else ''}")
    return made


def _relabelled(line: dict[str, Any], labels: dict[str, Any], target: Path, report: Report) -> dict[str, Any]:
    """A line that is in `target` already; where it has other names or paths than asked for, one more is written."""
    name = f"{labels['checkpoint'] or labels['model']} on {labels['dataset']}"
    if results.agrees(line, labels):
        report(f"{name}: already in {target}")
        # Paths as they are spelt now.
        return {**line, **{key: value for key, value in labels.items() if value is not None}}
    before = f"{line['checkpoint'] or line['model']} on {line['dataset']}"
    same = f"the same as {before}" if before != name else "the same under other labels"
    # Fits and tables find results by these names, so the line must be there under each.
    line = {**line, **labels}
    if ranks.rank() == 0:
        results.append(target, line)
    report(f"{name}: {same}, already in {target}; wrote a line under this name")
    return line


def describe(test_set: EvalDataset, report: Report) -> None:
    """Says what is odd about the data, and which names stand for several classes: no model can tell these apart."""
    for note in test_set.notes:
        report(note)
    shared = test_set.classes.collisions()
    if shared:
        examples = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in list(shared.items())[:2])
        num_classes = len({key for keys in shared.values() for key in keys})
        report(
            f"{test_set.classes.label}: {len(shared)} names stand for several of {num_classes} classes ({examples}"
            f"{'; ...' if len(shared) > 2 else ''}); an image counts as right only for its own class"
        )
    alike = test_set.classes.read_alike()
    if alike:
        examples = "; ".join(", ".join(map(repr, names)) for names in list(alike.values())[:2])
        report(
            f"{test_set.classes.label}: names of several classes that are one for the tokenizer, {len(alike)} times "
            f"({examples}{'; ...' if len(alike) > 2 else ''}); no model can tell these apart"
        )


def percent(estimate: dict[str, float]) -> str:
    """A share with its interval: "12.34 % [11.90, 12.80]"."""
    return f"{100 * estimate['value']:.2f} % [{100 * estimate['low']:.2f}, {100 * estimate['high']:.2f}]"


def summary(line: dict[str, Any]) -> str:
    """A result in one line for a person."""
    figures = []
    for name, estimate in line["metrics"].items():
        # Ranks and losses are numbers, everything else is a share.
        is_number = name.endswith(("_rank", "_loss"))
        numbers = f"{estimate['value']:g} [{estimate['low']:g}, {estimate['high']:g}]"
        figures.append(f"{name} {numbers if is_number else percent(estimate)}")
    first = {reason: f" (first: {key})" for reason, key in line.get("skipped_examples", {}).items()}
    skipped = "".join(f", {count} skipped: {why}{first.get(why, '')}" for why, count in line["skipped"].items())
    if "num_captions" in line:
        others = f"{line['num_captions']} captions"
    else:
        others = f"{line['num_classes']} classes of {line['names']}"
        if line.get("classes_with_pictures", line["num_classes"]) < line["num_classes"]:
            others += f" of which {line['classes_with_pictures']} have images"
    if "templates" in line:
        others += f", templates {line['templates']}"
    task = "" if line["task"] == results.CLASSIFICATION else f", {line['task']}"
    size = f"{line['num_samples']} images, {others}{task}{skipped}"
    averaged = ", averaged weights," if line.get("weights") else ""
    at = f" at {line['eval_image_size']} px" if line.get("eval_image_size") else ""
    return f"{line['checkpoint'] or line['model']}{averaged}{at} on {line['dataset']} ({size}): {', '.join(figures)}"
