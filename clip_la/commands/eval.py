"""`clip-la eval`: zero-shot evaluation of runs, checkpoints and open_clip models."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from clip_la.cli import Parser
from clip_la.errors import UserError
from clip_la.json_text import json_text

if TYPE_CHECKING:
    from clip_la.zeroshot.suite import Extras, Report
    from clip_la.zeroshot.tasks.classification import Evaluation
    from clip_la.zeroshot.tasks.entries import SuiteEntry

DESCRIPTION = """Zero-shot evaluation. MODEL is a run's folder, a checkpoint of ours, or an open_clip model with weights
(NAME:FILE, NAME:TAG, hf-hub:ORG/NAME). Under torchrun all processes share the work; the result is the same."""


def _choices() -> str:
    """What --classes and --templates know, for the end of the help."""
    from clip_la.zeroshot.labels.classes import CATALOG, EMOJI, NAMINGS
    from clip_la.zeroshot.labels.prompts import BUILT_IN

    sets = {name: about for name, (_, about) in CATALOG.items()} | {EMOJI: "the names of all emoji"}
    tables = {"class sets": sets, "names, as SET/NAME": NAMINGS, "templates": BUILT_IN}
    return "\n\n".join(
        "\n".join([f"{title}:", *(f"  {name:<20}{about}" for name, about in table.items())])
        for title, table in tables.items()
    )


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="clip-la eval",
        description=DESCRIPTION,
        epilog=_choices(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="one model or several")
    parser.add_argument("--data", metavar="PATH", help="class folders, webdataset shards or Parquet files")
    parser.add_argument(
        "--classes", metavar="SET", help="imagenet1k, imagenet1k/raw, imagenet21k/lemmas, ... or a file"
    )
    parser.add_argument(
        "--templates", metavar="SET", help="openai80, simple7, plain, name, definition, a file, or 'a {c}.'"
    )
    parser.add_argument("--labels", help="own (default), or real: ReaL labels for ImageNet-1K")
    parser.add_argument(
        "--unknown-classes",
        metavar="skip|error",
        help="pictures whose class the set lacks: skip and count them (default), or stop",
    )
    parser.add_argument("--name", metavar="NAME", help="the data set's name in results (default: its folder's)")
    parser.add_argument("--checkpoints", default="last", help="of a run: last (default) or all")
    parser.add_argument("--config", metavar="FILE", help="a YAML suite of data sets (see configs/eval)")
    parser.add_argument(
        "--out", metavar="FILE", help="where results are appended (default: RUN/results.jsonl, else here)"
    )
    parser.add_argument("--again", action="store_true", help="evaluate even what the result file already has")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: an accelerator if there is one)")
    parser.add_argument("--precision", help="float32 (default on a CPU) or bf16 (default on an accelerator)")
    parser.add_argument(
        "--transform",
        default="clip_la",
        metavar="NAME",
        help="clip_la (default: upright, transparency on white) or open_clip (its own, on the picture as stored)",
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="size other than training's; interpolates")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="pictures at a time (default 128)")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one a core, at most 16)")
    parser.add_argument(
        "--sample-seconds",
        metavar="S",
        help="a picture that takes longer to decode is skipped and counted (default 60)",
    )
    parser.add_argument(
        "--cache", metavar="DIR", help="where text classifiers are kept, or none (default: ~/.cache/clip_la)"
    )
    parser.add_argument(
        "--contact-sheet", metavar="PATH", help="write PATH.png and PATH.html: pictures with predicted names"
    )
    parser.add_argument("--task", help="zeroshot_classification (default), zeroshot_retrieval, linear_probe, knn")
    parser.add_argument("--train", metavar="PATH", help="labelled pictures for linear_probe and knn")
    parser.add_argument("--shots", type=int, metavar="N", help="pictures a class to learn from (default: all)")
    parser.add_argument("--compare", action="store_true", help="compare each model with the first, picture by picture")
    parser.add_argument("--per-class", action="store_true", help="write a table of the classes beside the predictions")
    parser.add_argument("--clip-benchmark", metavar="DIR", help="also write each result as CLIP_benchmark's JSON file")
    parser.add_argument("--compile", action="store_true", help="compile the towers (for large data sets)")
    parser.add_argument("--json", action="store_true", help="print the result lines as JSON on stdout")
    return parser


def main(argv: list[str]) -> int | None:
    """Runs `clip-la eval`."""
    options = make_parser().parse_args(argv)
    from clip_la import distributed as ranks

    done, comparisons = evaluate(options)
    if options.json and ranks.rank() == 0:
        for line in [*(evaluation.line for evaluation in done), *comparisons]:
            print(json_text(line))
    return None


def evaluate(options: argparse.Namespace) -> "tuple[list[Evaluation], list[dict[str, Any]]]":
    """What the command does but for printing JSON: evaluations, and comparisons where asked for. Raises UserError."""
    from clip_la import distributed as ranks
    from clip_la.data.shards.watch import set_sample_seconds
    from clip_la.zeroshot.suite import compare_all, run_suite

    models, entries = _asked_for(options)
    _check_counts(options)
    if options.sample_seconds is not None:
        set_sample_seconds(options.sample_seconds)
    report = _reporter(sys.stderr if options.json else sys.stdout)
    local_rank = ranks.join_from_environment()
    try:
        done = run_suite(models, entries, **_how(options, local_rank), extras=_extras(options), report=report)
        return done, compare_all(done, report) if options.compare else []
    finally:
        ranks.leave()


def _asked_for(options: argparse.Namespace) -> "tuple[list[str], list[SuiteEntry]]":
    """The models and what to evaluate them on. Raises UserError where either is missing or wrong."""
    from clip_la.zeroshot.model.load import expand_models
    from clip_la.zeroshot.suite import SuiteEntry, read_suite

    keys = ("data", "classes", "templates", "name", "labels", "task", "train", "shots", "unknown_classes")
    given = {key: value for key in keys if (value := getattr(options, key)) is not None}
    if options.config:
        models, entries = read_suite(options.config, **given)
    elif options.data:
        models, entries = [], [SuiteEntry(**given)]
    else:
        raise UserError("nothing to evaluate on: give --data PATH or --config FILE (see configs/eval)")
    models = expand_models(options.models or models, options.checkpoints)
    if not models:
        raise UserError("no model: name a run, a checkpoint, or an open_clip model as NAME:FILE")
    return models, entries


def _check_counts(options: argparse.Namespace) -> None:
    for option, least in (("batch_size", 1), ("workers", 0), ("image_size", 1)):
        if (value := getattr(options, option)) is not None and value < least:
            raise UserError(f"--{option.replace('_', '-')} must be at least {least}, not {value}")


def _reporter(stream: TextIO) -> "Report":
    """A function that prints a line on `stream`, of the first rank."""
    from clip_la import distributed as ranks

    def report(text: str) -> None:
        if ranks.rank() == 0:
            print(text, file=stream)

    return report


def _how(options: argparse.Namespace, local_rank: int) -> dict[str, Any]:
    """The arguments of run_suite that say with what means, and where results go."""
    from clip_la import distributed as ranks
    from clip_la.zeroshot.model.classifier_cache import ClassifierCache, default_folder
    from clip_la.zeroshot.model.eval_model import default_precision
    from clip_la.zeroshot.model.load import choose_device

    device = choose_device(options.device, local_rank)
    return {
        "out": Path(options.out) if options.out else None,
        "again": options.again,
        "device": device,
        "precision": options.precision or default_precision(device.type),
        "batch_size": options.batch_size,
        "num_workers": options.workers if options.workers is not None else ranks.default_workers(),
        "cache": None if options.cache == "none" else ClassifierCache(options.cache or default_folder()),
        "compiled": options.compile,
        "transform": options.transform,
        "image_size": options.image_size,
    }


def _extras(options: argparse.Namespace) -> "Extras":
    from clip_la.zeroshot.suite import Extras

    return Extras(
        Path(options.contact_sheet) if options.contact_sheet else None,
        options.per_class,
        Path(options.clip_benchmark) if options.clip_benchmark else None,
    )
