"""`clip-la scaling fit|plot|sweep`: scaling laws from result files, and the runs that make these."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clip_la.cli import Parser
from clip_la.errors import EXIT_CODE, UserError, unknown

if TYPE_CHECKING:
    from clip_la.scaling.analysis import Analysis

DEFAULT_BINS = 5
DESCRIPTIONS = {
    "fit": "Fits power laws E = beta C^alpha of error in compute, with bootstrap intervals, a law for each attention.",
    "plot": "Draws error against compute with the fits and their bands, as PNG and SVG.",
    "sweep": "Trains every run of a grid (YAML), one at a time on each GPU; what is finished is skipped.",
}


def _parser(verb: str) -> Parser:
    parser = Parser(prog=f"clip-la scaling {verb}", description=DESCRIPTIONS[verb])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="result lines, or folders of runs")
    parser.add_argument("--format", default="results", help="results (ours) or laion (zeroshot_results.csv of LAION)")
    parser.add_argument("--metric", help="what 1 - metric is fitted (default: top1; laion: what its paper plots)")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="NAME",
        help="data set; several times: the mean error over them",
    )
    parser.add_argument("--frontier", default="all", help="points that enter: all, pareto, or bins (best of each)")
    parser.add_argument("--bins", type=int, metavar="N", help=f"with --frontier bins (default {DEFAULT_BINS})")
    parser.add_argument(
        "--by", metavar="FIELD", help="a fit for each: attention, model or train_data; laion: source too"
    )
    parser.add_argument(
        "--where", action="append", default=[], metavar="FIELD=VALUE", help="only results with this value; repeatable"
    )
    parser.add_argument("--resamples", type=int, default=2000, metavar="N", help="bootstrap resamples (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    if verb == "fit":
        parser.add_argument("--json", action="store_true", help="print everything as JSON")
    else:
        parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="PATH.png and PATH.svg are written")
    return parser


def _analyse(options: argparse.Namespace) -> "Analysis":
    from clip_la.scaling.analysis import analyse
    from clip_la.scaling.laion import laion_points
    from clip_la.scaling.points import parse_filters
    from clip_la.scaling.results import result_points

    if options.bins is not None and options.frontier != "bins":
        raise UserError("--bins belongs to --frontier bins")
    if options.resamples < 1 or options.seed < 0:
        raise UserError("--resamples takes a number from 1, --seed one from 0")
    filters = parse_filters(options.where)
    if options.format == "laion":
        if len(options.target) > 1:
            raise UserError("--format laion fits one --target at a time")
        target = options.target[0] if options.target else None
        selection = laion_points(options.files, target=target, metric=options.metric, filters=filters)
    elif options.format == "results":
        selection = result_points(options.files, targets=options.target, metric=options.metric, filters=filters)
    else:
        raise unknown("format", options.format, ("laion", "results"))
    return analyse(
        selection,
        by=options.by,
        frontier=options.frontier,
        num_bins=DEFAULT_BINS if options.bins is None else options.bins,
        num_resamples=options.resamples,
        seed=options.seed,
    )


def _fit(options: argparse.Namespace) -> None:
    from clip_la.scaling.report import to_data, to_text

    analysis = _analyse(options)
    print(json.dumps(to_data(analysis), indent=2, allow_nan=False) if options.json else to_text(analysis))


def _plot(options: argparse.Namespace) -> None:
    from clip_la.scaling.plot import output_paths, save_plot
    from clip_la.scaling.report import to_text

    output_paths(options.out)
    analysis = _analyse(options)
    print(to_text(analysis))
    png, svg = save_plot(analysis, options.out)
    print(f"wrote {png} and {svg}")


VERBS = ("fit", "plot", "sweep")


def main(argv: list[str]) -> int | None:
    """Runs `clip-la scaling fit|plot|sweep ...`. Raises UserError."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = "\n".join(f"  clip-la scaling {verb:<6}{text}" for verb, text in DESCRIPTIONS.items())
        print(
            f"usage: clip-la scaling {{{','.join(VERBS)}}} FILE ... [options]\n\n{lines}",
            file=None if argv else sys.stderr,
        )
        return 0 if argv else EXIT_CODE
    verb, *rest = argv
    if verb not in VERBS:
        raise unknown("scaling command", verb, VERBS)
    if verb == "sweep":
        from clip_la.commands.scaling_sweep import main as sweep

        return sweep(rest)
    (_fit if verb == "fit" else _plot)(_parser(verb).parse_args(rest))
    return 0
