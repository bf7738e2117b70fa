"""`clip-la eval`: zero-shot evaluation of runs, checkpoints and open_clip models."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_la.cli import Parser
from clip_la.errors import UserError
from clip_la.json_text import json_text
from clip_la.options import add_options, split_values

if TYPE_CHECKING:
    from clip_la.zeroshot.options import EvalOptions
    from clip_la.zeroshot.tasks.task import Evaluation

DESCRIPTION = """Zero-shot evaluation. MODEL is a run's folder, a checkpoint of ours, or an open_clip model with weights
(NAME:FILE, NAME:TAG, hf-hub:ORG/NAME). Under torchrun all processes share the work; the result is the same."""


def make_parser() -> Parser:
    """The command's options, as `EvalOptions` and `SuiteEntry` have them; of the latter only those that are given."""
    from clip_la.zeroshot.labels.classes import CATALOG, EMOJI, NAMINGS
    from clip_la.zeroshot.labels.prompts import BUILT_IN
    from clip_la.zeroshot.options import EvalOptions, SuiteEntry

    sets = {name: about for name, (_, about) in CATALOG.items()} | {EMOJI: "the names of all emoji"}
    tables = {"class sets": sets, "names, as SET/NAME": NAMINGS, "templates": BUILT_IN}
    known = [
        "\n".join([f"{title}:", *(f"  {name:<20}{about}" for name, about in table.items())])
        for title, table in tables.items()
    ]
    parser = Parser(
        prog="clip-la eval",
        description=DESCRIPTION,
        epilog="\n\n".join(known),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, SuiteEntry, given_only=True)
    add_options(parser, EvalOptions)
    return parser


def main(argv: list[str]) -> int | None:
    """Runs `clip-la eval`."""
    given = vars(make_parser().parse_args(argv))
    from clip_la import distributed as ranks

    done, comparisons = evaluate(given, "clip-la eval")
    if given["json"] and ranks.rank() == 0:
        for line in [*(evaluation.line for evaluation in done), *comparisons]:
            print(json_text(line))
    return None


def evaluate(given: Mapping[str, Any], who: str) -> "tuple[list[Evaluation], list[dict[str, Any]]]":
    """What the command does but for printing JSON: evaluations, and comparisons where asked for.

    given: options by name, of `EvalOptions` and `SuiteEntry`; with `json` the report goes to stderr. who: what an error
    about an unknown option names. Raises UserError for wrong input; what was evaluated before it stays saved.
    """
    from clip_la import distributed as ranks
    from clip_la.data.shards.watch import set_sample_seconds
    from clip_la.zeroshot.model.classifier import ClassifierCache
    from clip_la.zeroshot.model.eval_model import default_precision
    from clip_la.zeroshot.model.load import choose_device, expand_models
    from clip_la.zeroshot.options import EvalOptions, SuiteEntry
    from clip_la.zeroshot.report.tables import compare_all, describe_comparison
    from clip_la.zeroshot.runner.loop import EvalSettings
    from clip_la.zeroshot.suite import run_suite

    values, entry = split_values(given, who, EvalOptions, SuiteEntry)
    options = EvalOptions(**values)
    named, entries = options.models_and_entries(entry)
    if not (models := expand_models(named, options.checkpoints)):
        raise UserError("no model: name a run, a checkpoint, or an open_clip model as NAME:FILE")
    set_sample_seconds(options.sample_seconds)

    def report(text: str) -> None:
        if ranks.rank() == 0:
            print(text, file=sys.stderr if options.json else sys.stdout)

    with ranks.membership() as local_rank:
        device = choose_device(options.device, local_rank)
        settings = EvalSettings(
            precision=options.precision or default_precision(device.type),
            batch_size=options.batch_size,
            num_workers=options.workers,
            cache=None if options.cache == "none" else ClassifierCache(options.cache),
        )
        evaluations = run_suite(
            models,
            entries,
            settings,
            device=device,
            out=Path(options.out) if options.out else None,
            again=options.again,
            compiled=options.compile,
            transform=options.transform,
            weights=options.weights,
            image_size=options.image_size,
            report=report,
        )
        done = []
        for evaluation in evaluations:
            done.append(evaluation)
            if ranks.rank() == 0 and (extras := write_extras(evaluation, options, len(models) * len(entries) > 1)):
                report(f"  wrote {' and '.join(map(str, extras))}")
        comparisons = compare_all(done) if options.compare else []
        for comparison in comparisons:
            report(describe_comparison(comparison))
        return done, comparisons


def write_extras(evaluation: "Evaluation", options: "EvalOptions", several: bool) -> list[Path]:
    """Writes what the options ask for beside a result line: CLIP_benchmark's file, class table, contact sheet.

    Args:
        several: whether there are several evaluations: then each sheet has the evaluation's id in its name.

    Returns the files.
    """
    from clip_la.zeroshot.report.contact_sheet import contact_sheet
    from clip_la.zeroshot.report.tables import write_class_table, write_clip_benchmark
    from clip_la.zeroshot.suite import percent

    line, written = evaluation.line, []
    if options.clip_benchmark:
        written.append(write_clip_benchmark(line, Path(options.clip_benchmark)))
    if evaluation.rows is not None and options.per_class:
        written.append(write_class_table(evaluation))
    if evaluation.rows is not None and options.contact_sheet:
        path = Path(options.contact_sheet)
        path = path.with_name(f"{path.name}-{line['evaluation']}") if several else path
        title = f"{line['checkpoint'] or line['model']} on {line['dataset']} ({line['names']}, {line['templates']}): "
        title += f"top-1 {percent(line['metrics']['top1'])}"
        written += contact_sheet(evaluation.predictions, evaluation.test_set, path, title=title)
    return written
