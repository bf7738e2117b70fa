"""Many models on many data sets: what is done is skipped, what was killed goes on, results are appended at once."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from clip_la import distributed as ranks
from clip_la import results
from clip_la.errors import UserError
from clip_la.zeroshot.datasets.records import UNKNOWN, EvalDataset
from clip_la.zeroshot.model.classifier_cache import ClassifierCache
from clip_la.zeroshot.model.eval_model import OWN, EvalModel
from clip_la.zeroshot.model.load import load_eval_model, run_folder
from clip_la.zeroshot.report import tables
from clip_la.zeroshot.report.contact_sheet import contact_sheet
from clip_la.zeroshot.runner import predictions
from clip_la.zeroshot.tasks.classification import DEFAULT_BATCH_SIZE, PREDICTIONS_FOLDER, Evaluation
from clip_la.zeroshot.tasks.entries import SuiteEntry, prepare, read_suite
from clip_la.zeroshot.tasks.task import EvalOptions, Task

__all__ = ["Extras", "SuiteEntry", "percent", "read_suite", "run_suite"]

Report = Callable[[str], None]
# How often data that change while they are evaluated are evaluated again.
TRIES = 3


def say(text: str) -> None:
    """Prints a line on stderr."""
    print(text, file=sys.stderr)


@dataclass(frozen=True)
class Extras:
    """What is written beside the result lines: contact sheets, class tables, CLIP_benchmark's files."""

    sheet: Path | None = None
    per_class: bool = False
    clip_benchmark: Path | None = None


def default_out(model: str) -> Path:
    """RUN/results.jsonl for a checkpoint of a run, else results.jsonl here."""
    run = run_folder(model) if Path(model).is_file() else None
    return Path(results.FILE_NAME) if run is None else run / results.FILE_NAME


def run_suite(
    models: Sequence[str],
    entries: Iterable[SuiteEntry],
    *,
    device: torch.device,
    precision: str,
    batch_size: int = DEFAULT_BATCH_SIZE,
    num_workers: int = 0,
    cache: ClassifierCache | None = None,
    out: Path | None = None,
    again: bool = False,
    compiled: bool = False,
    transform: str = OWN,
    image_size: int | None = None,
    extras: Extras = Extras(),
    report: Report = say,
) -> list[Evaluation]:
    """Evaluates every model on every entry, model by model; each result is written as soon as it is there.

    Args:
        image_size: side of the images in pixels, if not what the models were trained at.

    Raises:
        UserError: wrong input; what was evaluated before it is kept.
    """
    jobs = [prepare(entry) for entry in entries]
    for test_set in {id(used): used for job in jobs for used in (job.test_set, *job.featured())}.values():
        describe(test_set, report)
    how = EvalOptions(precision, batch_size, num_workers, cache)
    done: list[Evaluation] = []
    for model in models:
        eval_model = load_eval_model(model, device, compiled=compiled, transform=transform, image_size=image_size)
        for note in eval_model.notes:
            report(note)
        target = out or default_out(model)
        for job, evaluation in zip(jobs, evaluate_jobs(eval_model, jobs, how, target, again, report), strict=True):
            done.append(evaluation)
            if ranks.rank() == 0:
                _write_extras(extras, evaluation, job, target.parent, len(models) * len(jobs) > 1, report)
    return done


def evaluate_jobs(
    eval_model: EvalModel, jobs: Sequence[Task], how: EvalOptions, target: Path, again: bool, report: Report
) -> Iterator[Evaluation]:
    """One model on everything, by all ranks together; each result is in the file `target` when it is given out.

    What `target` has already is not made again, unless `again`. Whoever calls it must take all of it: features that
    several jobs share are removed at the end.

    Raises:
        UserError: wrong input; data that changed each time while they were evaluated.
    """
    state = target.parent / PREDICTIONS_FOLDER
    looked_at: list[Task] = []
    for job in jobs:
        for _ in range(TRIES):
            looked_at.append(found := job.as_found())
            evaluation = _one(eval_model, found, how, target, state, again, report)
            if evaluation is not None:
                yield evaluation
                break
            report(f"{job.test_set.name} changed while it was evaluated; evaluating it as it is now")
        else:
            raise UserError(
                f"{job.test_set.name} changes while it is evaluated ({TRIES} times); wait until it is whole"
            )
    if ranks.rank() == 0:
        for job in looked_at:
            job.forget(eval_model, how, state)


def _one(
    eval_model: EvalModel, job: Task, how: EvalOptions, target: Path, state: Path, again: bool, report: Report
) -> Evaluation | None:
    """One evaluation, found or made; None if the data have changed meanwhile."""
    evaluation, labels = job.identify(eval_model, how), job.labels(eval_model)

    def look() -> Evaluation | None:
        # Rank 0 alone looks, so that all ranks take the same way.
        return None if again or ranks.rank() else _finished(target, state, evaluation, labels, job)

    if (found := ranks.all_gather(look)[0]) is not None:
        return _under_its_name(found, labels, target, report)
    if any(content.startswith(UNKNOWN) for content in job.content.values()):
        report(f"{job.test_set.name}: nothing tells whether its data are still the same, so it is evaluated anew")
    made = job.run(eval_model, how, state)
    if job.has_changed():
        return None
    if ranks.rank() == 0:
        results.append(target, made.line)
        beside = f" and {state / evaluation}.npz" if job.has_predictions else ""
        report(f"{summary(made.line)}\n  wrote {target}{beside}")
    return made


def _under_its_name(found: Evaluation, labels: dict[str, Any], target: Path, report: Report) -> Evaluation:
    """A result of before; where it stands under another name or path than was asked for, a line under that is added."""
    line = found.line
    name = f"{labels['checkpoint'] or labels['model']} on {labels['dataset']}"
    if results.agrees(line, labels):
        report(f"{name}: already in {target}")
        # Paths as they are spelt now.
        return replace(found, line={**line, **{key: value for key, value in labels.items() if value is not None}})
    before = f"{line['checkpoint'] or line['model']} on {line['dataset']}"
    same = f"the same as {before}" if before != name else "the same under other labels"
    line = {**line, **labels}
    if ranks.rank() == 0:
        results.append(target, line)
    report(f"{name}: {same}, already in {target}; wrote a line under this name")
    return replace(found, line=line)


def _finished(target: Path, state: Path, evaluation: str, labels: dict[str, Any], job: Task) -> Evaluation | None:
    """A result of before, if its line (and its predictions, where the job makes some) are there and whole."""
    line = results.find(target, evaluation, labels)
    if line is None or not job.has_predictions:
        return None if line is None else Evaluation(line)
    path = state / f"{evaluation}.npz"
    if not path.is_file():
        return None
    try:
        return Evaluation(line, predictions.load(path))
    except UserError as error:
        say(f"{error}; evaluating again")
        return None


def _write_extras(
    extras: Extras, evaluation: Evaluation, job: Task, folder: Path, several: bool, report: Report
) -> None:
    line = evaluation.line
    written: list[Path] = []
    if extras.clip_benchmark is not None:
        written.append(tables.write_clip_benchmark(line, extras.clip_benchmark))
    if evaluation.found is not None and extras.per_class:
        path = folder / PREDICTIONS_FOLDER / f"{line['evaluation']}.classes.csv"
        written.append(tables.write_class_table(evaluation, job.test_set.classes, path))
    if evaluation.found is not None and extras.sheet is not None:
        path = extras.sheet.with_name(f"{extras.sheet.name}-{line['evaluation']}") if several else extras.sheet
        title = f"{line['checkpoint'] or line['model']} on {line['dataset']} ({line['names']}, {line['templates']}): "
        title += f"top-1 {percent(line['metrics']['top1'])}"
        written += contact_sheet(evaluation.predictions, job.test_set, path, title=title)
    if written:
        report(f"  wrote {' and '.join(map(str, written))}")


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
            f"{'; ...' if len(shared) > 2 else ''}); a picture counts as right only for its own class"
        )
    alike = test_set.classes.read_alike()
    if alike:
        examples = "; ".join(", ".join(map(repr, names)) for names in list(alike.values())[:2])
        report(
            f"{test_set.classes.label}: names of several classes that are one for the tokenizer, {len(alike)} times "
            f"({examples}{'; ...' if len(alike) > 2 else ''}); no model can tell these apart"
        )


def compare_all(done: Sequence[Evaluation], report: Report) -> list[dict[str, Any]]:
    """Each model against the first one, on each data set that both were evaluated on."""
    first: dict[tuple[Any, ...], Evaluation] = {}
    found: list[dict[str, Any]] = []
    for evaluation in done:
        if evaluation.found is None:
            continue
        line = evaluation.line
        base = first.setdefault(tuple(line.get(name) for name in tables.PAIRED_BY), evaluation)
        if base is not evaluation:
            found.append(tables.compare(base, evaluation))
            report(tables.describe_comparison(found[-1]))
    if not found:
        raise UserError("nothing to compare: name two models or more, or --checkpoints all")
    return found


def percent(estimate: dict[str, float]) -> str:
    """A share with its interval: "12.34 % [11.90, 12.80]"."""
    return f"{100 * estimate['value']:.2f} % [{100 * estimate['low']:.2f}, {100 * estimate['high']:.2f}]"


def figure(name: str, estimate: dict[str, float]) -> str:
    """A metric with its interval; ranks are numbers, everything else is a share."""
    if name.endswith("_rank"):
        return f"{name} {estimate['value']:g} [{estimate['low']:g}, {estimate['high']:g}]"
    return f"{name} {percent(estimate)}"


def summary(line: dict[str, Any]) -> str:
    """A result in one line for a person."""
    figures = ", ".join(figure(name, estimate) for name, estimate in line["metrics"].items())
    first = {reason: f" (first: {key})" for reason, key in line.get("skipped_examples", {}).items()}
    skipped = "".join(f", {count} skipped: {why}{first.get(why, '')}" for why, count in line["skipped"].items())
    if "num_captions" in line:
        others = f"{line['num_captions']} captions"
    else:
        others = f"{line['num_classes']} classes of {line['names']}"
        if line.get("classes_with_pictures", line["num_classes"]) < line["num_classes"]:
            others += f" of which {line['classes_with_pictures']} have pictures"
    if "templates" in line:
        others += f", templates {line['templates']}"
    task = "" if line["task"] == results.CLASSIFICATION else f", {line['task']}"
    size = f"{line['num_samples']} pictures, {others}{task}{skipped}"
    at = f" at {line['eval_image_size']} px" if line.get("eval_image_size") else ""
    return f"{line['checkpoint'] or line['model']}{at} on {line['dataset']} ({size}): {figures}"
