"""What a person reads of data and results, in lines."""

from collections.abc import Callable
from typing import Any

from clip_la import results
from clip_la.zeroshot.datasets.records import EvalDataset


def describe(test_set: EvalDataset, report: Callable[[str], None]) -> None:
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
            others += f" of which {line['classes_with_pictures']} have pictures"
    if "templates" in line:
        others += f", templates {line['templates']}"
    task = "" if line["task"] == results.CLASSIFICATION else f", {line['task']}"
    size = f"{line['num_samples']} pictures, {others}{task}{skipped}"
    return f"{line['checkpoint'] or line['model']} on {line['dataset']} ({size}): {', '.join(figures)}"
