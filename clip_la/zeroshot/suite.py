"""Many models on many data sets: what is done is skipped, what was killed goes on, results are appended at once."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from clip_la.errors import UserError, unknown
from clip_la.zeroshot import predictions, ranks, results
from clip_la.zeroshot.cache import ClassifierCache
from clip_la.zeroshot.classes import class_set
from clip_la.zeroshot.contact_sheet import contact_sheet
from clip_la.zeroshot.evaluate import (
    DEFAULT_BATCH_SIZE,
    PREDICTIONS_FOLDER,
    Evaluation,
    choose_prompts,
    evaluation_id,
    run_evaluation,
)
from clip_la.zeroshot.load import load_subject, run_folder
from clip_la.zeroshot.prompts import PromptSet
from clip_la.zeroshot.records import TestSet
from clip_la.zeroshot.subject import Subject
from clip_la.zeroshot.test_sets import open_test_set


@dataclass(frozen=True)
class Entry:
    """One data set of a suite, as a YAML file or the command line gives it."""

    data: str
    classes: str | None = None
    templates: str | None = None
    name: str | None = None
    labels: str = "own"


def read_suite(path: str | Path, **given: str | None) -> tuple[list[str], list[Entry]]:
    """(models, entries) of a YAML file; what is `given` and not None wins over the file, and fills in what it lacks.

    Raises:
        UserError: no such file, no YAML, an unknown key, an entry without data.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no suite at {path}; see configs/eval")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("datasets"), list):
        raise UserError(f"{path}: expected 'datasets:' with a list of entries (data, classes, templates, name, labels)")
    for key in content:
        if key not in ("models", "datasets"):
            raise unknown(f"key in {path}", str(key), ("models", "datasets"))
    return list(content.get("models") or []), [_entry(raw, path, given) for raw in content["datasets"]]


def _entry(raw: Any, path: Path, given: dict[str, str | None]) -> Entry:
    known = [field.name for field in fields(Entry)]
    if not isinstance(raw, dict):
        raise UserError(f"{path}: '{raw}' is no entry; write 'data: PATH' and what else it needs")
    for key in raw:
        if key not in known:
            raise unknown(f"key in {path}", str(key), known)
    values = {**raw, **{key: value for key, value in given.items() if value is not None}}
    if not values.get("data"):
        raise UserError(f"{path}: the entry {values.get('name') or raw} says not where its data is; give --data PATH")
    return Entry(**values)


@dataclass(frozen=True)
class Prepared:
    """An entry with its test set and prompts opened, once for all models."""

    test_set: TestSet
    prompts: PromptSet


def prepare(entry: Entry) -> Prepared:
    """Opens what an entry names; raises UserError where it is not there."""
    classes = class_set(entry.classes) if entry.classes else None
    test_set = open_test_set(entry.data, classes=classes, name=entry.name, labels=entry.labels)
    return Prepared(test_set, choose_prompts(entry.templates, test_set))


def default_out(model: str) -> Path:
    """RUN/results.jsonl for a checkpoint of a run, else results.jsonl here."""
    run = run_folder(model) if Path(model).is_file() else None
    return Path(results.FILE_NAME) if run is None else run / results.FILE_NAME


def run_suite(
    models: Sequence[str],
    entries: Iterable[Entry],
    *,
    out: Path | None = None,
    again: bool = False,
    device: torch.device,
    precision: str,
    batch_size: int = DEFAULT_BATCH_SIZE,
    num_workers: int = 0,
    cache: ClassifierCache | None = None,
    sheet: Path | None = None,
    report: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> list[Evaluation]:
    """Evaluates every model on every entry, model by model; each result is written as soon as it is there.

    Raises:
        UserError: wrong input; what was evaluated before it is kept.
    """
    prepared = [prepare(entry) for entry in entries]
    for item in prepared:
        describe_classes(item.test_set, report)
    done: list[Evaluation] = []
    for model in models:
        subject = load_subject(model, device)
        target = out or default_out(model)
        for item in prepared:
            evaluation = _one(subject, item, target, again, precision, batch_size, num_workers, cache, report)
            done.append(evaluation)
            if sheet is not None and ranks.rank() == 0:
                _sheet(sheet, evaluation, item.test_set, alone=len(models) * len(prepared) == 1, report=report)
    return done


def _one(
    subject: Subject,
    item: Prepared,
    target: Path,
    again: bool,
    precision: str,
    batch_size: int,
    num_workers: int,
    cache: ClassifierCache | None,
    report: Callable[[str], None],
) -> Evaluation:
    evaluation = evaluation_id(subject, item.test_set, item.prompts, precision, batch_size)
    state = target.parent / PREDICTIONS_FOLDER
    # Rank 0 alone looks, so that all ranks take the same way.
    found = ranks.exchange(lambda: None if again or ranks.rank() else _finished(target, state, evaluation))[0]
    if found is not None:
        report(f"{subject.label} on {item.test_set.name}: already in {target}")
        return found
    made = run_evaluation(
        subject,
        item.test_set,
        item.prompts,
        precision=precision,
        batch_size=batch_size,
        num_workers=num_workers,
        cache=cache,
        state=state,
    )
    if ranks.rank() == 0:
        results.append(target, made.line)
        report(f"{summary(made.line)}\n  wrote {target} and {state / evaluation}.npz")
    return made


def _finished(target: Path, state: Path, evaluation: str) -> Evaluation | None:
    """A result of before, if both its line and its predictions are there and whole."""
    line = results.find(target, evaluation)
    path = state / f"{evaluation}.npz"
    if line is None or not path.is_file():
        return None
    try:
        return Evaluation(line, predictions.load(path))
    except UserError as error:
        print(f"{error}; evaluating again", file=sys.stderr)
        return None


def _sheet(
    path: Path, evaluation: Evaluation, test_set: TestSet, *, alone: bool, report: Callable[[str], None]
) -> None:
    line = evaluation.line
    if not alone:
        path = path.with_name(f"{path.name}-{line['evaluation']}")
    title = f"{line['checkpoint'] or line['model']} on {line['dataset']}: top-1 {percent(line['metrics']['top1'])}"
    written = contact_sheet(evaluation.predictions, test_set, path, title=title)
    report(f"wrote {written[0]} and {written[1]}")


def describe_classes(test_set: TestSet, report: Callable[[str], None]) -> None:
    """Says which names stand for several classes: their prompts are the same, so no model can tell them apart."""
    shared = test_set.classes.collisions()
    if shared and ranks.rank() == 0:
        examples = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in list(shared.items())[:2])
        num_classes = len({key for keys in shared.values() for key in keys})
        report(
            f"{test_set.classes.label}: {len(shared)} names stand for several of {num_classes} classes ({examples}"
            f"{'; ...' if len(shared) > 2 else ''}); their pictures count as right only for their own class"
        )


def percent(estimate: dict[str, float]) -> str:
    """ "12.3 % [11.9, 12.8]" """
    return f"{100 * estimate['value']:.2f} % [{100 * estimate['low']:.2f}, {100 * estimate['high']:.2f}]"


def summary(line: dict[str, Any]) -> str:
    """A result in one line for a person."""
    figures = ", ".join(f"{name} {percent(estimate)}" for name, estimate in line["metrics"].items())
    skipped = "".join(f", {count} skipped: {reason}" for reason, count in line["skipped"].items())
    size = f"{line['num_samples']} pictures, {line['num_classes']} classes{skipped}"
    return f"{line['checkpoint'] or line['model']} on {line['dataset']} ({size}): {figures}"
